"""Which implementation of an operation runs: "cpu" (native kernels) or "reference" (plain PyTorch).

The native kernels run wherever they can. `use_backend` or the environment variable DMAO_BACKEND force a
backend; a forced backend that cannot run is an error, never a silent fallback. Each choice is logged once
(logger "dmao_kernels", level INFO) with its reason.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dmao_kernels._library import load_native

BACKENDS = ("cpu", "reference")

_LOG = logging.getLogger("dmao_kernels")
_NATIVE_DTYPES: dict[str, tuple[torch.dtype, ...]] = {}
_LOGGED: set[tuple[str, str, str]] = set()
_CAPABILITY, _WHY_NOT_NATIVE = load_native()


def _check_backend(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source}: must be one of {', '.join(BACKENDS)}, got {name!r}")
    return name


def _backend_from_environment() -> str | None:
    name = os.environ.get("DMAO_BACKEND")
    return _check_backend(name, "DMAO_BACKEND") if name else None


_forced: str | None = _backend_from_environment()


def register(op: str, dtypes: tuple[torch.dtype, ...]) -> None:
    """Declares that operation `op` has a native kernel for floating point tensors of these dtypes."""
    _NATIVE_DTYPES[op] = dtypes


def cpu_capability() -> str | None:
    """The instruction set whose native kernels run, e.g. "avx512"; None without the native library."""
    return _CAPABILITY


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Forces a backend for all operations: `with dmao_kernels.use_backend("reference"): ...`.

    Applies to the whole process, not to one thread.

    Raises:
        ValueError: name is not one of `BACKENDS`.
    """
    global _forced
    before, _forced = _forced, _check_backend(name, "use_backend")
    try:
        yield
    finally:
        _forced = before


def can_run(op: str, *tensors: torch.Tensor | None, backend: str = "cpu") -> tuple[bool, str]:
    """Whether `backend` can run `op` on these tensors: (True, "") or (False, the reason).

    Floating point tensors must have a dtype that the kernel supports; of others only the device counts; None
    is skipped.
    """
    if backend == "reference":
        return True, ""
    if op not in _NATIVE_DTYPES:
        return False, f"{op} has no native kernel"
    if _CAPABILITY is None:
        return False, _WHY_NOT_NATIVE
    dtypes = _NATIVE_DTYPES[op]
    for tensor in tensors:
        if tensor is None:
            continue
        if tensor.device.type != "cpu":
            return False, f"native kernels run on cpu, got a tensor on {tensor.device.type}"
        if tensor.dtype.is_floating_point and tensor.dtype not in dtypes:
            return False, f"the native kernel does not support {tensor.dtype}"
    return True, ""


def choose_backend(op: str, *tensors: torch.Tensor | None) -> str:
    """The backend that runs `op` on these tensors, "cpu" or "reference".

    Raises:
        RuntimeError: the forced backend cannot run.
    """
    ok, reason = can_run(op, *tensors, backend=_forced or "cpu")
    if _forced is not None and not ok:
        raise RuntimeError(f"{op}: backend {_forced} was asked for, but {reason}")
    backend = _forced or ("cpu" if ok else "reference")
    if not torch.compiler.is_compiling():
        _log_once(op, backend, "forced" if _forced else reason or f"capability {_CAPABILITY}")
    return backend


def _log_once(op: str, backend: str, reason: str) -> None:
    if (op, backend, reason) not in _LOGGED:
        _LOGGED.add((op, backend, reason))
        _LOG.info("%s: backend %s (%s)", op, backend, reason)
