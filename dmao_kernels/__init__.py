"""Kernels and layers for networks whose width is trained."""

from ._version import __version__
from .dispatch import BACKENDS, can_run, cpu_capability, use_backend
from .ops import component_ffn, importance_

__all__ = [
    "BACKENDS",
    "__version__",
    "can_run",
    "component_ffn",
    "cpu_capability",
    "importance_",
    "use_backend",
]
