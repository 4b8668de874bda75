"""Colours, blur and solarisation of many views at once, on the device of their pixels.

What `ssl_core.views.view.render` does to one view after its crop, from the same numbers of the same keys: a loader that
only crops (`CropRecipe.crops_only`), followed by this, makes the views of the whole recipe. The references are
torchvision's functions of float tensors; results are rounded once, at the end, and so lie within two levels of 255 of
`render`'s, which are rounded after the colours and after the blur.

Which view gets what is known to the host, which drew it: nothing here waits for the device, and the dearest operators,
hue and blur, see the views alone that they change.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ssl_core import rng
from ssl_core.views.color import LUMA_WEIGHTS
from ssl_core.views.image import blur_kernel_size
from ssl_core.views.view import JITTER_ORDERS, NUM_DRAWS, Draw, ViewConfig, between, strength_range

WHITE = 255.0
_PIECE_VALUES = 2**25  # float32 values of a piece, 128 MiB: an operator holds a few times as many
_PLACES = {name: place for place, name in enumerate(("brightness", "contrast", "saturation", "hue"))}
_ORDERS = np.array([[_PLACES[name] for name in order] for order in JITTER_ORDERS])  # [24, 4]
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(4)


class BatchedColors:
    """Gives the cropped views of a batch their colours.

    Args:
        layout: the distribution of every view, by group (`CropRecipe.layout`).
        seed: of the run.
    """

    def __init__(self, layout: Mapping[str, Sequence[ViewConfig]], *, seed: int) -> None:
        self._layout, self._seed = layout, seed

    @torch.no_grad()
    def __call__(self, groups: Mapping[str, Tensor], *, epoch: int, draws: np.ndarray) -> dict[str, Tensor]:
        """Give a batch its colours.

        Args:
            groups: uint8 [L, V, b, H, W, K] by name, cropped; V may leave out the last views of a group.
            epoch: of the batch.
            draws: int64 [L, b]: which draw of the epoch each sample is.

        Returns:
            The same shapes and type, in new memory.
        """
        made: dict[str, Tensor] = {}
        first = 0
        for name, views in self._layout.items():
            if name in groups:
                colored: list[Tensor] = []
                start = 0
                # views alike together: what costs time on a GPU are calls, not pixels
                for config, alike in groupby(views[: groups[name].shape[1]]):
                    stop = start + len(list(alike))
                    pixels, numbered = groups[name][:, start:stop], np.arange(first + start, first + stop)
                    keys = rng.key(self._seed, "views", epoch, draws[:, None], numbered[:, None])
                    images = _colored(pixels.flatten(0, 2), ColorDraws.of(config, rng.uniform(keys.ravel(), NUM_DRAWS)))
                    colored.append(images.view(pixels.shape))
                    start = stop
                made[name] = torch.cat(colored, 1)
            first += len(views)
        return made


@dataclass(frozen=True, kw_only=True, slots=True)
class ColorDraws:
    """What `parameters_from` draws of everything but the crop, for N views of one distribution.

    Attributes:
        operators: int64 [N, 4]: brightness 0, contrast 1, saturation 2, hue 3, in the order in which they are applied.
        amounts: float64 [N, 4]: their amounts; 1 (hue: 0) where the view is not changed.
        grey: bool [N].
        sigma: float64 [N]: standard deviation of the blur in pixels, 0 for none.
        solarise: bool [N].
        kernel_size: taps of the blur.
    """

    operators: np.ndarray
    amounts: np.ndarray
    grey: np.ndarray
    sigma: np.ndarray
    solarise: np.ndarray
    kernel_size: int

    @classmethod
    def of(cls, config: ViewConfig, numbers: np.ndarray) -> "ColorDraws":
        """What float64 [N, NUM_DRAWS] stand for."""
        jittered = numbers[:, Draw.JITTER] < config.jitter
        unordered = np.ones((len(numbers), 4))
        strengths = (config.brightness, config.contrast, config.saturation)
        for place, (strength, number) in enumerate(
            zip(strengths, (Draw.BRIGHTNESS, Draw.CONTRAST, Draw.SATURATION), strict=True)
        ):
            if strength:
                unordered[jittered, place] = between(strength_range(strength), numbers[jittered, number])
        unordered[:, _HUE] = np.where(jittered, between((-config.hue, config.hue), numbers[:, Draw.HUE]), 0.0)
        operators = _ORDERS[(numbers[:, Draw.JITTER_ORDER] * len(_ORDERS)).astype(np.int64)]
        return cls(
            operators=operators,
            amounts=np.take_along_axis(unordered, operators, 1),
            grey=numbers[:, Draw.GREY] < config.grey,
            sigma=np.where(
                numbers[:, Draw.BLUR] < config.blur, between(config.blur_sigma, numbers[:, Draw.BLUR_SIGMA]), 0.0
            ),
            solarise=numbers[:, Draw.SOLARISE] < config.solarise,
            kernel_size=blur_kernel_size(config.size),
        )

    def __getitem__(self, part: slice) -> "ColorDraws":
        """Those of some of the views."""
        return ColorDraws(
            operators=self.operators[part],
            amounts=self.amounts[part],
            grey=self.grey[part],
            sigma=self.sigma[part],
            solarise=self.solarise[part],
            kernel_size=self.kernel_size,
        )

    @property
    def nothing(self) -> bool:
        """Whether no view is changed."""
        neutral = self.operators == _HUE  # 0 there, 1 elsewhere
        unchanged = (self.amounts == np.where(neutral, 0.0, 1.0)).all()
        return bool(unchanged) and not (self.grey.any() or self.sigma.any() or self.solarise.any())


def _colored(pixels: Tensor, draws: ColorDraws) -> Tensor:
    """`apply_colors` in pieces, so that memory does not grow with the batch; contiguous."""
    if draws.nothing:
        return pixels
    step = max(1, _PIECE_VALUES // pixels[0].numel())
    starts = range(0, len(pixels), step)
    return torch.cat([apply_colors(pixels[at : at + step], draws[at : at + step]) for at in starts]).contiguous()


def apply_colors(pixels: Tensor, draws: ColorDraws) -> Tensor:
    """Jitter, grey, blur and solarise, in this order, as drawn for each of N views.

    Args:
        pixels: uint8 [N, H, W, K]; other than RGB (K = 3) have no colour, see `ssl_core.views.color`.
        draws: of N views.

    Returns:
        uint8 [N, H, W, K].
    """
    images = pixels.permute(0, 3, 1, 2).float()
    rgb = images.shape[1] == 3
    for operators, amounts in zip(draws.operators.T, draws.amounts.T, strict=True):
        images = _mixed(images, operators, amounts)
        turned = np.flatnonzero((operators == _HUE) & (amounts != 0)) if rgb else []
        if len(turned):
            which = _on(images, turned)
            images.index_copy_(0, which, turn_hue(images.index_select(0, which), _on(images, amounts[turned] % 1)))
    if rgb and draws.grey.any():
        which = _on(images, np.flatnonzero(draws.grey))
        images.index_copy_(0, which, _luma(images.index_select(0, which)).expand(-1, 3, -1, -1))
    if draws.sigma.any():
        blurred = np.flatnonzero(draws.sigma)
        which = _on(images, blurred)
        sigma = _on(images, draws.sigma[blurred])
        images.index_copy_(0, which, gaussian_blur(images.index_select(0, which), sigma, kernel_size=draws.kernel_size))
    if draws.solarise.any():
        which = _on(images, np.flatnonzero(draws.solarise))
        inverted = images.index_select(0, which)
        images.index_copy_(0, which, torch.minimum(inverted, WHITE - inverted))
    return images.round_().to(torch.uint8).permute(0, 2, 3, 1)


def turn_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue in the HSV hexcone; value and saturation stay.

    With d = max − min and everything multiplied by d there is nothing to divide by: the hue in sixths of a circle
    becomes d · h, and a channel is max − clip(min(k, 4d − k), 0, d) with k = (d · h + n · d) mod 6d, n = 5, 3, 1.

    Args:
        images: float [N, 3, H, W].
        turns: float [N], parts of a circle in [0, 1).
    """
    red, green, blue = images.unbind(1)
    most, least = images.amax(1), images.amin(1)
    span = most - least
    hue = torch.where(green == most, blue - red + 2 * span, red - green + 4 * span)
    hue = torch.where(red == most, green - blue, hue) + span * (6 * turns[:, None, None])
    circle = 6 * span.clamp(min=torch.finfo(span.dtype).tiny)
    turned = torch.empty_like(images)
    for channel, sixths in enumerate((5, 3, 1)):
        place = torch.remainder(hue + sixths * span, circle)
        turned[:, channel] = most - torch.minimum(torch.minimum(place, 4 * span - place).clamp_(min=0), span)
    return turned


