"""nn.Sequential: Linear, activation, dropout and Linear in a row are one operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch.nn.functional as F
from torch import Tensor, nn

from dmao_kernels.nn.residual import draw_seed, dropout_rate
from dmao_kernels.ops.component_ffn import component_ffn
from dmao_kernels.swaps.registry import class_path, register_swap, takes, why_not_plain

_ACTIVATIONS: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.GELU: "gelu", nn.SiLU: "silu"}
_FUNCTIONS: dict[Callable[..., Tensor], str] = {F.relu: "relu", F.gelu: "gelu", F.silu: "silu"}
_NAMED: dict[str, Callable[[Any], str | None]] = {  # of packages, by the paths of their classes
    "transformers.activations.GELUActivation": lambda module: activation_name(module.act),
    "transformers.activations.SiLUActivation": lambda _: "silu",
    "espnet.nets.pytorch_backend.conformer.swish.Swish": lambda _: "silu",
    "speechbrain.nnet.activations.Swish": lambda module: "silu" if module.beta == 1 else None,
}


def activation_name(activation: Any) -> str | None:
    """What component_ffn calls an activation module or function; None for one that it does not have."""
    if isinstance(activation, nn.Module):
        if isinstance(activation, nn.GELU) and activation.approximate != "none":
            return None
        if (named := _NAMED.get(class_path(type(activation)))) is not None:
            return named(activation)
        return _ACTIVATIONS.get(type(activation))
    return _FUNCTIONS.get(activation)


def feed_forward(x: Tensor, up: nn.Linear, activation: str, dropout: nn.Dropout | None, down: nn.Linear) -> Tensor:
    """down(dropout(activation(up(x)))) in one pass."""
    p = 0.0 if dropout is None else dropout_rate(dropout, dropout.p)
    return component_ffn(
        x, up.weight, up.bias, down.weight, down.bias, p=p, seed=draw_seed(p, x.device), activation=activation
    )


class _Run(NamedTuple):
    """Linear, activation, dropout (or none) and Linear in a row, and how many modules that is."""

    up: nn.Linear
    activation: str
    dropout: nn.Dropout | None
    down: nn.Linear
    modules: int


def _run_at(modules: list[nn.Module], start: int) -> _Run | None:
    """The run that begins there, if its modules are PyTorch's own."""
    kinds = [type(module) for module in modules[start : start + 4]]
    size = 4 if len(kinds) == 4 and kinds[2] is nn.Dropout else 3
    if len(kinds) < size or kinds[0] is not nn.Linear or kinds[size - 1] is not nn.Linear:
        return None
    name = activation_name(modules[start + 1])
    up, down = cast(nn.Linear, modules[start]), cast(nn.Linear, modules[start + size - 1])
    dropout = cast(nn.Dropout, modules[start + 2]) if size == 4 else None
    if name is None or down.in_features != up.out_features or (dropout is not None and dropout.p >= 1.0):
        return None
    return _Run(up, name, dropout, down, size)


class FastSequential(nn.Sequential):
    """Linear, activation, dropout, Linear as one operation."""

    def forward(self, input: Tensor) -> Tensor:
        """As nn.Sequential's."""
        modules, position, x = list(self), 0, input
        while position < len(modules):
            run = _run_at(modules, position) if isinstance(x, Tensor) and takes(x) else None
            if run is not None:
                x, position = feed_forward(x, *run[:4]), position + run.modules
            else:
                x, position = modules[position](x), position + 1
        return x


def _why_not(sequence: nn.Sequential) -> str | None:
    modules = list(sequence)
    found = [start for start in range(len(modules)) if _run_at(modules, start) is not None]
    if not found:
        return "no Linear, activation, Linear in a row"
    for start in found:
        run = cast(_Run, _run_at(modules, start))
        for module in modules[start : start + run.modules]:
            if (reason := why_not_plain(module, type(module))) is not None:
                return reason
    return None


register_swap(nn.Sequential, FastSequential, _why_not)
