"""The probe table: every encoder judged in the same way, every number with its standard error.

What fits (`_predictions`) is given training features, training labels and bare validation features; validation labels
meet its predictions in `score` alone. So fitting cannot see them.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ssl_core.errors import UserError
from ssl_core.probe import knn
from ssl_core.probe.features import Features, ImageInput, Precision, encode
from ssl_core.probe.labelled import LabelledSet, choose_samples
from ssl_core.probe.linear import LinearProbe
from ssl_core.probe.measure import Measure, score

if TYPE_CHECKING:
    from rich.table import Table

RAW_PIXELS, RANDOM_ENCODER, PRETRAINED = "raw pixels", "random encoder", "pretrained"
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """What is measured.

    Attributes:
        knn: pairs of k and temperature.
        fractions: shares of the labels that linear classifiers are also fitted with.
        subsets: label subsets per fraction, whose mean is reported.
        max_train: at most so many labelled training images, a keyed sample.
        max_val: as `max_train`.
        batch_size: images a forward pass.
        seed: of samples, subsets and splits.
    """

    knn: tuple[tuple[int, float], ...] = ((20, 0.07), (200, 0.1))
    fractions: tuple[float, ...] = (0.01, 0.1)
    subsets: int = 10
    max_train: int | None = None
    max_val: int | None = None
    batch_size: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        if any(k < 1 or not temperature > 0 for k, temperature in self.knn):
            raise UserError(f"probe.knn={_listed(self.knn)}: k is at least 1 and its temperature above 0")
        if len({k for k, _ in self.knn}) < len(self.knn):
            raise UserError(f"probe.knn={_listed(self.knn)}: give each k once")
        if any(not 0 < fraction < 1 for fraction in self.fractions):
            raise UserError(f"probe.fractions={list(self.fractions)}: a share of the labels lies between 0 and 1")
        for name in ("subsets", "max_train", "max_val", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"probe.{name}={value}: use at least 1")


def _listed(pairs: tuple[tuple[int, float], ...]) -> list[list[float]]:
    return [list(pair) for pair in pairs]


@dataclass(frozen=True, kw_only=True)
class ProbeReport:
    """What was measured, and how.

    Attributes:
        rows: encoder → measure's name (knn20, knn200, linear, linear_1pct, linear_10pct) → measure.
        protocol: all that someone needs to know to compare the numbers, in sentences.
        data_digest: of the samples and labels; numbers compare where it is equal.
    """

    rows: Mapping[str, Mapping[str, Measure]]
    protocol: tuple[str, ...]
    data_digest: str

    def metrics(self, encoder: str = PRETRAINED) -> dict[str, float]:
        """One encoder's accuracies and their errors under flat names, for a tracker."""
        flat: dict[str, float] = {}
        for name, measure in self.rows[encoder].items():
            flat |= {f"probe.{name}": measure.value, f"probe.{name}.error": measure.error}
        return flat

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        rows = {encoder: {name: asdict(one) for name, one in row.items()} for encoder, row in self.rows.items()}
        return {"format": FORMAT, "rows": rows, "protocol": list(self.protocol), "data_digest": self.data_digest}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "ProbeReport":
        """The reverse of `to_dict`; raises UserError on another content."""
        try:
            if content["format"] != FORMAT:
                raise UserError(
                    f"the probe's record has format {content['format']}, this version reads {FORMAT}: probe again"
                )
            return cls(
                rows={
                    encoder: {name: Measure(value=one["value"], error=one["error"]) for name, one in row.items()}
                    for encoder, row in content["rows"].items()
                },
                protocol=tuple(content["protocol"]),
                data_digest=content["data_digest"],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"the probe's record cannot be read ({error!r}): probe again") from error

    def table(self) -> str:
        """Plain text that is also Markdown: the table, then the protocol."""
        cells = self._cells()
        widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
        lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in cells]
        lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        return "\n".join([*lines, "", *self.protocol])

    def rich_table(self) -> "Table":
        """The same for a terminal that shows colours."""
        from rich.table import Table

        head, *rows = self._cells()
        table = Table(*head, caption="\n".join(self.protocol), caption_justify="left")
        for row in rows:
            table.add_row(*row, style="bold" if row[0] == PRETRAINED else None)
        return table

    def _cells(self) -> list[list[str]]:
        names = list(dict.fromkeys(name for row in self.rows.values() for name in row))
        body = [[encoder, *(str(row[n]) if n in row else "" for n in names)] for encoder, row in self.rows.items()]
        return [["accuracy in %", *map(_title, names)], *body]


