"""From arrays of the host to tensors on the device, while the device computes."""

from typing import Any

import numpy as np
import torch
from torch import Tensor


class Uploads:
    """Copies to a device; neither does the host wait for the device nor the device's work for a copy it does not need.

    On a GPU: by way of page-locked memory, which the driver can read without the host, on a stream of its own. What
    lies in ordinary memory the driver copies only once all earlier work of the stream is done, and the host waits.

    Args:
        device: where to.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, values: np.ndarray[Any, Any]) -> Tensor:
        """The same values on the device; the array may be overwritten afterwards, unless the device is the host."""
        tensor = torch.from_numpy(values)
        if self._stream is None:
            return tensor.to(self._device)
        with torch.cuda.stream(self._stream):
            copy = tensor.pin_memory().to(self._device, non_blocking=True)
        work = torch.cuda.current_stream(self._device)
        work.wait_stream(self._stream)
        copy.record_stream(work)  # or its memory would be given away while that work is still to be done
        return copy
