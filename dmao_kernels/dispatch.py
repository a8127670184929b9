"""Which implementation of an operation runs: "cpu" (native kernels), "triton" or "cuda" (on GPUs, the second written in
CUDA C++), "cuda-emulated" (the same source on the CPU, for tests) or "reference" (plain PyTorch).

Kernels run wherever they can, by the device of the tensors; of the two for GPUs the one that was measured to be faster
(dmao_kernels.gpu_choice). `use_backend` or the environment variable DMAO_BACKEND force a backend; a forced backend that
cannot run is an error, never a silent fallback. Each choice is logged once (logger "dmao_kernels", level INFO) with its
reason.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch

from dmao_kernels import gpu_choice
from dmao_kernels._library import load_cuda, load_native

BACKENDS = ("cpu", "triton", "cuda", "cuda-emulated", "reference")

_LOG = logging.getLogger("dmao_kernels")
_KINDS = {"cpu": "native", "triton": "Triton", "cuda": "CUDA C++", "cuda-emulated": "emulated CUDA C++"}
_DTYPES: dict[str, dict[str, tuple[torch.dtype, ...]]] = {kind: {} for kind in _KINDS}
_TF32: set[str] = set()
_LOGGED: set[tuple[str, str, str]] = set()
_CAPABILITY, _WHY_NOT_NATIVE = load_native()
# Why a backend cannot run, whatever the tensors: "" where it can.
_WHY_NOT = {
    "cpu": _WHY_NOT_NATIVE,
    "cuda": load_cuda(),
    "cuda-emulated": "its library was not loaded (dmao_kernels.testing.devices.cuda_on_host)",
}
# Where kernels run. Triton's on "cpu" as well under its interpreter and the mock driver (dmao_kernels.testing).
_DEVICES = {"cpu": {"cpu"}, "triton": {"cuda"}, "cuda": {"cuda"}, "cuda-emulated": {"cpu"}}


def _check_backend(name: str, source: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"{source}: must be one of {', '.join(BACKENDS)}, got {name!r}")
    return name


def _backend_from_environment() -> str | None:
    name = os.environ.get("DMAO_BACKEND")
    return _check_backend(name, "DMAO_BACKEND") if name else None


_forced: str | None = _backend_from_environment()


def register(
    op: str,
    cpu: tuple[torch.dtype, ...] = (),
    triton: tuple[torch.dtype, ...] = (),
    cuda: tuple[torch.dtype, ...] = (),
    *,
    tf32: bool = False,
) -> None:
    """Declares for which dtypes of floating point tensors operation `op` has native, Triton and CUDA C++ kernels.

    tf32: whether the latter multiply float32 in TF32, which PyTorch has to be allowed to.
    """
    for backend, dtypes in (("cpu", cpu), ("triton", triton), ("cuda", cuda), ("cuda-emulated", cuda)):
        if dtypes:
            _DTYPES[backend][op] = dtypes
    if tf32:
        _TF32.add(op)


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

    Raises:
        ValueError: backend is not one of `BACKENDS`.
    """
    if _check_backend(backend, "can_run") == "reference":
        return True, ""
    kind = _KINDS[backend]
    if op not in _DTYPES[backend]:
        return False, f"{op} has no {kind} kernel"
    if reason := _why_not_installed(backend) or _why_not_transformed():
        return False, reason
    devices = _DEVICES[backend]
    for tensor in tensors:
        if tensor is None:
            continue
        if tensor.device.type not in devices:
            return False, f"{kind} kernels run on {' and '.join(sorted(devices))}, got a tensor on {tensor.device.type}"
        if tensor.dtype.is_floating_point and tensor.dtype not in _DTYPES[backend][op]:
            return False, f"the {kind} kernel does not support {tensor.dtype}"
        if tensor.dtype == torch.float32 and op in _TF32 and _refuses_float32(backend):
            return False, f"the {kind} kernel multiplies float32 in TF32: torch.backends.cuda.matmul.allow_tf32"
    if backend in ("triton", "cuda") and (reason := _why_not_gpu()):
        return False, reason
    return True, ""


