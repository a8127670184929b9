"""nn.Sequential: Linear, activation, dropout and Linear in a row are one operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch.nn.functional as F
from torch import Tensor, nn

from dmao_kernels.nn.residual import draw_seed, dropout_rate
from dmao_kernels.ops.component_ffn import component_ffn
from dmao_kernels.swaps.registry import class_path, register_swap, takes, why_not_dtype, why_not_plain

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


def why_not_ffn(up: nn.Module, activation: Any, dropout: Any, down: nn.Module) -> str | None:
    """Why `feed_forward` cannot take these; None if it can. Cheap, see `why_not_plain`."""
    if activation_name(activation) is None:
        return "an activation other than ReLU, GELU and SiLU"
    parts: list[tuple[Any, ...]] = [(up, nn.Linear), (down, nn.Linear)]
    if isinstance(activation, nn.Module):
        parts.append((activation, type(activation)))
    if dropout is not None:
        parts.append((dropout, nn.Dropout))
    if (reason := why_not_plain(*parts)) is not None:
        return reason
    return "dropout of everything" if dropout is not None and dropout.p >= 1.0 else None


def feed_forward(x: Tensor, up: nn.Linear, activation: Any, dropout: nn.Dropout | None, down: nn.Linear) -> Tensor:
    """down(dropout(activation(up(x)))) in one pass."""
    p = 0.0 if dropout is None else dropout_rate(dropout, dropout.p)
    name = cast(str, activation_name(activation))
    return component_ffn(
        x, up.weight, up.bias, down.weight, down.bias, p=p, seed=draw_seed(p, x.device), activation=name
    )


class _Run(NamedTuple):
    """Linear, activation, dropout (or none) and Linear in a row, and how many modules that is."""

    up: nn.Linear
    activation: nn.Module
    dropout: nn.Dropout | None
    down: nn.Linear
    modules: int


def _run_at(modules: list[nn.Module], start: int) -> _Run | None:
    """The run that begins there, if its modules are PyTorch's own; `why_not_ffn` says whether it can be one."""
    kinds = [type(module) for module in modules[start : start + 4]]
    size = 4 if len(kinds) == 4 and kinds[2] is nn.Dropout else 3
    if len(kinds) < size or kinds[0] is not nn.Linear or kinds[size - 1] is not nn.Linear:
        return None
    activation = modules[start + 1]
    up, down = cast(nn.Linear, modules[start]), cast(nn.Linear, modules[start + size - 1])
    dropout = cast(nn.Dropout, modules[start + 2]) if size == 4 else None
    if activation_name(activation) is None or down.in_features != up.out_features:
        return None
    return _Run(up, activation, dropout, down, size)


class FastSequential(nn.Sequential):
    """Linear, activation, dropout, Linear as one operation."""

    def forward(self, input: Tensor) -> Tensor:
        """As nn.Sequential's."""
        modules, position, x = list(self), 0, input
        while position < len(modules):
            run = _run_at(modules, position) if isinstance(x, Tensor) and takes(x) else None
            if run is not None and why_not_ffn(*run[:4]) is None:
                x, position = feed_forward(x, *run[:4]), position + run.modules
            else:
                x, position = modules[position](x), position + 1
        return x


def _why_not(sequence: nn.Sequential) -> str | None:
    modules = list(sequence)
    runs = [run for start in range(len(modules)) if (run := _run_at(modules, start)) is not None]
    if not runs:
        return "no Linear, activation, Linear in a row"
    reasons = (why_not_ffn(*run[:4]) or why_not_dtype(run.up) or why_not_dtype(run.down) for run in runs)
    return next((reason for reason in reasons if reason), None)


register_swap(nn.Sequential, FastSequential, _why_not)
