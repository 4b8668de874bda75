"""Make a data set: images → shards and a manifest, or a manifest for shards that exist.

python -m pipelines.pack source=<images> output=<folder>     pack images
python -m pipelines.pack index=<folder> [output=<folder>]    make the manifest of existing .tar shards
python -m pipelines.pack verify=<folder>                     hash every shard again
python -m pipelines.pack verify=<train> against=<val>        … and find images of val that are in train too
python -m pipelines.pack show=<folder> [sheet=<file.png>]    what is in a data set, and what it looks like

Every <folder> may be s3://<bucket>/<prefix>. Packing that was cut short, by a kill too, is continued by the same
command after the last finished shard; a data set is whole once its manifest is there, which is written last.
"""

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipelines.config import compose, typed
from pipelines.console import LiveLine, run_command
from ssl_core.errors import UserError

if TYPE_CHECKING:
    from ssl_core.data.indexing import Findings
    from ssl_core.data.manifest import Manifest
    from ssl_core.storage.s3 import Folder

_DIGITS_VAL_FRACTION = 0.2
_EXAMPLES = 3


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """`configs/pack.yaml`."""

    source: str | None
    index: str | None
    verify: str | None
    show: str | None
    against: str | None
    sheet: str | None
    output: str | None
    labels: Literal["auto", "none"]
    shard_samples: int
    val_fraction: float | None
    seed: int
    workers: int | None
    resize: int | None
    quality: int | None

    def __post_init__(self) -> None:
        """Refuse values that cannot be meant."""
        if self.shard_samples < 1:
            raise UserError(f"shard_samples={self.shard_samples}: a shard has at least one sample")
        if self.val_fraction is not None and not 0 <= self.val_fraction < 1:
            raise UserError(f"val_fraction={self.val_fraction}: give a share from 0 to below 1")
        if self.workers is not None and self.workers < 1:
            raise UserError(f"workers={self.workers}: at least one is needed")
        if self.against is not None and self.verify is None:
            raise UserError("against= goes with verify=: give verify=<train> against=<val>")
        if self.sheet is not None and self.show is None:
            raise UserError("sheet= goes with show=: give show=<folder> sheet=<file.png>")
        if self.sheet is not None and not self.sheet.lower().endswith(".png"):
            raise UserError(f"sheet={self.sheet}: name a file that ends in .png")


def main(overrides: list[str]) -> None:
    """Run the command."""
    config = typed(PackConfig, compose("pack", overrides))
    chosen = [name for name in ("source", "index", "verify", "show") if getattr(config, name) is not None]
    if len(chosen) != 1:
        raise UserError(
            f"give one of source=, index=, verify= and show=, not {' and '.join(chosen) or 'none'} (see --help)"
        )
    {"source": _pack, "index": _index, "verify": _verify, "show": _show}[chosen[0]](config)


def _pack(config: PackConfig) -> None:
    from ssl_core.data.placing import SKIPPED_NAME
    from ssl_core.data.recode import Recoding
    from ssl_core.data.sources import Source, open_source
    from ssl_core.data.writer import pack
    from ssl_core.storage.s3 import folder_at

    def listed(staging: Path) -> Source:
        return open_source(config.source or "", labels=config.labels, listings=staging)

    if config.output is None:
        raise UserError("output= is missing: name the folder for the shards")
    output = folder_at(config.output)
    default = _DIGITS_VAL_FRACTION if config.source == "digits" else 0.0
    with _progress("packing images") as done:
        packed = pack(
            listed,
            output,
            shard_samples=config.shard_samples,
            seed=config.seed,
            val_fraction=default if config.val_fraction is None else config.val_fraction,
            recoding=Recoding(resize=config.resize, quality=config.quality),
            workers=config.workers,
            done=done,
        )
    lines = [line for folder, manifest in packed.parts.values() for line in _table(folder, manifest)]
    if packed.num_kept:
        lines.append(f"{packed.num_kept:,} of the shards were finished before, by the same command")
    if packed.skipped:
        lines.append(
            f"{len(packed.skipped):,} images were left out, see {output / SKIPPED_NAME}{_such_as(packed.skipped)}"
        )
    folders = [folder for folder, _ in packed.parts.values()]
    _say([*lines, *_next(next(iter(packed.parts.values()))[1], *folders)])


