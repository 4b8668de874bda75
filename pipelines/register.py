"""Register the encoder of a finished run as a version of a model, and let the gate decide who is champion.

  python -m pipelines.register run=first model=my-encoder

`champion` is the version with the best probe number (metric=) among those probed on the same data; it moves only for a
gain above one standard error. The same run is registered once, however often the command is given.
"""

from dataclasses import dataclass

from pipelines.config import compose, typed
from pipelines.console import run_command, say
from pipelines.finished_run import read_finished_run
from pipelines.mlflow_connection import RegistryPlace, tracking_uri
from pipelines.run_folder import find_run
from ssl_core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class RegisterConfig:
    """`configs/register.yaml`."""

    run: str | None
    model: str | None
    metric: str
    storage: str
    tracking: RegistryPlace


def main(overrides: list[str]) -> None:
    """Register the run."""
    config = typed(RegisterConfig, compose("register", overrides))
    if config.run is None or config.model is None:
        raise UserError("name a finished run and a model: run=<folder or name> model=<name>")
    folder = find_run(config.run, config.storage)
    read_finished_run(folder)

    from pipelines.registry import register_run

    uri = tracking_uri(config.tracking.uri, config.storage)
    done = register_run(folder, config.model, uri, metric=config.metric)
    say(str(done))
    name = f"models:/{done.model}@{done.alias}" if done.alias else f"models:/{done.model}/{done.version}"
    say(f"next: python -m pipelines.pull model={name} to=<folder>{config.tracking.words(config.storage)}")


if __name__ == "__main__":
    run_command("register", __doc__, main)
