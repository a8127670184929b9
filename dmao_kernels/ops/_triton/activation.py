"""Activations and their slopes in float32, as csrc/cpu/activation.h has them. NaN stays NaN."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _normal_distribution(h):
    return 0.5 + 0.5 * tl.erf(h * 0.7071067811865476)


@triton.jit
def activate(h, ACTIVATION: tl.constexpr):
    """The activation "none", "silu", "relu" or "gelu" (the exact one) of float32 values."""
    if ACTIVATION == "silu":
        value = h * tl.sigmoid(h)
    elif ACTIVATION == "relu":
        value = tl.where(h <= 0, 0.0, h)
    elif ACTIVATION == "gelu":
        value = h * _normal_distribution(h)
    else:
        tl.static_assert(ACTIVATION == "none")
        value = h
    return value


@triton.jit
def slope(h, ACTIVATION: tl.constexpr):
    """The derivative of `activate` at h, of "none" as well; for relu 0 at 0 and 1 at NaN."""
    if ACTIVATION == "silu":
        s = tl.sigmoid(h)
        rate = s + h * s * (1 - s)
    elif ACTIVATION == "relu":
        rate = tl.where(h <= 0, 0.0, 1.0)
    elif ACTIVATION == "gelu":
        rate = _normal_distribution(h) + h * tl.exp(-0.5 * h * h) * 0.3989422804014327
    else:
        tl.static_assert(ACTIVATION == "none")
        rate = tl.full(h.shape, 1.0, tl.float32)
    return rate
