"""Kernels and layers for networks whose width is trained."""

from ._version import __version__
from .dispatch import BACKENDS, can_run, cpu_capability, use_backend
from .ops import importance_

__all__ = ["BACKENDS", "__version__", "can_run", "cpu_capability", "importance_", "use_backend"]
