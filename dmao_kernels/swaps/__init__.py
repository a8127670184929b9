"""Faster forwards for modules of models that are not ours: `accelerate`, and the register of what it knows."""

from dmao_kernels.swaps import convolution, feedforward, foreign, transformer  # noqa: F401 - they register
from dmao_kernels.swaps.registry import Acceleration, Entry, accelerate, register_swap

__all__ = ["Acceleration", "Entry", "accelerate", "register_swap"]
