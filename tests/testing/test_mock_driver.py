"""Compiling for GPUs that are not there, and reading the machine code."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")

from dmao_kernels import dispatch  # noqa: E402
from dmao_kernels.testing import sass  # noqa: E402
from dmao_kernels.testing.gpus import GPUS, blocks_per_processor  # noqa: E402
from dmao_kernels.testing.mock_driver import mock_gpu  # noqa: E402

MATRIX = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA", 120: "HMMA", "gfx942": "mfma"}


@triton.jit
def product(a, b, c, steps, SIZE: tl.constexpr, STEP: tl.constexpr):
    """c [SIZE, SIZE] = a [SIZE, steps * STEP] @ b."""
    i, k = tl.arange(0, SIZE), tl.arange(0, STEP)
    total = tl.zeros((SIZE, SIZE), tl.float32)
    for step in range(steps):
        left = tl.load(a + i[:, None] * steps * STEP + step * STEP + k[None, :])
        total = tl.dot(left, tl.load(b + (step * STEP + k[:, None]) * SIZE + i[None, :]), total)
    tl.store(c + i[:, None] * SIZE + i[None, :], total.to(c.dtype.element_ty))


def launch(size=64, step=32, **options):
    a = torch.zeros(size, 4 * step, dtype=torch.bfloat16)
    b, c = a.t().contiguous(), torch.full((size, size), 7.0, dtype=torch.bfloat16)
    product[(1, 2)](a, b, c, 4, SIZE=size, STEP=step, **options)
    return c


@pytest.mark.parametrize("arch", GPUS)
def test_a_launch_compiles_and_runs_nothing(arch):
    with mock_gpu(arch) as launches:
        c = launch()
        launch()
    assert (c == 7).all()
    assert [(found.name, found.grid) for found in launches] == [("product", (1, 2, 1))] * 2
    assert launches[0].metadata.num_warps == 4
    assert launches[0].constants == {"SIZE": 64, "STEP": 32}
    code = sass.read(launches[0])
    assert set(code.matrix) == {MATRIX[arch]}
    assert 0 < code.registers <= 256
    if isinstance(arch, int):
        assert code.asynchronous > 0
        assert code.blocks > 1
        assert code.loop.matrix > 0
        assert code.loop.per_matrix > 1
        assert "tt.dot" in launches[0].assembly("ttir")


def test_what_does_not_fit_is_refused():
    """As on the card: an RTX 5090 has 99 KiB for a block, an H100 227 KiB."""
    with mock_gpu(90) as launches:
        launch(128, 128, num_stages=3)
    assert 99 * 1024 < launches[0].metadata.shared <= 227 * 1024
    with mock_gpu(120), pytest.raises(triton.runtime.errors.OutOfResources, match="shared memory"):
        launch(128, 128, num_stages=3)


def test_spills_are_seen():
    with mock_gpu(80) as launches:
        launch()
        launch(maxnreg=32)
    few, many = map(sass.read, launches)
    assert (few.stack, few.local) == (0, 0)
    assert many.local > 0
    assert many.stack > 0


def test_the_mock_leaves_no_trace():
    before = triton.runtime.driver._active
    with mock_gpu(90):
        assert "cpu" in dispatch._DEVICES["triton"]
    assert triton.runtime.driver._active is before
    assert {"cuda"} == dispatch._DEVICES["triton"]
    assert dispatch._forced is None


@pytest.mark.parametrize(
    ("arch", "registers", "shared", "warps", "expected"),
    [
        # Worked out by hand from the granularity rules of cuda_occupancy.h.
        (80, 255, 0, 4, (2, "registers")),
        (80, 128, 0, 4, (4, "registers")),
        (80, 32, 48 * 1024, 4, (3, "shared memory")),
        (90, 112, 98304, 8, (2, "registers")),
        (90, 32, 0, 1, (32, "blocks")),
        (120, 32, 0, 8, (6, "warps")),
        (120, 40, 50 * 1024, 4, (1, "shared memory")),
    ],
)
def test_occupancy(arch, registers, shared, warps, expected):
    assert blocks_per_processor(GPUS[arch], registers, shared, warps) == expected


SASS = """
.text.kernel:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   LDG.E.128 R4, [R2.64] ;
.L_x_1:
        /*0020*/              @!P0 LDGSTS.E.BYPASS.LTC128B.128 [R9], [R2.64], P1 ;
        /*0030*/                   LDG.E.U16 R4, [R2.64] ;
        /*0040*/                   LDS R4, [R2] ;
        /*0050*/                   HMMA.16816.F32.BF16 R4, R4, R6, R8 ;
        /*0060*/                   HMMA.16816.F32.BF16 R4, R4, R6, R8 ;
        /*0070*/               @P0 BRA `(.L_x_1) ;
        /*0080*/                   STL [R1], R4 ;
        /*0090*/               @P1 BRA `(.L_x_0) ;
        /*00a0*/                   EXIT ;
.L_x_2:
        /*00b0*/                   BRA `(.L_x_2);
"""


def test_the_innermost_loop_is_found():
    usage = " Function kernel:\n  REG:40 STACK:8 SHARED:0 LOCAL:0 CONSTANT[0]:400"
    code = sass.parse_sass(SASS, usage, GPUS[80], shared=1024, warps=4)
    assert (code.registers, code.stack, code.local, code.asynchronous) == (40, 8, 1, 1)
    assert code.matrix == Counter(HMMA=2)
    assert code.instructions == 12
    assert [instruction.kind for instruction in code.loop.instructions] == [
        "LDGSTS",
        "LDG",
        "LDS",
        "HMMA",
        "HMMA",
        "BRA",
    ]
    assert code.loop.per_matrix == 3
    assert code.loop.flops_per_byte == 2 * 4096 / (32 * 16 + 32 * 2)


@pytest.mark.parametrize(
    ("name", "flops"),
    [("HGMMA.64x128x16.F32.BF16", 64 * 128 * 16 * 2 // 4), ("HMMA.1688.F32.TF32", 2048), ("UTCHMMA", None)],
)
def test_flops_of_matrix_instructions(name, flops):
    assert sass.Instruction(name).is_matrix
    assert sass.Instruction(name).flops == flops


def test_amd_assembly():
    text = """
        v_mfma_f32_32x32x8bf16 a[0:15], v[0:1], v[2:3], a[0:15]
        s_endpgm
    .private_segment_fixed_size: 16
    .sgpr_spill_count: 5
    .vgpr_count:     68
    .vgpr_spill_count: 3
    """
    code = sass.parse_amdgcn(text, shared=4096, warps=4)
    assert (code.registers, code.stack, code.local, code.shared, code.blocks) == (68, 16, 3, 4096, None)
    assert code.matrix == Counter(mfma=1)