def _refuses_float32(backend: str) -> bool:
    return backend.startswith("cuda") and not allows_tf32()


@torch.compiler.assume_constant_result
def allows_tf32() -> bool:
    """Whether PyTorch may multiply float32 in TF32 on GPUs, by whichever of its switches.

    `allow_tf32`, which torch.set_float32_matmul_precision sets as well, shows in the newer switch; once that one was
    set, PyTorch raises where the older one is read.
    """
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


def why_not(backend: str) -> str:
    """Why a backend cannot run on this machine, whatever the operation: "" where it can."""
    if (reason := _why_not_installed(backend)) or backend not in ("triton", "cuda"):
        return reason
    return _why_not_gpu() if torch.cuda.is_available() else "there is no GPU"


def _why_not_installed(backend: str) -> str:
    if backend == "triton" and not _has_triton():
        return "Triton is not installed (pip install 'dmao-kernels[triton]')"
    return _WHY_NOT.get(backend, "")


@torch.compiler.assume_constant_result
def _why_not_transformed() -> str:
    """Kernels see neither tangents nor what torch.func puts around tensors: they would compute without."""
    if torch.autograd.forward_ad._current_level >= 0:
        return "kernels have no forward-mode derivatives"
    return "kernels know nothing of torch.func" if torch._C._are_functorch_transforms_active() else ""


def supported() -> dict[str, dict[str, list[str]]]:
    """Of every operation the backends that have kernels, and for which dtypes."""
    found: dict[str, dict[str, list[str]]] = {}
    for backend, operations in _DTYPES.items():
        for op, dtypes in operations.items():
            names = [str(dtype).removeprefix("torch.") for dtype in dtypes]
            found.setdefault(op, {})[backend] = names
    return {op: found[op] for op in sorted(found)}


def choose_backend(op: str, *tensors: torch.Tensor | None) -> str:
    """The backend that runs `op` on these tensors, one of `BACKENDS`.

    Raises:
        RuntimeError: the forced backend cannot run.
    """
    wanted = _forced or _kernels_of(op, tensors)
    ok, reason = can_run(op, *tensors, backend=wanted)
    if _forced is not None and not ok:
        raise RuntimeError(f"{op}: backend {_forced} was asked for, but {reason}")
    backend = wanted if ok else "reference"
    if not torch.compiler.is_compiling():
        capability = f"capability {_CAPABILITY}" if backend == "cpu" else "the tensors are on a GPU"
        _log_once(op, backend, "forced" if _forced else reason or capability)
    return backend


def _kernels_of(op: str, tensors: tuple[torch.Tensor | None, ...]) -> str:
    if not any(tensor is not None and tensor.device.type == "cuda" for tensor in tensors):
        return "cpu"
    return "cuda" if _is_faster_in_cuda(op) and can_run(op, *tensors, backend="cuda")[0] else "triton"


@torch.compiler.assume_constant_result
def _is_faster_in_cuda(op: str) -> bool:
    return not _WHY_NOT["cuda"] and gpu_choice.fastest(op) == "cuda"


@functools.cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


@torch.compiler.assume_constant_result
@functools.cache
def _why_not_gpu() -> str:
    """Why no GPU here can run the kernels, "" where one can, or where there is none: then the tensors are fake ones."""
    if torch.version.hip is not None or not torch.cuda.is_available():
        return ""
    oldest = min(torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count()))
    return "" if oldest >= (8, 0) else f"GPU kernels need compute capability 8.0, found {oldest[0]}.{oldest[1]}"


def _log_once(op: str, backend: str, reason: str) -> None:
    if (op, backend, reason) not in _LOGGED:
        _LOGGED.add((op, backend, reason))
        _LOG.info("%s: backend %s (%s)", op, backend, reason)
