"""Ours beside a plain product of matrices with the same tile, warps and stages: no more bytes, no fewer blocks."""

from __future__ import annotations

import pytest
import torch

from dmao_kernels.testing import sass
from dmao_kernels.testing.mock_driver import Launch, mock_gpu
from tests.aot import peers
from tests.aot.problems import PROBLEMS

PRODUCTS = ("component_ffn", "masked_linear", "masked_linear_dense")
TILE = ("ROWS", "COLUMNS", "STEP")
# A live list or a block mask is read in the loop as well.
SHARE_OF_FLOPS_PER_BYTE = 0.85
# Why a kernel may have one block less than the plain product.
ONE_BLOCK_LESS = {
    "hidden_kernel": "its end holds a tile of pre-activations beside one of activated values with their mask",
    "hidden_gradient_kernel": "its end holds a tile of pre-activations beside one of gradients",
    "product_kernel": "with an activation, its end holds pre-activations as well",
    "weight_gradient_kernel": "places of both lists are kept in registers",
}


def products(problem: str, arch: int) -> list[Launch]:
    """The launched kernels that multiply tiles, one launch of each."""
    with mock_gpu(arch) as launches:
        PROBLEMS[problem](torch.bfloat16)
    kernels = {launch.metadata.hash: launch for launch in launches}
    return [launch for launch in kernels.values() if all(name in launch.constants for name in TILE)]


@pytest.mark.parametrize("arch", [80, 90, 100, 120])
@pytest.mark.parametrize("problem", PRODUCTS)
def test_as_lean_as_a_plain_product(problem, arch):
    launches = products(problem, arch)
    assert launches
    for launch in launches:
        tile = [launch.constants[name] for name in TILE]
        with mock_gpu(arch) as plain:
            peers.multiply(torch.bfloat16, *tile, launch.metadata.num_warps, launch.metadata.num_stages)
        ours, theirs = sass.read(launch), sass.read(plain[0])
        what = f"{launch.name} {tile}"
        if theirs.loop.flops_per_byte is not None:  # the instructions of sm_100 do not tell
            assert ours.loop.flops_per_byte >= SHARE_OF_FLOPS_PER_BYTE * theirs.loop.flops_per_byte, what
        least = theirs.blocks - (launch.name in ONE_BLOCK_LESS)
        assert ours.blocks >= least, f"{what}: {ours.blocks} < {least} blocks, for {ours.limit}"
