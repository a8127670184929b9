"""What all layers share: checks of constructor arguments, and the count of components in a layout."""

from __future__ import annotations

from dataclasses import replace

from dmao_kernels.layout import ComponentLayout


def counted(layout: ComponentLayout) -> ComponentLayout:
    """``layout`` of a module that keeps its present number of components in the attribute ``components``."""
    return replace(layout, attributes={**layout.attributes, "components": "C"})


def require_positive(layer: str, **sizes: int) -> None:
    """Raise ValueError unless all sizes are at least 1."""
    for name, size in sizes.items():
        if size < 1:
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
