"""block_attention: packed and padded rows, strides, padding, threads, instruction sets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import dmao_kernels
from dmao_kernels import block_attention
from dmao_kernels.testing import outputs_and_gradients
from tests.ops.attention_problems import Problem, check_against_oracle, detached, make, packed, random_mask, rows_of
from tests.ops.common import BACKENDS, DTYPES, SEED, assert_threads_do_not_change_a_bit, ids, native

# --- Packed rows

CONDITIONS: list[Problem] = [
    {},
    {"window": (20, 30)},
    {"chunk": (16, 1), "head_mask": torch.tensor([True, True, False])},
    {"p": 0.2, "seed": SEED},
]


@native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", [(100, 0, 1, 64), (0,), (0, 0, 33), (5, 7, 9)], ids=str)
def test_packed_rows(lengths: tuple[int, ...], dtype: torch.dtype) -> None:
    for conditions in CONDITIONS:
        for reach in (None, 3, 100):
            problem = packed(make(len(lengths), 100, 3, 24, dtype, reach=reach), ids(*lengths))
            check_against_oracle(problem, **conditions)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lengths", [(100, 0, 1, 64), (0, 0, 0, 0), (100, 100, 100, 100)], ids=str)
def test_packed_rows_equal_padded_ones(lengths: tuple[int, ...], backend: str) -> None:
    """The native kernel bit for bit, gradients too."""
    padded = make(4, 100, 3, 24, reach=50)
    inside = rows_of(ids(*lengths), 100)
    grad = torch.randn(4, 100, 3, 24)
    exact = {"rtol": 0, "atol": 0} if backend == "cpu" else {}
    mask = random_mask(100, 32)
    with dmao_kernels.use_backend(backend):
        for conditions in CONDITIONS:
            out, grads = outputs_and_gradients(
                block_attention, **padded, lengths=ids(*lengths), block_mask=mask, **conditions, grad_output=grad
            )
            other, other_grads = outputs_and_gradients(
                block_attention,
                **packed(padded, ids(*lengths)),
                block_mask=mask,
                **conditions,
                grad_output=grad[inside],
            )
            torch.testing.assert_close(out[inside], other, **exact)
            assert not out[~inside].any()
            for name, gradient in other_grads.items():
                if name in ("q", "k", "v"):
                    torch.testing.assert_close(grads[name][inside], gradient, **exact)
                    assert not grads[name][~inside].any()
                else:
                    torch.testing.assert_close(grads[name], gradient)


@native
def test_a_long_utterance_packed_by_itself_equals_the_padded_one() -> None:
    """Its backward pass is cut in parts, which the empty utterance behind it must not change."""
    padded, grad = make(1, 1100, 4, 16), torch.randn(1, 1100, 4, 16)
    out, grads = outputs_and_gradients(block_attention, **padded, grad_output=grad)
    other, other_grads = outputs_and_gradients(block_attention, **packed(padded, ids(1100)), grad_output=grad[0])
    torch.testing.assert_close(other, out[0], rtol=0, atol=0)
    for name in "qkv":
        torch.testing.assert_close(other_grads[name], grads[name][0], rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_does_not_matter(backend: str) -> None:
    """Utterances alone, in a batch, and in a batch with more padding; NaN behind them and in their gradients."""
    problem, lengths = make(3, 90, 2, 16, reach=40), ids(90, 41, 8)
    grad = torch.randn(3, 90, 2, 16)
    inside = rows_of(lengths, 90)

    def run(problem: Problem, lengths: Tensor | None, grad: Tensor) -> tuple[Tensor, dict[Any, Tensor]]:
        return outputs_and_gradients(block_attention, **problem, lengths=lengths, window=(30, 30), grad_output=grad)

    wide = detached(problem)
    for name in "qkv":
        padding = torch.full((3, 37, 2, 16), torch.nan)
        value = torch.cat([problem[name].detach().masked_fill(~inside[..., None, None], torch.nan), padding], 1)
        wide[name] = value.requires_grad_()
    wide_grad = torch.cat([grad.masked_fill(~inside[..., None, None], torch.nan), torch.full((3, 37, 2, 16), 7.0)], 1)
    with dmao_kernels.use_backend(backend):
        out, grads = run(problem, lengths, grad)
        other, other_grads = run(wide, lengths, wide_grad)
        torch.testing.assert_close(other[:, :90], out)
        assert not other[:, 90:].any()
        for name, gradient in grads.items():
            found = other_grads[name]
            torch.testing.assert_close(found[:, :90] if name in ("q", "k", "v") else found, gradient)
        for b, length in enumerate(lengths.tolist()):
            alone = problem | {name: problem[name][b : b + 1, :length] for name in "qkv"}
            single, single_grads = run(alone, None, grad[b : b + 1, :length])
            torch.testing.assert_close(single[0], out[b, :length])
            torch.testing.assert_close(single_grads["k"][0], grads["k"][b, :length])


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_order_of_utterances_and_heads_does_not_matter(backend: str) -> None:
    problem, lengths = make(3, 50, 4, 16, reach=10), ids(50, 20, 35)
    utterances, heads = torch.tensor([2, 0, 1]), torch.tensor([3, 1, 0, 2])
    moved = {name: value[..., heads, :] for name, value in problem.items()}
    moved |= {name: moved[name][utterances] for name in "qkv"}
    with dmao_kernels.use_backend(backend):
        out = block_attention(**problem, lengths=lengths)
        other = block_attention(**moved, lengths=lengths[utterances])
    torch.testing.assert_close(other, out[utterances][:, :, heads])


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_future_does_not_matter(backend: str) -> None:
    problem = make(1, 80, 2, 16, reach=79)
    changed = problem | {name: torch.cat([problem[name][:, :50], torch.randn(1, 30, 2, 16)], 1) for name in "qkv"}
    for conditions in ({"window": (None, 0)}, {"chunk": (10, None)}):
        with dmao_kernels.use_backend(backend):
            out = block_attention(**problem, **conditions)
            other = block_attention(**changed, **conditions)
        torch.testing.assert_close(other[:, :50], out[:, :50])
        assert not torch.allclose(other[:, 50:], out[:, 50:])


# --- Strides


def _views(q: Tensor, k: Tensor, v: Tensor) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """The same values in other memory."""
    fused = torch.stack([q, k, v], -3)
    by_head = [x.transpose(-2, -3).contiguous().transpose(-2, -3) for x in (q, k, v)]
    apart = [x.repeat_interleave(2, -1)[..., ::2] for x in (q, k, v)]
    reversed_axes = [
        x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim()))) for x in (q, k, v)
    ]
    misaligned = [torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape) for x in (q, k, v)]
    return {
        "fused": tuple(fused.unbind(-3)),
        "by head": tuple(by_head),
        "last axis apart": tuple(apart),
        "reversed": tuple(reversed_axes),
        "misaligned": tuple(misaligned),
    }


@native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", ["padded", "packed"])
def test_strides_do_not_matter(form: str, dtype: torch.dtype) -> None:
    lengths = ids(70, 33)
    problem = make(2, 70, 3, 24, dtype, reach=12)
    conditions: Problem = {"window": (40, 20), "lengths": lengths}
    if form == "packed":
        problem, conditions = packed(problem, lengths), {"window": (40, 20)}
    grad = torch.randn(problem["q"].shape).to(dtype)
    out, grads = outputs_and_gradients(block_attention, **problem, **conditions, grad_output=grad)
    for name, views in _views(*(problem[name].detach() for name in "qkv")).items():
        odd = problem | {key: view.requires_grad_() for key, view in zip("qkv", views, strict=True)}
        odd |= {
            key: problem[key].detach().transpose(0, -2).contiguous().transpose(0, -2).requires_grad_()
            for key in ("rel_pos", "content_bias", "position_bias")
        }
        odd_grad = grad.transpose(0, -1).contiguous().transpose(0, -1)
        other, other_grads = outputs_and_gradients(block_attention, **odd, **conditions, grad_output=odd_grad)
        assert torch.equal(other, out), name
        for key, gradient in grads.items():
            assert torch.equal(other_grads[key], gradient), (name, key)


@native
def test_expanded_gradients_and_inputs() -> None:
    problem = make(2, 40, 2, 16)
    problem["k"] = problem["k"][:1].detach().requires_grad_()
    arguments = {"q": problem["q"], "k": problem["k"].expand(2, -1, -1, -1), "v": problem["v"]}
    found = torch.autograd.grad(block_attention(**arguments).sum(), list(problem.values()))
    with dmao_kernels.use_backend("reference"):
        expected = torch.autograd.grad(block_attention(**arguments).sum(), list(problem.values()))
    for ours, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, reference)


# --- Threads and instruction sets


_RUN = """
import torch
from tests.ops.attention_problems import check_against_oracle, make, packed, random_mask
from tests.ops.common import SEED, ids

