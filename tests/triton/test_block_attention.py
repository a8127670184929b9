"""block_attention in Triton against float64 and against the native kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import dmao_kernels
from dmao_kernels import BlockMask, block_attention
from dmao_kernels.ops.block_attention.reference import block_attention_reference
from dmao_kernels.testing import assert_close_to_oracle, outputs_and_gradients, to_float64
from tests.ops.attention_problems import Problem, check_against_oracle, detached, make, packed, random_mask
from tests.ops.common import SEED, ids
from tests.triton.common import DTYPES

HEADS = torch.tensor([True, False, True])


def on(device: str, problem: Problem) -> Problem:
    """The problem's tensors, leaves again, and its mask on a device."""
    moved = {
        name: value.detach().to(device).requires_grad_(value.requires_grad)
        if isinstance(value, Tensor)
        else value.to(device)
        if isinstance(value, BlockMask)
        else value
        for name, value in problem.items()
    }
    return detached(moved)


def check(device: str, problem: Problem, **conditions: Any) -> None:
    check_against_oracle(on(device, problem), **on(device, conditions))


# --- A few problems with everything in them

SMALL: dict[str, Problem] = {
    "plain": {},
    "lengths, heads": {"lengths": ids(45, 0, 18), "head_mask": HEADS},
    "window, chunk": {"window": (20, 7), "chunk": (9, 2), "lengths": ids(45, 1, 30)},
    "mask, dropout": {"block_mask": BlockMask.from_dense(torch.eye(3).roll(1, 0) > 0, 16), "p": 0.2, "seed": SEED},
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SMALL)
def test_small_problems(device: str, name: str, dtype: torch.dtype) -> None:
    check(device, make(3, 45, 3, 16, dtype, reach=44), **SMALL[name])


@pytest.mark.parametrize("reach", [None, 3, 49])
def test_packed_rows(device: str, reach: int | None) -> None:
    problem = packed(make(4, 50, 2, 20, reach=reach), ids(50, 0, 1, 33))
    check(device, problem, window=(20, 30), p=0.1, seed=SEED)


def run(problem: Problem, **conditions: Any) -> list[Tensor]:
    out, grads = outputs_and_gradients(
        block_attention, **problem, **conditions, grad_output=torch.ones_like(problem["q"])
    )
    return [out, *grads.values()]


def test_same_bits_again(device: str) -> None:
    problem = on(device, make(2, 50, 2, 16, torch.bfloat16, reach=20))
    conditions = on(device, {"p": 0.1, "seed": SEED, "lengths": ids(50, 21)})
    assert all(torch.equal(a, b) for a, b in zip(run(problem, **conditions), run(problem, **conditions), strict=True))


def test_dropout_mask_is_that_of_the_native_kernels(device: str, native: str) -> None:
    """With zero queries and v = identity the output is the mask, scaled."""
    frames = 150
    zero = torch.zeros(2, frames, 2, frames)
    problem = {"q": zero, "k": zero, "v": torch.eye(frames)[None, :, None].expand(2, -1, 2, -1)}
    conditions = {"p": 0.25, "seed": SEED, "lengths": ids(frames, 77)}
    ours = block_attention(**on(device, problem), **on(device, conditions)).cpu()
    with dmao_kernels.use_backend(native):
        expected = block_attention(**problem, **conditions)
    assert torch.equal(ours == 0, expected == 0)
    torch.testing.assert_close(ours, expected)


def test_agrees_with_the_native_kernels(device: str, native: str) -> None:
    problem = make(2, 60, 2, 16, reach=30)
    conditions = {"p": 0.2, "seed": SEED, "lengths": ids(60, 33), "window": (40, 20)}
    ours = run(on(device, problem), **on(device, conditions))
    with dmao_kernels.use_backend(native):
        expected = run(problem, **conditions)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-4, atol=1e-4)


def test_views_of_one_projection(device: str) -> None:
    projection = torch.randn(2, 40, 3, 2, 16).to(device)
    views = dict(zip("qkv", projection.unbind(2), strict=True))
    copies = {name: value.contiguous() for name, value in views.items()}
    shuffled = {name: value.transpose(-1, -2).contiguous().transpose(-1, -2) for name, value in views.items()}
    expected = block_attention(**copies)
    assert torch.equal(block_attention(**views), expected)
    assert torch.equal(block_attention(**shuffled), expected)


def test_positions_shared_by_the_heads(device: str) -> None:
    problem = make(2, 35, 3, 16, reach=34)
    problem["rel_pos"] = problem["rel_pos"][:, 0].detach().requires_grad_()
    check(device, problem, head_mask=HEADS)


def test_nothing_to_do(device: str) -> None:
    for sizes in ((0, 5, 2, 4), (2, 0, 2, 4), (2, 5, 0, 4)):
        check(device, make(*sizes))
        check(device, make(*sizes, reach=3))
    check(device, make(2, 20, 2, 4, reach=3), lengths=ids(0, 0))
    check(device, make(2, 20, 3, 4, reach=3), head_mask=torch.zeros(3, dtype=torch.bool))


def test_nan_in_a_query_stays_in_its_row(device: str) -> None:
    problem = make(1, 40, 2, 16)
    with torch.no_grad():
        problem["q"][0, 37, 1, 5] = torch.nan
    out = block_attention(**on(device, problem))
    assert out[0, 37, 1].isnan().all()
    out[0, 37, 1] = 0
    assert out.isfinite().all()


# --- Sweeps

