"""Arrays on their way to the device: whole, from page-locked memory, beside what the device computes."""

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from ssl_core.train.uploads import Uploads

VALUES = np.arange(1 << 22, dtype=np.int64)


def test_on_the_host_nothing_is_copied() -> None:
    values = VALUES.copy()
    assert Uploads(torch.device("cpu"))(values).data_ptr() == values.ctypes.data


@pytest.mark.gpu
def test_an_array_may_be_overwritten_once_it_is_on_its_way() -> None:
    upload, busy = Uploads(torch.device("cuda")), torch.ones(4096, 4096, device="cuda")
    copies: list[torch.Tensor] = []
    for number in range(8):
        values = VALUES + number
        for _ in range(20):
            busy = busy @ busy * 0
        copies.append(upload(values))
        values[:] = -1
    for number, copy in enumerate(copies):
        assert torch.equal(copy.cpu(), torch.from_numpy(VALUES + number))


@pytest.mark.gpu
def test_copies_come_from_page_locked_memory_and_do_not_wait_for_earlier_work() -> None:
    upload, busy = Uploads(torch.device("cuda")), torch.ones(8192, 8192, device="cuda")
    upload(VALUES)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(10):
            busy = busy @ busy * 0
        work_done = torch.cuda.Event()
        work_done.record()
        copy = upload(VALUES)
        assert not work_done.query()  # the host is ahead
        copy.sum()
        torch.cuda.synchronize()
    spans = {True: list[tuple[float, float]](), False: list[tuple[float, float]]()}
    for event in profiler.events() or ():
        spans["Memcpy HtoD" in event.name].append((event.time_range.start, event.time_range.end))
        assert "Pageable" not in event.name
    ((_, copied),) = spans[True]
    assert copied < sorted(end for _, end in spans[False])[-3]  # before the products were done
