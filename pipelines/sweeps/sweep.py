"""A sweep as it is configured: what it varies, what its runs share, and what can be checked before anything starts."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pipelines.config import check_key, typed
from pipelines.mlflow_connection import masked, tracking_uri
from pipelines.plan import Plan, check_inputs, make_plan, probe_data, with_absolute_paths
from pipelines.run_folder import RunFolder, find_run
from pipelines.sweeps.learner import Optuna
from pipelines.sweeps.report import TITLES, in_full
from pipelines.sweeps.space import (
    Parameter,
    Point,
    SweepConfig,
    grid,
    one_by_one,
    random_points,
    read_parameters,
    size,
    thinned,
)
from pipelines.sweeps.trials import CURVE, Trials
from ssl_core.errors import UserError
from ssl_core.storage.local import local_path

_POINTS = 20  # of a search that could go on for ever
_JUDGED_BY = ("every", "online_train", "online_val", "max_train", "max_val")  # keys below `probe`
_SET_BY_SWEEP = ("seed", "name", "storage", "register", "plan", "checkpoints", "tracking", "ray", "probe", "data.val")


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """Keys below `tune`."""

    trials: int | None = None
    seeds: int = 1
    concurrent: int | None = None
    epochs: int | None = None
    steps: int | None = None
    metric: str = CURVE
    held_out: float = 0.1
    stop_early: bool = False
    grace: float = 1
    reduction: float = 3
    train_best: bool = False

    def __post_init__(self) -> None:
        """Refuse what no sweep can do."""
        for name in ("trials", "seeds", "concurrent", "epochs", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"tune.{name}={value}: use at least 1")
        if self.metric not in TITLES:
            raise UserError(f"tune.metric={self.metric}: known are {', '.join(TITLES)}")
        if not 0 < self.held_out < 1:
            raise UserError(f"tune.held_out={self.held_out:g}: use a share between 0 and 1")
        if self.grace <= 0 or self.reduction <= 1:
            raise UserError("tune.grace is above 0 epochs and tune.reduction above 1")


@dataclass(frozen=True, kw_only=True)
class EarlyStopping:
    """Asynchronous successive halving (Li et al., 2018; arXiv 1810.05934) on the k-NN curve, by epochs."""

    grace: float
    reduction: float
    epochs: float  # of a whole trial


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A checked sweep.

    Attributes:
        name: of its folder.
        tune: how it is done.
        search: how points are found.
        parameters: what is varied.
        words: the overrides that its runs share with `pretrain`.
        values: all keys of a run at no point, as `pretrain` composes them.
        plan: of that run.
        points: those that are known beforehand; None where the search learns.
        run: its folder and record.
    """

    name: str
    tune: TuneConfig
    search: SweepConfig
    parameters: Sequence[Parameter]
    words: Sequence[str]
    values: Mapping[str, Any]
    plan: Plan
    points: Sequence[Point] | None
    run: RunFolder

    @property
    def folder(self) -> Path:
        """`<storage>/<name>`."""
        return self.run.path

    @property
    def num_points(self) -> int:
        """Points that are tried, at most."""
        if self.points is not None:
            return len(self.points)
        return int(min(self.tune.trials or _POINTS, size(self.parameters)))

    @property
    def seeds(self) -> range:
        """Of the runs of each point."""
        first = self.plan.config.seed
        return range(first, first + self.tune.seeds)

    @property
    def epochs(self) -> float:
        """Of a whole run."""
        return self.plan.total_steps / self.plan.schedule.steps_per_epoch

    @property
    def left(self) -> bool:
        """Whether a finished sweep has something to do after all: more runs, or its winner in full."""
        trials = self.trials()
        if trials.left or not self.tune.train_best:
            return trials.left > 0
        best = in_full(trials, self.words, self.name)
        return best is not None and self.run.summary()["trained"] != best.name

    @property
    def early(self) -> EarlyStopping | None:
        """When its runs are stopped early; None: never."""
        if not self.tune.stop_early:
            return None
        return EarlyStopping(grace=self.tune.grace, reduction=self.tune.reduction, epochs=self.epochs)

    def config_of(self, point: Point, seed: int, name: str, *, threads: int | None = None) -> dict[str, Any]:
        """All keys of a run.

        Args:
            point: what the sweep gives values to.
            seed: of the run.
            name: of its folder.
            threads: CPU threads of its workers, where the configuration does not say.
        """
        values = deepcopy(dict(self.values))
        for key, value in {**point, "seed": seed, "name": name}.items():
            _put(values, key, value)
        values["train"]["threads"] = values["train"]["threads"] or threads
        return values

    def trials(self, *, threads: int | None = None) -> Trials:
        """Its trials, with what became of those that there were."""

        def config_of(point: Point, seed: int, name: str) -> Mapping[str, Any]:
            return self.config_of(point, seed, name, threads=threads)

        learner = Optuna(self.parameters, seed=self.plan.config.seed) if self.points is None else None
        return Trials(
            self.folder,
            self.points or (),
            learner=learner,
            num_points=self.num_points,
            seeds=self.seeds,
            config_of=config_of,
        )

    def check(self) -> None:
        """Look at what it names, as `pretrain` does, and plan a run at every point; raises UserError."""
        if probe_data(self.plan) is None or not self.plan.train_data.parts:
            raise UserError("a sweep is judged by a probe: name labelled data as data.train or probe.train")
        if self.tune.stop_early and self.tune.grace > self.epochs:
            raise UserError(f"tune.grace={self.tune.grace:g} is longer than a run of {self.epochs:.4g} epochs")
        check_inputs(self.plan)
        for point in self.points or random_points(self.parameters, 1, seed=0):
            try:
                make_plan(self.config_of(point, 0, "check"))
            except UserError as error:
                said = ", ".join(f"{key}={value}" for key, value in point.items())
                raise UserError(f"the point {said} of the sweep cannot run: {error}") from error

    def start_line(self) -> str:
        """What is about to happen, in numbers."""
        varied = ", ".join(one.key for one in self.parameters)
        stops = f" · stopped early from epoch {self.tune.grace:g}" if self.tune.stop_early else ""
        return (
            f"sweep {self.name}: {self.search.search} over {varied} · {self.num_points} points · "
            f"{len(self.seeds)} seed(s) each · runs of {self.plan.total_steps:,} steps ({self.epochs:.4g} epochs)"
            f"{stops}\njudged by {TITLES[self.tune.metric]} on {100 * self.tune.held_out:g} % of the labelled training "
            "images, which its bank does not have; losses at different points do not compare"
        )


