"""Recipes: the papers' settings, what their views look like, and that they are pure functions of pixels and keys."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest

from pipelines.config import typed
from ssl_core import rng
from ssl_core.errors import UserError
from ssl_core.views import RECIPES, CropConfig, CropRecipe, ViewConfig, ViewGroup, recipe

Image = np.ndarray[Any, Any]


def drawn(made: CropRecipe, position: int = 0, *, epoch: int = 0) -> Any:
    return made.draw(rng.key(0, "views", epoch, position, np.arange(made.num_views)))


def pattern(height: int = 300, width: int = 400) -> Image:
    """A picture that is the same everywhere, without a generator: uint8 [H, W, 3]."""
    y, x = np.mgrid[:height, :width]
    return np.stack([(x * y // 97 + 3 * x) % 256, (x * x // 53 + y) % 256, (2 * y + x // 3) % 256], -1).astype(np.uint8)


def digest(views: list[Image]) -> str:
    return hashlib.sha256(b"".join(group.tobytes() for group in views)).hexdigest()[:16]


# ----------------------------------------------------------------------------------------------- the papers' settings


def test_simclr_is_the_papers_for_imagenet_and_for_cifar() -> None:
    large, small = (replace(RECIPES["simclr"], image_size=size).layout()["views"] for size in (224, 32))
    assert (
        large
        == (
            ViewConfig(size=224, jitter=0.8, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, grey=0.2, blur=0.5),
        )
        * 2
    )
    assert (
        small
        == (ViewConfig(size=32, jitter=0.8, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grey=0.2, blur=0.0),)
        * 2
    )
    assert large[0].scale == (0.08, 1.0)
    assert large[0].ratio == (3 / 4, 4 / 3)
    assert large[0].blur_sigma == (0.1, 2.0)
    assert large[0].flip == 0.5


@pytest.mark.parametrize(
    ("size", "strength", "blur"), [(32, 0.4, 0.0), (64, 0.4, 0.0), (65, 0.8, 0.5), (224, 0.8, 0.5)]
)
def test_simclrs_defaults_go_by_image_size(size: int, strength: float, blur: float) -> None:
    view = CropConfig(image_size=size).layout()["views"][0]
    assert (view.brightness, view.blur) == (strength, blur)


def test_named_strength_and_blur_are_obeyed_at_any_size() -> None:
    view = CropConfig(image_size=32, color_strength=1.0, blur=0.3).layout()["views"][1]
    assert (view.brightness, view.hue, view.blur) == (0.8, 0.2, 0.3)


def test_moco() -> None:
    v1, v2 = (RECIPES[name].layout()["views"][0] for name in ("moco_v1", "moco_v2"))
    assert (v1.jitter, v1.brightness, v1.contrast, v1.saturation, v1.hue, v1.blur) == (1.0, 0.4, 0.4, 0.4, 0.4, 0.0)
    assert (v2.jitter, v2.brightness, v2.contrast, v2.saturation, v2.hue, v2.blur) == (0.8, 0.4, 0.4, 0.4, 0.1, 0.5)
    assert v1.scale == v2.scale == (0.2, 1.0)
    assert v1.grey == v2.grey == 0.2


def test_byols_two_views_differ() -> None:
    first, second = RECIPES["byol"].layout()["views"]
    assert (first.blur, second.blur) == (1.0, 0.1)
    assert (first.solarise, second.solarise) == (0.0, 0.2)
    assert (first.brightness, first.contrast, first.saturation, first.hue) == (0.4, 0.4, 0.2, 0.1)
    assert replace(first, blur=0.1, solarise=0.2) == second


def test_mae_is_one_crop_and_a_flip() -> None:
    (view,) = RECIPES["mae"].layout()["views"]
    assert (view.scale, view.interpolation, view.flip) == ((0.2, 1.0), "bicubic", 0.5)
    assert (view.jitter, view.grey, view.blur, view.solarise) == (0.0, 0.0, 0.0, 0.0)


def test_multicrop_has_two_groups() -> None:
    assert recipe("multicrop", image_size=224).groups == (
        ViewGroup(name="views", count=2, height=224, width=224, channels=3),
        ViewGroup(name="local", count=6, height=96, width=96, channels=3),
    )
    layout = RECIPES["dino"].layout()
    assert [view.scale for view in layout["views"]] == [(0.4, 1.0)] * 2
    assert [(view.scale, view.blur, view.solarise) for view in layout["local"]] == [((0.05, 0.4), 0.5, 0.0)] * 8
    padded = CropConfig(image_size=32, crop="padded", solarise=0.5, local_views=1).layout()["local"][0]
    assert (padded.crop, padded.solarise) == ("resized", 0.0)
    assert recipe("multicrop", image_size=32).groups[1].height == 12
    assert recipe("multicrop", image_size=32, local_size=16).groups[1].height == 16


# ---------------------------------------------------------------------------------------------------------- the views


@pytest.mark.parametrize("name", list(RECIPES))
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_groups_are_what_is_announced(name: str, channels: int) -> None:
    made = recipe(name, image_size=32, channels=channels)
    image = np.random.default_rng(0).integers(0, 256, (45, 60, channels), dtype=np.uint8)
    views = made(image, drawn(made))
    assert made.num_views == sum(group.count for group in made.groups)
    assert len(views) == len(made.groups)
    for view, group in zip(views, made.groups, strict=True):
        assert view.shape == (group.count, group.height, group.width, group.channels)
        assert view.dtype == np.uint8
        assert view.flags.c_contiguous


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (3000, 10)])
@pytest.mark.parametrize("crop", ["resized", "padded"])
def test_extreme_shapes_become_views(shape: tuple[int, int], crop: str) -> None:
    made = recipe("simclr", image_size=32, crop=crop)
    image = np.full((*shape, 3), 77, np.uint8)
    for position in range(5):
        assert made(image, drawn(made, position))[0].shape == (2, 32, 32, 3)


def test_views_of_a_sample_differ_and_so_do_samples_and_epochs() -> None:
    made = recipe("simclr", image_size=32)
    views = [made(pattern(), drawn(made, position, epoch=epoch))[0] for position in (0, 1) for epoch in (0, 1)]
    assert len({view.tobytes() for pair in views for view in pair}) == 8


def test_a_view_depends_on_its_own_key_alone() -> None:
    made = recipe("dino", image_size=32)
    numbers = drawn(made)
    others = made.draw(rng.key(0, "other", np.arange(made.num_views)))
    plain = made(pattern(), numbers)
    for view in range(made.num_views):
        changed = made(pattern(), np.where(np.arange(made.num_views)[:, None] == view, numbers, others))
        group, index = (0, view) if view < 2 else (1, view - 2)
        assert (changed[group][index] == plain[group][index]).all()


def test_byols_first_view_is_always_blurred_and_the_second_rarely() -> None:
    made = recipe("byol", image_size=96, crop="resized", blur_sigma=(2.0, 2.0), jitter=0.0, grey=0.0, solarise=0.0)
    fine = ((np.indices((96, 96)).sum(0) % 2) * 255).astype(np.uint8)[..., None].repeat(3, axis=2)
    sharp = replace(RECIPES["byol"], image_size=96, blur=0.0, jitter=0.0, grey=0.0, solarise=0.0)
    changed = np.zeros(2)
    for position in range(60):
        numbers = drawn(made, position)
        pairs = zip(made(fine, numbers)[0], CropRecipe.of(sharp)(fine, numbers)[0], strict=True)
        changed += [(one != other).any() for one, other in pairs]
    assert changed[0] == 60
    assert 1 <= changed[1] <= 15


# ------------------------------------------------------------------------------------------------------------- purity


def test_the_same_key_gives_the_same_bytes_whatever_happened_before() -> None:
    made = recipe("byol", image_size=96)
    image = pattern()
    first = [digest(made(image, drawn(made, position))) for position in range(8)]
    np.random.seed(1)  # noqa: NPY002 (global state is what must not matter)
    cv2.setRNGSeed(7)
    backwards = [digest(made(image, drawn(made, position))) for position in reversed(range(8))]
    assert backwards[::-1] == first
    again = recipe("byol", image_size=96)

    def digest_of(position: int) -> str:
        return digest(again(image, drawn(again, position)))

    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(digest_of, list(range(8)) * 4))
    assert threaded == first * 4


def test_opencvs_threads_change_no_byte() -> None:
    made = recipe("simclr", image_size=224)
    image = pattern(900, 1200)
    before = cv2.getNumThreads()
    digests: set[str] = set()
    try:
        for threads in (1, 2, 5):
            cv2.setNumThreads(threads)
            digests.add(digest([made(image, drawn(made, position))[0] for position in range(4)]))
    finally:
        cv2.setNumThreads(before)
    assert len(digests) == 1


def test_global_generators_are_not_touched() -> None:
    made = recipe("simclr", image_size=32)
    before = np.random.get_state()[1].tolist()  # type: ignore[index] (a tuple by default)  # noqa: NPY002 (global state is what must not change)
    made(pattern(), drawn(made))
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index] (a tuple by default)  # noqa: NPY002 (global state is what must not change)


def test_pinned_bytes() -> None:
    """A change here changes every run: it must be meant.

    Views without blur, which do not differ with the processor's instructions (NUMBA_CPU_NAME=generic is the least).
    """
    made = recipe("simclr", image_size=32)
    views = [made(pattern(), drawn(made, position))[0] for position in range(6)]
    assert digest(views) == "0942c34938813a33"


# ----------------------------------------------------------------------------------------------------------- mistakes


def test_an_unknown_recipe_or_field_is_named() -> None:
    with pytest.raises(UserError, match="unknown recipe 'simclrr': known are simclr"):
        recipe("simclrr", image_size=32)
    with pytest.raises(UserError, match=r"unknown key views\.blurr"):
        recipe("simclr", image_size=32, blurr=0.1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 0}, "image_size=0"),
        ({"channels": 0}, "channels=0"),
        ({"channels": 5}, "channels=5"),
        ({"views": 0}, "views=0"),
        ({"local_views": -1}, "local_views=-1"),
        ({"blur": (1.0, 0.1, 0.1)}, r"blur=\[1.0, 0.1, 0.1\]: give one number, or 2"),
        ({"solarise": (0.2,)}, r"solarise=\[0.2\]: give one number, or 2"),
        ({"blur": (0.5, 1.5)}, "blur=1.5"),
        ({"color_strength": 3.0}, "hue=0.2: times color_strength 3.0"),
        ({"local_scale": (0.5, 0.1)}, "local_scale="),
        ({"local_blur": 1.1}, "local_blur=1.1"),
        ({"local_size": 0}, "local_size=0"),
        ({"scale": (0.5, 0.1)}, r"views\.scale="),
    ],
)
def test_what_no_recipe_can_be_made_from_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        CropConfig(**fields)
    assert "\n" not in str(refusal.value)


def test_plain_values_as_yaml_has_them_make_a_config() -> None:
    config = typed(CropConfig, {"image_size": 96, "blur": [1, 0.1], "scale": [0.2, 1], "color_strength": None})
    assert config == CropConfig(image_size=96, blur=(1.0, 0.1), scale=(0.2, 1.0))
    assert [view.blur for view in config.layout()["views"]] == [1.0, 0.1]


def test_wrong_channels_or_numbers_are_refused() -> None:
    made = recipe("simclr", image_size=32)
    with pytest.raises(ValueError, match=r"image \(300, 400, 1\)"):
        made(pattern()[..., :1], drawn(made))
    with pytest.raises(ValueError, match=r"numbers \(3, 36\)"):
        made(pattern(), made.draw(rng.key(0, "views", np.arange(3))))


def test_a_group_has_one_size() -> None:
    with pytest.raises(ValueError, match="'views'"):
        CropRecipe({"views": [ViewConfig(size=32), ViewConfig(size=16)]})
    with pytest.raises(ValueError, match="'views'"):
        CropRecipe({"views": []})