def gaussian_blur(images: Tensor, sigma: Tensor, *, kernel_size: int) -> Tensor:
    """torchvision's `gaussian_blur`, with a standard deviation for each image.

    Args:
        images: float [N, K, H, W]; edges are mirrored without repeating the outermost pixel.
        sigma: float [N], pixels.
        kernel_size: taps along each side, odd.
    """
    radius = min(kernel_size // 2, images.shape[2] - 1, images.shape[3] - 1)
    if radius == 0:
        return images
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    weights = torch.exp(-0.5 * (offsets / sigma[:, None]) ** 2)
    weights = (weights / weights.sum(1, keepdim=True))[:, None].expand(-1, images.shape[1], -1).flatten(0, 1)
    planes = functional.pad(images, (radius,) * 4, mode="reflect").flatten(0, 1)[None]
    planes = functional.conv2d(planes, weights[:, None, None, :], groups=len(weights))
    planes = functional.conv2d(planes, weights[:, None, :, None], groups=len(weights))
    return planes[0].unflatten(0, images.shape[:2])


def _mixed(images: Tensor, operators: np.ndarray, amounts: np.ndarray) -> Tensor:
    """Brightness, contrast or saturation of each image; those whose operator is hue stay as they are.

    All are gain · x + luma · L(x) + mean · mean(L(x)), limited to [0, white].
    """
    rgb = images.shape[1] == 3
    others = operators == _HUE if rgb else (operators == _HUE) | (operators == _SATURATION)
    gain = np.where(others, 1.0, amounts)
    luma = np.where(operators == _SATURATION, 1 - gain, 0.0)
    mean = np.where(operators == _CONTRAST, 1 - gain, 0.0)
    if (gain == 1).all():
        return images
    factors = _on(images, np.stack([gain, luma, mean]))[..., None, None, None]
    grey = _luma(images)
    level = factors[1] * grey + factors[2] * grey.mean((1, 2, 3), keepdim=True)
    return images.mul_(factors[0]).add_(level).clamp_(0, WHITE)


def _luma(images: Tensor) -> Tensor:
    """Luma of RGB, otherwise the mean of the channels: [N, 1, H, W]."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    red, green, blue = images.split(1, 1)
    return (LUMA_WEIGHTS[0] * red).add_(green, alpha=LUMA_WEIGHTS[1]).add_(blue, alpha=LUMA_WEIGHTS[2])


def _on(images: Tensor, values: Any) -> Tensor:
    """An array on the images' device: indices as they are, numbers in the images' type."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.to(images.device, images.dtype if tensor.is_floating_point() else tensor.dtype, non_blocking=True)