def _index(config: PackConfig) -> None:
    from ssl_core.data.indexing import index_folder
    from ssl_core.data.manifest import save_manifest
    from ssl_core.storage.s3 import folder_at

    shards = folder_at(config.index or "")
    output = shards if config.output is None else folder_at(config.output)
    if output != shards:
        _check_describes(output, shards)
    with _progress("reading shards") as done:
        manifest, findings = index_folder(shards, threads=config.workers, done=done)
    try:
        if isinstance(output, Path):
            output.mkdir(parents=True, exist_ok=True)
        save_manifest(manifest, output)
    except OSError as error:
        raise UserError(
            f"cannot write into {output} ({error.strerror or error}): name another folder with output="
        ) from error
    _say([*_table(output, manifest), *_found(findings), *_next(manifest, output)])


def _check_describes(output: "Folder", shards: "Folder") -> None:
    """Refuse an output whose manifest is that of other shards, or that shards here cannot be found from."""
    from ssl_core.data.manifest import MANIFEST_NAME, load_manifest
    from ssl_core.storage.s3 import look_up

    path = output / MANIFEST_NAME
    if isinstance(path, Path):
        stands = path.is_file()
    elif isinstance(shards, Path):
        raise UserError(
            f"output={output}: a manifest in a bucket is for shards in a bucket, {shards} is a local folder"
        )
    else:
        stands = look_up(path) is not None
    if stands:
        standing = load_manifest(str(output)).root
        if _whole(standing) != _whole(shards):
            raise UserError(f"output={output} already describes the shards in {standing}: choose another folder")


def _verify(config: PackConfig) -> None:
    from ssl_core.data.integrity import find_damage
    from ssl_core.data.manifest import load_manifest

    manifest = load_manifest(config.verify or "")
    hashed: list[str] = []
    with _progress("hashing shards") as done:

        def one_done(shard: object) -> None:
            hashed.append(str(shard))
            done(len(hashed), len(manifest.shards))

        damaged = find_damage(manifest, manifest.shards, fresh=True, threads=config.workers, done=one_done)
    _say([f"{damage.shard.name} {damage.what}" for damage in damaged])
    if damaged:
        raise UserError(
            f"{len(damaged)} of {len(manifest.shards)} shards in {manifest.root} are not what the manifest says, first "
            f"{damaged[0].shard.name}: restore them, or index them again if the change was meant"
        )
    _say([f"{len(manifest.shards):,} shards, {manifest.num_bytes:,} bytes: all as the manifest says"])
    if config.against is not None:
        from pipelines.leak_report import leak_lines

        with _progress("comparing images") as done:
            lines = leak_lines(manifest, load_manifest(config.against), threads=config.workers, done=done)
        _say(lines)


def _show(config: PackConfig) -> None:
    import numpy as np

    from pipelines.contact_sheet import save_contact_sheet, size_lines
    from ssl_core.data.integrity import check_shards
    from ssl_core.data.manifest import load_manifest
    from ssl_core.data.reader import Reader

    manifest = load_manifest(config.show or "")
    check_shards(manifest)
    reader = Reader(manifest, verify=False)
    lines = [*_table(config.show or "", manifest), f"  {'digest':<12}{manifest.digest}"]
    lines += ["", *size_lines(reader, seed=config.seed)]
    lines += ["", f"  {'shard':<32}{'samples':>10}{'bytes':>16}"]
    lines += [f"  {shard.name:<32}{shard.samples:>10,}{shard.bytes:>16,}" for shard in manifest.shards]
    if manifest.labelled_samples:
        labels = reader.labels()
        counts = np.bincount(labels[labels >= 0], minlength=len(manifest.classes)).tolist()
        lines += ["", f"  {'class':<32}{'samples':>10}"]
        lines += [f"  {name:<32}{count:>10,}" for name, count in zip(manifest.classes, counts, strict=True)]
    _say(lines)
    if config.sheet is not None:
        count = save_contact_sheet(reader, Path(config.sheet).expanduser(), seed=config.seed)
        _say(["", f"{count} images are on {config.sheet}"])


