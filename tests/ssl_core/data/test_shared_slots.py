"""Shared slots: one's memory is another's, in use as long as anything looks at it, and gone with the last who does."""

import gc
import os

import numpy as np
import pytest

from ssl_core.data.shared_slots import SharedSlots, SlotsElsewhere


@pytest.mark.parametrize("slot_bytes", [1, 4096, 10_001])
def test_a_slot_is_the_same_elsewhere(slot_bytes: int) -> None:
    slots = SharedSlots(slot_bytes)
    elsewhere = SlotsElsewhere(slots.file, slot_bytes)
    taken = [slots.take() for _ in range(3)]
    for number, memory in taken:
        assert memory.shape == (slot_bytes,)
        memory[:] = number + 7
    for number, _ in reversed(taken):
        elsewhere.memory(number)[-1] += 1
        assert elsewhere.memory(number).tolist() == [number + 7] * (slot_bytes - 1) + [number + 8]
    assert all(memory[-1] == number + 8 for number, memory in taken)
    slots.close()


def test_a_slot_is_taken_again_once_nobody_looks_at_it() -> None:
    slots = SharedSlots(100)
    first, memory = slots.take()
    view = memory[20:40].reshape(4, 5)[1:].T
    del memory
    second, other = slots.take()
    assert second != first
    del view
    third, again = slots.take()
    assert (third, slots.count) == (first, 2)
    del other, again
    for _ in range(20):
        number, one = slots.take()
        assert number in (first, second)
        del one
    assert slots.count == 2
    slots.close()


def test_what_is_held_outlives_the_slots_and_nothing_else_does() -> None:
    gc.collect()
    before = os.listdir("/proc/self/fd")
    slots = SharedSlots(100)
    _, memory = slots.take()
    memory[:] = 5
    held = memory[50:]
    slots.close()
    del slots, memory
    assert np.array_equal(held, np.full(50, 5))
    del held
    gc.collect()
    assert os.listdir("/proc/self/fd") == before
