"""The gate of whole training steps: loss and gradients of a model beside those of a peer with the same parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn


def gradients(model: nn.Module, loss: Callable[[], Tensor]) -> dict[str, Tensor]:
    """Of every parameter that the loss depends on, and the loss itself, without dropout."""
    named, training = dict(model.named_parameters()), model.training
    model.eval()
    value = loss()
    found = torch.autograd.grad(value, list(named.values()), allow_unused=True)
    model.train(training)
    return {"loss": value.detach(), **{name: grad for name, grad in zip(named, found, strict=True) if grad is not None}}


def assert_as_good(
    found: Mapping[str, Tensor],
    exact: Mapping[str, Tensor],
    tolerance: float,
    coarse: Mapping[str, Tensor] | None = None,
    factor: float = 2.0,
) -> None:
    """Raises AssertionError unless `found` has all of `exact` within `tolerance`, relative to the norm.

    coarse: what the peer finds in a lower precision; `found` may be `factor` times as far off, and the tolerance.
    """
    allowed = {name: tolerance * float(value.norm()) for name, value in exact.items()}
    if coarse is not None:
        allowed = {name: allowed[name] + factor * float((coarse[name] - exact[name]).norm()) for name in exact}
    # Some are zero but for rounding: that of the bias of the keys, which moves all scores of a query alike.
    least = 1e-3 * max(float(value.norm()) for name, value in exact.items() if name != "loss")
    for name, value in exact.items():
        what = name if name == "loss" else f"gradient of {name}"
        assert name in found, f"{what}: there is none"
        assert found[name].shape == value.shape, f"{what}: {list(found[name].shape)}, not {list(value.shape)}"
        error, bound = float((found[name] - value).norm()), max(allowed[name], tolerance * least)
        assert math.isfinite(bound), f"{what}: what it is compared with is not finite"
        assert error <= bound, f"{what}: error {error:.2g} exceeds {bound:.2g}"
