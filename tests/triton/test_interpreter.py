"""The guard of the interpreter: what it must catch, what it must leave alone, and whether it is still needed."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("is about the interpreter", allow_module_level=True)

from dmao_kernels.testing import interpreter
from dmao_kernels.testing.interpreter import KernelMemoryError, KernelRaceError
from tests.triton import planted

ROOT = Path(__file__).resolve().parents[2]


def test_a_clean_kernel_runs(device):
    x, y = torch.randn(40, device=device), torch.zeros(40, device=device)
    planted.double[(3,)](x, y, 40, 0, BLOCK=16)
    assert torch.equal(y, 2 * x)


@pytest.mark.parametrize("shift", [-1, 1, 10**6])
def test_load_outside_of_all_arguments(shift, device):
    x, y = torch.zeros(32, device=device), torch.zeros(32, device=device)
    with pytest.raises(KernelMemoryError, match="of a load are outside of every argument"):
        planted.double[(2,)](x, y, 32, shift, BLOCK=16)


def test_store_outside_of_all_arguments(device):
    y = torch.zeros(24, device=device)
    with pytest.raises(KernelMemoryError, match=r"program \(1, 0, 0\): 8 lane\(s\) of a store are outside"):
        planted.unmasked_store[(2,)](y, BLOCK=16)


def test_a_view_may_be_read_wherever_its_storage_is(device):
    x, y = torch.randn(33, device=device)[1:], torch.zeros(32, device=device)
    planted.double[(2,)](x, y, 32, -1, BLOCK=16)  # NaN margins (dmao_kernels.testing.Poison) are for these


def test_misaligned_load(device):
    with pytest.raises(KernelMemoryError, match="not aligned"):
        planted.misaligned[(1,)](torch.zeros(4, device=device), torch.zeros(1, device=device))


@pytest.mark.parametrize(
    ("kernel", "what"),
    [(planted.all_write_one_place, "writes what"), (planted.reads_its_neighbour, "what program number 1")],
)
def test_races_between_programs(kernel, what, device):
    x = torch.zeros(32, device=device)
    with pytest.raises(KernelRaceError, match=what):
        kernel[(2,)](x, BLOCK=16)
    kernel[(1,)](x, BLOCK=16)  # with itself, a program cannot race


def test_each_launch_starts_anew(device):
    x, y, z = (torch.ones(16, device=device) for _ in range(3))
    planted.double[(1,)](x, y, 16, 0, BLOCK=16)
    planted.double[(1,)](y, z, 16, 0, BLOCK=16)
    assert torch.equal(z, 4 * x)


def test_two_lanes_of_one_store(device):
    with pytest.raises(KernelRaceError, match="hits an address twice"):
        planted.two_lanes_write_one_place[(1,)](torch.ones(16, device=device), torch.ones(8, device=device), BLOCK=16)


def test_atomic_sums_of_floats_only_are_refused(device):
    x = torch.ones(32, device=device)
    counts = torch.zeros(1, dtype=torch.int32, device=device)
    planted.adds_up_atomically[(2,)](x, counts, BLOCK=16)
    assert counts.item() == 32
    with pytest.raises(KernelRaceError, match="order of programs"):
        planted.adds_up_atomically[(2,)](x, torch.zeros(1, device=device), BLOCK=16)


def test_store_beside_atomics(device):
    with pytest.raises(KernelRaceError):
        planted.store_beside_atomics[(2,)](torch.zeros(1, dtype=torch.int32, device=device))


@pytest.mark.parametrize("kernel", [planted.asserts, planted.asserts_in_a_function])
def test_assertions(kernel, device):
    kernel[(1,)](torch.ones(1, device=device))
    with pytest.raises(AssertionError, match="x must be positive"):
        kernel[(1,)](torch.zeros(1, device=device))


def test_tables_of_addresses(device):
    tensors = [torch.randn(n, device=device) for n in (5, 16)]
    before = [tensor.clone() for tensor in tensors]
    addresses = torch.tensor([tensor.data_ptr() for tensor in tensors], device=device)
    planted.doubles_behind_a_table[(2,)](addresses, torch.tensor([5, 16], device=device), BLOCK=16)
    assert all(torch.equal(now, 2 * old) for now, old in zip(tensors, before, strict=True))
    with pytest.raises(KernelMemoryError, match="outside"):
        planted.doubles_behind_a_table[(2,)](addresses, torch.tensor([6, 16], device=device), BLOCK=16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sums_are_refused(dtype, device):
    x, y = torch.ones(16, device=device), torch.zeros(1, device=device)
    planted.sum_as_it_comes[(1,)](x, y, BLOCK=16)
    assert y.item() == 16
    with pytest.raises(TypeError, match="half precision"):
        planted.sum_as_it_comes[(1,)](x.to(dtype), y, BLOCK=16)


def test_bfloat16_arithmetic(device):
    n = 64
    x = torch.randn(n, device=device).mul(3).bfloat16()
    y = torch.randn(n, device=device).bfloat16()
    out = torch.zeros(13, n, dtype=torch.bfloat16, device=device)
    planted.arithmetic[(1,)](x, y, out, N=n)
    x32, y32 = x.float(), y.float()
    rows = [x32 + y32, x32 - y32, x32 * y32, x32 / y32, x32.maximum(y32), x32.exp(), x32 < y32, -x32, x32.abs()]
    rows += [x32 * 1.001, x32.trunc(), torch.where(x32 < 0, y32, 1.5), x32.max().expand(n)]
    expected = torch.stack([row.to(torch.bfloat16) for row in rows])
    wrong = (out != expected).any(1).nonzero().flatten().tolist()
    assert wrong == [], f"rows {wrong} of planted.arithmetic differ"


def test_bfloat16_dot(device):
    a, b = (torch.randn(32, 32, device=device).bfloat16() for _ in range(2))
    c = torch.zeros(32, 32, device=device)
    planted.product[(1,)](a, b, c, "ieee", N=32)
    assert torch.allclose(c.double(), a.double() @ b.double(), rtol=1e-5, atol=1e-5)


def test_bfloat16_rounding(device):
    """To nearest, ties to even, infinity above the largest number, NaN stays, small numbers lose bits."""
    bits = torch.randint(-(2**31), 2**31 - 1, (4096,), dtype=torch.int32, device=device)
    special = torch.tensor([0x7F7F7FFF, 0x7F7F8000, 0x7F800000, 0x7F800001, 0x3F808000, 0x3F818000, 1, 0x8000, 0x8001])
    bits[: len(special)] = special.int().to(device)
    x = bits.view(torch.float32)
    y = torch.zeros(4096, dtype=torch.bfloat16, device=device)
    planted.cast[(1,)](x, y, BLOCK=4096)
    assert torch.equal(y.isnan(), x.isnan())
    assert torch.equal(y.nan_to_num(0.0).view(torch.int16), x.bfloat16().nan_to_num(0.0).view(torch.int16))
    back = torch.zeros(4096, device=device)
    planted.cast[(1,)](y, back, BLOCK=4096)
    assert torch.equal(back.nan_to_num(0.0), y.float().nan_to_num(0.0))


def test_tf32_loses_bits(device):
    """A kernel that forgets input_precision="ieee" does not look exact."""
    a, b = (torch.randn(32, 32, device=device) for _ in range(2))
    exact = a.double() @ b.double()
    error = {}
    for precision in ("ieee", "tf32"):
        c = torch.zeros(32, 32, device=device)
        planted.product[(1,)](a, b, c, precision, N=32)
        error[precision] = (c - exact).abs().max().item()
    assert error["ieee"] < 1e-5 < 1e-4 < error["tf32"] < 1e-1


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_seed_shuffles_the_programs(seed):
    builder = interpreter._GuardedBuilder(interpreter._Memory(), seed)
    runs = []
    for _ in range(2):
        builder.set_grid_dim(2, 3, 4)
        order = []
        for _ in range(24):
            builder.set_grid_idx(0, 0, 0)
            order.append(builder.grid_idx)
        runs.append(order)
    in_order = list(itertools.product(range(2), range(3), range(4)))
    assert runs[0] == runs[1]
    assert sorted(runs[0]) == in_order
    assert (runs[0] == in_order) == (seed == 0)


def test_the_guard_is_still_needed():
    """Once Triton's own interpreter gets bfloat16, bounds or assertions right, this fails, and the guard can shrink."""
    code = """
import torch
from tests.triton import planted
a, b = (torch.randn(32, 32).bfloat16() for _ in range(2))
c = torch.zeros(32, 32)
planted.product[(1,)](a, b, c, "ieee", N=32)
x, out = a.flatten()[:64].contiguous(), torch.zeros(13, 64, dtype=torch.bfloat16)
planted.arithmetic[(1,)](x, x, out, N=64)
y, rounded = torch.randn(64), torch.zeros(64, dtype=torch.bfloat16)
planted.cast[(1,)](y, rounded, BLOCK=64)
inside = torch.zeros(64)
planted.unmasked_store[(2,)](inside[:24].view(24), BLOCK=16)
planted.asserts[(1,)](torch.zeros(1))
right = {
    "dot": torch.allclose(c.double(), a.double() @ b.double(), rtol=1e-3, atol=1e-3),
    "add": torch.equal(out[0], x + x),
    "rounding": torch.equal(rounded, y.bfloat16()),
}
print([name for name, is_right in right.items() if is_right])
"""
    path = os.pathsep.join([str(ROOT), str(ROOT / "python")])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"
