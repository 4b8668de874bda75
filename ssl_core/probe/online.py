"""k-NN accuracy of an encoder that is still learning: a curve of what the loss does not tell.

A keyed sample of the labelled data keeps it cheap, so its level is not that of the probe at the end, which has all.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ssl_core.collectives import Collectives
from ssl_core.probe.features import Features, ImageInput, Precision, encode
from ssl_core.probe.knn import knn_predict
from ssl_core.probe.labelled import LabelledImages, LabelledSet, choose_samples

K, TEMPERATURE = 20, 0.07


class OnlineKNN:
    """Encodes its samples on all workers, each an equal part, and classifies on each of them.

    Args:
        train: the bank.
        val: the queries.
        max_train: images of the bank.
        max_val: queries.
        seed: of the samples.
        image_input: what the encoder expects.
        collectives: every worker calls alike.
        device: where the encoder is.
        precision: "bf16" runs the encoder under autocast.
        threads: decoding threads.

    Raises:
        UserError: data without labels or with classes that do not fit.
    """

    def __init__(
        self,
        train: LabelledSet,
        val: LabelledSet,
        *,
        max_train: int,
        max_val: int,
        seed: int,
        image_input: ImageInput,
        collectives: Collectives,
        device: torch.device,
        precision: Precision = "fp32",
        threads: int = 1,
    ) -> None:
        self._train, self._val = train.images, val.images
        self._samples = choose_samples(train, val, max_train=max_train, max_val=max_val, seed=seed)
        self._input, self._collectives = image_input, collectives
        self._device, self._threads = device, threads
        self._precision: Precision = precision

    def __call__(self, encoder: nn.Module) -> dict[str, float]:
        """{"knn_online": the share of queries that are classified right}; the encoder is left as it was."""
        samples = self._samples
        bank = Features(
            x=self._encoded(encoder, self._train, samples.train_positions),
            y=torch.from_numpy(samples.train_y).to(self._device),
        )
        queries_QD = self._encoded(encoder, self._val, samples.val_positions)
        guesses = knn_predict(bank, queries_QD, num_classes=samples.num_classes, k=K, temperature=TEMPERATURE)
        right = guesses == torch.from_numpy(samples.val_y).to(self._device)
        return {"knn_online": float(right.double().mean())}

    def _encoded(self, encoder: nn.Module, images: LabelledImages, positions: NDArray[np.int64]) -> Tensor:
        """Features of all positions, on every worker."""
        world = self._collectives.world
        parts = np.array_split(positions, world) if len(positions) >= world else [positions] * world
        own = encode(
            encoder,
            images.image,
            parts[self._collectives.rank].tolist(),
            image_input=self._input,
            device=self._device,
            precision=self._precision,
            threads=self._threads,
        )
        return self._collectives.gather_rows(own, [len(part) for part in parts])[: len(positions)]
