"""importance_ in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

METRICS = ("taylor", "gradient", "magnitude", "signed")


def _entries(weight: Tensor, grad: Tensor, metric: str) -> Tensor:
    if metric == "gradient":
        return grad.abs()
    if metric == "magnitude":
        return weight.abs()
    product = weight * grad
    return product if metric == "signed" else product.abs()


def check_segment(index: int, row: list[int], weights: Sequence[Tensor], total: int) -> None:
    tensor, repeats, components, run, first = row
    name = f"importance_: segments[{index}]"
    if not 0 <= tensor < len(weights):
        raise RuntimeError(f"{name} names tensor {tensor} of {len(weights)}")
    if min(repeats, components, run) < 0:
        raise RuntimeError(f"{name} has a negative repeats, components or run")
    if repeats * components * run != weights[tensor].numel():
        raise RuntimeError(
            f"{name} is {repeats} x {components} x {run}, but weights[{tensor}] has {weights[tensor].numel()} elements"
        )
    if not 0 <= first <= total - components:
        raise RuntimeError(f"{name} holds components {first} to {first + components - 1}, but ema has {total}")


# An operator of its own, because torch.compile cannot look into it: it reads the values of segments.
@torch.library.custom_op("dmao::importance_reference_", mutates_args={"ema"})
def importance_reference_(
    ema: Tensor,
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    segments: Tensor,
    inverse_count: Tensor,
    metric: str,
    beta: float,
) -> None:
    """The contract of `importance_`, computed in ema's dtype."""
    sums = torch.zeros_like(ema)
    scored = torch.zeros_like(ema, dtype=torch.bool)
    for index, row in enumerate(segments.tolist()):
        check_segment(index, row, weights, ema.numel())
        tensor, repeats, components, run, first = row
        weight, grad = weights[tensor], grads[tensor]
        if weight.numel() == 0 or (grad.numel() == 0 and metric != "magnitude"):
            continue
        entries = _entries(weight.to(ema.dtype), grad.to(ema.dtype), metric)
        sums[first : first + components] += entries.reshape(repeats, components, run).sum((0, 2))
        scored[first : first + components] = True
    mean = sums * inverse_count
    ema.copy_(torch.where(scored & mean.isfinite(), beta * ema + (1 - beta) * mean, ema))
