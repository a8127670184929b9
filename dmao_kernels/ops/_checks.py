"""What the public functions of the operations share: dtypes, checks of arguments and their words, torch.autocast."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # of the kernels for GPUs
CPU_DTYPES = (torch.float32, torch.bfloat16)


def dtype_name(tensor: Tensor) -> str:
    """The dtype as users write it, e.g. "float32"."""
    return str(tensor.dtype).removeprefix("torch.")


def describe(value: object) -> str:
    """Dtype and shape of a tensor, e.g. "float32 [2, 3]"; the class of anything else that was given in its place."""
    if isinstance(value, Tensor):
        return f"{dtype_name(value)} {list(value.shape)}"
    return "None" if value is None else f"a {type(value).__name__}"


def has_dtype(value: object, dtype: torch.dtype) -> bool:
    """Whether it is a tensor, no number or list, and of this dtype."""
    return isinstance(value, Tensor) and value.dtype == dtype


def autocast(x: Tensor, *others: Tensor | None) -> tuple[Any, ...]:
    """All of them in autocast's dtype, where it is on for x's device; as they are where it is not.

    Dtypes that have no kernels stay, as PyTorch's autocast leaves integers and float64: they are to be refused.
    """
    if x.is_meta or not torch.is_autocast_enabled(x.device.type):
        return x, *others
    dtype = torch.get_autocast_dtype(x.device.type)
    return tuple([t.to(dtype) if t is not None and t.dtype in DTYPES else t for t in (x, *others)])


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Where autocast is off for x's device; meta has none."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def is_pair(value: object) -> bool:
    """Whether it is two values, no number that would stand for both."""
    return isinstance(value, tuple | list) and len(value) == 2


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Whether autograd records what is done with these."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def check_float(op: str, name: str, tensor: Tensor) -> None:
    """Raises ValueError unless the dtype is one of `DTYPES`."""
    if tensor.dtype not in DTYPES:
        raise ValueError(f"{op}: {name} must be float32, bfloat16 or float16, got {dtype_name(tensor)}")


def check_like(op: str, x: Tensor, **expected: tuple[Tensor | None, list[int]]) -> None:
    """Raises ValueError unless each tensor has the shape beside it, and x's dtype."""
    for name, (tensor, shape) in expected.items():
        if tensor is None:
            continue
        if list(tensor.shape) != shape:
            raise ValueError(f"{op}: {name} must be {shape}, got {list(tensor.shape)}")
        if tensor.dtype != x.dtype:
            raise ValueError(f"{op}: {name} must have x's dtype {dtype_name(x)}, got {dtype_name(tensor)}")


def check_choice(op: str, name: str, value: str, choices: Iterable[str]) -> None:
    """Raises ValueError unless it is one of the choices."""
    if value not in choices:
        raise ValueError(f"{op}: {name} must be one of {', '.join(choices)}, got {value!r}")


def check_live(op: str, live: Tensor | None, components: int, channels: int, what: str) -> None:
    """Raises ValueError unless components divide the channels, and live is a list of ids. what: a word for channels."""
    if components < 0 or (channels % components if components else channels):
        raise ValueError(f"{op}: components must divide the {channels} {what}, got {components}")
    if live is not None and (not has_dtype(live, torch.int32) or live.dim() != 1):
        raise ValueError(f"{op}: live must be int32 [n], got {describe(live)}")


def check_dropout(op: str, p: float, seed: Tensor | None) -> None:
    """Raises ValueError unless p is a rate, and there is a seed where one is needed."""
    if not 0.0 <= p < 1.0:
        raise ValueError(f"{op}: p must be in [0, 1), got {p}")
    if p > 0.0 and (seed is None or not has_dtype(seed, torch.int64) or list(seed.shape) != [1]):
        raise ValueError(f"{op}: seed must be int64 [1] when p > 0, got {describe(seed)}")


def check_devices(op: str, first: str, device: torch.device, **tensors: Tensor | None) -> None:
    """Raises ValueError unless all are on the device of the argument called `first`."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != device:
            raise ValueError(f"{op}: {name} must be on {first}'s device {device}, got {tensor.device}")
