"""From images to feature vectors: the one path that raw pixels, the random encoder and the pretrained one take.

An image is resized so that its shorter side is the input size, its centre is cut out (an image of the right size is
left alone), and it is normalised as in pretraining. Batches are decoded in threads ahead of the encoder.

Legend: N images, D features, S input size, K channels.
"""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ssl_core.errors import UserError
from ssl_core.export import LoadedEncoder
from ssl_core.views.image import Box
from ssl_core.views.resize import crop_resize

Pixels = NDArray[np.uint8]
Precision = Literal["fp32", "bf16"]

RAW_PIXELS_SIZE = 32  # larger images are averaged down for the raw-pixel baseline: 3,072 features, not 150,528


@dataclass(frozen=True, kw_only=True)
class Features:
    """A labelled set as an encoder sees it."""

    x: Tensor  # float32 [N, D]
    y: Tensor  # int64 [N], on x's device


@dataclass(frozen=True, kw_only=True)
class ImageInput:
    """What an encoder expects: square images of `size` pixels, normalised by channel means and deviations in [0, 1]."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


class RawPixels(nn.Module):
    """The baseline: an "encoder" that only lays its pixels side by side; [N, K, S, S] → [N, K · min(S, 32)²]."""

    def forward(self, x_NKSS: Tensor) -> Tensor:
        if x_NKSS.shape[-1] > RAW_PIXELS_SIZE:
            x_NKSS = nn.functional.interpolate(x_NKSS, size=(RAW_PIXELS_SIZE, RAW_PIXELS_SIZE), mode="area")
        return x_NKSS.flatten(1)


def encode(
    encoder: nn.Module,
    image_at: Callable[[int], Pixels],
    positions: Sequence[int],
    *,
    image_input: ImageInput,
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
    batch_size: int = 256,
    threads: int = 2,
) -> Tensor:
    """The features of images, in eval mode and without a graph.

    Args:
        encoder: [n, K, S, S] → [n, D], on `device`; its modules are left in the modes they were in.
        image_at: position → uint8 [H, W, K]; called from several threads.
        positions: which images, in which order; at least one.
        image_input: what the encoder expects.
        device: where the encoder is and the features will be.
        precision: "bf16" runs the encoder under autocast.
        batch_size: images a forward pass.
        threads: how many batches are decoded at a time.

    Returns:
        float32 [N, D].

    Raises:
        UserError: an image has other channels than the encoder, or a feature is not finite.
    """
    device = torch.device(device)
    dtype = next((p.dtype for p in encoder.parameters() if p.is_floating_point()), torch.float32)
    mean = torch.tensor(image_input.mean, dtype=dtype, device=device).view(1, -1, 1, 1) * 255
    scale = 1 / (torch.tensor(image_input.std, dtype=dtype, device=device).view(1, -1, 1, 1) * 255)
    features, done = torch.empty(0), 0
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
    batches = _pixel_batches(image_at, positions, image_input, batch_size=batch_size, threads=threads)
    with _evaluating(encoder), torch.inference_mode(), autocast:
        for pixels in batches:
            x_NKSS = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).to(dtype)  # channels_last in memory
            y_ND: Tensor = encoder(x_NKSS.sub_(mean).mul_(scale))
            if not done:
                with torch.inference_mode(False):  # else the result could not take part in a graph later
                    features = torch.empty(len(positions), y_ND.shape[1], device=device)
            features[done : done + len(y_ND)] = y_ND
            done += len(y_ND)
    if not torch.isfinite(features).all():
        raise UserError(
            "the encoder gives features that are not finite: its weights diverged or are damaged, use others"
        )
    return features


def embed(
    encoder: LoadedEncoder, images: Sequence[Pixels], *, batch_size: int = 256, threads: int = 1
) -> NDArray[np.float32]:
    """The features of images at hand.

    Args:
        encoder: an exported encoder, on the CPU.
        images: uint8 [H, W, K] each, of any size.
        batch_size: images a forward pass.
        threads: how many batches are resized at a time.

    Returns:
        float32 [N, D].
    """
    config = encoder.config
    if not images:
        return np.empty((0, config.num_features), np.float32)
    features = encode(
        encoder.encoder,
        images.__getitem__,
        range(len(images)),
        image_input=ImageInput(size=config.model.image_size, mean=config.mean, std=config.std),
        batch_size=batch_size,
        threads=threads,
    )
    return features.numpy()


def centre_square(image: Pixels, size: int) -> Pixels:
    """Resize the shorter side to `size` (antialiased) and cut out the centre: uint8 [H, W, K] → [size, size, K]."""
    height, width, _ = image.shape
    if height == width == size:
        return image
    side = min(height, width)
    box = Box(top=(height - side) // 2, left=(width - side) // 2, height=side, width=side)
    return crop_resize(image, box, height=size, width=size)


def _pixel_batches(
    image_at: Callable[[int], Pixels],
    positions: Sequence[int],
    image_input: ImageInput,
    *,
    batch_size: int,
    threads: int,
) -> Generator[Pixels]:
    """uint8 [n, S, S, K] batches in order, made in threads ahead of whoever takes them."""
    size, num_channels = image_input.size, len(image_input.mean)

    def make(start: int) -> Pixels:
        chosen = positions[start : start + batch_size]
        batch = np.empty((len(chosen), size, size, num_channels), np.uint8)
        for row, position in enumerate(chosen):
            image = image_at(position)
            if image.shape[2] != num_channels:
                raise UserError(
                    f"the image at position {position} has {image.shape[2]} channels, the encoder takes "
                    f"{num_channels}: decode it to as many"
                )
            batch[row] = centre_square(image, size)
        return batch

    waiting: deque[Future[Pixels]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="probe") as pool:
        try:
            for start in range(0, len(positions), batch_size):
                waiting.append(pool.submit(make, start))
                if len(waiting) > threads + 1:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _evaluating(encoder: nn.Module) -> Generator[None]:
    """Eval mode inside, every module's own mode again after."""
    modes = [(module, module.training) for module in encoder.modules()]
    encoder.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
