"""The operator namespace `dmao` and the native library behind it.

Schemas are defined once, in Python; csrc/ops implements them on the CPU key through LibTorch's stable ABI.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

import torch

from dmao_kernels._version import __version__

_LOG = logging.getLogger("dmao_kernels")
_DIRECTORY = Path(__file__).parent

LIBRARY = torch.library.Library("dmao", "DEF")


def define(schema: str) -> None:
    """Defines the operator `dmao::<schema>`, e.g. "importance_(Tensor(a!) ema, ...) -> ()"."""
    LIBRARY.define(schema)


def _why_not_native() -> str | None:
    if os.environ.get("DMAO_NO_NATIVE") == "1":
        return "DMAO_NO_NATIVE=1 is set"
    if not (_DIRECTORY / "_ops.so").exists():
        return "it was installed without native kernels (no C++ compiler at that time, or DMAO_NO_NATIVE=1)"
    return None


def _check_torch_version() -> None:
    version = re.match(r"(\d+)\.(\d+)", torch.__version__)
    if version is None or tuple(map(int, version.groups())) < (2, 13):
        raise ImportError(f"dmao_kernels: torch must be >= 2.13, found {torch.__version__}")


def load_native() -> tuple[str | None, str]:
    """Loads the native library: (CPU capability, "") or (None, why the reference backend is used instead).

    Raises:
        ImportError: the library is there but does not fit this PyTorch, Python or version of the package, or
            DMAO_CPU_CAPABILITY names a capability that is unknown or not supported by this CPU.
    """
    _check_torch_version()
    reason = _why_not_native()
    if reason is not None:
        _LOG.warning("dmao_kernels: no native kernels, the reference backend is used: %s", reason)
        return None, reason
    remedy = "build it again: pip install . (or python setup.py build_ext --inplace)"
    try:
        from dmao_kernels import _host
    except ImportError as error:
        raise ImportError(f"dmao_kernels: the native library does not fit this Python; {remedy}") from error
    info = _host.build_info()
    if info["version"] != __version__:
        raise ImportError(
            f"dmao_kernels: the native library has version {info['version']}, the package {__version__}; {remedy}"
        )
    try:
        capability = _host.cpu_capability()
    except RuntimeError as error:
        raise ImportError(str(error)) from None
    try:
        torch.ops.load_library(_DIRECTORY / "_ops.so")
    except OSError as error:
        raise ImportError(
            f"dmao_kernels: the native library does not fit torch {torch.__version__} ({error}); {remedy}"
        ) from error
    _LOG.debug("native kernels loaded, CPU capability %s", capability)
    return capability, ""