torch.manual_seed(0)
for dtype in (torch.float32, torch.bfloat16):
    for size in ((1, 1, 1, 1), (2, 33, 2, 33), (2, 150, 2, 64), (1, 300, 1, 80)):
        check_against_oracle(make(*size, dtype))
        lengths = ids(*range(size[1], 0, -size[1] // size[0]))[: size[0]]
        check_against_oracle(
            make(*size, dtype, reach=size[1] - 1),
            lengths=lengths, window=(90, 40), block_mask=random_mask(size[1], 32), p=0.3, seed=SEED,
        )
        check_against_oracle(packed(make(*size, dtype, reach=4), lengths), chunk=(50, 1))
"""


@native
def test_every_instruction_set(run_on_capability: Callable[[str], None]) -> None:
    run_on_capability(_RUN)


def with_gradients(problem: Problem, **conditions: Any) -> Callable[[], list[Tensor]]:
    grad = torch.randn(problem["q"].shape).to(problem["q"].dtype)

    def compute() -> list[Tensor]:
        out, grads = outputs_and_gradients(block_attention, **problem, **conditions, grad_output=grad)
        return [out, *grads.values()]

    return compute


@native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reach", [None, 5, 399])
def test_the_number_of_threads_does_not_change_a_bit(reach: int | None, dtype: torch.dtype) -> None:
    """Nor does running again."""
    problem = make(3, 400, 2, 32, dtype, reach=reach)
    conditions = {"lengths": ids(400, 111, 256), "window": (200, 100), "p": 0.1, "seed": SEED}
    assert_threads_do_not_change_a_bit(with_gradients(problem, **conditions))


@native
def test_threads_do_not_write_into_each_others_sums() -> None:
    """Of positions and biases, where tiles are far wider than what they see.

    So many heads that each has two sums, which neighbours in memory form at the same time.
    """
    problem = make(64, 40, 32, 16, reach=2)
    assert_threads_do_not_change_a_bit(with_gradients(problem, window=(2, 2)), counts=(1, *[2] * 15, 5, 5))
