"""dropout_add, dropout_add_layer_norm: the residual step, alone and with the LayerNorm of its sum."""

from __future__ import annotations

import torch
from torch import Tensor

from dmao_kernels._library import define, operators
from dmao_kernels.dispatch import choose_backend, register
from dmao_kernels.ops._checks import (
    CPU_DTYPES,
    DTYPES,
    check_devices,
    check_dropout,
    check_float,
    describe,
    dtype_name,
)
from dmao_kernels.ops.dropout_add.reference import dropout_add_layer_norm_reference, dropout_add_reference

define("dropout_add(Tensor? x, Tensor y, float p, Tensor? seed, float scale) -> Tensor", triton=__package__)
define(
    "dropout_add_layer_norm(Tensor x, Tensor y, Tensor weight, Tensor bias, float p, Tensor? seed, float scale, "
    "float eps) -> (Tensor sum, Tensor norm, Tensor statistics)",
    triton=__package__,
)
define(
    "dropout_add_layer_norm_backward(Tensor? grad_sum, Tensor grad_norm, Tensor sum, Tensor weight, "
    "Tensor statistics, float p, Tensor? seed, float scale, bool need_y, ScalarType y_dtype) "
    "-> (Tensor grad_x, Tensor grad_y, Tensor grad_weight, Tensor grad_bias)",
    triton=__package__,
)
for _op in ("dropout_add", "dropout_add_layer_norm"):
    register(_op, cpu=CPU_DTYPES, triton=DTYPES)


def dropout_add(
    x: Tensor | None, y: Tensor, *, p: float = 0.0, seed: Tensor | None = None, scale: float = 1.0
) -> Tensor:
    """x + scale * dropout(y), the residual step; without x, scale * dropout(y).

    Dropout comes from a counter-based generator, Philox4x32-7: its mask is a function of (seed, row, column), where
    the rows are the flattened leading axes; it is not stored but drawn again for the gradient. Results are
    bit-identical for any number of threads. As with F.dropout, a dropped element counts as 0 y. torch.autocast
    changes nothing, as with F.dropout and +: a sum in float32 with branches in half precision is what it needs.

    Floor on time: x and y read and the sum written at memory bandwidth, and as much for the gradient of y.

    Args:
        x: float32, bfloat16 or float16 [..., d], or None; any strides.
        y: [..., d], of x's shape; of its dtype, bfloat16 or float16.
        p: probability of dropping an element of y, in [0, 1); kept ones are scaled by 1 / (1 - p).
        seed: int64 [1] on y's device, needed when p > 0. Give every call of a step its own.
        scale: what the branch counts, e.g. 0.5 for the half steps of a Conformer block.

    Returns:
        [..., d] in x's dtype (y's where x is None).

    Raises:
        ValueError: an argument's dtype, shape, device or value is not as above.
    """
    _check("dropout_add", x, y, p, seed)
    if (backend := choose_backend("dropout_add", x, y, seed)) == "reference":
        return dropout_add_reference(x, y, p=p, seed=seed, scale=scale)
    return operators(backend).dropout_add(x, y, p, seed, scale)


def dropout_add_layer_norm(
    x: Tensor,
    y: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    p: float = 0.0,
    seed: Tensor | None = None,
    scale: float = 1.0,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """s = x + scale * dropout(y) and LayerNorm(s): the residual step of a pre-norm network in one pass.

    Both as `dropout_add` followed by F.layer_norm over the last axis, gradients included; the statistics are
    computed and kept in float32. Results, gradients of weight and bias included, are bit-identical for any number
    of threads. torch.autocast changes nothing, as with F.layer_norm on the CPU.

    Floor on time: x and y read, s and the norm written at memory bandwidth; backward three arrays read and two
    written.

    Args:
        x: float32, bfloat16 or float16 [..., d]; any strides.
        y, p, seed, scale: as of `dropout_add`.
        weight: [d], float32 or of x's dtype.
        bias: [d], of weight's dtype.
        eps: added to the variance.

    Returns:
        sum: [..., d] in x's dtype.
        norm: [..., d] in x's dtype.

    Raises:
        ValueError: an argument's dtype, shape, device or value is not as above.
        RuntimeError: this is differentiated twice (the reference can be).
    """
    _check("dropout_add_layer_norm", x, y, p, seed)
    if list(weight.shape) != [x.shape[-1]] or weight.dtype not in (torch.float32, x.dtype):
        names = " or ".join(dict.fromkeys(("float32", dtype_name(x))))
        raise ValueError(f"dropout_add_layer_norm: weight must be {names} [{x.shape[-1]}], got {describe(weight)}")
    if bias.shape != weight.shape or bias.dtype != weight.dtype:
        raise ValueError(f"dropout_add_layer_norm: bias must be as weight {describe(weight)}, got {describe(bias)}")
    check_devices("dropout_add_layer_norm", "x", x.device, weight=weight, bias=bias)
    if (backend := choose_backend("dropout_add_layer_norm", x, y, weight, bias, seed)) == "reference":
        return dropout_add_layer_norm_reference(x, y, weight, bias, p=p, seed=seed, scale=scale, eps=eps)
    total, norm, _ = operators(backend).dropout_add_layer_norm(x, y, weight.float(), bias.float(), p, seed, scale, eps)
    return total, norm


def _check(op: str, x: Tensor | None, y: Tensor, p: float, seed: Tensor | None) -> None:
    if x is not None:
        check_float(op, "x", x)
    allowed = DTYPES if x is None else dict.fromkeys((x.dtype, torch.bfloat16, torch.float16))
    if y.dtype not in allowed:
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise ValueError(f"{op}: y must be {names}, got {dtype_name(y)}")
    if y.dim() == 0:
        raise ValueError(f"{op}: y must be [..., d], got a scalar")
    if x is not None and x.shape != y.shape:
        raise ValueError(f"{op}: y must have x's shape {list(x.shape)}, got {list(y.shape)}")
    check_dropout(op, p, seed)
    check_devices(op, "y", y.device, x=x, seed=seed)
