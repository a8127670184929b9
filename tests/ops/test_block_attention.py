"""block_attention: against float64 and PyTorch: sizes, what is visible, positions, numbers, dropout."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import dmao_kernels
from benchmarks.block_attention import relative_bias
from dmao_kernels import BlockMask, block_attention
from dmao_kernels.ops._philox import kept
from dmao_kernels.testing import outputs_and_gradients
from tests.ops.attention_problems import Problem, check_against_oracle, make, packed, random_mask, rows_of
from tests.ops.common import BACKENDS, DTYPES, SEED, ids, native

# (batch, frames, heads, width): both sides of vectors (4, 8, 16), row blocks (6, 8), panels (16, 48), tiles of
# queries and of keys (64, 128, 256), and of the dropout group (128).
SIZES = [
    (0, 5, 2, 4),
    (2, 0, 2, 4),
    (2, 5, 0, 4),
    (1, 1, 1, 1),
    (2, 3, 2, 5),
    (1, 7, 3, 8),
    (3, 16, 2, 16),
    (2, 17, 3, 24),
    (2, 33, 2, 33),
    (1, 63, 1, 64),
    (2, 65, 2, 47),
    (1, 129, 2, 80),
    (1, 257, 1, 64),
    (1, 300, 2, 16),
    (2, 40, 1, 128),
    (1, 20, 2, 256),
]


@native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_odd_sizes(size: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    batch, frames = size[:2]
    check_against_oracle(make(*size, dtype))
    check_against_oracle(
        make(*size, dtype, reach=max(frames - 1, 0)),
        lengths=ids(*torch.linspace(frames, frames // 2, batch).int().tolist()),
        window=(2 * frames // 3, frames // 2),
        p=0.2,
        seed=SEED,
    )


# --- What is visible

VISIBLE: dict[str, Problem] = {
    "window 0 0": {"window": (0, 0)},
    "window 5 -": {"window": (5, None)},
    "window - 0": {"window": (None, 0)},
    "window 64 64": {"window": (64, 64)},
    "window 1000 3": {"window": (1000, 3)},
    "chunk 1 0": {"chunk": (1, 0)},
    "chunk 16 -": {"chunk": (16, None)},
    "chunk 10 1": {"chunk": (10, 1)},
    "chunk 64 2": {"chunk": (64, 2)},
    "chunk 200 0": {"chunk": (200, 0)},
    "window and chunk": {"window": (30, 20), "chunk": (24, 1)},
    "lengths": {"lengths": ids(150, 0, 1, 97)},
    "empty": {"lengths": ids(0, 0, 0, 0)},
    "heads": {"head_mask": torch.tensor([True, False, True])},
    "no head": {"head_mask": torch.tensor([False, False, False])},
    "all": {
        "lengths": ids(149, 2, 64, 65),
        "window": (40, 70),
        "chunk": (32, 2),
        "head_mask": torch.tensor([False, True, True]),
        "p": 0.1,
        "seed": SEED,
    },
}


@native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", VISIBLE)
def test_what_is_visible(name: str, dtype: torch.dtype) -> None:
    check_against_oracle(make(4, 150, 3, 24, dtype), **VISIBLE[name])
    check_against_oracle(make(4, 150, 3, 24, dtype, reach=20), **VISIBLE[name])


@native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", [16, 48, 64, 128])
@pytest.mark.parametrize("grid", ["empty", "full", "one", "row", "column", "random"])
def test_block_masks(grid: str, block: int, dtype: torch.dtype) -> None:
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
    check_against_oracle(make(2, 140, 2, 20, dtype), block_mask=mask)
    check_against_oracle(make(2, 140, 2, 20, dtype, reach=139), block_mask=mask, window=(50, 60), lengths=ids(140, 71))


@pytest.mark.parametrize("backend", BACKENDS)
def test_visibility_one_pair_at_a_time(backend: str) -> None:
    """With zero queries every visible key has the same weight, which v = identity shows."""
    frames = 40
    zero, identity = torch.zeros(1, frames, 1, frames), torch.eye(frames)[None, :, None]
    grid = torch.tensor([[True, False, True], [True, True, False], [False, True, True]])
    for window, chunk in (((3, 7), (6, 1)), ((None, 2), None), (None, (7, None)), ((9, None), (5, 0))):
        with dmao_kernels.use_backend(backend):
            out = block_attention(
                zero, zero, identity, window=window, chunk=chunk, block_mask=BlockMask.from_dense(grid, 16)
            )
        left, right = (math.inf if bound is None else bound for bound in window or (None, None))
        size, back = chunk or (frames, None)
        for i in range(frames):
            seen = [
                j
                for j in range(frames)
                if i - left <= j <= i + right
                and i // size - (frames if back is None else back) <= j // size <= i // size
                and grid[i // 16, j // 16]
            ]
            expected = torch.zeros(frames)
            expected[seen] = 1 / max(len(seen), 1)
            torch.testing.assert_close(out[0, i, 0], expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_is_pytorch_attention(backend: str) -> None:
    problem = make(3, 50, 2, 16)
    lengths = ids(50, 17, 33)
    inside = rows_of(lengths, 50)
    band = torch.ones(50, 50, dtype=torch.bool).tril(4).triu(-9)
    q, k, v = (problem[name].transpose(1, 2) for name in "qkv")
    for mask, options in (
        (None, {"scale": 0.5}),
        (inside[:, None, None, :], {"lengths": lengths}),
        (inside[:, None, None, :] & band, {"lengths": lengths, "window": (9, 4)}),
    ):
        expected = F.scaled_dot_product_attention(q, k, v, mask, scale=options.get("scale")).transpose(1, 2)
        if "lengths" in options:
            expected = expected.masked_fill(~inside[..., None, None], 0)
        with dmao_kernels.use_backend(backend):
            torch.testing.assert_close(block_attention(**problem, **options), expected)


def shrunk_to(problem: Problem, heads: list[int]) -> Problem:
    return {name: value[..., heads, :].detach().requires_grad_() for name, value in problem.items()}


@native
@pytest.mark.parametrize("dtype", DTYPES)
def test_masked_heads_equal_the_shrunk_layer(dtype: torch.dtype) -> None:
    """Bit for bit, gradients too; dead heads hold NaN and get zeros."""
    problem, live = make(2, 90, 5, 32, dtype, reach=89), [0, 3]
    head_mask = torch.zeros(5, dtype=torch.bool)
    head_mask[live] = True
    with torch.no_grad():
        for value in problem.values():
            value[..., ~head_mask, :] = torch.nan
    options = {"lengths": ids(90, 61), "window": (40, 40)}
    grad = torch.randn(2, 90, 5, 32).to(dtype)
    out, grads = outputs_and_gradients(block_attention, **problem, **options, head_mask=head_mask, grad_output=grad)
    expected, shrunk_grads = outputs_and_gradients(
        block_attention, **shrunk_to(problem, live), **options, grad_output=grad[..., live, :]
    )
    assert torch.equal(out[..., live, :], expected)
    assert not out[..., ~head_mask, :].any()
    for name, gradient in shrunk_grads.items():
        assert torch.equal(grads[name][..., live, :], gradient), name
        assert not grads[name][..., ~head_mask, :].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_conditions_that_are_the_same(backend: str) -> None:
    problem = make(2, 70, 2, 16)
    diagonal = BlockMask.from_dense(torch.eye(5, dtype=torch.bool), 16)
    lower = BlockMask.from_dense(torch.ones(8, 8, dtype=torch.bool).tril(), 16)  # larger than need be
    everything = {"window": (70, 70), "chunk": (70, 0), "block_mask": random_mask(70, 32, 2.0)}
    everything |= {"lengths": ids(70, 70), "head_mask": torch.ones(2, dtype=torch.bool)}
    with dmao_kernels.use_backend(backend):
        for one, other in (
            ({"chunk": (16, 0)}, {"block_mask": diagonal}),
            ({"chunk": (16, None)}, {"block_mask": lower}),
            ({"chunk": (1, 12)}, {"window": (12, 0)}),
            ({}, everything),
        ):
            torch.testing.assert_close(block_attention(**problem, **one), block_attention(**problem, **other))


# --- Positions


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("frames", [1, 2, 37])
def test_is_transformer_xl(frames: int, backend: str) -> None:
    """Dai et al. 2019, appendix B, in the materialised form that is the benchmarks' peer."""
    problem = make(2, frames, 3, 8, reach=frames - 1)
    q, k, v, u, w = (problem[name] for name in ("q", "k", "v", "content_bias", "position_bias"))
    bias = relative_bias((q + w).transpose(1, 2), problem["rel_pos"]) * 8**-0.5
    expected = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q + u, k, v)), bias).transpose(1, 2)
    with dmao_kernels.use_backend(backend):
        torch.testing.assert_close(block_attention(**problem), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reach", [0, 1, 4, 30])
def test_is_shaw(reach: int, backend: str) -> None:
    """Shaw et al. 2018, equation 4: the key of each pair gets the embedding of its clipped distance."""
    problem = make(1, 20, 2, 8, reach=reach)
    q, k, v, rel_pos = (problem[name] for name in ("q", "k", "v", "rel_pos"))
    scores = torch.empty(2, 20, 20)
    for i in range(20):
        for j in range(20):
            key = k[0, j] + rel_pos[reach + max(-reach, min(reach, j - i))]
            scores[:, i, j] = (q[0, i] * key).sum(-1) * 8**-0.5
    expected = torch.einsum("hij,bjhd->bihd", scores.softmax(-1), v)
    with dmao_kernels.use_backend(backend):
        torch.testing.assert_close(block_attention(q, k, v, rel_pos=rel_pos), expected)


@native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reach", [0, 1, 3, 63, 120, 129, 200])
def test_reach(reach: int, dtype: torch.dtype) -> None:
    problem = make(2, 130, 2, 24, dtype, reach=reach)
    check_against_oracle(problem, lengths=ids(130, 77))
    check_against_oracle(problem, window=(70, 20), scale=0.1)


@native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("absent", ["content_bias", "position_bias", "both", "rel_pos"])
def test_parts_of_the_positional_term(absent: str, dtype: torch.dtype) -> None:
    problem = make(2, 75, 2, 24, dtype, reach=80)
    for name in {"both": ("content_bias", "position_bias"), "rel_pos": ("rel_pos", "position_bias")}.get(
        absent, (absent,)
    ):
        del problem[name]
    check_against_oracle(problem, lengths=ids(60, 75))


@native
@pytest.mark.parametrize("dtype", DTYPES)
def test_positions_shared_by_the_heads(dtype: torch.dtype) -> None:
    problem = make(2, 75, 3, 24, dtype, reach=74)
    problem["rel_pos"] = problem["rel_pos"][:, 0].detach().requires_grad_()
    check_against_oracle(problem, head_mask=torch.tensor([True, False, True]))


# --- Numbers


@native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factor", [30.0, -1e3])
def test_large_scores(factor: float, dtype: torch.dtype) -> None:
    problem = make(1, 140, 2, 16, dtype)
    largest = factor * torch.einsum("bihd,bjhd->bhij", problem["q"], problem["k"]).abs().max().item()
    check_against_oracle(problem, scale=factor, window=(None, 100), largest_score=abs(largest))


@native
def test_nan_in_a_query_stays_in_its_row() -> None:
    problem = make(1, 80, 2, 16)
    with torch.no_grad():
        problem["q"][0, 37, 1, 5] = torch.nan
    out = block_attention(**problem)
    assert out[0, 37, 1].isnan().all()
    out[0, 37, 1] = 0
    assert out.isfinite().all()


# --- Dropout


@native
@pytest.mark.parametrize("form", ["padded", "packed"])
def test_dropout_mask_is_the_reference_mask(form: str) -> None:
    """With zero queries and v = identity the output is the mask, scaled."""
    frames, heads, p = 140, 2, 0.25
    lengths = ids(140, 0, 90)
    zero = torch.zeros(3, frames, heads, frames)
    problem = {"q": zero, "k": zero, "v": torch.eye(frames)[None, :, None].expand(3, -1, heads, -1)}
    inside = rows_of(lengths, frames)
    if form == "padded":
        out = block_attention(**problem, lengths=lengths, p=p, seed=SEED)
    else:
        out = torch.zeros_like(zero)
        out[inside] = block_attention(**packed(problem, lengths), p=p, seed=SEED)
    utterance, query, head, key = (
        torch.arange(n).view([-1 if axis == i else 1 for i in range(4)])
        for axis, n in enumerate((3, frames, heads, frames))
    )
    keep = kept(SEED, query, key, p, utterance, head)
    keep = keep & inside[:, :, None, None] & inside[:, None, None, :]
    expected = keep / (1 - p) / lengths.clamp(min=1)[:, None, None, None]
    torch.testing.assert_close(out, expected)


@native
def test_dropout_keeps_the_mean_and_follows_its_seed() -> None:
    problem = {name: value.detach() for name, value in make(2, 40, 2, 8).items()}
    plain = block_attention(**problem)
    draws = torch.stack([block_attention(**problem, p=0.3, seed=torch.tensor([seed])) for seed in range(200)])
    assert not torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0], block_attention(**problem, p=0.3, seed=torch.tensor([0])))
    error = (draws.mean(0) - plain) / (draws.std(0) / math.sqrt(200))
    assert error.abs().mean() < 1.0  # of a standard normal it is 0.8
    assert error.abs().max() < 6.0
