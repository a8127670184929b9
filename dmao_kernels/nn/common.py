"""Checks of the arguments that layers are built with."""

from __future__ import annotations


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
