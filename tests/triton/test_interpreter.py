"""The guard of the interpreter: what it must catch, and what it must leave alone."""

import pytest
import torch

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")

pytestmark = pytest.mark.interpreter


@triton.jit
def scale_kernel(x, y, n, shift, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + i, 2 * tl.load(x + i + shift, mask=i < n), mask=i < n)


def test_a_clean_kernel_runs(device):
    x, y = torch.randn(40, device=device), torch.zeros(40, device=device)
    scale_kernel[(3,)](x, y, 40, 0, BLOCK=16)
    assert torch.equal(y, 2 * x)
