"""Pretrain an encoder on unlabelled images: Ray Train, any number of workers, then probe it and optionally register it.

  python -m pipelines.pretrain method=simclr model=resnet18_32 data.train=shards/train data.val=shards/val name=first
  python -m pipelines.pretrain … plan=true                 check every input, print the plan, start nothing
  python -m pipelines.pretrain … register=my-encoder       register the model when it is done

The same command continues an interrupted run at the exact next step. Results: <storage>/<name>/summary.json.
"""

from datetime import datetime
from typing import Any

from pipelines.config import compose
from pipelines.console import run_command, say
from pipelines.stop_signals import StopSignals, stop_signals


def main(overrides: list[str]) -> None:
    """Check everything, then train what is left of the run, probe it, and register it if asked to."""
    with stop_signals() as stop:
        _pretrain(overrides, stop)


def _pretrain(overrides: list[str], stop: StopSignals) -> None:
    values = compose("pretrain", overrides)

    from pipelines.mlflow_connection import without_passwords
    from pipelines.plan import check_inputs, make_plan, with_absolute_paths
    from pipelines.run_folder import RunFolder

    tracker = values["tracking"]["uri"]
    values = without_passwords(with_absolute_paths(values))
    plan = make_plan(values)
    config = plan.config
    name = config.name or f"{config.method['name']}-{config.model.name}-{datetime.now():%Y%m%d-%H%M%S}"
    run = RunFolder.open(config.storage, name, identity=plan.identity, config=values)
    if run.finished and not config.plan:
        if config.register or not run.record.copied:
            from pipelines.pretraining import complete

            with run.locked():
                complete(run, plan, tracker)
        say(f"run {name} is finished; a new name starts another one")
        _print_summary(run)
        return
    check_inputs(plan)
    say(start_line(plan))
    if config.plan:
        from pipelines.estimate import estimate

        say(estimate(plan))
        return
    with run.locked():
        _carry_out(run, plan, stop, tracker)


def _carry_out(run: Any, plan: Any, stop: StopSignals, named_uri: str | None) -> None:
    from pipelines.failures import WorkerFailed
    from pipelines.pretraining import carry_out, prepare
    from pipelines.ray_context import ray_for

    uri = prepare(run, plan, named_uri)
    with ray_for(plan.config.ray.cluster, workers=plan.workers[1]):
        stop.take_over()
        try:
            carry_out(run, plan, stop, uri)
        except WorkerFailed as error:
            say(error.said)
            raise SystemExit(1) from error


def start_line(plan: Any) -> str:
    """What is about to happen, in numbers."""
    from ssl_core.optim.build import peak_rate

    lanes, config = plan.lanes, plan.config
    per_worker = sorted(set(lanes.counts), reverse=True)
    rate = peak_rate(config.optim, lanes.global_batch)
    text = (
        f"{config.method['name']} · {config.model.name} at {config.model.image_size} px · "
        f"{_images(plan.train_data)} · {plan.total_steps:,} steps of {lanes.global_batch} "
        f"({plan.total_steps / plan.schedule.steps_per_epoch:.1f} epochs) · {config.optim.name} at {rate:.4g}\n"
        f"{lanes.count} lanes of {lanes.size} · {_workers(plan)} worker(s) with "
        f"{' or '.join(map(str, per_worker))} lanes · efficiency {lanes.efficiency:.2f} · {config.train.precision}"
    )
    if config.train.precision == "bf16" and not bf16_is_fast():
        text += (
            "\nwarning: this machine has no bf16 instructions, bf16 may be many times slower than train.precision=fp32"
        )
    if lanes.efficiency < 0.9:
        better = [w for w in range(1, lanes.count + 1) if lanes.count % w == 0 and abs(w - lanes.world) <= lanes.world]
        text += f"\nwarning: workers wait for the one with most lanes; these numbers of workers divide them: {better}"
    return text


def _workers(plan: Any) -> str:
    least, most = plan.workers
    return str(most) if least == most else f"{least} to {most}"


def _images(data: Any) -> str:
    from ssl_core.data.shares import samples_an_epoch

    sets = f" in {len(data.parts)} data sets" if len(data.parts) > 1 else ""
    shown = f", {samples_an_epoch(data.shard_samples, data.shares):,} an epoch" if data.shares else ""
    return f"{data.num_samples:,} images{sets}{shown}"


def bf16_is_fast() -> bool:
    """Whether this machine has a GPU, or a CPU whose matrix products take bf16."""
    import torch

    return torch.cuda.is_available() or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _print_summary(run: Any) -> None:
    summary = run.summary()
    say(f"{summary['steps']} steps, {summary['images_per_second']} images/s; {run.path / 'summary.json'}")
    if summary.get("probe"):
        from ssl_core.probe.report import ProbeReport

        say(ProbeReport.from_dict(summary["probe"]).table())


if __name__ == "__main__":
    run_command("pretrain", __doc__, main)
