"""One path for all encoders: right pixels in, right order out, and the encoder as it was before."""

import threading

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ssl_core.errors import UserError
from ssl_core.export import ExportConfig, LoadedEncoder
from ssl_core.nn.backbones import Encoder, ModelConfig
from ssl_core.probe.features import RAW_PIXELS_SIZE, ImageInput, RawPixels, centre_square, embed, encode

Pixels = NDArray[np.uint8]

PLAIN = ImageInput(size=4, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def noise(num_images: int, height: int = 4, width: int = 4, channels: int = 3) -> Pixels:
    return np.random.default_rng(7).integers(0, 256, (num_images, height, width, channels)).astype(np.uint8)


def test_raw_pixels_are_the_normalised_pixels_in_the_order_of_the_positions() -> None:
    images = noise(7)
    order = [3, 0, 6, 6, 2]
    image_input = ImageInput(size=4, mean=(0.5, 0.25, 0.0), std=(0.5, 0.1, 1.0))
    x = encode(RawPixels(), images.__getitem__, order, image_input=image_input, batch_size=2)
    expected = (images[order] / 255.0 - image_input.mean) / image_input.std
    np.testing.assert_allclose(x.numpy(), expected.transpose(0, 3, 1, 2).reshape(5, -1), atol=1e-5)
    assert x.dtype == torch.float32


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_neither_batches_nor_threads_change_a_feature(batch_size: int, threads: int) -> None:
    images = noise(11)
    reference = encode(RawPixels(), images.__getitem__, range(11), image_input=PLAIN)
    x = encode(RawPixels(), images.__getitem__, range(11), image_input=PLAIN, batch_size=batch_size, threads=threads)
    assert torch.equal(x, reference)


def test_raw_pixels_of_large_images_are_averaged_down() -> None:
    side = 2 * RAW_PIXELS_SIZE
    x = torch.arange(side * side, dtype=torch.float32).view(1, 1, side, side)
    pooled = RawPixels()(x).view(RAW_PIXELS_SIZE, RAW_PIXELS_SIZE)
    assert pooled[0, 0] == x[0, 0, :2, :2].mean()
    assert pooled[-1, -1] == x[0, 0, -2:, -2:].mean()


class Watched(nn.Module):
    """Notes how it was called; one part of it is frozen in eval mode, as a fine-tuned BatchNorm may be."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.frozen = nn.BatchNorm2d(3).eval()
        self.seen: list[tuple[bool, bool, bool, torch.dtype]] = []

    def forward(self, x: Tensor) -> Tensor:
        last = x.is_contiguous(memory_format=torch.channels_last)
        y: Tensor = nn.functional.conv2d(x, torch.ones(2, 3, 1, 1, dtype=x.dtype))
        self.seen.append((self.norm.training, torch.is_inference_mode_enabled(), last, y.dtype))
        return self.frozen(self.norm(x)).mean((2, 3))


def test_an_encoder_is_run_in_eval_mode_without_graph_and_left_as_it_was() -> None:
    encoder = Watched().train()
    encoder.frozen.eval()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    x = encode(encoder, noise(6).__getitem__, range(6), image_input=PLAIN, batch_size=4)
    assert encoder.seen == [(False, True, True, torch.float32)] * 2
    assert (encoder.training, encoder.norm.training, encoder.frozen.training) == (True, True, False)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert not x.is_inference()


def test_the_modes_come_back_after_an_error_too() -> None:
    encoder = Watched().train()
    with pytest.raises(UserError, match="position 0 has 1 channels, the encoder takes 3"):
        encode(encoder, noise(2, channels=1).__getitem__, range(2), image_input=PLAIN)
    assert encoder.training


def test_precision_follows_the_argument_and_the_weights() -> None:
    encoder = Watched()
    encode(encoder, noise(2).__getitem__, range(2), image_input=PLAIN, precision="bf16")
    assert encoder.seen[-1][3] == torch.bfloat16
    x = encode(encoder.double(), noise(2).__getitem__, range(2), image_input=PLAIN)
    assert encoder.seen[-1][3] == torch.float64
    assert x.dtype == torch.float32


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).log()


def test_features_that_are_not_finite_are_refused() -> None:
    with pytest.raises(UserError, match="not finite"):
        encode(
            Broken(), noise(2).__getitem__, range(2), image_input=ImageInput(size=4, mean=(0.9,) * 3, std=(1.0,) * 3)
        )


def test_centre_square_of_an_image_of_the_right_size_is_the_image_itself() -> None:
    image = noise(1)[0]
    assert centre_square(image, 4) is image


def test_centre_square_resizes_the_shorter_side_and_cuts_the_centre() -> None:
    image = np.zeros((8, 20, 3), np.uint8)
    image[:, 6:14] = 200  # the central square, and nothing else, is grey
    assert (centre_square(image, 4) == 200).all()
    assert (centre_square(image.transpose(1, 0, 2), 4) == 200).all()


def test_shrinking_averages_what_it_leaves_out() -> None:
    stripes = np.zeros((64, 64, 1), np.uint8)
    stripes[:, ::2] = 255
    shrunk = centre_square(stripes, 8)
    assert shrunk.shape == (8, 8, 1)
    assert abs(int(shrunk.mean()) - 127) <= 2
    assert shrunk.std() < 12  # without antialiasing the stripes would fold to flat black or white


def test_decoding_happens_beside_the_encoder_and_ends_with_it() -> None:
    names: set[str] = set()

    def image_at(position: int) -> Pixels:
        names.add(threading.current_thread().name)
        return noise(1)[0]

    encode(RawPixels(), image_at, range(5), image_input=PLAIN, batch_size=1)
    assert all(name.startswith("probe") for name in names)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("probe")]


def exported() -> LoadedEncoder:
    model = ModelConfig(name="any", image_size=4, in_chans=3)
    config = ExportConfig(model=model, mean=(0.5,) * 3, std=(0.25,) * 3, num_features=48)
    return LoadedEncoder(encoder=Encoder(RawPixels(), 48), config=config)


def test_embed_takes_images_of_any_size_through_the_same_path() -> None:
    small, large = noise(1)[0], noise(1, 9, 6)[0]
    features = embed(exported(), [small, large], batch_size=1)
    squares = [small, centre_square(large, 4)]
    reference = encode(
        RawPixels(), squares.__getitem__, range(2), image_input=ImageInput(size=4, mean=(0.5,) * 3, std=(0.25,) * 3)
    )
    np.testing.assert_array_equal(features, reference.numpy())
    assert features.dtype == np.float32


def test_embed_of_no_images_has_no_rows() -> None:
    assert embed(exported(), []).shape == (0, 48)
