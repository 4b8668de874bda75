"""The probe of a run: raw pixels, the random encoder and the pretrained one through the same code."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.plan import Plan, make_plan, probe_data, probe_sets
from pipelines.pretrain_config import ProbeData
from pipelines.ray_context import call_on_ray
from pipelines.run_folder import EXPORT, PROBE_FILE
from pipelines.worker import keep_freed_memory
from ssl_core.export import LoadedEncoder, load_encoder
from ssl_core.probe.labelled import LabelledSet
from ssl_core.probe.report import ProbeConfig, ProbeReport
from ssl_core.storage.local import publish_bytes


def probe_on_ray(plan: Plan, folder: Path) -> ProbeReport | None:
    """Probe a trained run on the Ray that is running, and write `probe.json`; None where none is asked for."""
    if not plan.config.probe.at_end or probe_data(plan) is None:
        return None
    content: dict[str, Any] = call_on_ray(_probe, dict(plan.values), str(folder), max_retries=2)
    publish_bytes(folder / PROBE_FILE, (json.dumps(content, indent=2) + "\n").encode())
    return ProbeReport.from_dict(content)


def probe_encoder(
    loaded: LoadedEncoder,
    train: LabelledSet,
    val: LabelledSet,
    config: ProbeConfig,
    *,
    say: Callable[[str], None] | None = None,
) -> ProbeReport:
    """Probe an exported encoder in this process, beside raw pixels and the same architecture with random weights.

    Args:
        loaded: the exported encoder.
        train: the labelled bank.
        val: the labelled validation set.
        config: what is measured; its seed also makes the random encoder.
        say: is told what is being done.
    """
    import torch

    from ssl_core.nn.backbones import build_encoder
    from ssl_core.probe.features import ImageInput, RawPixels
    from ssl_core.probe.report import PRETRAINED, RANDOM_ENCODER, RAW_PIXELS, run_probe

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = loaded.config.model
    encoders = {
        RAW_PIXELS: RawPixels(),
        RANDOM_ENCODER: build_encoder(model, seed=config.seed).to(device),
        PRETRAINED: loaded.encoder.to(device),
    }
    return run_probe(
        encoders,
        train,
        val,
        config,
        image_input=ImageInput(size=model.image_size, mean=loaded.config.mean, std=loaded.config.std),
        device=device,
        say=say,
    )


def probe_config(data: ProbeData, *, seed: int) -> ProbeConfig:
    """What is measured."""
    return ProbeConfig(max_train=data.max_train, max_val=data.max_val, seed=seed)


def _probe(values: dict[str, Any], folder: str) -> dict[str, Any]:
    """On Ray: probe with all cores, since training has ended."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    keep_freed_memory()
    plan = make_plan(values)
    labelled = probe_sets(plan)
    assert labelled is not None, "checked by the driver"
    config = probe_config(plan.config.probe, seed=plan.config.seed)
    return probe_encoder(load_encoder(Path(folder) / EXPORT), *labelled, config).to_dict()
