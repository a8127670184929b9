"""A Triton driver for a GPU that is not there: launches compile their kernels for it, and run nothing.

    with mock_gpu(90) as launches:
        component_ffn(x, ...)            # tensors on the CPU; what comes back is memory that nobody has written
    launches[0].name, launches[0].grid, launches[0].assembly("ptx")

Everything up to the launch is what would happen on the GPU: the launchers of the library, Triton's specialisation on
arguments, compilation, and OutOfResources where a kernel does not fit. Not in a process with TRITON_INTERPRET=1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver

from dmao_kernels.testing.devices import triton_on_cpu
from dmao_kernels.testing.gpus import GPU, GPUS


@dataclass(frozen=True)
class Launch:
    """One launch: of which kernel, over which grid."""

    name: str
    grid: tuple[int, int, int]
    metadata: Any  # Triton's: num_warps, num_stages, shared, ...
    constants: Mapping[str, Any]  # by name, tile sizes for instance
    _files: Mapping[str, Path]

    def assembly(self, kind: str) -> str:
        """The compiled kernel as text: "ttir", "ttgir", "llir", "ptx", "amdgcn"."""
        return self._files[kind].read_text()

    @property
    def binary(self) -> Path:
        """The file with the machine code."""
        return self._files["cubin" if "cubin" in self._files else "hsaco"]


class _Utils:
    """What Triton asks about a device, and how it loads a kernel."""

    def __init__(self, gpu: GPU) -> None:
        self._gpu = gpu

    def get_device_properties(self, _: int) -> dict[str, int]:
        return {
            "max_shared_mem": self._gpu.shared_per_block,
            "max_num_regs": self._gpu.registers_per_processor,
            "multiprocessor_count": self._gpu.processors,
            "warpSize": self._gpu.warp_size,
        }

    def load_binary(self, *_: Any) -> tuple[int, int, int, int, int]:
        return 0, 0, 0, 0, 1024  # module, function, registers, spills, most threads of a block

    def unload_module(self, _: int) -> None:
        """There is nothing to unload."""


class MockDriver(DriverBase):
    """Compiles for `gpu`, and notes launches."""

    def __init__(self, gpu: GPU) -> None:
        self._gpu = gpu
        self.utils = _Utils(gpu)
        self.launches: list[Launch] = []

    @classmethod
    def is_active(cls) -> bool:
        return True

    def get_current_target(self) -> GPUTarget:
        return GPUTarget(self._gpu.backend, self._gpu.arch, self._gpu.warp_size)

    def get_current_device(self) -> int:
        """Compiled kernels are kept by device: each GPU is one of its own."""
        return list(GPUS).index(self._gpu.arch)

    def set_current_device(self, _: int) -> None:
        """There is one."""

    def get_current_stream(self, _: int = 0) -> int:
        return 0

    def get_device_capability(self, _: int = 0) -> tuple[int, int]:
        return divmod(int(self._gpu.arch), 10)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_benchmarker(self) -> Callable[..., Any]:
        raise NotImplementedError("kernels do not run on a mock GPU, nothing can be timed")

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        names = source.fn.arg_names
        constants = {names[path[0]]: value for path, value in source.constants.items() if len(path) == 1}

        def launch(x: int, y: int, z: int, *_: Any) -> None:
            # Kernels outlive a driver: the launch belongs to the one that is active now.
            files = _FILES[metadata.hash]
            driver.active.launches.append(Launch(source.name, (x, y, z), metadata, constants, files))

        return launch


_FILES: dict[str, dict[str, Path]] = {}  # what the compiler left, by the hash of the kernel


def _remember_files(module: Any, function: Any, name: str, files: Mapping[str, str], hash: str) -> None:
    _FILES[hash] = {Path(file).suffix[1:]: Path(file) for file in files.values()}


@contextmanager
def mock_gpu(arch: int | str) -> Iterator[list[Launch]]:
    """Lets the library's operations compile their Triton kernels for a GPU, for tensors on the CPU.

    Args:
        arch: compute capability 80, 90, 100 or 120, or "gfx942".

    Yields:
        The launches so far, in order.

    Raises:
        RuntimeError: TRITON_INTERPRET=1 is set.
    """
    if triton.knobs.runtime.interpret:
        raise RuntimeError("mock_gpu compiles kernels, which TRITON_INTERPRET=1 forbids in this process")
    mock = MockDriver(GPUS[arch])
    before = driver._active
    driver.set_active(mock)
    triton.knobs.runtime.kernel_load_end_hook.add(_remember_files)
    try:
        with triton_on_cpu():
            yield mock.launches
    finally:
        triton.knobs.runtime.kernel_load_end_hook.remove(_remember_files)
        driver._active = before
