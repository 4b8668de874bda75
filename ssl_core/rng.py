"""Keyed randomness: every random number is a pure function of (seed, purpose, coordinates).

There is no generator and no state. A key is a 64-bit hash of where a number is used (which purpose, epoch, sample,
view), and the numbers of a key are the SplitMix64 stream that starts there (Steele, Lea and Flood, "Fast splittable
pseudorandom number generators", OOPSLA 2014). All arithmetic is on signed 64-bit integers with wrap-around, which NumPy
and torch define alike, so one implementation serves both and CPU and GPU agree to the bit.
"""

import hashlib
from typing import Any

import numpy as np

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15, the SplitMix64 increment
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift_right(x: Any, bits: int) -> Any:
    """Logical shift of a signed 64-bit integer array."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Any) -> Any:
    """SplitMix64's finaliser, a bijection on 64-bit integers; `x` is an int64 NumPy array or torch tensor."""
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def key(seed: int, purpose: str, *coordinates: Any) -> Any:
    """Hash (seed, purpose, coordinates) to int64 keys.

    Args:
        seed: the run's seed.
        purpose: what the numbers are for, such as "views" or "order.shard"; different purposes never share numbers.
        coordinates: integers or int64 arrays (NumPy or torch) that broadcast against each other: epoch, sample, view.

    Returns:
        int64 keys of the coordinates' broadcast shape (a 0-d NumPy array without array coordinates).
    """
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()
    start: Any = np.asarray(int.from_bytes(digest, "little", signed=True), dtype=np.int64)
    with np.errstate(over="ignore"):
        for coordinate in coordinates:
            if isinstance(coordinate, int | np.integer):
                coordinate = np.asarray(coordinate, dtype=np.int64)
            if not isinstance(coordinate, np.ndarray) and isinstance(start, np.ndarray):
                start = int(start)  # a torch coordinate: from here on the arithmetic is torch's
            start = mix((coordinate * _GOLDEN) ^ start)
    return start


def random_bits(keys: Any, count: int) -> Any:
    """The first `count` numbers of each key's stream: int64 [..., count], uniform over all 64-bit patterns."""
    if isinstance(keys, np.ndarray | np.integer):
        steps: Any = np.arange(1, count + 1, dtype=np.int64)
        with np.errstate(over="ignore"):
            return mix(np.asarray(keys, dtype=np.int64)[..., None] + steps * _GOLDEN)
    steps = (keys.new_zeros(count) + 1).cumsum(0)
    return mix(keys[..., None] + steps * _GOLDEN)


def uniform(keys: Any, count: int) -> Any:
    """The first `count` numbers of each key's stream as float64 in [0, 1): shape [..., count]."""
    bits = _shift_right(random_bits(keys, count), 11)
    as_float = bits.astype(np.float64) if isinstance(bits, np.ndarray) else bits.double()
    return as_float * 2.0**-53
