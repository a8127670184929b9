"""The operator namespaces, one per family of kernels, and the native library.

Schemas are defined once, in Python, with their fake and their gradients. `dmao` holds the native operators, which
csrc/ops implements through LibTorch's stable ABI; `dmao_triton` those that have Triton kernels; `dmao_cuda` those with
kernels in CUDA C++ (csrc/ops/cuda): three, because several families may have kernels for one device.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from dmao_kernels._version import __version__

_LOG = logging.getLogger("dmao_kernels")
_DIRECTORY = Path(__file__).parent
_REMEDY = "build it again: pip install . (or python setup.py build_ext --inplace)"

_NATIVE = torch.library.Library("dmao", "DEF")
_TRITON = torch.library.Library("dmao_triton", "DEF")
_CUDA = torch.library.Library("dmao_cuda", "DEF")
_LIBRARIES = {"dmao": _NATIVE, "dmao_triton": _TRITON, "dmao_cuda": _CUDA}
_NAMESPACES = {
    "cpu": torch.ops.dmao,
    "triton": torch.ops.dmao_triton,
    "cuda": torch.ops.dmao_cuda,
    "cuda-emulated": torch.ops.dmao_cuda,  # whose tensors are on the CPU
}


def define(schema: str, triton: str | None = None, cuda: bool = False) -> None:
    """Defines the operator `<schema>`, e.g. "importance_(Tensor(a!) ema, ...) -> ()".

    `triton` is the package in whose module triton.py a function of the operator's name runs Triton kernels, where there
    is one. It is imported by the first call: whoever has no GPU neither needs Triton nor waits for it. `cuda` says
    whether there are kernels in CUDA C++.
    """
    _NATIVE.define(schema)
    if cuda:
        _CUDA.define(schema)
    if triton is not None:
        _TRITON.define(schema)
        op = schema.partition("(")[0]
        _TRITON.impl(op, functools.partial(_run_triton, f"{triton}.triton", op), "CompositeExplicitAutograd")


def _run_triton(module: str, op: str, *arguments: Any) -> Any:
    """On the GPU of the first tensor: Triton launches on the current one, whatever tensors it gets."""
    device = _first_tensor(arguments).device
    function = _triton_function(module, op)
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return function(*arguments)
    with torch.cuda.device(device):
        return function(*arguments)


def _first_tensor(arguments: Iterable[Any]) -> torch.Tensor:
    for value in arguments:
        if isinstance(value, torch.Tensor):
            return value
        if isinstance(value, (list, tuple)) and value:
            return _first_tensor(value)
    raise ValueError("an operator without a tensor")


@functools.cache
def _triton_function(module: str, op: str) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(importlib.import_module(module), op)
    return function


def operators(backend: str) -> Any:
    """The namespace, such as torch.ops.dmao, that holds the operators of a backend."""
    return _NAMESPACES[backend]


def _defined(op: str) -> list[Any]:
    return [namespace for namespace in dict.fromkeys(_NAMESPACES.values()) if hasattr(namespace, op)]


def register_fake(op: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates the function that gives shapes and dtypes of the results of `op`, whatever its backend."""

    def register(fake: Callable[..., Any]) -> Callable[..., Any]:
        for namespace in _defined(op):
            torch.library.register_fake(f"{namespace.name}::{op}", fake)
        return fake

    return register


def register_autograd(op: str, backward: Callable[..., Any], setup_context: Callable[..., Any] | None = None) -> None:
    """Registers the gradients of `op`, whatever its backend.

    `backward` gets the operators of the same backend before the context and the gradients.
    """
    for namespace in _defined(op):
        overload = getattr(namespace, op).default
        function = _differentiated(overload, functools.partial(backward, namespace), setup_context)
        _LIBRARIES[namespace.name].impl(op, function, "Autograd", with_keyset=True)


def _differentiated(
    overload: Any, backward: Callable[..., Any], setup_context: Callable[..., Any] | None
) -> Callable[..., Any]:
    """What torch.library.register_autograd registers, but for its search for defaults, of which no schema here has any.

    It takes 0.15 ms for 21 arguments: more than the launches.
    """

    def below(keys: Any, *arguments: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return overload.redispatch(keys & torch._C._after_autograd_keyset, *arguments)

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            output = below(inputs[-1], *inputs[:-1])
            if setup_context is not None:
                setup_context(ctx, inputs[:-1], output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
            found = backward(ctx, *grads)
            return (*found, None) if isinstance(found, tuple) else (found, None)

    def run(keys: Any, *arguments: Any) -> Any:
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments):
            return Function.apply(*arguments, keys)
        return below(keys, *arguments)

    return run


def _why_not_native() -> str | None:
    if os.environ.get("DMAO_NO_NATIVE") == "1":
        return "DMAO_NO_NATIVE=1 is set"
    if not (_DIRECTORY / "_ops.so").exists():
        return "it was installed without native kernels (no C++ compiler at that time, or DMAO_NO_NATIVE=1)"
    return None


def _why_not_this_torch() -> str | None:
    version = re.match(r"(\d+)\.(\d+)", torch.__version__)
    if version is None or tuple(map(int, version.groups())) < (2, 13):
        return f"native kernels need torch >= 2.13, found {torch.__version__}"
    return None


def _load(library: Path) -> None:
    try:
        torch.ops.load_library(library)
    except OSError as error:
        raise ImportError(
            f"dmao_kernels: the native library does not fit torch {torch.__version__} ({error}); {_REMEDY}"
        ) from error


def load_native() -> tuple[str | None, str]:
    """Loads the native library: (CPU capability, "") or (None, why the reference backend is used instead).

    Raises:
        ImportError: the library is there but does not fit this PyTorch, Python or version of the package, or
            DMAO_CPU_CAPABILITY names a capability that is unknown or not supported by this CPU.
    """
    reason = _why_not_native()
    if reason is not None:
        _LOG.warning("dmao_kernels: no native kernels, the reference backend is used: %s", reason)
        return None, reason
    if reason := _why_not_this_torch():
        raise ImportError(f"dmao_kernels: {reason}")
    try:
        from dmao_kernels import _host
    except ImportError as error:
        raise ImportError(f"dmao_kernels: the native library does not fit this Python; {_REMEDY}") from error
    info = _host.build_info()
    if info["version"] != __version__:
        raise ImportError(
            f"dmao_kernels: the native library has version {info['version']}, the package {__version__}; {_REMEDY}"
        )
    try:
        capability = _host.cpu_capability()
    except RuntimeError as error:
        raise ImportError(str(error)) from None
    _load(_DIRECTORY / "_ops.so")
    _LOG.debug("native kernels loaded, CPU capability %s", capability)
    return capability, ""


def load_cuda() -> str:
    """Loads the kernels in CUDA C++, with or without a GPU: "", or why they are not to be had.

    Raises:
        ImportError: the library is there but does not fit this PyTorch.
    """
    library = _DIRECTORY / "_cuda.so"
    if reason := _why_not_native():
        return reason
    from dmao_kernels import _host

    if not library.exists() or not _host.build_info()["cuda_compiler"]:  # the latter: it is of an earlier build
        return "it was installed without kernels in CUDA C++ (no nvcc at that time, or DMAO_NO_CUDA=1)"
    _load(library)
    return ""
