"""The model in plain PyTorch: `compact`, the layers that it makes, and the register of what it knows."""

from dmao_kernels.plain import conversions  # noqa: F401 - it registers
from dmao_kernels.plain.registry import compact, register_plain

__all__ = ["compact", "register_plain"]
