"""`init=`: weights to start from, resolved once by the driver and placed in the run's folder for all workers."""

from pathlib import Path
from typing import Any, cast

from pipelines.run_folder import EXPORT, INIT, RUN_FILE, find_run
from ssl_core.errors import UserError
from ssl_core.export import ExportConfig, load_encoder, load_weights, save_encoder
from ssl_core.nn.backbones import Encoder


def place_initial_weights(plan: Any, folder: Path, uri: str) -> None:
    """Resolve `init` and write `<run>/init`; nothing where none is named.

    Raises:
        UserError: what is named does not exist, or does not fit the model.
    """
    init = cast(str | None, plan.config.init)
    if init is None:
        return
    encoder = plan.random_encoder()
    if init == "timm":
        _load_timm(encoder, plan)
    else:
        loaded = load_encoder(_exported(init, plan.config.storage, uri, folder)).encoder
        load_weights(encoder, loaded.backbone.state_dict(), where=f"init={init}")
    export: ExportConfig = plan.export
    save_encoder(folder / INIT, encoder, export)


def _exported(init: str, storage: str, uri: str, folder: Path) -> Path:
    """The folder of an exported encoder: a registered model's, a run's, or the named one itself."""
    if init.startswith("models:/"):
        from pipelines.registry import pull_model

        return pull_model(init, folder / ".init-download", uri)
    if (Path(init) / "config.json").exists() and not (Path(init) / RUN_FILE).exists():
        return Path(init)
    exported = find_run(init, storage) / EXPORT
    if not exported.is_dir():
        raise UserError(f"init={init}: that run has not finished, so it has no encoder yet: continue it first")
    return exported


def _load_timm(encoder: Encoder, plan: Any) -> None:
    """timm's own pretrained weights, downloaded by timm."""
    import timm

    model = plan.config.model
    try:
        arguments: dict[str, Any] = {"in_chans": model.in_chans, **model.arguments, "num_classes": 0}
        pretrained = timm.create_model(model.name, pretrained=True, **arguments)
    except Exception as error:  # timm and its hub client raise a dozen unrelated types when there is no network
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"init=timm: timm cannot give pretrained weights for {model.name}: {first[:200]}") from error
    load_weights(encoder, pretrained.state_dict(), where=f"timm's {model.name}")