SIZES = [
    (1, 1, 1, 1),
    (2, 3, 2, 5),
    (2, 17, 3, 24),
    (2, 33, 2, 33),
    (2, 65, 2, 47),
    (1, 129, 2, 80),
    (2, 40, 1, 128),
    (1, 20, 2, 256),
]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_odd_sizes(device: str, size: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    batch, frames = size[:2]
    check(device, make(*size, dtype))
    check(
        device,
        make(*size, dtype, reach=max(frames - 1, 0)),
        lengths=ids(*torch.linspace(frames, frames // 2, batch).int().tolist()),
        window=(2 * frames // 3, frames // 2),
        p=0.2,
        seed=SEED,
    )


VISIBLE: dict[str, Problem] = {
    "window 0 0": {"window": (0, 0)},
    "window 5 -": {"window": (5, None)},
    "window - 0": {"window": (None, 0)},
    "window 1000 3": {"window": (1000, 3)},
    "chunk 1 0": {"chunk": (1, 0)},
    "chunk 16 -": {"chunk": (16, None)},
    "chunk 10 1": {"chunk": (10, 1)},
    "chunk 200 0": {"chunk": (200, 0)},
    "window and chunk": {"window": (30, 20), "chunk": (24, 1)},
    "empty": {"lengths": ids(0, 0, 0)},
    "no head": {"head_mask": torch.tensor([False, False])},
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", VISIBLE)
def test_what_is_visible(device: str, name: str, dtype: torch.dtype) -> None:
    check(device, make(3, 75, 2, 24, dtype), **VISIBLE[name])
    check(device, make(3, 75, 2, 24, dtype, reach=20), **VISIBLE[name])


@pytest.mark.slow
@pytest.mark.parametrize("block", [16, 48, 64, 128])
@pytest.mark.parametrize("grid", ["empty", "full", "one", "row", "column", "random"])
def test_block_masks(device: str, grid: str, block: int) -> None:
    size = -(-140 // block)
    live = torch.zeros(size, size, dtype=torch.bool)
    if grid == "full":
        live[:] = True
    elif grid == "one":
        live[-1, -1] = True  # the partial block at the corner
    elif grid == "row":
        live[0] = True
    elif grid == "column":
        live[:, size // 2] = True
    elif grid == "random":
        live = torch.rand(size, size) < 0.5
    mask = BlockMask.from_dense(live, block)
    check(device, make(2, 140, 1, 20), block_mask=mask, p=0.3, seed=SEED)
    check(device, make(2, 140, 1, 20, reach=139), block_mask=mask, window=(50, 60), lengths=ids(140, 71))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reach", [0, 1, 3, 15, 16, 40, 63, 200])
def test_reach(device: str, reach: int, dtype: torch.dtype) -> None:
    problem = make(2, 70, 2, 24, dtype, reach=reach)
    check(device, problem, lengths=ids(70, 37))
    check(device, problem, window=(40, 20), scale=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("absent", ["content_bias", "position_bias", "both"])
def test_parts_of_the_positional_term(device: str, absent: str) -> None:
    problem = make(2, 45, 2, 24, reach=50)
    for name in ("content_bias", "position_bias") if absent == "both" else (absent,):
        del problem[name]
    check(device, problem, lengths=ids(30, 45))


@pytest.mark.slow
def test_content_bias_without_positions(device: str) -> None:
    problem = make(2, 45, 2, 24, reach=50)
    del problem["rel_pos"], problem["position_bias"]
    check(device, problem, lengths=ids(30, 45))


@pytest.mark.slow
@pytest.mark.parametrize("factor", [30.0, -1e3])
def test_large_scores(device: str, factor: float) -> None:
    problem = make(1, 70, 2, 16)
    largest = factor * torch.einsum("bihd,bjhd->bhij", problem["q"], problem["k"]).abs().max().item()
    check(device, problem, scale=factor, window=(None, 50), largest_score=abs(largest))


# --- Sizes of real layers

LAYERS: dict[str, tuple[tuple[int, int, int, int], bool, Problem]] = {
    "Conformer": ((4, 750, 4, 64), True, {"lengths": ids(750, 700, 301, 64), "p": 0.1, "seed": SEED}),
    "long": ((1, 3000, 2, 64), False, {"window": (64, 64)}),
    "masked": ((2, 700, 2, 64), True, {"block_mask": random_mask(700, 64)}),
    "wide": ((2, 300, 2, 128), True, {}),
    "widest": ((2, 300, 2, 256), True, {}),
    "narrow": ((4, 500, 4, 36), True, {"chunk": (40, 2)}),
}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LAYERS)
def test_layers(device: str, name: str, dtype: torch.dtype) -> None:
    size, relative, conditions = LAYERS[name]
    check(device, make(*size, dtype, reach=size[1] - 1 if relative else None), **conditions)


@pytest.mark.gpu
def test_more_rows_than_an_int_counts(device: str) -> None:
    """Elements behind 2^31 are found."""
    frames, heads, width = 70_000, 128, 256
    q, k, v = torch.empty(3, frames, heads, width, dtype=torch.bfloat16, device=device)
    last = torch.randn(3, 100, 2, width).to(q)
    for tensor, rows in zip((q, k, v), last, strict=True):
        tensor[-100:, -2:] = rows
    head_mask = torch.zeros(heads, dtype=torch.bool, device=device)
    head_mask[-2:] = True
    offsets = ids(0, frames - 100, frames).to(device)
    with torch.no_grad():
        out = block_attention(q, k, v, offsets=offsets, head_mask=head_mask, window=(100, 0))
        expected = block_attention_reference(*last[:, None], window=(100, 0))
        truth = block_attention_reference(*to_float64(list(last[:, None])), window=(100, 0))
    assert_close_to_oracle(out[None, -100:, -2:], expected, truth)
    assert not out[:, :-2].any()
