"""A search that learns: Optuna, told what points came to, says which one to try next."""

from collections.abc import Sequence
from typing import Any, cast

from pipelines.sweeps.space import Parameter, Point

_MOST_DRAWS = 200  # until a new point comes


class Optuna:
    """Optuna's tree-structured Parzen estimator (Bergstra et al., 2011).

    Args:
        parameters: what is varied.
        seed: of the sampler.
    """

    def __init__(self, parameters: Sequence[Parameter], *, seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._distributions = {one.key: _distribution(one) for one in parameters}
        self._asked: list[tuple[Point, Any]] = []

    def ask(self, known: Sequence[Point]) -> Point | None:
        """A point where the search expects much, or knows little, and that is not `known`; None where it finds none.

        Its first points are drawn one after the other; in a later command they are drawn, and left out, again.
        """
        from optuna.trial import TrialState

        for _ in range(_MOST_DRAWS):
            trial = self._study.ask(self._distributions)
            if trial.params not in known:
                self._asked.append((trial.params, trial))
                return trial.params
            self._study.tell(trial, state=TrialState.FAIL)
        return None

    def tell(self, point: Point, score: float | None) -> None:
        """Learn from a point, whether it was asked for here or in an earlier command."""
        from optuna.trial import TrialState, create_trial

        for place, (asked, trial) in enumerate(self._asked):
            if asked == point:
                del self._asked[place]
                self._study.tell(trial, score, state=TrialState.FAIL if score is None else None)
                return
        if score is not None:
            known = create_trial(params=dict(point), distributions=dict(self._distributions), value=score)
            self._study.add_trial(known)


def _distribution(parameter: Parameter) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if parameter.kind == "values":
        return CategoricalDistribution(cast(Any, parameter.values))
    return FloatDistribution(*parameter.values, log=parameter.kind == "log_uniform")
