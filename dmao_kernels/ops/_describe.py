"""Tensors in error messages."""

from torch import Tensor


def dtype_name(tensor: Tensor) -> str:
    """The dtype as users write it, e.g. "float32"."""
    return str(tensor.dtype).removeprefix("torch.")


def describe(tensor: Tensor) -> str:
    """Dtype and shape, e.g. "float32 [2, 3]"."""
    return f"{dtype_name(tensor)} {list(tensor.shape)}"
