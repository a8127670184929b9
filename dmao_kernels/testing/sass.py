"""Reads what a compiled kernel is made of: the machine code of NVIDIA's GPUs (SASS), and the assembly of AMD's.

Counted are properties of the code, not times: registers, stack, spills, shared memory, blocks per processor, which
matrix instructions, which asynchronous copies, and the mix of instructions in the hottest loop.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import triton

from dmao_kernels.testing.gpus import GPU, GPUS, blocks_per_processor
from dmao_kernels.testing.mock_driver import Launch

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

# Ampere: HMMA; Hopper: HGMMA (wgmma); Blackwell's data centers: UTCHMMA (tcgen05).
_MATRIX = re.compile(r"(HMMA|IMMA|DMMA|QMMA|OMMA|HGMMA|IGMMA|QGMMA|UTC\w*MMA)\b")
_LINE = re.compile(
    r"^(?P<label>\.L_\w+):|^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(?P<name>[A-Z][\w.]*)(?P<operands>[^;]*);", re.M
)
_WARP_SIZE = 32


@dataclass(frozen=True)
class Instruction:
    """One of a warp's; the name with its modifiers, such as "LDG.E.128"."""

    name: str

    @property
    def kind(self) -> str:
        return self.name.partition(".")[0]

    @property
    def is_matrix(self) -> bool:
        return _MATRIX.match(self.name) is not None

    @property
    def bytes_from_global(self) -> int:
        """What a warp reads with it from global memory, as far as the instruction says so (not those of TMA)."""
        if self.kind not in ("LDG", "LDGSTS"):
            return 0
        width = re.search(r"\.[US]?(8|16|64|128|256)\b", self.name)
        return _WARP_SIZE * (int(width[1]) // 8 if width else 4)

    @property
    def flops(self) -> int | None:
        """Of a warp; None where the instruction does not tell (tcgen05)."""
        if (size := re.match(r"[HQ]GMMA\.64x(\d+)x(\d+)", self.name)) is not None:
            return 2 * 64 * int(size[1]) * int(size[2]) // 4  # four warps share it
        sizes = {"16816": 16 * 8 * 16, "1688": 16 * 8 * 8, "1684": 16 * 8 * 4}
        shape = re.match(r"HMMA\.(\d+)", self.name)
        return 2 * sizes[shape[1]] if shape else None


@dataclass(frozen=True)
class Loop:
    """The innermost loop with the most matrix instructions; without any, the longest innermost one. Loops without
    matrix instructions may stand inside where there is no other."""

    instructions: tuple[Instruction, ...]

    @property
    def matrix(self) -> int:
        return sum(instruction.is_matrix for instruction in self.instructions)

    @property
    def per_matrix(self) -> float | None:
        """Instructions that are issued per matrix instruction."""
        return len(self.instructions) / self.matrix if self.matrix else None

    @property
    def flops_per_byte(self) -> float | None:
        """Of the matrix instructions, per byte from global memory; None where the code does not tell one of them."""
        flops = [instruction.flops for instruction in self.instructions if instruction.is_matrix]
        read = sum(instruction.bytes_from_global for instruction in self.instructions)
        known = [value for value in flops if value is not None]
        return sum(known) / read if known and len(known) == len(flops) and read else None


@dataclass(frozen=True)
class Code:
    """What the compiler made of one kernel for one GPU."""

    registers: int
    stack: int  # bytes per thread
    local: int  # loads and stores of spilled registers
    shared: int  # bytes per block
    warps: int
    blocks: int | None  # that run at a time on one processor; None: not known for AMD
    limit: str  # of the blocks
    matrix: Counter[str]  # matrix instructions by kind
    asynchronous: int  # copies from global to shared memory that nobody waits for, cp.async and TMA
    instructions: int
    loop: Loop
    narrow: int = 0  # accesses to global memory of less than 16 bytes a thread


def read(launch: Launch) -> Code:
    """The code of a launched kernel."""
    if launch.metadata.target.backend == "hip":
        return parse_amdgcn(launch.assembly("amdgcn"), launch.metadata.shared, launch.metadata.num_warps)
    metadata = launch.metadata
    usage = _run("cuobjdump", "-res-usage", str(launch.binary))
    sass = _run("nvdisasm", "-c", str(launch.binary))
    return parse_sass(sass, usage, GPUS[metadata.target.arch], metadata.shared, metadata.num_warps)


@dataclass(frozen=True)
class Binary:
    """One kernel of a cubin: what cuobjdump and nvdisasm print of it."""

    usage: str
    sass: str

    def code(self, gpu: GPU, dynamic_shared: int, threads: int) -> Code:
        """With what it is launched with."""
        return parse_sass(self.sass, self.usage, gpu, dynamic_shared + self.static_shared, threads // _WARP_SIZE)

    @property
    def static_shared(self) -> int:
        """Bytes of shared memory that the code names."""
        found = re.search(r"SHARED:(\d+)", self.usage)
        return int(found[1]) if found else 0


def binaries(cubin: Path) -> dict[str, Binary]:
    """All kernels of a cubin, by their symbols."""
    usage = dict(re.findall(r"^ Function (\w+):\n(.*)$", _run("cuobjdump", "-res-usage", str(cubin)), re.M))
    sections = re.split(r"^\s*\.section\s+\.text\.(\w+),.*$", _run("nvdisasm", "-c", str(cubin)), flags=re.M)
    code = dict(zip(sections[1::2], sections[2::2], strict=True))
    return {symbol: Binary(usage[symbol], text) for symbol, text in code.items() if symbol in usage}


def extract(library: Path, folder: Path) -> list[Path]:
    """The cubins in a library, of every source file and architecture, into a folder."""
    subprocess.run(
        [str(_TOOLS / "cuobjdump"), "-xelf", "all", str(library)], cwd=folder, capture_output=True, check=True
    )
    return sorted(folder.glob("*.cubin"))


def _run(tool: str, *arguments: str) -> str:
    """What one of the tools that Triton brings prints."""
    result = subprocess.run([str(_TOOLS / tool), *arguments], capture_output=True, text=True, check=True)
    return result.stdout


def parse_sass(sass: str, usage: str, gpu: GPU, shared: int, warps: int) -> Code:
    """From what nvdisasm -c and cuobjdump -res-usage print."""
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, f"cuobjdump printed no resources: {usage}"
    registers, stack = map(int, found.groups())
    instructions, loops = parse_instructions(sass)
    kinds = Counter(instruction.kind for instruction in instructions)
    blocks, limit = blocks_per_processor(gpu, registers, shared, warps)
    return Code(
        registers,
        stack,
        kinds["LDL"] + kinds["STL"],
        shared,
        warps,
        blocks,
        limit,
        Counter(instruction.kind for instruction in instructions if instruction.is_matrix),
        sum(count for kind, count in kinds.items() if kind == "LDGSTS" or kind.startswith("UTMALDG")),
        len(instructions),
        hottest(loops),
        sum(i.kind in ("LDG", "STG", "LDGSTS") and ".128" not in i.name for i in instructions),
    )


def parse_instructions(sass: str) -> tuple[list[Instruction], list[Loop]]:
    """All instructions, and the loops that have no loop inside; if none of these has matrix instructions, those loops
    with some that have no such loop inside."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    spans = []
    for line in _LINE.finditer(sass):
        if line["label"]:
            labels[line["label"]] = len(instructions)
            continue
        instructions.append(Instruction(line["name"]))
        target = re.search(r"\.L_\w+", line["operands"])
        if line["name"].startswith("BRA") and target and target[0] in labels:
            spans.append((labels[target[0]], len(instructions)))
    # A branch to itself ends every kernel.
    spans = [(first, end) for first, end in spans if end - first > 1]
    loops = {span: Loop(tuple(instructions[slice(*span)])) for span in spans}
    with_matrix = [span for span in loops if loops[span].matrix]
    innermost = _innermost(list(loops))
    if not any(loops[span].matrix for span in innermost) and with_matrix:
        innermost = _innermost(with_matrix)
    return instructions, [loops[span] for span in innermost]


def _innermost(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return [a for a in spans if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in spans)]


def hottest(loops: Sequence[Loop]) -> Loop:
    """The loop with the most matrix instructions, or the longest one."""
    return max(loops, key=lambda loop: (loop.matrix, len(loop.instructions)), default=Loop(()))


def parse_amdgcn(assembly: str, shared: int, warps: int) -> Code:
    """From the assembly of an AMD kernel."""

    def number(name: str) -> int:
        found = re.search(rf"\.{name}:\s*(\d+)", assembly)
        assert found is not None, f"the assembly does not tell .{name}"
        return int(found[1])

    names = re.findall(r"^\s+([a-z]\w+)", assembly, re.M)
    matrix = Counter("mfma" for name in names if name.startswith("v_mfma"))
    return Code(
        number("vgpr_count"),
        number("private_segment_fixed_size"),
        number("vgpr_spill_count"),  # scalar registers are spilled into lanes of vector registers, not into memory
        shared,
        warps,
        None,
        "",
        matrix,
        sum(name.startswith("buffer_load") and name.endswith("_lds") for name in names),
        len(names),
        Loop(()),
    )
