"""The gate of whole training steps: loss and gradients of a model beside those of a peer with the same parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn


def gradients(model: nn.Module, loss: Callable[[], Tensor]) -> dict[str, Tensor]:
    """Of every parameter, and the loss itself, without dropout."""
    named, training = dict(model.named_parameters()), model.training
    model.eval()
    value = loss()
    found = torch.autograd.grad(value, list(named.values()))
    model.train(training)
    return {"loss": value.detach(), **dict(zip(named, found, strict=True))}


def assert_as_good(
    found: Mapping[str, Tensor],
    exact: Mapping[str, Tensor],
    tolerance: float,
    coarse: Mapping[str, Tensor] | None = None,
    factor: float = 2.0,
) -> None:
    """Raises AssertionError unless all of `found` is within `tolerance`, relative to the norm, of `exact`.

    coarse: what the peer finds in a lower precision; `found` may be `factor` times as far off, and the tolerance.
    """
    allowed = {name: tolerance * float(value.norm()) for name, value in exact.items()}
    if coarse is not None:
        allowed = {name: allowed[name] + factor * float((coarse[name] - exact[name]).norm()) for name in exact}
    # Some are zero but for rounding: that of the bias of the keys, which moves all scores of a query alike.
    least = 1e-3 * max(float(value.norm()) for name, value in exact.items() if name != "loss")
    for name, value in exact.items():
        error, bound = float((found[name] - value).norm()), max(allowed[name], tolerance * least)
        assert error <= bound, (
            f"{name if name == 'loss' else 'gradient of ' + name}: error {error:.2g} exceeds {bound:.2g}"
        )
