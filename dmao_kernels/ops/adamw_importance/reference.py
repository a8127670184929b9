"""adamw_importance_ in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dmao_kernels.ops.importance.reference import importance_reference_

GROUP_COLUMNS = ("lr", "beta1", "beta2", "eps", "weight_decay", "maximize")


# An operator of its own, because torch.compile cannot look into it: it reads the values of segments and groups.
@torch.library.custom_op(
    "dmao::adamw_importance_reference_", mutates_args={"params", "exp_avgs", "exp_avg_sqs", "steps", "ema"}
)
def adamw_importance_reference_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    steps: Sequence[Tensor],
    groups: Tensor,
    group_of: Tensor,
    grad_factor: Tensor | None,
    ema: Tensor,
    segments: Tensor,
    inverse_count: Tensor,
    metric: str,
    beta: float,
) -> None:
    """The contract of `adamw_importance_`; bfloat16 parameters are updated in float32 and rounded once."""
    check_tables(segments, groups, group_of)
    importance_reference_(ema, params, grads, segments, inverse_count, metric, beta)
    rows = groups.tolist()
    for i, row in enumerate(group_of.tolist()):
        if steps[i].numel() == 0:
            continue
        grad = grads[i].to(torch.promote_types(params[i].dtype, torch.float32))
        if grad_factor is not None:
            grad = grad * grad_factor
        _update_(params[i], grad, exp_avgs[i], exp_avg_sqs[i], steps[i], rows[row])


def check_tables(segments: Tensor, groups: Tensor, group_of: Tensor) -> None:
    """Raises RuntimeError where the values of the tables on the CPU are not as `adamw_importance_` says."""
    tensors = segments[:, 0].tolist()
    if len(set(tensors)) != len(tensors):
        twice = next(tensor for tensor in tensors if tensors.count(tensor) > 1)
        raise RuntimeError(f"adamw_importance_: segments name tensor {twice} twice")
    count = len(groups)
    for i, row in enumerate(group_of.tolist()):
        if not 0 <= row < count:
            raise RuntimeError(f"adamw_importance_: group_of[{i}] names row {row} of {count} groups")


def _update_(
    param: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, step: Tensor, group: Sequence[float]
) -> None:
    """One AdamW step of one parameter; grad has the dtype that is computed in."""
    lr, beta1, beta2, eps, weight_decay, maximize = group
    grad = -grad if maximize else grad
    step += 1
    steps_done = step.item()
    average = beta1 * exp_avg.to(grad.dtype) + (1 - beta1) * grad
    square = beta2 * exp_avg_sq.to(grad.dtype) + (1 - beta2) * grad * grad
    denominator = square.sqrt() / (1 - beta2**steps_done) ** 0.5 + eps
    decayed = param.to(grad.dtype) * (1 - lr * weight_decay)
    param.copy_(decayed - lr / (1 - beta1**steps_done) * average / denominator)
    exp_avg.copy_(average)
    exp_avg_sq.copy_(square)
