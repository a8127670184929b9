"""adamw_importance_: one AdamW step of all parameters, and all component scores from the same pass over memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dmao_kernels._library import define, operators, register_fake
from dmao_kernels.dispatch import choose_backend, register
from dmao_kernels.ops._autograd import changed_in_place
from dmao_kernels.ops._checks import CPU_DTYPES, DTYPES, check_devices, describe, wants_gradient
from dmao_kernels.ops.adamw_importance.reference import GROUP_COLUMNS, adamw_importance_reference_
from dmao_kernels.ops.importance.api import check_scores

_OP = "adamw_importance_"

define(
    "adamw_importance_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
    "Tensor(d!)[] steps, Tensor groups, Tensor group_of, Tensor? grad_factor, Tensor(e!) ema, Tensor segments, "
    "Tensor inverse_count, str metric, float beta) -> ()",
    triton=__package__,
    cuda=True,
)
register(_OP, cpu=CPU_DTYPES, triton=DTYPES, cuda=DTYPES)


@register_fake("adamw_importance_")
def _fake(*_: Any) -> None:
    return None


def adamw_importance_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    groups: Tensor,
    group_of: Tensor,
    ema: Tensor,
    segments: Tensor,
    inverse_count: Tensor,
    metric: str = "taylor",
    beta: float = 0.99,
    grad_factor: Tensor | None = None,
) -> None:
    """One step of AdamW for all parameters and, in the same pass, `importance_` of their old values; in place.

    With (lr, beta1, beta2, eps, weight_decay, maximize) of the parameter's group, every entry is updated by
    (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2, as torch.optim.AdamW has it)

        g' = g * grad_factor, negated where maximize
        exp_avg    <- beta1 exp_avg + (1 - beta1) g'
        exp_avg_sq <- beta2 exp_avg_sq + (1 - beta2) g'^2
        w <- (1 - lr weight_decay) w - lr / (1 - beta1^t) exp_avg / (sqrt(exp_avg_sq / (1 - beta2^t)) + eps)

    where t is the parameter's step, increased by one first. Scores are those of `importance_`, from w before
    the update and from g: neither grad_factor nor maximize changes them. The native kernel adds in the order of
    `importance_`, so that the scores are the same. Parameters that no segment names are updated all the same.

    Arithmetic is float32; the moments have the parameter's dtype, as
    torch.optim.AdamW makes them. The result does not depend on the number of threads; nothing is synchronised.

    Floor on time: one read of w, g and both moments and one write of w and both moments at memory bandwidth.

    Args:
        params: contiguous float32, bfloat16 or float16 tensors of any shape, updated in place (float16 is native on
            GPUs only).
        grads: one per parameter, of its shape and dtype; copied first where not contiguous.
        exp_avgs, exp_avg_sqs: contiguous moments, of the parameter's shape, dtype and device.
        steps: float32 [], the steps that each parameter has done before, on ema's device or on the CPU, as
            torch.optim.AdamW keeps them: fused, or not. Empty [0] for a parameter that is only
            scored: its moments are not looked at, its gradient may be empty as in `importance_`.
        groups: float64 [n_groups, 6] on the CPU, rows (lr, beta1, beta2, eps, weight_decay, maximize: 0 or 1).
        group_of: int64 [n_params] on the CPU, each parameter's row of groups.
        ema, segments, inverse_count, metric, beta: as in `importance_`, with params as weights; segments [0, 5]
            scores nothing. No two segments may name one tensor.
        grad_factor: float32 [], for example of clipping by norm; None: 1.
        All but the tables and, where they are there, the steps are on ema's device.

    Raises:
        ValueError: an argument's dtype, shape, device or value is not as above.
        RuntimeError: called where autograd records and a tensor requires grad (call it under
            torch.no_grad()); a segment does not fit; two segments name one tensor; group_of is out of range.
    """
    _check(params, grads, exp_avgs, exp_avg_sqs, steps, groups, group_of, grad_factor, ema.device)
    check_scores(_OP, ema, segments, inverse_count, metric, beta)
    if wants_gradient(ema, *params, *grads):
        raise RuntimeError(f"{_OP}: a step is not differentiable; call it under torch.no_grad()")
    grads = [grad.contiguous() for grad in grads]
    factor = None if grad_factor is None else grad_factor.contiguous()
    half = next((param for param in params if param.dtype == torch.float16), None)  # not every kernel knows this one
    backend = choose_backend(_OP, ema, half)
    step = adamw_importance_reference_ if backend == "reference" else operators(backend).adamw_importance_
    step(
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        steps,
        groups.contiguous(),
        group_of.contiguous(),
        factor,
        ema,
        segments.contiguous(),
        inverse_count,
        metric,
        beta,
    )
    rows = zip(params, exp_avgs, exp_avg_sqs, steps, strict=True)
    changed_in_place([ema, *(tensor for row in rows if row[-1].numel() for tensor in row)])


def _check(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    groups: Tensor,
    group_of: Tensor,
    grad_factor: Tensor | None,
    device: torch.device,
) -> None:
    lists = {"grads": grads, "exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs, "steps": steps}
    for name, tensors in lists.items():
        if len(tensors) != len(params):
            raise ValueError(f"{_OP}: got {len(params)} params but {len(tensors)} {name}")
    columns = len(GROUP_COLUMNS)
    if groups.dtype != torch.float64 or groups.dim() != 2 or groups.shape[1] != columns or not groups.is_cpu:
        raise ValueError(
            f"{_OP}: groups must be float64 [n_groups, {columns}] ({', '.join(GROUP_COLUMNS)}) on the CPU, "
            f"got {describe(groups)} on {groups.device}"
        )
    if group_of.dtype != torch.int64 or tuple(group_of.shape) != (len(params),) or not group_of.is_cpu:
        raise ValueError(
            f"{_OP}: group_of must be int64 [{len(params)}] on the CPU, got {describe(group_of)} on {group_of.device}"
        )
    if grad_factor is not None and (grad_factor.dtype != torch.float32 or grad_factor.dim() != 0):
        raise ValueError(f"{_OP}: grad_factor must be float32 [], got {describe(grad_factor)}")
    check_devices(_OP, "ema", device, grad_factor=grad_factor)
    for i, tensors in enumerate(zip(params, grads, exp_avgs, exp_avg_sqs, steps, strict=True)):
        _check_parameter(i, device, *tensors)


# Runs once per parameter and step: a model of many small parameters spends its time here. Every property of a tensor
# is looked at once.
def _check_parameter(
    i: int, device: torch.device, param: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, step: Tensor
) -> None:
    dtype, shape = param.dtype, param.shape
    if dtype not in DTYPES or not param.is_contiguous():
        raise ValueError(f"{_OP}: params[{i}] must be contiguous float32, bfloat16 or float16, got {describe(param)}")
    only_scored = step.numel() == 0
    if (grad.dtype != dtype or grad.shape != shape) and not (only_scored and grad.numel() == 0):
        raise ValueError(f"{_OP}: grads[{i}] must {_like(i, param)}, got {describe(grad)}")
    if param.device != device or grad.device != device:
        check_devices(_OP, "ema", device, **{f"params[{i}]": param, f"grads[{i}]": grad})
    if only_scored:
        return
    for name, tensor in (("exp_avgs", exp_avg), ("exp_avg_sqs", exp_avg_sq)):
        if tensor.dtype != dtype or tensor.shape != shape or not tensor.is_contiguous():
            raise ValueError(f"{_OP}: {name}[{i}] must be contiguous and {_like(i, param)}, got {describe(tensor)}")
        if tensor.device != device:
            check_devices(_OP, "ema", device, **{f"{name}[{i}]": tensor})
    if step.dtype != torch.float32 or step.dim() != 0:
        raise ValueError(f"{_OP}: steps[{i}] must be float32 [] or empty, got {describe(step)}")
    if not step.is_cpu and step.device != device:
        check_devices(_OP, "ema", device, **{f"steps[{i}]": step})


def _like(i: int, param: Tensor) -> str:
    return f"have the dtype and shape of params[{i}], {describe(param)}"
