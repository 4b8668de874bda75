"""Check a cluster before a paid run: give it the words of the pretrain command that will follow.

  python -m pipelines.preflight method=simclr model=resnet50 data.train=s3://bucket/train name=first train.workers=16
  python -m pipelines.preflight … ray.address=auto         from a node of a cluster that runs

One line a check, ok or FAILED with what to do, then a table of the nodes. All checks are made even where one fails,
none waits for ever (for nodes that have to come first: ray.patience), nothing is left behind. Exit status 0 only where
all are ok.
"""

from collections.abc import Callable
from typing import Any

from pipelines.config import compose, typed
from pipelines.console import run_command, say

_PATIENCE_SECONDS = 90.0


def main(overrides: list[str]) -> None:
    """Make all checks; leaves with status 1 where one failed."""
    values = compose("pretrain", overrides)

    from pipelines.plan import with_absolute_paths
    from pipelines.preflight_checks import check_all
    from pipelines.pretrain_config import PretrainConfig

    values = with_absolute_paths(values)
    checks = Checks()
    check_all(values, typed(PretrainConfig, values), checks.make, say)
    say(checks.summary())
    if checks.failed:
        raise SystemExit(1)


class Checks:
    """Makes checks one by one, says each in a line, and remembers which failed."""

    def __init__(self, say: Callable[[str], None] = say) -> None:
        self._say = say
        self._made = 0
        self.failed: list[str] = []

    def make(self, name: str, check: Callable[[], Any], *, patience_seconds: float | None = _PATIENCE_SECONDS) -> Any:
        """Make a check; what it gave, or None where it failed.

        Args:
            name: begins the line.
            check: what it gives is said: a text, or the last of several values.
            patience_seconds: where it takes longer, it has failed; None: made in this thread, and waited for.
        """
        from pipelines.mlflow_connection import masked
        from pipelines.scouts import answer_to, answers

        answer = answer_to(check) if patience_seconds is None else answers({name: check}, patience_seconds)[name]
        self._made += 1
        said = answer.value[-1] if isinstance(answer.value, tuple) else answer.value
        if answer.error is not None:
            self.failed.append(name)
            said = " ".join(answer.error.split())
        self._say(f"{'ok' if answer.error is None else 'FAILED':6}  {name:21} {masked(str(said))}")
        return answer.value

    def summary(self) -> str:
        """The last line."""
        if self.failed:
            return f"\n{len(self.failed)} of {self._made} checks FAILED: {', '.join(self.failed)}"
        return f"\nall {self._made} checks are ok"


if __name__ == "__main__":
    run_command("preflight", __doc__, main, keys_of="pretrain")