def _say(lines: list[str]) -> None:
    """Print lines; what a terminal would not show (names in a tar may be any bytes) as its escape."""
    shown = ("".join(c if c.isprintable() else ascii(c)[1:-1] for c in line) for line in lines)
    sys.stdout.write("".join(f"{line}\n" for line in shown))


@contextmanager
def _progress(title: str) -> Generator[Callable[[int, int], None], None, None]:
    """A bar on a terminal, now and then a line where the output is piped."""
    if sys.stdout.isatty():
        from rich.progress import Progress

        with Progress() as bar:
            task = bar.add_task(title, total=None)
            yield lambda count, of: bar.update(task, completed=count, total=of)
    else:
        line = LiveLine()
        yield lambda count, of: line.show(f"{title}: {count:,} of {of:,}")


def _table(folder: "Folder | str", manifest: "Manifest") -> list[str]:
    mean, deviation = (" ".join(f"{value:.4f}" for value in values) for values in (manifest.mean, manifest.std))
    classes = f"{manifest.labelled_samples:,} in {len(manifest.classes)} classes"
    rows = {
        "shards": f"{len(manifest.shards):,}",
        "samples": f"{manifest.num_samples:,}",
        "bytes": f"{manifest.num_bytes:,}",
        "labels": classes if manifest.labelled_samples else "none",
        "images": f"{_span(manifest.width)} x {_span(manifest.height)} pixels, {manifest.channels} channel(s)",
        "mean": mean,
        "deviation": deviation,
    }
    if _whole(manifest.root) != _whole(folder):
        rows["shards in"] = manifest.root
    return ["", str(folder), *(f"  {name:<12}{value}" for name, value in rows.items())]


def _whole(folder: "Folder | str") -> str:
    """A location that can be compared."""
    from ssl_core.storage.s3 import is_s3

    return str(folder).rstrip("/") if is_s3(str(folder)) else str(Path(str(folder)).absolute())


def _span(limits: tuple[int, int]) -> str:
    return str(limits[0]) if limits[0] == limits[1] else f"{limits[0]}-{limits[1]}"


def _found(findings: "Findings") -> list[str]:
    """What a person should know about shards that somebody else wrote."""
    lines: list[str] = []
    if findings.ignored:
        kinds = ", ".join(f"{count:,} .{extension}" for extension, count in findings.ignored.items())
        lines.append(f"ignored, being neither image nor label: {kinds}")
    if findings.repeated:
        said = f"{len(findings.repeated):,} keys come again in their shard, the first of each stands"
        lines.append(said + _such_as(findings.repeated))
    if findings.unreadable:
        said = f"{len(findings.unreadable):,} images are unreadable by their headers"
        lines.append(said + _such_as(findings.unreadable))
    if findings.without_image:
        lines.append(f"{findings.without_image:,} labels have no image")
    return lines


def _such_as(lines: tuple[str, ...]) -> str:
    return f", such as {'; '.join(lines[:_EXAMPLES])}"


def _next(manifest: "Manifest", train: "Folder", val: "Folder | None" = None) -> list[str]:
    model = "resnet_micro" if max(manifest.width[1], manifest.height[1]) <= 64 else "resnet50"
    data = f"data.train={train}" + (f" data.val={val}" if val else "")
    return ["", f"next: python -m pipelines.pretrain method=simclr model={model} {data} name=my-run"]


if __name__ == "__main__":
    run_command("pack", __doc__, main)