def _title(measure: str) -> str:
    """`knn20` → `k-NN 20`, `linear_1pct` → `linear, 1 % of labels`."""
    if measure.startswith("knn"):
        return f"k-NN {measure.removeprefix('knn')}"
    return measure.replace("_", ", ").replace("pct", " % of labels")


def run_probe(
    encoders: Mapping[str, nn.Module],
    train: LabelledSet,
    val: LabelledSet,
    config: ProbeConfig,
    *,
    image_input: ImageInput,
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
    threads: int = 2,
    layer: str = "the encoder's pooled output",
    say: Callable[[str], None] | None = None,
) -> ProbeReport:
    """Judge encoders on labelled data.

    Args:
        encoders: a row's name → [n, K, S, S] to [n, D], on `device`; `RawPixels()` is the raw-pixel row.
        train: what is fitted on.
        val: what is reported.
        config: what is measured.
        image_input: what the encoders expect.
        device: where to compute.
        precision: of the encoders; all else is float32.
        threads: decoding threads.
        layer: which features these are, for the protocol.
        say: is told what is being done.

    Raises:
        UserError: data without labels or with classes that do not fit, or an encoder whose features are not finite.
    """
    samples = choose_samples(train, val, max_train=config.max_train, max_val=config.max_val, seed=config.seed)
    train_y, val_y = (torch.from_numpy(y).to(device) for y in (samples.train_y, samples.val_y))
    features = partial(
        encode,
        image_input=image_input,
        device=device,
        precision=precision,
        batch_size=config.batch_size,
        threads=threads,
    )
    rows: dict[str, dict[str, Measure]] = {}
    sizes: list[str] = []
    for encoder_name, encoder in encoders.items():
        if say is not None:
            say(f"probe: {encoder_name}, {len(train_y) + len(val_y):,} images")
        x_ND = features(encoder, train.images.image, samples.train_positions.tolist())
        queries_QD = features(encoder, val.images.image, samples.val_positions.tolist())
        predictions = _predictions(Features(x=x_ND, y=train_y), queries_QD, samples.num_classes, config)
        rows[encoder_name] = {name: score(guesses, val_y) for name, guesses in predictions.items()}
        sizes.append(f"{encoder_name} {x_ND.shape[1]:,} numbers")
    protocol = _protocol(config, len(train_y), len(val_y), samples.num_classes, image_input.size, layer, sizes)
    return ProbeReport(rows=rows, protocol=protocol, data_digest=samples.digest)


def _predictions(bank: Features, queries_QD: Tensor, num_classes: int, config: ProbeConfig) -> dict[str, Tensor]:
    """What every classifier says of the queries: measure's name → int64 [classifiers, Q]."""
    result: dict[str, Tensor] = {}
    if config.knn:
        similarity, index = knn.nearest(bank.x, queries_QD, max(k for k, _ in config.knn))
        for k, temperature in config.knn:
            voted = knn.predict(similarity, index, bank.y, num_classes=num_classes, k=k, temperature=temperature)
            result[f"knn{k}"] = voted[None]
    probe = LinearProbe(bank, num_classes=num_classes, seed=config.seed)
    result["linear"] = probe.fit().predict(queries_QD)[None]
    for fraction in config.fractions:
        fits = (probe.fit_subset(fraction, index) for index in range(config.subsets))
        result[f"linear_{100 * fraction:g}pct"] = torch.stack([fit.predict(queries_QD) for fit in fits])
    return result


def _protocol(
    config: ProbeConfig, num_train: int, num_val: int, num_classes: int, image_size: int, layer: str, sizes: list[str]
) -> tuple[str, ...]:
    bank = f"Bank: {num_train:,} labelled training images of {num_classes} classes"
    if any(k > num_train for k, _ in config.knn):
        bank += " (k is at most that)"
    shares = ", ".join(f"{100 * fraction:g} %" for fraction in config.fractions)
    lines = [
        f"± is one standard error: over validation images{', and over label subsets' if shares else ''}.",
        f"{bank}; validation: {num_val:,} images.",
        f"Features: {layer}, images at {image_size} px (shorter side resized, centre cut out): {', '.join(sizes)}.",
    ]
    if config.knn:
        pairs = ", ".join(f"k = {k} with T = {temperature:g}" for k, temperature in config.knn)
        lines.append(f"k-NN: cosine similarity s, votes weighted by exp(s / T), not centred; {pairs}.")
    lines.append(
        "Linear: multinomial logistic regression on standardised features, its decay chosen on a fifth of the labelled "
        "training images."
    )
    if shares:
        lines.append(f"{shares} of labels: mean of {config.subsets} seeded subsets, at least one label a class.")
    return tuple(lines)
