"""What a run trains on: one manifest or several, joined in one order, with weights.

Positions run through the manifests one after the other, so a position names one sample of the whole.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ssl_core.data.manifest import Manifest, ShardInfo, load_manifest
from ssl_core.data.shares import Share
from ssl_core.errors import UserError
from ssl_core.storage.s3 import is_s3

MAX_WEIGHT = 1000.0  # an epoch's order costs O(shards · weight)


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """Manifests in one order.

    Attributes:
        parts: at least one.
        weights: how often the samples of each part come in an epoch; a probe has each sample once, whatever they are.
    """

    parts: tuple[Manifest, ...]
    weights: tuple[float, ...]

    @property
    def name(self) -> str:
        """Where it lies, for messages."""
        return " and ".join(part.root for part in self.parts)

    @property
    def shards(self) -> tuple[ShardInfo, ...]:
        """The shards of all parts, in order."""
        return tuple(shard for part in self.parts for shard in part.shards)

    @property
    def bucket_shards(self) -> tuple[ShardInfo, ...]:
        """Those that do not lie in a local folder."""
        return tuple(shard for part in self.parts if is_s3(part.root) for shard in part.shards)

    @property
    def shard_samples(self) -> NDArray[np.int64]:
        """Samples of each shard: int64 [shards]."""
        return np.concatenate([part.shard_samples for part in self.parts])

    @property
    def shares(self) -> tuple[Share, ...]:
        """What each part has of the order; none where every sample comes once an epoch."""
        if self.unweighted == self:
            return ()
        return tuple(Share(shards=len(p.shards), weight=w) for p, w in zip(self.parts, self.weights, strict=True))

    @property
    def unweighted(self) -> "DataSet":
        """The same samples, each once."""
        return replace(self, weights=(1.0,) * len(self.parts))

    @property
    def num_samples(self) -> int:
        """Samples in all parts."""
        return sum(part.num_samples for part in self.parts)

    @property
    def num_bytes(self) -> int:
        """Bytes of all shards."""
        return sum(part.num_bytes for part in self.parts)

    @property
    def labelled_samples(self) -> int:
        """How many samples have a label."""
        return sum(part.labelled_samples for part in self.parts)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, the same in all parts; raises UserError where they are not."""
        for part in self.parts[1:]:
            if part.classes != self.parts[0].classes:
                raise UserError(
                    f"{self.parts[0].root} and {part.root} have different classes, so a label means one thing here and "
                    "another there: name one labelled folder as probe.train, or pack them with the same classes.txt"
                )
        return self.parts[0].classes

    def normalisation(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation over the samples of all parts, each once, decoded to so many channels.

        Raises:
            UserError: they are not known for so many channels.
        """
        if len(self.parts) == 1:
            return self.parts[0].normalisation(channels)
        share = [part.num_samples / self.num_samples for part in self.parts]
        means, deviations = (
            np.asarray(one) for one in zip(*(p.normalisation(channels) for p in self.parts), strict=True)
        )
        mean = np.average(means, axis=0, weights=share)
        squares = np.average(means**2 + deviations**2, axis=0, weights=share)
        return tuple(mean.tolist()), tuple(np.sqrt(np.maximum(squares - mean**2, 0)).tolist())

    @property
    def digest(self) -> str:
        """sha256 of the content and the weights; that of the manifest where there is one, without weight."""
        digests = [part.digest for part in self.parts]
        if len(digests) == 1 and not self.shares:
            return digests[0]
        content = {"manifests": digests, "weights": list(self.weights) if self.shares else None}
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def load_data_set(locations: str | Path | Sequence[str], weights: Sequence[float] | None = None) -> DataSet:
    """Read one manifest or several.

    Args:
        locations: a folder or `s3://…` with a manifest, or a list of them.
        weights: see `DataSet`; None: all 1.

    Raises:
        UserError: no manifest, one that cannot be read, the same one twice, or weights that do not fit.
        Resumable: the bucket does not answer well.
    """
    places = [locations] if isinstance(locations, str | Path) else list(locations)
    if not places:
        raise UserError("data.train=[] names no data: write data.train=<folder> or data.train=[<folder>,<folder>]")
    weights = [1.0] * len(places) if weights is None else list(weights)
    if len(weights) != len(places):
        raise UserError(
            f"data.weights has {len(weights)} values for {len(places)} data sets in data.train: give each one"
        )
    for weight in weights:
        if not 0 < weight <= MAX_WEIGHT:
            raise UserError(
                f"data.weights={weights}: a weight says how often a sample comes in an epoch, above 0 and up to "
                f"{MAX_WEIGHT:g}; leave a data set out of data.train if it is not to come"
            )
    parts = [load_manifest(place) for place in places]
    seen: dict[str, str | Path] = {}
    for place, part in zip(places, parts, strict=True):
        if part.digest in seen:
            raise UserError(
                f"data.train has the same data twice, {seen[part.digest]} and {place}: name it once, and give it a "
                "weight with data.weights"
            )
        seen[part.digest] = place
    return DataSet(parts=tuple(parts), weights=tuple(weights))