def plan_sweep(values: Mapping[str, Any], *, name: str, words: Sequence[str]) -> Sweep:
    """Type and check a composed configuration; raises UserError on anything that cannot run.

    Args:
        values: as `compose("tune", …)` gives them.
        name: of the sweep.
        words: the overrides that its runs share with `pretrain`.
    """
    tune = typed(TuneConfig, values["tune"], "tune.")
    search = typed(SweepConfig, values["sweep"], "sweep.")
    parameters = read_parameters(search)
    shared = _shared_values(values, tune, local_path(values["storage"]).resolve() / name)
    for one in parameters:
        if any(one.key == key or one.key.startswith(f"{key}.") for key in _SET_BY_SWEEP):
            raise UserError(f"sweep.parameters.{one.key}: the sweep sets this itself, for each of its runs")
        try:
            check_key(one.key, shared)
        except UserError as error:
            method = shared["method"]["name"]
            raise UserError(f"sweep.parameters: with method={method} there is an {error}") from error
    plan = make_plan(shared)
    run = RunFolder.open(values["storage"], name, identity=_identity(tune, search, plan), config=values)
    points = _points(search, parameters, shared, tune)
    return Sweep(
        name=name,
        tune=tune,
        search=search,
        parameters=parameters,
        words=words,
        values=shared,
        plan=plan,
        points=points,
        run=run,
    )


def _shared_values(values: Mapping[str, Any], tune: TuneConfig, folder: Path) -> dict[str, Any]:
    """What the runs share: their place, their length, and a probe that never looks at validation data."""
    own = {key: deepcopy(value) for key, value in values.items() if key not in ("tune", "sweep")}
    own = with_absolute_paths(own)
    own |= {"storage": str(folder), "register": None, "plan": False}
    own["data"]["val"] = None
    own["probe"] |= {"val": None, "held_out": tune.held_out, "at_end": tune.metric != CURVE}
    own["probe"]["every"] = own["probe"]["every"] or 1
    own["tracking"]["uri"] = _without_password(tracking_uri(own["tracking"]["uri"], values["storage"]))
    own["checkpoints"] = own["checkpoints"] and f"{own['checkpoints'].rstrip('/')}/{folder.name}"
    own["init"] = _with_absolute_path(own["init"], values["storage"])
    if tune.epochs is not None or tune.steps is not None:
        own["train"] |= {"steps": tune.steps}
        own["train"]["epochs"] = tune.epochs or own["train"]["epochs"]
    return own


def _with_absolute_path(init: str | None, storage: str) -> str | None:
    """`init` as the runs find it too, whose storage is the sweep's folder."""
    if init is None or init == "timm" or init.startswith("models:/"):
        return init
    exported = Path(init)
    return str((exported if (exported / "config.json").exists() else find_run(init, storage)).resolve())


def _without_password(uri: str) -> str:
    """Raises UserError where there is one: trials get the configuration as it is, and it is written down."""
    if masked(uri) != uri:
        raise UserError(
            f"tracking.uri={masked(uri)} has a password, which the trials' records would have too: leave it out, "
            "and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment (a database: PGPASSWORD)"
        )
    return uri


def _points(
    search: SweepConfig, parameters: Sequence[Parameter], values: Mapping[str, Any], tune: TuneConfig
) -> Sequence[Point] | None:
    if search.search == "grid":
        return thinned(grid(parameters), tune.trials)
    if search.search == "one_by_one":
        return thinned(one_by_one(parameters, {one.key: _at(values, one.key) for one in parameters}), tune.trials)
    if search.search == "random":
        return random_points(parameters, tune.trials or _POINTS, seed=int(values["seed"]))
    return None


def _identity(tune: TuneConfig, search: SweepConfig, plan: Plan) -> dict[str, Any]:
    """What its trials compare by; how many there are may change, so that a sweep can be extended."""
    probe, judged = plan.config.probe, probe_data(plan)
    return {
        "sweep": {"search": search.search, "parameters": search.parameters},
        "tune": {"metric": tune.metric, "held_out": tune.held_out},
        "judged_by": {name: getattr(probe, name) for name in _JUDGED_BY} | {"data": judged and judged[0].digest},
        **plan.identity,
    }


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    node = values
    for part in path:
        node = cast(dict[str, Any], node[part])
    node[last] = value


def _at(values: Mapping[str, Any], key: str) -> Any:
    """The configured value; None where it is one of another library's that is not named."""
    node: Any = values
    for part in key.split("."):
        node = cast(dict[str, Any], node).get(part)
        if node is None:
            return None
    return node
