"""Which labelled samples a probe uses: the bank that it fits on and the validation samples that it is judged by."""

import hashlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ssl_core import rng
from ssl_core.data.data_set import DataSet
from ssl_core.data.reader import Reader
from ssl_core.data.splits import holdout_split
from ssl_core.errors import UserError
from ssl_core.storage.cache import CacheConfig

Labels = NDArray[np.int64]


class LabelledImages(Protocol):
    """Images with labels; safe to read from several threads (`ssl_core.data.reader.Reader`)."""

    @property
    def num_samples(self) -> int:
        """Images there are, with and without label."""
        ...

    def labels(self) -> Labels:
        """int64 [num_samples], by position; -1 for none."""
        ...

    def image(self, position: int) -> NDArray[np.uint8]:
        """The image at a position: uint8 [H, W, K]."""
        ...


@dataclass(frozen=True, kw_only=True)
class LabelledSet:
    """A data set that a probe reads."""

    images: LabelledImages
    classes: tuple[str, ...]  # a label is an index into them
    name: str  # as the user knows it, for messages
    digest: str  # of the content


def labelled_set(data: DataSet, *, channels: int, cache: CacheConfig | None = None) -> LabelledSet:
    """A packed data set as a probe reads it, with images of so many channels; a bucket's shards go through `cache`."""
    images = Reader(data, channels=channels, cache=cache)
    return LabelledSet(images=images, classes=data.classes, name=data.name, digest=data.digest)


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Images of which some have their label taken away."""

    images: LabelledImages
    kept: Labels

    @property
    def num_samples(self) -> int:
        return self.images.num_samples

    def labels(self) -> Labels:
        return self.kept

    def image(self, position: int) -> NDArray[np.uint8]:
        return self.images.image(position)


def hold_out(data: LabelledSet, fraction: float) -> tuple[LabelledSet, LabelledSet]:
    """Cut a labelled set in two, class by class: what is fitted on, and what choices are judged by.

    The cut depends on the data alone, not on a run's seed, so that the numbers of all runs compare.

    Args:
        data: the set; both parts see the same images, but only their own labels.
        fraction: the share that is held out, in (0, 1).
    """
    labels = data.images.labels()
    parts = holdout_split(labels, fraction, seed=0, purpose="probe.held_out")
    made: list[LabelledSet] = []
    for name, positions in zip(("kept", "held out"), parts, strict=True):
        own = np.full_like(labels, -1)
        own[positions] = labels[positions]
        share = fraction if name == "held out" else 1 - fraction
        made.append(
            LabelledSet(
                images=_Part(images=data.images, kept=own),
                classes=data.classes,
                name=f"{data.name} ({share:.3g} of it {name})",
                digest=f"{data.digest} {name} {fraction}",
            )
        )
    return made[0], made[1]


@dataclass(frozen=True, kw_only=True)
class ProbeSamples:
    """The samples of one probe; labels on both sides are indices into the training set's classes."""

    train_positions: NDArray[np.int64]  # [N]
    train_y: Labels  # [N]
    val_positions: NDArray[np.int64]  # [Q]
    val_y: Labels  # [Q]; only `report.score` looks at them
    num_classes: int
    digest: str  # of everything above: numbers are comparable where it is equal


def choose_samples(
    train: LabelledSet, val: LabelledSet, *, max_train: int | None, max_val: int | None, seed: int
) -> ProbeSamples:
    """Take the samples that have a label, at most so many of each set.

    Validation labels are matched by class name, so that the two sets may number their classes differently.

    Args:
        train: what is fitted on.
        val: what is reported.
        max_train: use a keyed sample of so many; None: all.
        max_val: as `max_train`.
        seed: the probe's seed.

    Raises:
        UserError: a set without labels, fewer than two classes, or a validation label that training does not have.
    """
    train_labels, val_labels = _labels(train), _translated(_labels(val), val, train)
    train_classes = np.unique(train_labels[train_labels >= 0])
    if len(train_classes) < 2:
        raise UserError(f"all labels of {train.name} are the same class: a probe needs at least two")
    strange = np.setdiff1d(val_labels[val_labels >= 0], train_classes)
    if len(strange):
        raise UserError(
            f"{val.name} has samples of class {_class_name(train, int(strange[0]))}, of which {train.name} has none: "
            "give both sets the same classes"
        )
    train_positions = _sample(train_labels, max_train, rng.key(seed, "probe.train", np.arange(len(train_labels))))
    val_positions = _sample(val_labels, max_val, rng.key(seed, "probe.val", np.arange(len(val_labels))))
    content = f"{train.digest} {val.digest} ".encode() + train_positions.tobytes() + b" " + val_positions.tobytes()
    return ProbeSamples(
        train_positions=train_positions,
        train_y=train_labels[train_positions],
        val_positions=val_positions,
        val_y=val_labels[val_positions],
        num_classes=max(len(train.classes), int(train_classes[-1]) + 1),
        digest=hashlib.sha256(content).hexdigest(),
    )


def _labels(data: LabelledSet) -> Labels:
    labels = data.images.labels()
    if not (labels >= 0).any():
        raise UserError(
            f"{data.name} has no labels and a probe needs them: name labelled data as probe.train and probe.val"
        )
    return labels


def _translated(labels: Labels, source: LabelledSet, target: LabelledSet) -> Labels:
    """`source`'s labels as indices into `target`'s classes."""
    if source.classes == target.classes:
        return labels
    numbers = {name: number for number, name in enumerate(target.classes)}
    used = np.unique(labels[labels >= 0]).tolist()
    table = np.full(max(used) + 1, -1, dtype=np.int64)
    for label in used:
        name = source.classes[label] if label < len(source.classes) else str(label)
        if name not in numbers:
            raise UserError(
                f"{source.name} has samples of class {name}, which {target.name} does not have: give both sets the "
                "same classes"
            )
        table[label] = numbers[name]
    return np.where(labels >= 0, table[np.maximum(labels, 0)], -1)


def _class_name(data: LabelledSet, label: int) -> str:
    return data.classes[label] if label < len(data.classes) else str(label)


def _sample(labels: Labels, limit: int | None, keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions of labelled samples, ascending: all, or the `limit` with the smallest keys."""
    positions = np.flatnonzero(labels >= 0)
    if limit is None or limit >= len(positions):
        return positions
    return np.sort(positions[np.argsort(keys[positions], kind="stable")[:limit]])
