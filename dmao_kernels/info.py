"""What is installed and what can run here: versions, instruction sets, architectures, and why a backend cannot."""

from __future__ import annotations

import platform
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from dmao_kernels import dispatch, gpu_choice
from dmao_kernels._version import __version__


def versions() -> dict[str, str]:
    """Of what results depend on."""
    triton = __import__("triton").__version__ if find_spec("triton") is not None else "none"
    return {
        "dmao_kernels": __version__,
        "torch": torch.__version__,
        "triton": triton,
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def processor() -> str:
    """Its model, where the system tells."""
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine() or "unknown"


def gpu(device: int = 0) -> str:
    """Name, architecture, memory and size of a GPU."""
    found = torch.cuda.get_device_properties(device)
    memory = f"{found.total_memory / 2**30:.0f} GiB, {found.multi_processor_count} multiprocessors"
    return f"{found.name}, sm_{found.major}{found.minor}, {memory}"


def build() -> dict[str, Any]:
    """How the native libraries were built; empty where there are none."""
    if dispatch.cpu_capability() is None:
        return {}
    from dmao_kernels import _host

    return {**_host.build_info()}


def backends() -> dict[str, str]:
    """Every backend but the reference, and why it cannot run on this machine: "" where it can."""
    return {name: dispatch.why_not(name) for name in dispatch.BACKENDS if name != "reference"}


def describe() -> dict[str, Any]:
    """All of it, as `dmao info --json` prints it."""
    operations = dispatch.supported()
    return {
        "versions": versions(),
        "build": build(),
        "processor": processor(),
        "cpu_capability": dispatch.cpu_capability(),
        "gpus": [gpu(i) for i in range(torch.cuda.device_count())],
        "backends": backends(),
        "operations": operations,
        "faster_on_this_gpu": {op: gpu_choice.fastest(op) for op, kernels in operations.items() if "cuda" in kernels},
    }


def text() -> str:
    """The same for people to read."""
    found = describe()
    lines = [f"{name:<14} {value}" for name, value in found["versions"].items()]
    lines.append(f"{'processor':<14} {found['processor']}")
    built = found["build"]
    if built:
        isas = ", ".join(built["isas"])
        lines.append(f"{'native build':<14} {built['compiler']}, for {isas}; runs {found['cpu_capability']}")
    if built.get("cuda_compiler"):
        lines.append(f"{'CUDA C++ build':<14} nvcc {built['cuda_compiler']}, for {built['cuda_architectures']}")
    lines += [f"{'GPU':<14} {name}" for name in found["gpus"]] or [f"{'GPU':<14} none"]
    lines += ["", "backends"]
    lines += [f"  {name:<14} {'no: ' + reason if reason else 'yes'}" for name, reason in found["backends"].items()]
    lines += ["", "operations, and the dtypes for which a backend has kernels"]
    for op, kernels in found["operations"].items():
        own = "; ".join(f"{name}: {', '.join(types)}" for name, types in kernels.items() if name != "cuda-emulated")
        lines.append(f"  {op:<24} {own}")
    return "\n".join(lines)
