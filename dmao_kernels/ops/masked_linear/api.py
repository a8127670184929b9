"""masked_linear: a linear layer over the live blocks of its weight, with an activation."""

from __future__ import annotations

import torch
from torch import Tensor

from dmao_kernels._library import define, operators
from dmao_kernels.block_mask import BlockMask, grid_shape
from dmao_kernels.dispatch import choose_backend, register
from dmao_kernels.ops._describe import dtype_name
from dmao_kernels.ops.masked_linear.reference import LINEAR_ACTIVATIONS, masked_linear_reference

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# The tensors of a BlockMask, all of them or none; block is 0 without a mask.
_MASK = "Tensor? row_offsets, Tensor? column_ids, Tensor? column_offsets, Tensor? row_ids, int block"

define(
    f"masked_linear(Tensor x, Tensor w, Tensor? b, {_MASK}, str activation, bool keep) "
    "-> (Tensor y, Tensor pre_activation)",
    triton=__package__,
    cuda=True,
)
define(
    f"masked_linear_backward(Tensor grad_y, Tensor x, Tensor w, {_MASK}, Tensor pre_activation, str activation, "
    "bool need_x, bool need_w, bool need_b) -> (Tensor grad_x, Tensor grad_w, Tensor grad_b)",
    triton=__package__,
    cuda=True,
)
register("masked_linear", cpu=_DTYPES[:2], triton=_DTYPES, cuda=_DTYPES, tf32=True)


def masked_linear(
    x: Tensor, w: Tensor, b: Tensor | None = None, mask: BlockMask | None = None, *, activation: str = "none"
) -> Tensor:
    """y = act(x w^T + b) over the live blocks of w.

    Only live blocks are read and computed, forward and backward: dead ones may hold anything, NaN included,
    and their gradient is exactly zero. Without a mask this is F.linear followed by the activation.

    With an activation and gradients the pre-activations are kept. Only the gradients that are asked for are
    computed. Results are bit-identical for any number of threads. Under torch.autocast all floating point
    inputs are cast, as F.linear does. A slice of columns of a larger matrix is read in place.

    Floor on time: 2 T n flops for each of y, dx and dw, for T tokens and n live elements of w, at the peak of
    the cores; bfloat16 is accumulated in float32.

    Args:
        x: float32, bfloat16 or float16 [..., d]; any strides.
        w: [d_out, d], of x's dtype, like b.
        b: [d_out], or None.
        mask: a BlockMask over w, on x's device; None: all of w lives.
        activation: "none", "silu", "relu", "gelu" (the exact one, with erf) or "glu", where the rows of w are
            first d_out / 2 values and then as many gates: values * sigmoid(gates), as F.glu.

    Returns:
        [..., d_out] in x's dtype; [..., d_out / 2] with "glu".

    Raises:
        ValueError: an argument's dtype, shape, device or value is not as above.
        RuntimeError: the ids of the mask are out of range or not ascending (CPU kernels only), or this is
            differentiated twice.
    """
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, w = x.to(dtype), w.to(dtype)
        b = None if b is None else b.to(dtype)
    _check(x, w, b, mask, activation)
    if (backend := choose_backend("masked_linear", x, w, b)) == "reference":
        return masked_linear_reference(x, w, b, mask, activation=activation)
    keep = (
        activation != "none"
        and torch.is_grad_enabled()
        and any(tensor is not None and tensor.requires_grad for tensor in (x, w, b))
    )
    blocks = (
        (None, None, None, None, 0)
        if mask is None
        else (mask.row_offsets, mask.column_ids, mask.column_offsets, mask.row_ids, mask.block)
    )
    y, _ = operators(backend).masked_linear(x, w, b, *blocks, activation, keep)
    return y


def _check(x: Tensor, w: Tensor, b: Tensor | None, mask: BlockMask | None, activation: str) -> None:
    if x.dtype not in _DTYPES:
        raise ValueError(f"masked_linear: x must be float32, bfloat16 or float16, got {dtype_name(x)}")
    if x.dim() == 0:
        raise ValueError("masked_linear: x must be [..., d], got a scalar")
    if w.dim() != 2:
        raise ValueError(f"masked_linear: w must be [d_out, d], got {list(w.shape)}")
    out = w.shape[0]
    expected: dict[str, tuple[Tensor | None, list[int]]] = {"w": (w, [out, x.shape[-1]]), "b": (b, [out])}
    for name, (tensor, shape) in expected.items():
        if tensor is None:
            continue
        if list(tensor.shape) != shape:
            raise ValueError(f"masked_linear: {name} must be {shape}, got {list(tensor.shape)}")
        if tensor.dtype != x.dtype:
            raise ValueError(f"masked_linear: {name} must have x's dtype {dtype_name(x)}, got {dtype_name(tensor)}")
    if activation not in LINEAR_ACTIVATIONS:
        names = ", ".join(LINEAR_ACTIVATIONS)
        raise ValueError(f"masked_linear: activation must be one of {names}, got {activation!r}")
    if activation == "glu" and out % 2:
        raise ValueError(f"masked_linear: glu needs an even number of rows of w, got {out}")
    if mask is not None and (mask.rows, mask.columns) != grid_shape(w, mask.block):
        raise ValueError(
            f"masked_linear: mask must have {list(grid_shape(w, mask.block))} blocks of {mask.block} over w "
            f"{list(w.shape)}, got {[mask.rows, mask.columns]}"
        )
    devices = {"w": w.device, "b": None if b is None else b.device, "mask": None if mask is None else mask.device}
    for name, device in devices.items():
        if device is not None and device != x.device:
            raise ValueError(f"masked_linear: {name} must be on x's device {x.device}, got {device}")
