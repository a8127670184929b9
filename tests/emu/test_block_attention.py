"""block_attention in CUDA C++, on the host: from Python, and a program of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import dmao_kernels
from dmao_kernels import BlockMask, block_attention
from dmao_kernels.testing import outputs_and_gradients
from tests.emu.build import BUILDS, Compiler, check_right, run, slow_unless_plain
from tests.emu.mutants import Mutant, check_noticed, each
from tests.native.probe import ROOT
from tests.ops.attention_problems import Problem, check_against_oracle, make, packed, random_mask
from tests.ops.common import SEED, ids
from tests.triton.test_block_attention import test_nan_in_a_query_stays_in_its_row  # noqa: F401

PROGRAMS = ROOT / "csrc/tests/cuda"
SOURCE = PROGRAMS / "block_attention.cpp"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HEADS = torch.tensor([True, False, True])

# TF32 has 13 bits less than float32, in which the rule of comparison counts; scores are sums of several products.
TF32_SLACK = 2.0**15


def check(problem: Problem, **conditions: Any) -> None:
    tf32 = problem["q"].dtype == torch.float32
    check_against_oracle(problem, **conditions, **({"largest_score": TF32_SLACK} if tf32 else {}))


def test_tiles_diagonals_and_parts(compiler: Compiler) -> None:
    assert run(compiler(PROGRAMS / "block_attention_tiles.cpp", "plain")) == (0, "right\n")


# --- From Python

SMALL: dict[str, Problem] = {
    "plain": {},
    "lengths, heads": {"lengths": ids(45, 0, 18), "head_mask": HEADS},
    "window, chunk": {"window": (20, 7), "chunk": (9, 2), "lengths": ids(45, 1, 30)},
    "mask, dropout": {"block_mask": BlockMask.from_dense(torch.eye(3).roll(1, 0) > 0, 16), "p": 0.2, "seed": SEED},
}


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SMALL)
def test_small_problems(name: str, dtype: torch.dtype) -> None:
    check(make(3, 45, 3, 16, dtype, reach=44), **SMALL[name])
    check(make(3, 45, 3, 21, dtype), **SMALL[name])


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("reach", [None, 3, 49])
def test_packed_rows(reach: int | None) -> None:
    problem = packed(make(4, 50, 2, 20, torch.bfloat16, reach=reach), ids(50, 0, 1, 33))
    check(problem, window=(20, 30), p=0.1, seed=SEED)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("absent", ["content_bias", "position_bias", "rel_pos", "both"])
def test_parts_of_the_positional_term(absent: str) -> None:
    problem = make(2, 45, 2, 24, torch.bfloat16, reach=20)
    gone = {"both": ("content_bias", "position_bias"), "rel_pos": ("rel_pos", "position_bias")}
    for name in gone.get(absent, (absent,)):
        del problem[name]
    check(problem, lengths=ids(30, 45))


def _results(problem: Problem, **conditions: Any) -> list[Tensor]:
    out, grads = outputs_and_gradients(
        block_attention, **problem, **conditions, grad_output=torch.ones_like(problem["q"])
    )
    return [out, *grads.values()]


@pytest.mark.usefixtures("emulated")
def test_same_bits_again() -> None:
    problem = make(2, 50, 2, 16, torch.bfloat16, reach=20)
    conditions = {"p": 0.1, "seed": SEED, "lengths": ids(50, 21)}
    first, second = _results(problem, **conditions), _results(problem, **conditions)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("block", [16, 48])
def test_dropout_mask_is_that_of_the_native_kernels(block: int, native: str) -> None:
    """With zero queries and v = identity the output is the mask, scaled."""
    frames = 150
    zero = torch.zeros(2, frames, 2, frames)
    problem = {"q": zero, "k": zero, "v": torch.eye(frames)[None, :, None].expand(2, -1, 2, -1)}
    conditions = {"p": 0.25, "seed": SEED, "lengths": ids(frames, 77), "block_mask": random_mask(frames, block)}
    ours = block_attention(**problem, **conditions)
    with dmao_kernels.use_backend(native):
        expected = block_attention(**problem, **conditions)
    assert torch.equal(ours == 0, expected == 0)
    torch.testing.assert_close(ours, expected, rtol=2e-3, atol=1e-4)


@pytest.mark.usefixtures("emulated")
def test_agrees_with_the_native_kernels(native: str) -> None:
    problem = make(2, 60, 2, 16, torch.bfloat16, reach=30)
    conditions = {"p": 0.2, "seed": SEED, "lengths": ids(60, 33), "window": (40, 20)}
    ours = _results(problem, **conditions)
    with dmao_kernels.use_backend(native):
        expected = _results(problem, **conditions)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=4e-2, atol=4e-2 * other.abs().max().item())


@pytest.mark.usefixtures("emulated")
def test_views_of_one_projection() -> None:
    """Also of rows that begin anywhere and lie in any order."""
    projection = torch.randn(2, 40, 3, 2, 17).to(torch.bfloat16)
    views = dict(zip("qkv", projection[..., 1:].unbind(2), strict=True))
    copies = {name: value.contiguous() for name, value in views.items()}
    shuffled = {name: value.transpose(-1, -2).contiguous().transpose(-1, -2) for name, value in views.items()}
    expected = block_attention(**copies)
    assert torch.equal(block_attention(**views), expected)
    assert torch.equal(block_attention(**shuffled), expected)


@pytest.mark.usefixtures("emulated")
def test_nothing_to_do() -> None:
    for sizes in ((0, 5, 2, 4), (2, 0, 2, 4), (2, 5, 0, 4)):
        check(make(*sizes))
        check(make(*sizes, reach=3))
    check(make(2, 20, 2, 4, reach=3), lengths=ids(0, 0))
    check(make(2, 20, 3, 4, reach=3), head_mask=torch.zeros(3, dtype=torch.bool))


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_mask_without_live_blocks_hides_all(dtype: torch.dtype) -> None:
    """Its list of ids is an empty tensor, which lies nowhere."""
    mask = BlockMask.from_dense(torch.zeros(2, 2, dtype=torch.bool), 16)
    problem = make(2, 20, 2, 16, dtype, reach=19)
    check(problem, block_mask=mask)
    check(packed(problem, ids(20, 7)), block_mask=mask)
    assert not block_attention(**problem, block_mask=mask).any()


@pytest.mark.usefixtures("emulated")
def test_the_operator_refuses_a_mask_that_is_not_square() -> None:
    """Called by itself: the size of one list bounds what is read of the other."""
    q, utterances = torch.randn(20, 1, 16), ids(0, 20).reshape(1, 2)
    small, large = (BlockMask.from_dense(torch.ones(n, n, dtype=torch.bool), 16) for n in (1, 2))
    lists = small.row_offsets, small.column_ids, large.column_offsets, large.row_ids
    with pytest.raises(RuntimeError, match="as many rows as columns, and as many ids in both"):
        torch.ops.dmao_cuda.block_attention(
            q, q, q, utterances, 20, *lists, 16, -1, -1, 0, -1, None, None, None, None, 0.0, None, 1.0
        )


SIZES = [
    (1, 1, 1, 1),
    (2, 3, 2, 5),
    (2, 17, 3, 24),
    (2, 65, 2, 47),
    (1, 129, 2, 80),
    (1, 200, 1, 64),
    (1, 40, 2, 256),
]


@pytest.mark.slow
@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_odd_sizes(size: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    batch, frames = size[:2]
    check(make(*size, dtype))
    if size[3] > 128 and dtype == torch.float32:
        return  # see test_wide_heads_with_positions
    check(
        make(*size, dtype, reach=max(frames - 1, 0)),
        lengths=ids(*torch.linspace(frames, frames // 2, batch).int().tolist()),
        window=(2 * frames // 3, frames // 2),
        p=0.2,
        seed=SEED,
    )


@pytest.mark.slow
@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reach", [0, 1, 3, 15, 16, 40, 63, 200])
def test_reach(reach: int, dtype: torch.dtype) -> None:
    problem = make(2, 70, 2, 24, dtype, reach=reach)
    check(problem, lengths=ids(70, 37))
    check(problem, window=(40, 20), scale=0.1)


VISIBLE: dict[str, Problem] = {
    "window 0 0": {"window": (0, 0)},
    "window 5 -": {"window": (5, None)},
    "window 1000 3": {"window": (1000, 3)},
    "chunk 1 0": {"chunk": (1, 0)},
    "chunk 16 -": {"chunk": (16, None)},
    "chunk 200 0": {"chunk": (200, 0)},
    "window and chunk": {"window": (30, 20), "chunk": (24, 1)},
    "mask 16": {"block_mask": random_mask(75, 16)},
    "mask 80": {"block_mask": random_mask(75, 80, 1.0)},
}


@pytest.mark.slow
@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("name", VISIBLE)
def test_what_is_visible(name: str) -> None:
    check(make(3, 75, 2, 24, torch.float16), **VISIBLE[name])
    check(make(3, 75, 2, 24, torch.float16, reach=20), **VISIBLE[name])


# --- The program


@pytest.mark.timeout(900)
@pytest.mark.parametrize("build", [slow_unless_plain(build) for build in BUILDS])
def test_right_in_any_order(build: str, compiler: Compiler) -> None:
    check_right(compiler(SOURCE, build))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("option", ["-DDMAO_FLOAT", "-DDMAO_ALL_WIDTHS"])
def test_other_widths_and_types(option: str, compiler: Compiler) -> None:
    status, printed = run(compiler(SOURCE, "plain", option))
    assert status == 0, printed


MUTANTS = {
    "no barrier": Mutant(
        "__syncthreads();  // the tile is there, and nobody uses the one before", "//", "data race", "threads"
    ),
    "barrier of one warp": Mutant(
        "__syncthreads();  // the tile is there, and nobody uses the one before",
        "if (threadIdx.x < 32) __syncthreads();  //",
        "data race",
        "threads",
    ),
    "weak wait": Mutant(
        "ptx::async_wait<0>();\n        __syncthreads();  // the tile",
        "ptx::async_wait<1>();\n        __syncthreads();  // the tile",
        "wrong: plain",
    ),
    "last key": Mutant(
        "smaller(smaller(query + a.right, own * a.chunk + a.chunk - 1) + 1, length)",
        "smaller(query + a.right, own * a.chunk + a.chunk - 1) + 1",
        "wrong",
    ),
    "window": Mutant("larger(larger(query - a.left, (own", "larger(larger(query - a.left + 1, (own", "wrong"),
    "chunk": Mutant("own * a.chunk + a.chunk - 1) + 1, length", "own * a.chunk + a.chunk) + 1, length", "wrong"),
    "rows of lanes": Mutant(
        "const int own = query + row + 16 * h + row_of_lane(half);",
        "const int own = query + row + 16 * h + row_of_lane(1 - half);",
        "wrong",
    ),
    "no fading": Mutant("total[h][half] * fade + sum;", "total[h][half] + sum;", "wrong: plain"),
    "sums do not fade": Mutant("sums[h][j][2 * half] *= fade;", "", "wrong"),
    "another block's utterance": Mutant(
        "first_row(a, middle) / rows + middle <= block", "first_row(a, middle) / rows + middle < block", "wrong"
    ),
    "logarithms of another row": Mutant("problem.lse[line];", "problem.lse[line - own];", "wrong"),
    "dead head": Mutant("!a.head_mask[head]", "a.head_mask[head]", "wrong: plain"),
    "gradient without dropout": Mutant(
        "dropout.kept(h, key, j, i) ? scores[h][j][i] * a.keep_factor : 0.0f",
        "scores[h][j][i] * a.keep_factor",
        "wrong",
    ),
}


@each(MUTANTS)
def test_mutant_is_noticed(mutant: Mutant, compiler: Compiler) -> None:
    check_noticed(compiler, SOURCE, mutant)
