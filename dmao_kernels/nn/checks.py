"""Checks of constructor arguments that all layers share: one tone for all errors."""

from __future__ import annotations


def require_positive(layer: str, **sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{layer}: {name} must be at least 1, got {size}")


def require_divisible(layer: str, name: str, size: int, divisor_name: str, divisor: int) -> None:
    if size % divisor:
        raise ValueError(
            f"{layer}: {name} must be a multiple of {divisor_name}, got {name}={size}, {divisor_name}={divisor}"
        )


def require_probability(layer: str, **probabilities: float) -> None:
    for name, p in probabilities.items():
        if not 0.0 <= p < 1.0:
            raise ValueError(f"{layer}: {name} must be in [0, 1), got {p}")
