"""Ours beside a peer of the same tile, warps and stages: no more bytes a flop, no fewer blocks, or the table says why.

The peers are a plain product of matrices, and flash attention without masks.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

from dmao_kernels.testing import sass
from dmao_kernels.testing.mock_driver import Launch, mock_gpu
from dmao_kernels.testing.sass import Code
from tests.aot import peers
from tests.aot.problems import PROBLEMS
from tests.aot.test_budgets import CODE

PRODUCTS = ("component_ffn", "masked_linear", "masked_linear_dense")
TILE = ("ROWS", "COLUMNS", "STEP")
BLOCKS, BYTES = "blocks", "flops per byte"
# How far ours may be behind, with a reason.
LEAST = {BLOCKS: -1, BYTES: 0.85}
WHY = {
    ("hidden_kernel", BLOCKS): "its end holds a tile of pre-activations beside one of activated values with their mask",
    ("hidden_gradient_kernel", BLOCKS): "its end holds a tile of pre-activations beside one of gradients",
    ("product_kernel", BLOCKS): "with an activation, its end holds pre-activations as well",
    ("weight_gradient_kernel", BLOCKS): "places of both lists are kept in registers",
    ("attention", BLOCKS): "which keys a query sees, by length, window and chunk, is kept in registers for each query",
    ("outward_kernel", BYTES): "the live list is read in the loop",
    ("product_kernel", BYTES): "the block mask is read in the loop",
}


def compiled(problem: str, arch: int, constants: tuple[str, ...]) -> list[Launch]:
    """The launched kernels that have such constants, one launch of each."""
    with mock_gpu(arch) as launches:
        PROBLEMS[problem](torch.bfloat16)
    kernels = {launch.metadata.hash: launch for launch in launches}
    return [launch for launch in kernels.values() if all(name in launch.constants for name in constants)]


def behind(ours: Code, theirs: Code) -> dict[str, str]:
    """In what ours is worse, as text for the table."""
    found = {}
    if ours.blocks < theirs.blocks:
        found[BLOCKS] = f"{ours.blocks} of {theirs.blocks} blocks, for {ours.limit}"
    mine, other = ours.loop.flops_per_byte, theirs.loop.flops_per_byte
    if mine is not None and other is not None and mine < other * 0.999:
        found[BYTES] = f"{mine:.3g} of {other:.3g} flops per byte"
    return found


def check(kernel: str, ours: Code, theirs: Code) -> str:
    """What the table says: nothing, or in what ours is worse, and why."""
    found = behind(ours, theirs)
    missing = [f"{kernel}: {text}" for what, text in found.items() if (kernel, what) not in WHY]
    assert not missing, f"worse than the peer, without a reason: {missing}"
    assert ours.blocks >= theirs.blocks + LEAST[BLOCKS], found
    if BYTES in found:
        assert ours.loop.flops_per_byte >= LEAST[BYTES] * theirs.loop.flops_per_byte, found
    return "; ".join(f"{text}: {WHY[kernel, what]}" for what, text in found.items())


@pytest.mark.parametrize("arch", [80, 90, 100, 120])
@pytest.mark.parametrize("problem", PRODUCTS)
def test_as_lean_as_a_plain_product(problem, arch, record_peer):
    launches = compiled(problem, arch, TILE)
    assert launches
    for launch in launches:
        tile = [launch.constants[name] for name in TILE]
        options = launch.metadata.num_warps, launch.metadata.num_stages
        with mock_gpu(arch) as plain:
            peers.multiply(torch.bfloat16, *tile, *options)
        ours, theirs = sass.read(launch), sass.read(plain[0])
        record_peer(
            arch, problem, launch.name, "matmul", (*tile, *options), ours, theirs, check(launch.name, ours, theirs)
        )


@pytest.mark.parametrize("arch", [80, 90, 100, 120])
def test_as_lean_as_flash_attention(arch, record_peer):
    (launch,) = compiled("block_attention_64", arch, ("QUERIES",))
    tile = launch.constants["QUERIES"], launch.constants["TILE"], launch.metadata.num_warps, launch.metadata.num_stages
    with mock_gpu(arch) as plain:
        peers.attend(torch.bfloat16, *tile)
    ours, theirs = sass.read(launch), sass.read(plain[0])
    why = check(launch.name, ours, theirs)
    record_peer(arch, "block_attention_64", launch.name, "flash attention", tile, ours, theirs, why)


def test_what_is_behind_needs_a_reason_and_has_a_bound():
    better = dataclasses.replace(CODE, blocks=CODE.blocks + 1)
    assert check("attention", CODE, CODE) == ""
    assert "3 of 4 blocks, for registers: which keys" in check("attention", CODE, better)
    with pytest.raises(AssertionError, match="without a reason"):
        check("query_gradients", CODE, better)
    with pytest.raises(AssertionError, match="3 of 5 blocks"):
        check("attention", CODE, dataclasses.replace(CODE, blocks=CODE.blocks + 2))
