"""What a method asks for: the views of one sample, as a function of the sample's pixels and one key per view.

A recipe is groups of views; a group's views have one size and may differ in everything else. `CropConfig` says all
crop-based recipes in plain values (SimCLR, MoCo, BYOL, MAE, SwAV, DINO), and `RECIPES` holds the papers' own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from ssl_core import rng
from ssl_core.errors import UserError
from ssl_core.views.image import Image, Interpolation
from ssl_core.views.view import NUM_DRAWS, ViewConfig, parameters_from, render

MAX_CHANNELS = 4  # OpenCV's limit for transposing
_NO_COLORS: dict[str, Any] = {"jitter": 0.0, "grey": 0.0, "blur": 0.0, "solarise": 0.0}
SMALL_IMAGE = 64  # pixels; up to this size SimCLR's CIFAR settings hold (arXiv 2002.05709, appendix B.9)


@dataclass(frozen=True, kw_only=True)
class ViewGroup:
    """Views of one size: `count` arrays of [height, width, channels]."""

    name: str
    count: int
    height: int
    width: int
    channels: int


@dataclass(frozen=True, kw_only=True)
class CropConfig:
    """The views of a crop-based recipe: `views` of `image_size`, and `local_views` smaller ones (multi-crop).

    The defaults are SimCLR's. Fields not described here are those of `ViewConfig`.

    Attributes:
        image_size: pixels of a side.
        channels: of the images, at most 4; other than RGB (3) are jittered in brightness and contrast alone.
        views: views in the group "views".
        color_strength: what the four jitter strengths are multiplied with. None goes by image size, as in SimCLR: 1,
            and 0.5 up to 64 pixels.
        blur: probability, or one for each of `views`. None goes by the view's size, as in SimCLR: 0.5, and 0 up to 64
            pixels.
        solarise: probability, or one for each of `views`.
        local_views: views in the group "local", made only where this is above 0.
        local_size: pixels of a side; None is 3/7 of `image_size` in whole multiples of 4 (224 → 96).
        local_scale: a local box's share of the image's area.
        local_blur: as `blur`, one probability; local views are never solarised.
    """

    image_size: int = 224
    channels: int = 3
    views: int = 2
    crop: Literal["resized", "padded"] = "resized"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bilinear"
    padding: int = 4
    flip: float = 0.5
    jitter: float = 0.8
    color_strength: float | None = None
    brightness: float = 0.8
    contrast: float = 0.8
    saturation: float = 0.8
    hue: float = 0.2
    grey: float = 0.2
    blur: float | tuple[float, ...] | None = None
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarise: float | tuple[float, ...] = 0.0
    local_views: int = 0
    local_size: int | None = None
    local_scale: tuple[float, float] = (0.05, 0.14)
    local_blur: float | None = None

    def __post_init__(self) -> None:
        """Refuse what no recipe can be made from; `ViewConfig` refuses the rest as the views are laid out."""
        for name in ("image_size", "channels", "views"):
            _check(getattr(self, name) >= 1, name, getattr(self, name), "use at least 1")
        _check(self.channels <= MAX_CHANNELS, "channels", self.channels, f"images have 1 to {MAX_CHANNELS} channels")
        for name, value in (("blur", self.blur), ("solarise", self.solarise)):
            if isinstance(value, tuple):
                _check(len(value) == self.views, name, list(value), f"give one number, or {self.views}, one a view")
        strength = self._strength
        _check(strength * self.hue <= 0.5, "hue", self.hue, f"times color_strength {strength} it may be at most 0.5")
        _check(self.local_views >= 0, "local_views", self.local_views, "use 0 or more")
        low, high = self.local_scale
        _check(0 < low <= high <= 1, "local_scale", [low, high], "give a range [low, high] with 0 < low ≤ high ≤ 1")
        if self.local_blur is not None:
            _check(0 <= self.local_blur <= 1, "local_blur", self.local_blur, "a probability lies between 0 and 1")
        if self.local_size is not None:
            _check(self.local_size >= 1, "local_size", self.local_size, "use a side of at least 1 pixel")
        self.layout()

    @property
    def _strength(self) -> float:
        if self.color_strength is None:
            return 0.5 if self.image_size <= SMALL_IMAGE else 1.0
        return self.color_strength

    def layout(self) -> dict[str, tuple[ViewConfig, ...]]:
        """The distribution of every view, by group."""
        groups = {"views": tuple(self._global_view(view) for view in range(self.views))}
        if self.local_views:
            groups["local"] = (self._local_view(),) * self.local_views
        return groups

    def _global_view(self, view: int) -> ViewConfig:
        strength = self._strength
        return ViewConfig(
            size=self.image_size,
            crop=self.crop,
            scale=self.scale,
            ratio=self.ratio,
            interpolation=self.interpolation,
            padding=self.padding,
            flip=self.flip,
            jitter=self.jitter,
            brightness=strength * self.brightness,
            contrast=strength * self.contrast,
            saturation=strength * self.saturation,
            hue=strength * self.hue,
            grey=self.grey,
            blur=_blur_probability(_of_view(self.blur, view), self.image_size),
            blur_sigma=self.blur_sigma,
            solarise=_of_view(self.solarise, view) or 0.0,
        )

    def _local_view(self) -> ViewConfig:
        size = max(4, round(self.image_size * 3 / 28) * 4) if self.local_size is None else self.local_size
        return replace(
            self._global_view(0),
            size=size,
            crop="resized",
            scale=self.local_scale,
            blur=_blur_probability(self.local_blur, size),
            solarise=0.0,
        )


def _check(holds: bool, name: str, value: object, remedy: str) -> None:
    if not holds:
        raise UserError(f"views.{name}={value}: {remedy}")


def _of_view(value: float | tuple[float, ...] | None, view: int) -> float | None:
    return value[view] if isinstance(value, tuple) else value


def _blur_probability(blur: float | None, size: int) -> float:
    if blur is None:
        return 0.0 if size <= SMALL_IMAGE else 0.5
    return blur


class CropRecipe:
    """Makes the views of one sample.

    Args:
        layout: the distribution of every view, by group; views of a group have one size.
        channels: of the images.
    """

    def __init__(self, layout: Mapping[str, Sequence[ViewConfig]], *, channels: int = 3) -> None:
        for name, views in layout.items():
            if not views or len({view.size for view in views}) > 1:
                raise ValueError(f"view group {name!r}: needs at least one view, and all of one size")
        self._views = {name: tuple(views) for name, views in layout.items()}
        self.groups = tuple(
            ViewGroup(name=name, count=len(views), height=views[0].size, width=views[0].size, channels=channels)
            for name, views in self._views.items()
        )
        self.num_views = sum(group.count for group in self.groups)
        self.channels = channels

    @classmethod
    def of(cls, config: CropConfig) -> "CropRecipe":
        """The recipe that a config describes."""
        return cls(config.layout(), channels=config.channels)

    @property
    def layout(self) -> Mapping[str, tuple[ViewConfig, ...]]:
        """The distribution of every view, by group."""
        return self._views

    def crops_only(self) -> "CropRecipe":
        """The recipe without colours, blur and solarisation, for `ssl_core.views.batched_colors` to add."""
        plain = {name: tuple(replace(view, **_NO_COLORS) for view in views) for name, views in self._views.items()}
        return CropRecipe(plain, channels=self.channels)

    def draw(self, keys: np.ndarray[Any, np.dtype[np.int64]]) -> Image:
        """The random numbers that views are made from.

        Args:
            keys: int64 [..., num_views], `rng.key(seed, "views", epoch, draw, view)`, groups in order.

        Returns:
            float64 [..., num_views, NUM_DRAWS] in [0, 1).
        """
        return rng.uniform(keys, NUM_DRAWS)

    def __call__(self, image: Image, numbers: Image) -> list[Image]:
        """Make all views of one sample.

        Args:
            image: uint8 [H, W, C] of any size.
            numbers: float64 [num_views, NUM_DRAWS] of `draw`.

        Returns:
            uint8 [count, height, width, C] for each group.
        """
        height, width, channels = image.shape
        if channels != self.channels or numbers.shape != (self.num_views, NUM_DRAWS):
            raise ValueError(
                f"recipe of {self.num_views} views, {self.channels} channels: got numbers {numbers.shape}, image "
                f"{image.shape}"
            )
        drawn = iter(numbers.tolist())
        made: list[Image] = []
        for group, views in zip(self.groups, self._views.values(), strict=True):
            output = np.empty((group.count, group.height, group.width, channels), np.uint8)
            for view, config in enumerate(views):
                output[view] = render(image, config, parameters_from(config, next(drawn), height=height, width=width))
            made.append(output)
        return made


_BYOL = CropConfig(
    interpolation="bicubic",
    color_strength=1.0,
    brightness=0.4,
    contrast=0.4,
    saturation=0.2,
    hue=0.1,
    blur=(1.0, 0.1),
    solarise=(0.0, 0.2),
)
_MOCO_V2 = CropConfig(scale=(0.2, 1.0), color_strength=1.0, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)

RECIPES: dict[str, CropConfig] = {
    "simclr": CropConfig(),  # arXiv 2002.05709, appendix A
    "moco_v1": replace(_MOCO_V2, jitter=1.0, hue=0.4, blur=0.0),  # arXiv 1911.05722, section 3.3, and its code
    "moco_v2": _MOCO_V2,  # arXiv 2003.04297; SimSiam's too
    "byol": _BYOL,  # arXiv 2006.07733, appendix B; Barlow Twins', VICReg's and MoCo v3's too
    "mae": CropConfig(  # arXiv 2111.06377, appendix A.1
        views=1, scale=(0.2, 1.0), interpolation="bicubic", jitter=0.0, grey=0.0, blur=0.0
    ),
    "multicrop": CropConfig(scale=(0.14, 1.0), local_views=6),  # SwAV, arXiv 2006.09882, section 4.1 and appendix A
    "dino": replace(  # arXiv 2104.14294, appendix, and its code
        _BYOL, scale=(0.4, 1.0), local_views=8, local_scale=(0.05, 0.4), local_blur=0.5
    ),
}
"""The papers' settings, for 224 pixels; those of SimCLR and SwAV go by image size where the field is None."""


def recipe(name: str, *, image_size: int, channels: int = 3, **overrides: Any) -> CropRecipe:
    """One of `RECIPES` at a size, with fields of `CropConfig` overridden.

    Raises:
        UserError: an unknown recipe or field, or a value out of its range.
    """
    if name not in RECIPES:
        raise UserError(f"unknown recipe {name!r}: known are {', '.join(RECIPES)}")
    for field in overrides:
        if field not in CropConfig.__dataclass_fields__:
            raise UserError(f"unknown key views.{field}: known are {', '.join(CropConfig.__dataclass_fields__)}")
    return CropRecipe.of(replace(RECIPES[name], image_size=image_size, channels=channels, **overrides))
