"""Tables that tell one launch about hundreds of tensors: made on the host, where nothing waits for the device."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

# So many bytes are read at once where addresses allow it, and so many entries always fill them.
ALIGNMENT = 16
VECTOR = 8


def upload(values: Tensor, device: torch.device) -> Tensor:
    """`values`, which lie on the CPU, on the device: the copy is queued there, behind what is running."""
    return values if device.type == "cpu" else values.pin_memory().to(device, non_blocking=True)


def queue(device: torch.device) -> int:
    """Where work for the device is queued now; what was uploaded in one queue may not be there yet for another."""
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


class Recent(Generic[T]):
    """What was made for the last few keys."""

    def __init__(self, limit: int = 16) -> None:
        self._made: OrderedDict[Hashable, T] = OrderedDict()
        self._limit = limit

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """What was made for the key; made now where that is not remembered."""
        if key not in self._made:
            self._made[key] = make()
            if len(self._made) > self._limit:
                self._made.popitem(last=False)
        self._made.move_to_end(key)
        return self._made[key]


class Uploaded:
    """Numbers on the device, uploaded only where they have changed."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self._device = dtype, device
        self._values: list[Any] | None = None
        self._tensor = torch.empty(0, device="cpu")

    def tensor(self, values: list[Any], finish: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> Tensor:
        """The numbers, a list (of lists), as `finish` makes them of a tensor on the CPU."""
        if values != self._values:
            self._tensor = upload(finish(torch.tensor(values, dtype=self._dtype, device="cpu")), self._device)
            self._values = values  # last: an upload that failed has changed nothing
        return self._tensor


class Addresses:
    """Where the tensors of a launch lie: int64 [entries, columns + 1] on the device.

    even: per entry, whether what is read of it at once begins and ends at multiples of `VECTOR` entries.
    """

    def __init__(self, even: Sequence[bool], device: torch.device) -> None:
        self._even = torch.tensor(even, device="cpu")
        self._uploaded = Uploaded(torch.int64, device)

    def table(self, *columns: list[int]) -> Tensor:
        """Per entry an address in every column, then whether all may be read by vectors (0 or 1)."""
        return self._uploaded.tensor(list(columns), self._with_vectors)

    def _with_vectors(self, columns: Tensor) -> Tensor:
        aligned = self._even & (columns % ALIGNMENT == 0).all(0)
        return torch.cat([columns, aligned[None]]).T.contiguous()
