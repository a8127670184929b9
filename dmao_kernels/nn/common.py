"""Checks of the arguments that layers are built with, and of the modules inside them."""

from __future__ import annotations

from torch import nn


def require_plain(layer: str, kind: type[nn.Module], **modules: nn.Module) -> None:
    """Raise TypeError where a layer takes weight and bias of a module that computes something else with them.

    Such are adapters in the module's place, and what makes its weight before its forward (old weight norm, spectral
    norm, pruning); neither is run. Parametrizations work.
    """
    for name, given in modules.items():
        module = getattr(given, "_orig_mod", given)  # of what torch.compile has made
        if getattr(module, "_is_replica", False) or not getattr(getattr(module, "_hf_hook", None), "offload", True):
            continue  # DataParallel's have no parameters; accelerate's hooks move inputs and run what was there
        ours = type(module).__module__.startswith("dmao_kernels.")  # what accelerate has made of it
        if "forward" in module.__dict__ or not (ours or type(module).forward is kind.forward):
            raise TypeError(
                f"{layer}: {name} must be a {kind.__name__}, as the layer takes its weight and bias, got a "
                f"{type(module).__name__}, whose forward would not be run: merge adapters"
            )
        if module._forward_pre_hooks and "weight" not in module._parameters:
            raise TypeError(
                f"{layer}: {name} must have a parameter 'weight', got one that a hook makes, which would not be run: "
                "take torch.nn.utils.parametrizations for weight_norm and spectral_norm, make pruning permanent"
            )


def require_positive(layer: str, **sizes: int | None) -> None:
    """Raise ValueError unless all sizes are at least 1; None is passed over."""
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise ValueError(f"{layer}: {name} must be at least 1, got {size}")


def require_divisible(layer: str, name: str, size: int, divisor_name: str, divisor: int) -> None:
    """Raise ValueError unless ``divisor`` divides ``size``."""
    if size % divisor:
        raise ValueError(
            f"{layer}: {name} must be a multiple of {divisor_name}, got {name}={size}, {divisor_name}={divisor}"
        )


def require_odd(layer: str, **sizes: int) -> None:
    """Raise ValueError unless all sizes are odd."""
    for name, size in sizes.items():
        if size % 2 == 0:
            raise ValueError(f"{layer}: {name} must be odd, got {size}")


def require_probability(layer: str, **probabilities: float) -> None:
    """Raise ValueError unless all probabilities are in [0, 1)."""
    for name, p in probabilities.items():
        if not 0.0 <= p < 1.0:
            raise ValueError(f"{layer}: {name} must be in [0, 1), got {p}")
