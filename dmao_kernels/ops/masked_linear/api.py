"""masked_linear: a linear layer over the live blocks of its weight, with an activation."""

from __future__ import annotations

from torch import Tensor

from dmao_kernels._library import define, operators
from dmao_kernels.block_mask import BlockMask, check_block_mask, grid_shape, mask_arguments
from dmao_kernels.dispatch import choose_backend, register
from dmao_kernels.ops._checks import (
    CPU_DTYPES,
    DTYPES,
    autocast,
    check_choice,
    check_devices,
    check_float,
    check_like,
    wants_gradient,
)
from dmao_kernels.ops.masked_linear.reference import LINEAR_ACTIVATIONS, masked_linear_reference

# See `mask_arguments`.
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
register("masked_linear", cpu=CPU_DTYPES, triton=DTYPES, cuda=DTYPES, tf32=True)


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
    x, w, b = autocast(x, w, b)
    _check(x, w, b, mask, activation)
    if (backend := choose_backend("masked_linear", x, w, b)) == "reference":
        return masked_linear_reference(x, w, b, mask, activation=activation)
    keep = activation != "none" and wants_gradient(x, w, b)
    y, _ = operators(backend).masked_linear(x, w, b, *mask_arguments(mask), activation, keep)
    return y


def _check(x: Tensor, w: Tensor, b: Tensor | None, mask: BlockMask | None, activation: str) -> None:
    check_float("masked_linear", "x", x)
    if x.dim() == 0:
        raise ValueError("masked_linear: x must be [..., d], got a scalar")
    if w.dim() != 2:
        raise ValueError(f"masked_linear: w must be [d_out, d], got {list(w.shape)}")
    out = w.shape[0]
    check_like("masked_linear", x, w=(w, [out, x.shape[-1]]), b=(b, [out]))
    check_choice("masked_linear", "activation", activation, LINEAR_ACTIVATIONS)
    if activation == "glu" and out % 2:
        raise ValueError(f"masked_linear: glu needs an even number of rows of w, got {out}")
    check_block_mask("masked_linear", "mask", mask)
    if mask is not None and (mask.rows, mask.columns) != grid_shape(w, mask.block):
        raise ValueError(
            f"masked_linear: mask must have {list(grid_shape(w, mask.block))} blocks of {mask.block} over w "
            f"{list(w.shape)}, got {[mask.rows, mask.columns]}"
        )
    check_devices("masked_linear", "x", x.device, w=w, b=b, mask=None if mask is None else mask.column_ids)
