"""Keyed randomness: NumPy and torch agree to the bit, pinned numbers stay, numbers are uniform and independent."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssl_core import rng

INT64 = st.integers(-(2**63), 2**63 - 1)


def splitmix64(state: int, count: int) -> list[int]:
    """The published algorithm on unsigned Python integers."""
    numbers: list[int] = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        numbers.append(z ^ z >> 31)
    return numbers


def test_numbers_are_pinned() -> None:
    assert int(rng.key(0, "views")) == -4371716256953394453
    assert int(rng.key(0, "views", 3)) == -8403126376245538325
    assert rng.key(7, "order.shard", 2, np.arange(3)).tolist() == [
        4366667729061086273,
        -6011777249255462366,
        8448406512729726261,
    ]
    key = rng.key(0, "views", 1, 2, 3)
    assert rng.random_bits(key, 3).tolist() == [-5110878334696592237, 518860847032457601, 7452550808522413584]
    assert rng.uniform(key, 3).tolist() == [0.7229387303106428, 0.028127502878512955, 0.4040035888579301]


@given(INT64)
def test_a_key_is_the_start_of_a_splitmix64_stream(start: int) -> None:
    expected = splitmix64(start % 2**64, 4)
    assert [number % 2**64 for number in rng.random_bits(np.int64(start), 4).tolist()] == expected
    assert rng.uniform(np.int64(start), 4).tolist() == [(number >> 11) / 2**53 for number in expected]


@given(seed=INT64, coordinates=st.lists(INT64, min_size=1, max_size=4))
def test_numpy_and_torch_agree_to_the_bit(seed: int, coordinates: list[int]) -> None:
    arrays = [np.asarray([one, one ^ 1, -one // 3], dtype=np.int64) for one in coordinates]
    in_numpy = rng.key(seed, "test", *arrays)
    in_torch = rng.key(seed, "test", *(torch.from_numpy(array) for array in arrays))
    assert isinstance(in_torch, torch.Tensor)
    assert in_torch.tolist() == in_numpy.tolist()
    assert rng.random_bits(in_torch, 5).tolist() == rng.random_bits(in_numpy, 5).tolist()
    assert rng.uniform(in_torch, 5).tolist() == rng.uniform(in_numpy, 5).tolist()
    assert in_numpy[0] == rng.key(seed, "test", *coordinates)


@pytest.mark.parametrize("integer", [int, np.int64, np.asarray])
def test_integers_may_stand_beside_tensors(integer: type[int]) -> None:
    mixed = rng.key(1, "test", integer(5), torch.arange(4), integer(9))
    assert mixed.tolist() == rng.key(1, "test", 5, np.arange(4), 9).tolist()


def test_coordinates_broadcast() -> None:
    keys = rng.key(0, "test", 4, np.arange(3)[:, None], np.arange(2))
    assert keys.shape == (3, 2)
    assert keys[2, 1] == rng.key(0, "test", 4, 2, 1)
    assert rng.uniform(keys, 7).shape == (3, 2, 7)
    assert (rng.uniform(keys, 7)[2, 1] == rng.uniform(keys[2, 1], 7)).all()


def test_a_longer_stream_starts_with_the_shorter_one() -> None:
    key = rng.key(0, "test")
    assert (rng.uniform(key, 100)[:10] == rng.uniform(key, 10)).all()


def test_every_part_of_a_key_counts() -> None:
    changed = [
        rng.key(0, "views", 1, 2),
        rng.key(1, "views", 1, 2),
        rng.key(0, "masks", 1, 2),
        rng.key(0, "views", 2, 1),
        rng.key(0, "views", 1),
        rng.key(0, "views", 1, 2, 0),
        rng.key(10, "views", 1, 2),
    ]
    assert len({int(key) for key in changed}) == len(changed)


def test_keys_of_a_grid_are_distinct() -> None:
    keys = rng.key(0, "views", np.arange(64)[:, None, None], np.arange(1024)[:, None], np.arange(4))
    assert len(np.unique(keys)) == keys.size


def test_one_bit_of_a_coordinate_moves_half_the_bits_of_a_key() -> None:
    coordinates = np.arange(2000)
    for bit in (0, 1, 7, 31, 62):
        changed = rng.key(0, "test", coordinates) ^ rng.key(0, "test", coordinates ^ (1 << bit))
        moved = np.unpackbits(changed.view(np.uint8)).reshape(-1, 64)
        assert abs(moved.mean() - 0.5) < 0.01
        assert np.abs(moved.mean(0) - 0.5).max() < 0.07


def chi_square(values: np.ndarray[Any, Any], bins: int) -> float:
    counts = np.bincount((values.ravel() * bins).astype(int), minlength=bins)
    expected = values.size / bins
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("along", ["stream", "coordinate"])
def test_numbers_are_uniform_and_neighbours_independent(along: str) -> None:
    count = 1 << 17
    key = rng.key(0, "test")
    values = (
        rng.uniform(key, count) if along == "stream" else rng.uniform(rng.key(0, "test", np.arange(count)), 1)[:, 0]
    )
    assert 0 <= values.min() < 1e-4
    assert 1 - 1e-4 < values.max() < 1
    assert 180 < chi_square(values, 256) < 340
    pairs = (np.floor(values[:-1] * 16) + np.floor(values[1:] * 16) / 16) / 16
    assert 180 < chi_square(pairs, 256) < 340
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.012


def test_purposes_seeds_and_views_are_independent() -> None:
    samples = np.arange(1 << 14)
    streams = np.stack(
        [
            rng.uniform(rng.key(seed, purpose, samples, view), 1)[:, 0]
            for seed in (0, 1)
            for purpose in ("views", "masks")
            for view in (0, 1)
        ]
    )
    correlation = np.corrcoef(streams) - np.eye(len(streams))
    assert np.abs(correlation).max() < 0.035


@pytest.mark.usefixtures("untouched_generators")
def test_no_generator_is_touched() -> None:
    rng.uniform(rng.key(0, "views", 1, np.arange(4)), 3)
    rng.uniform(rng.key(0, "views", 1, torch.arange(4)), 3)


@pytest.mark.gpu
def test_gpu_agrees_with_cpu() -> None:
    positions = torch.arange(1000)
    keys = rng.key(0, "masks", 3, positions, 1)
    assert torch.equal(rng.key(0, "masks", 3, positions.cuda(), 1).cpu(), keys)
    assert torch.equal(rng.uniform(keys.cuda(), 9).cpu(), rng.uniform(keys, 9))
