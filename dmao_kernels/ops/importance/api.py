"""importance_: update the moving averages of all component scores in one pass over weights and gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dmao_kernels._library import define, operators, register_fake
from dmao_kernels.dispatch import choose_backend, register
from dmao_kernels.ops._autograd import changed_in_place
from dmao_kernels.ops._checks import CPU_DTYPES, DTYPES, check_choice, check_devices, describe, wants_gradient
from dmao_kernels.ops.importance.reference import METRICS, importance_reference_

define(
    "importance_(Tensor(a!) ema, Tensor[] weights, Tensor[] grads, Tensor segments, Tensor inverse_count, "
    "str metric, float beta) -> ()",
    triton=__package__,
    cuda=True,
)
register("importance_", cpu=CPU_DTYPES, triton=DTYPES, cuda=DTYPES)


@register_fake("importance_")
def _fake(*_: Any) -> None:
    return None


def importance_(
    ema: Tensor,
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    segments: Tensor,
    inverse_count: Tensor,
    metric: str = "taylor",
    beta: float = 0.99,
) -> None:
    """ema[c] <- beta ema[c] + (1 - beta) mean[c] for every component c, in place and without synchronisation.

    mean[c] = inverse_count[c] * (sum over all entries of component c), where an entry is

        taylor     |w g|    first-order Taylor score (arXiv 2506.13180)
        gradient   |g|
        magnitude  |w|      gradients are not read and may be empty
        signed     w g      the caller takes the absolute value of what it averages

    A tensor is seen as repeats x components x run (`layout.Pattern.view`); a segment says which components of
    `ema` its components are. Several segments may name the same component: their sums add up.

    A component keeps its average when its mean is not finite (a NaN or infinite gradient does not spoil
    scores) and when no entry of it was scored (all its gradients are empty). Non-contiguous weights and
    gradients are copied first. The result does not depend on the number of threads.

    Floor on time: one read of weights and gradients (of one of them for gradient and magnitude) at memory
    bandwidth.

    Args:
        ema: float32 [n_components], updated in place.
        weights: float32, bfloat16 or float16 tensors of any shape (float16 is native on GPUs only).
        grads: gradients, one per weight, of one of these dtypes and of the weight's shape, or empty: then the
            pair is skipped.
        segments: int64 [n, 5] on the CPU, rows (tensor index, repeats, components, run, first component), with
            repeats * components * run equal to the number of elements of that weight.
        inverse_count: float32 [n_components], 1 / number of entries of each component.
        metric: "taylor", "gradient", "magnitude" or "signed".
        beta: weight of the old average, in [0, 1].

    Raises:
        ValueError: an argument's dtype, shape, device or value is not as above.
        RuntimeError: called where autograd records and a tensor requires grad (call it under
            torch.no_grad()), or a segment does not fit its tensor or `ema`.
    """
    _check(ema, weights, grads, segments, inverse_count, metric, beta)
    weights = [weight.contiguous() for weight in weights]
    grads = [grad.contiguous() for grad in grads]
    backend = choose_backend("importance_", ema, *weights, *grads)
    update = importance_reference_ if backend == "reference" else operators(backend).importance_
    update(ema, weights, grads, segments.contiguous(), inverse_count, metric, beta)
    changed_in_place([ema])


def _check(
    ema: Tensor,
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    segments: Tensor,
    inverse_count: Tensor,
    metric: str,
    beta: float,
) -> None:
    check_scores("importance_", ema, segments, inverse_count, metric, beta)
    if len(weights) != len(grads):
        raise ValueError(f"importance_: got {len(weights)} weights but {len(grads)} grads")
    for i, (weight, grad) in enumerate(zip(weights, grads, strict=True)):
        for name, tensor in (("weights", weight), ("grads", grad)):
            if not isinstance(tensor, Tensor) or tensor.dtype not in DTYPES:
                raise ValueError(
                    f"importance_: {name}[{i}] must be float32, bfloat16 or float16, got {describe(tensor)}"
                )
            if tensor.device != ema.device:
                raise ValueError(f"importance_: {name}[{i}] must be on ema's device {ema.device}, got {tensor.device}")
        if grad.numel() != 0 and grad.shape != weight.shape:
            raise ValueError(
                f"importance_: grads[{i}] must be empty or have the shape of weights[{i}] "
                f"{list(weight.shape)}, got {list(grad.shape)}"
            )
    if wants_gradient(ema, *weights, *grads):
        raise RuntimeError("importance_: scores are not differentiable; call it under torch.no_grad()")


def check_scores(op: str, ema: Tensor, segments: Tensor, inverse_count: Tensor, metric: str, beta: float) -> None:
    """Raises ValueError where what `importance_` averages into and by is not as it says, in the name of `op`."""
    check_choice(op, "metric", metric, METRICS)
    if not 0.0 <= beta <= 1.0:
        raise ValueError(f"{op}: beta must be in [0, 1], got {beta}")
    for name, tensor in (("ema", ema), ("inverse_count", inverse_count)):
        if tensor.dtype != torch.float32 or tensor.dim() != 1 or not tensor.is_contiguous():
            raise ValueError(f"{op}: {name} must be contiguous float32 [n_components], got {describe(tensor)}")
    if ema.shape != inverse_count.shape:
        raise ValueError(
            f"{op}: inverse_count must have as many elements as ema ({ema.numel()}), got {inverse_count.numel()}"
        )
    check_devices(op, "ema", ema.device, inverse_count=inverse_count)
    if segments.dtype != torch.int64 or segments.dim() != 2 or segments.shape[1] != 5:
        raise ValueError(f"{op}: segments must be int64 [n, 5], got {describe(segments)}")
    if not segments.is_cpu:  # they are read on the host: on another device that would wait for it
        raise ValueError(f"{op}: segments must be on the CPU, got them on {segments.device}")
