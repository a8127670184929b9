"""What the GPUs have that kernels are compiled for without being there."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GPU:
    """One of the chips of an architecture; a processor is a streaming multiprocessor or a compute unit."""

    backend: str
    arch: int | str
    name: str
    processors: int
    shared_per_block: int  # bytes
    shared_per_processor: int
    warps_per_processor: int
    blocks_per_processor: int
    warp_size: int = 32
    registers_per_processor: int = 65536


# CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"; AMD CDNA 3 ISA.
_KIB = 1024
_ALL = (
    GPU("cuda", 80, "A100", 108, 163 * _KIB, 164 * _KIB, 64, 32),
    GPU("cuda", 90, "H100", 132, 227 * _KIB, 228 * _KIB, 64, 32),
    GPU("cuda", 100, "B200", 148, 227 * _KIB, 228 * _KIB, 64, 32),
    GPU("cuda", 120, "RTX 5090", 170, 99 * _KIB, 100 * _KIB, 48, 24),
    GPU("hip", "gfx942", "MI300X", 304, 64 * _KIB, 64 * _KIB, 32, 16, warp_size=64),
)
GPUS = {gpu.arch: gpu for gpu in _ALL}
# For these, too, kernels in CUDA C++ are compiled.
CUDA_GPUS = {gpu.arch: gpu for gpu in _ALL if gpu.backend == "cuda"} | {
    86: GPU("cuda", 86, "RTX 3090", 82, 99 * _KIB, 100 * _KIB, 48, 16),
    89: GPU("cuda", 89, "RTX 4090", 128, 99 * _KIB, 100 * _KIB, 48, 24),
}


def blocks_per_processor(gpu: GPU, registers: int, shared: int, warps: int) -> tuple[int, str]:
    """How many blocks of an NVIDIA GPU run at a time on one processor, and what limits them.

    Equal to NVIDIA's cuda_occupancy.h: registers are handed out to warps by 256, to each of four partitions on its
    own; a block takes a kibibyte of shared memory more than it asks for.

    Args:
        registers: per thread.
        shared: bytes of a block.
        warps: of a block.
    """
    of_a_warp = -(-registers * gpu.warp_size // 256) * 256
    limits = {
        "registers": gpu.registers_per_processor // 4 // of_a_warp * 4 // warps,
        "shared memory": gpu.shared_per_processor // (shared + _KIB),
        "warps": gpu.warps_per_processor // warps,
        "blocks": gpu.blocks_per_processor,
    }
    limit = min(limits, key=limits.__getitem__)
    return limits[limit], limit
