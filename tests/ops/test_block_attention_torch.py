"""block_attention and PyTorch's machinery: autograd, compilation, autocast; and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import dmao_kernels
from dmao_kernels import BlockMask, block_attention
from dmao_kernels.testing import outputs_and_gradients
from tests.ops.attention_problems import make, packed, random_mask
from tests.ops.common import BACKENDS, SEED, CountedGraphs, ids, native

UTTERANCES = torch.tensor([[0, 20], [20, 7]], dtype=torch.int32)


def operator_arguments(**changes: Any) -> list[Any]:
    """Of the operator, in its order: two utterances of up to 20 frames, packed, with all that there can be."""
    problem = packed(make(2, 20, 3, 8, reach=5), ids(20, 7))
    mask = random_mask(20, 16)
    arguments = {
        **{name: problem[name] for name in "qkv"},
        "utterances": UTTERANCES,
        "frames": 27,
        **{name: getattr(mask, name) for name in ("row_offsets", "column_ids", "column_offsets", "row_ids", "block")},
        "left": 9,
        "right": -1,
        "chunk": 8,
        "left_chunks": 1,
        "head_mask": torch.tensor([True, False, True]),
        **{name: problem[name] for name in ("rel_pos", "content_bias", "position_bias")},
        "p": 0.2,
        "seed": SEED,
        "scale": 0.3,
    }
    return list((arguments | changes).values())


MINIMAL: dict[str, Any] = dict.fromkeys(
    ("row_offsets", "column_ids", "column_offsets", "row_ids", "head_mask", "rel_pos", "content_bias", "position_bias")
)
MINIMAL |= {"block": 0, "left": -1, "chunk": 0, "left_chunks": -1, "p": 0.0, "seed": None}


@native
@pytest.mark.parametrize("changes", [{}, MINIMAL])
def test_opcheck(changes: dict[str, Any]) -> None:
    torch.library.opcheck(torch.ops.dmao.block_attention.default, operator_arguments(**changes))


@native
@pytest.mark.parametrize("changes", [{}, MINIMAL])
def test_opcheck_backward(changes: dict[str, Any]) -> None:
    arguments = [value.detach() if isinstance(value, Tensor) else value for value in operator_arguments(**changes)]
    out, lse = torch.ops.dmao.block_attention(*arguments)
    torch.library.opcheck(
        torch.ops.dmao.block_attention_backward.default, (torch.randn_like(out), *arguments, out, lse)
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_compile_without_recompiling_for_new_lengths_or_masks(backend: str) -> None:
    def call(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, mask: BlockMask, heads: Tensor, seed: Tensor) -> Tensor:
        return block_attention(
            q, k, v, lengths=lengths, block_mask=mask, window=(9, 20), head_mask=heads, p=0.1, seed=seed
        ).sin()

    graphs = CountedGraphs()
    compiled = torch.compile(call, fullgraph=True, backend=graphs)
    problem = make(3, 60, 2, 8)
    with dmao_kernels.use_backend(backend):
        for frames, density in ((60, 0.5), (41, 0.3), (23, 0.7), (37, 0.9), (11, 0.4)):
            arguments = (
                *(problem[name][:, :frames] for name in "qkv"),
                ids(frames, 5, frames // 2),
                random_mask(60, 16, density),
                torch.tensor([True, frames % 2 == 0]),
                torch.tensor([frames]),
            )
            torch.testing.assert_close(compiled(*arguments), call(*arguments))
    assert graphs.count <= 2  # one for the first shape, one for any


@pytest.mark.parametrize("backend", BACKENDS)
def test_compile_packed_without_recompiling(backend: str) -> None:
    def call(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, rel_pos: Tensor) -> Tensor:
        return block_attention(q, k, v, offsets=offsets, rel_pos=rel_pos, chunk=(8, 1)).sin()

    graphs = CountedGraphs()
    compiled = torch.compile(call, fullgraph=True, backend=graphs)
    with dmao_kernels.use_backend(backend):
        for lengths in ((30, 20, 9), (17, 0, 40), (5, 6, 7), (1, 30, 2)):
            problem = packed(make(3, 40, 2, 8, reach=6), ids(*lengths))
            arguments = tuple(problem[name] for name in ("q", "k", "v", "offsets", "rel_pos"))
            torch.testing.assert_close(compiled(*arguments), call(*arguments))
    assert graphs.count <= 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_training_gives_the_same_gradients(backend: str) -> None:
    torch._dynamo.reset()
    mask = random_mask(50, 16)
    p, sizes = (0.1, (50, 33)) if backend == "cpu" else (0.0, (50,))  # tracing the reference takes its time

    def call(**problem: Tensor) -> Tensor:
        return block_attention(**problem, block_mask=mask, window=(20, None), p=p, seed=SEED)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=len(sizes) > 1)
    with dmao_kernels.use_backend(backend):
        for frames in sizes:
            problem = make(2, frames, 2, 8, reach=7) | {"lengths": ids(frames, frames // 2)}
            grad = torch.randn(2, frames, 2, 8)
            out, grads = outputs_and_gradients(call, **problem, grad_output=grad)
            other, other_grads = outputs_and_gradients(compiled, **problem, grad_output=grad)
            torch.testing.assert_close(other, out)
            for name in grads:
                torch.testing.assert_close(other_grads[name], grads[name])


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_casts_like_pytorch_attention(backend: str) -> None:
    problem = make(2, 30, 2, 8, reach=29)
    with dmao_kernels.use_backend(backend):
        with torch.autocast("cpu", torch.bfloat16):
            out = block_attention(**problem)
        assert out.dtype == torch.bfloat16
        grads = torch.autograd.grad(out.float().square().sum(), list(problem.values()))
        assert all(gradient.dtype == torch.float32 for gradient in grads)
        low = {name: value.detach().bfloat16().requires_grad_() for name, value in problem.items()}
        expected = block_attention(**low)
        assert torch.equal(out, expected)
        low_grads = torch.autograd.grad(expected.float().square().sum(), list(low.values()))
    assert all(torch.equal(a, b.float()) for a, b in zip(grads, low_grads, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("needed", [("q",), ("v",), ("k", "rel_pos"), ("content_bias", "position_bias"), ()])
def test_only_the_gradients_that_are_needed(needed: tuple[str, ...], backend: str) -> None:
    problem = make(2, 30, 2, 8, reach=9)
    some = {name: value.detach().requires_grad_(name in needed) for name, value in problem.items()}
    with dmao_kernels.use_backend(backend):
        _, expected = outputs_and_gradients(block_attention, **problem)
        _, grads = outputs_and_gradients(block_attention, **some)
        assert block_attention(**some).requires_grad == bool(needed)
    assert grads.keys() == set(needed)
    for name in needed:
        torch.testing.assert_close(grads[name], expected[name])


@native
def test_double_backward_is_refused() -> None:
    problem = make(1, 5, 1, 4)
    (grad,) = torch.autograd.grad(block_attention(**problem).square().sum(), problem["q"], create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        grad.sum().backward()


def test_the_reference_is_differentiable_twice() -> None:
    problem = make(1, 5, 1, 4)
    with dmao_kernels.use_backend("reference"):
        (grad,) = torch.autograd.grad(block_attention(**problem).square().sum(), problem["q"], create_graph=True)
        grad.square().sum().backward()
    assert problem["q"].grad.isfinite().all()


# --- What is refused

ROWS = torch.zeros(12, 3, 8)
CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"q": torch.zeros(2, 6, 3, 8, dtype=torch.float64)}, "q must be float32, bfloat16 or float16, got float64"),
    ({"q": ROWS}, r"q must be \[B, T, H, D\] without offsets, got \[12, 3, 8\]"),
    ({"offsets": ids(0, 6, 12)}, r"q must be \[N, H, D\] with offsets, got \[2, 6, 3, 8\]"),
    (dict.fromkeys("qkv", torch.zeros(2, 6, 3, 257)), r"D must be in \[1, 256\], got 257"),
    (dict.fromkeys("qkv", torch.zeros(2, 6, 3, 0)), r"D must be in \[1, 256\], got 0"),
    ({"k": torch.zeros(2, 7, 3, 8)}, r"k must be as q, float32 \[2, 6, 3, 8\], got float32 \[2, 7, 3, 8\]"),
    ({"v": torch.zeros(2, 6, 3, 8).bfloat16()}, r"v must be as q, float32 .*, got bfloat16"),
    ({"lengths": torch.tensor([6, 6])}, r"lengths must be int32 \[2\], got int64 \[2\]"),
    ({"lengths": ids(6)}, r"lengths must be int32 \[2\], got int32 \[1\]"),
    (dict.fromkeys("qkv", ROWS) | {"offsets": torch.tensor([0, 12])}, r"offsets must be int32 \[B \+ 1\], got int64"),
    (dict.fromkeys("qkv", ROWS) | {"offsets": ids()}, r"offsets must be int32 \[B \+ 1\], got int32 \[0\]"),
    (dict.fromkeys("qkv", ROWS) | {"offsets": ids(0, 12), "lengths": ids(12)}, "lengths must be None with offsets"),
    ({"window": (-1, None)}, r"window must be \(left, right\), each >= 0 or None, got \(-1, None\)"),
    ({"window": (3,)}, r"window must be \(left, right\), each >= 0 or None, got \(3,\)"),
    ({"window": 3}, r"window must be \(left, right\), each >= 0 or None, got 3"),
    ({"window": (1.5, 0)}, r"window must be \(left, right\), each >= 0 or None, got \(1.5, 0\)"),
    ({"chunk": (2.0, None)}, r"chunk must be \(size >= 1, left_chunks >= 0 or None\), got \(2.0, None\)"),
    ({"chunk": (0, 1)}, r"chunk must be \(size >= 1, left_chunks >= 0 or None\), got \(0, 1\)"),
    ({"chunk": (4,)}, r"chunk must be \(size >= 1, left_chunks >= 0 or None\), got \(4,\)"),
    ({"chunk": 4}, r"chunk must be \(size >= 1, left_chunks >= 0 or None\), got 4"),
    ({"chunk": (4, -1)}, r"chunk must be \(size >= 1, left_chunks >= 0 or None\), got \(4, -1\)"),
    ({"block_mask": BlockMask.full(torch.zeros(17, 6), 16)}, "block_mask must be square, got 2 x 1 blocks"),
    (
        dict.fromkeys("qkv", torch.zeros(1, 33, 3, 8)) | {"block_mask": BlockMask.full(torch.zeros(32, 32), 16)},
        "block_mask must cover 33 frames, got 2 blocks of 16",
    ),
    ({"head_mask": [True] * 3}, r"head_mask must be bool \[3\], got a list"),
    ({"head_mask": torch.ones(3)}, r"head_mask must be bool \[3\], got float32 \[3\]"),
    ({"head_mask": torch.ones(2, dtype=torch.bool)}, r"head_mask must be bool \[3\], got bool \[2\]"),
    ({"rel_pos": torch.zeros(4, 3, 8)}, r"rel_pos must be \[2 R \+ 1, 3, 8\] or \[2 R \+ 1, 8\], got \[4, 3, 8\]"),
    ({"rel_pos": torch.zeros(5, 7)}, r"rel_pos must be \[2 R \+ 1, 3, 8\] or \[2 R \+ 1, 8\], got \[5, 7\]"),
    ({"rel_pos": torch.zeros(5)}, r"rel_pos must be \[2 R \+ 1, 3, 8\] or \[2 R \+ 1, 8\], got \[5\]"),
    ({"rel_pos": torch.zeros(5, 8).bfloat16()}, "rel_pos must have q's dtype float32, got bfloat16"),
    ({"content_bias": torch.zeros(8)}, r"content_bias must be \[3, 8\], got \[8\]"),
    ({"position_bias": torch.zeros(3, 8)}, "position_bias must be None without rel_pos"),
    ({"p": 1.0}, r"p must be in \[0, 1\), got 1.0"),
    ({"p": math.nan}, r"p must be in \[0, 1\), got nan"),
    ({"p": 0.1}, r"seed must be int64 \[1\] when p > 0, got None"),
    ({"p": 0.1, "seed": torch.tensor(1)}, r"seed must be int64 \[1\] when p > 0, got int64 \[\]"),
    ({"v": torch.zeros(2, 6, 3, 8, device="meta")}, "v must be on q's device cpu, got meta"),
    ({"lengths": torch.zeros(2, dtype=torch.int32, device="meta")}, "lengths must be on q's device cpu, got meta"),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("changes", "message"), CHANGES)
def test_wrong_arguments(changes: dict[str, Any], message: str, backend: str) -> None:
    arguments = dict.fromkeys("qkv", torch.zeros(2, 6, 3, 8)) | changes
    with dmao_kernels.use_backend(backend), pytest.raises(ValueError, match=f"block_attention: {message}"):
        block_attention(**arguments)


def test_a_dense_mask_is_refused() -> None:
    q = torch.zeros(2, 6, 3, 8)
    with pytest.raises(TypeError, match=r"block_attention: block_mask must be a BlockMask \(.*\), got a Tensor"):
        block_attention(q, q, q, block_mask=torch.ones(6, 6, dtype=torch.bool))


@native
@pytest.mark.parametrize(
    "changes",
    [
        {"lengths": ids(6, 7)},
        {"lengths": ids(-1, 6)},
        dict.fromkeys("qkv", ROWS) | {"offsets": ids(0, 13)},
        dict.fromkeys("qkv", ROWS) | {"offsets": ids(0, 8, 4, 12)},
        *(
            dict.fromkeys("qkv", ROWS) | {"offsets": ids(*offsets)}
            for offsets in [(-2, 12), (2, 12), (0, 11), (0,), (0, 0), (0, 5, 11), (1, 5, 12)]
        ),
    ],
)
def test_wrong_utterances(changes: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match="block_attention: "):
        block_attention(**(dict.fromkeys("qkv", torch.zeros(2, 6, 3, 8)) | changes))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mask_that_is_too_small_for_packed_rows(backend: str) -> None:
    rows = torch.zeros(40, 1, 8)
    mask = BlockMask.full(torch.zeros(16, 16), 16)
    with dmao_kernels.use_backend(backend):
        block_attention(rows, rows, rows, offsets=ids(0, 16, 30, 40), block_mask=mask)
        with pytest.raises((RuntimeError, IndexError)):
            block_attention(rows, rows, rows, offsets=ids(0, 17, 30, 40), block_mask=mask)


@native
@pytest.mark.parametrize("bad", [{"column_ids": ids(2)}, {"column_ids": ids(-1)}, {"row_offsets": ids(0, 2, 1)}])
def test_a_mask_with_wrong_ids(bad: dict[str, Tensor]) -> None:
    good = {
        "row_offsets": ids(0, 1, 1),
        "column_ids": ids(0),
        "column_offsets": ids(0, 1, 1),
        "row_ids": ids(0),
    }
    mask = BlockMask(16, 2, 2, **(good | bad))
    with pytest.raises(RuntimeError, match="block_attention: "):
        block_attention(**make(1, 32, 1, 8), block_mask=mask)
