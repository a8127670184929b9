"""pack and unpack: against slices, odd lengths, padding never matters, gradients, compilation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

import dmao_kernels
from dmao_kernels import pack, unpack
from dmao_kernels.testing import Poison, nan_filled_empty, outputs_and_gradients
from tests.ops.common import BACKENDS, CountedGraphs, assert_compiled_training_is_the_same, native

LENGTHS = [[], [0], [1], [7], [0, 0], [3, 0, 7, 1, 0], [7, 7, 7], [0, 5, 0, 0, 2], [6, 1, 4, 0]]


def int32(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def by_slices(x: Tensor, lengths: list[int]) -> Tensor:
    return torch.cat([x[:0].flatten(0, 1), *(row[:length] for row, length in zip(x, lengths, strict=True))])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rest", [(), (1,), (5,), (384,), (3, 4), (0,)], ids=str)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_there_and_back(backend: str, lengths: list[int], rest: tuple[int, ...]) -> None:
    x = torch.randn(len(lengths), 7, *rest)
    for utterance, length in enumerate(lengths):
        x[utterance, length:] = torch.nan  # must not matter
    poison = Poison()
    with dmao_kernels.use_backend(backend), nan_filled_empty():
        packed, offsets = pack(poison.around(x), int32(lengths))
        padded = unpack(poison.around(packed), offsets, 9)
    poison.check()
    assert torch.equal(packed, by_slices(x, lengths))
    assert offsets.dtype == torch.int32
    assert offsets.tolist() == [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    assert padded.shape == (len(lengths), 9, *rest)
    assert torch.equal(padded[:, :7], x.nan_to_num(0.0))
    assert not padded[:, 7:].any()


@native
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_ranges_of_threads_begin_inside_utterances(threads: int) -> None:
    """Also in empty ones, and with one utterance that is longer than a thread's range."""
    lengths = [0, 900, 3, 0, 0, 1, 250, 0]
    x = torch.randn(8, 900, 97)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        packed, offsets = pack(x, int32(lengths))
        padded = unpack(packed, offsets, 900)
    finally:
        torch.set_num_threads(before)
    expected = by_slices(x, lengths)
    assert torch.equal(packed, expected)
    assert torch.equal(padded, pad_sequence(list(expected.split(lengths)), batch_first=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_are_zero_in_the_padding_and_ignore_it(backend: str) -> None:
    lengths = [3, 0, 7, 1]
    x = torch.randn(4, 7, 5, requires_grad=True)
    with dmao_kernels.use_backend(backend), nan_filled_empty():
        packed, offsets = pack(x, int32(lengths))
        grad = torch.randn_like(packed)
        (grad_x,) = torch.autograd.grad(packed, x, grad)
        leaf = packed.detach().requires_grad_()
        grad_padded = torch.randn(4, 8, 5)
        for utterance, length in enumerate(lengths):
            grad_padded[utterance, length:] = torch.nan
        (grad_packed,) = torch.autograd.grad(unpack(leaf, offsets, 8), leaf, grad_padded)
    assert torch.equal(by_slices(grad_x, lengths), grad)
    assert grad_x.count_nonzero() == grad.count_nonzero()
    assert torch.equal(grad_packed, by_slices(grad_padded, lengths))


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_derivatives(backend: str) -> None:
    x = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    packed = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    with dmao_kernels.use_backend(backend):
        assert torch.autograd.gradgradcheck(lambda x: pack(x, int32([3, 1]))[0] ** 2, x)
        assert torch.autograd.gradgradcheck(lambda x: unpack(x, int32([0, 1, 4]), 3) ** 2, packed)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool])
def test_any_dtype(backend: str, dtype: torch.dtype) -> None:
    x, lengths = torch.randint(0, 2, (3, 5, 7)).to(dtype), [5, 0, 2]
    with dmao_kernels.use_backend(backend):
        packed, offsets = pack(x, int32(lengths))
        assert packed.dtype == dtype
        assert torch.equal(packed, by_slices(x, lengths))
        assert torch.equal(unpack(packed, offsets, 5)[2, :2], x[2, :2])


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_strides(backend: str) -> None:
    lengths = [4, 1, 0]
    x, grad = torch.randn(6, 7, 3).permute(2, 1, 0), torch.randn(6, 5).t()
    with dmao_kernels.use_backend(backend):
        assert torch.equal(pack(x[:, 1:6], int32(lengths))[0], by_slices(x[:, 1:6], lengths))
        packed, offsets = pack(x.clone().requires_grad_(), int32([0, 4, 1, 9, 0, 9])[::2])
        assert offsets.tolist() == [0, 0, 1, 1]
        _, grads = outputs_and_gradients(lambda x: pack(x, int32(lengths))[0], x.requires_grad_(), grad_output=grad)
        assert torch.equal(grads[0][0, :4], grad[:4])
        spread = offsets.repeat_interleave(2)[::2]
        assert torch.equal(unpack(packed, spread, 2), unpack(packed, offsets, 2))


@native
def test_opcheck() -> None:
    x, packed = torch.randn(3, 4, 5, requires_grad=True), torch.randn(6, 5, requires_grad=True)
    offsets = int32([0, 4, 4, 6])
    torch.library.opcheck(torch.ops.dmao.pack.default, (x, offsets, 6))
    torch.library.opcheck(torch.ops.dmao.unpack.default, (packed, offsets, 5))


@pytest.mark.parametrize("backend", BACKENDS)
def test_compile_without_recompiling_for_new_lengths(backend: str) -> None:
    def call(x: Tensor, lengths: Tensor) -> Tensor:
        packed, offsets = pack(x.sin(), lengths)
        return unpack(packed.cos(), offsets, x.shape[1])

    graphs = CountedGraphs()
    compiled = torch.compile(call, fullgraph=True, backend=graphs, dynamic=True)
    with dmao_kernels.use_backend(backend), torch._dynamo.config.patch(capture_scalar_outputs=True):
        for batch, frames, lengths in ((3, 9, [9, 4, 0]), (3, 8, [1, 2, 3]), (4, 11, [11, 3, 7, 2])):
            x = torch.randn(batch, frames, 5)
            assert torch.equal(compiled(x, int32(lengths)), call(x, int32(lengths)))
    assert graphs.count == 1


@native
def test_compiled_gradients() -> None:
    offsets, packed = int32([0, 4, 4, 6]), torch.randn(6, 5, requires_grad=True)

    def call(packed: Tensor) -> Tensor:
        return unpack(packed.sin(), offsets, 5).square()

    assert_compiled_training_is_the_same(call, packed)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pack(torch.zeros(3), int32([1])), r"pack: x must be \[B, T, \.\.\.\], got \[3\]"),
        (lambda: pack(torch.zeros(3, 4), int32([1])), r"pack: lengths must be int32 \[3\], got int32 \[1\]"),
        (lambda: pack(torch.zeros(1, 4), torch.tensor([1])), r"pack: lengths must be int32 \[1\], got int64 \[1\]"),
        (lambda: pack(torch.zeros(1, 4), [1]), r"pack: lengths must be int32 \[1\], got a list"),
        (lambda: unpack(torch.zeros(1), [0, 1], 1), r"unpack: offsets must be int32 \[B \+ 1\], got a list"),
        (
            lambda: pack(torch.zeros(1, 4), int32([1]).to("meta")),
            "pack: lengths must be on x's device cpu, got meta",
        ),
        (lambda: unpack(torch.tensor(1.0), int32([0]), 1), r"unpack: packed must be \[N, \.\.\.\], got a scalar"),
        (lambda: unpack(torch.zeros(3), int32([]), 1), r"unpack: offsets must be int32 \[B \+ 1\], got int32 \[0\]"),
        (lambda: unpack(torch.zeros(3), int32([0, 3]), -1), "unpack: frames must not be negative, got -1"),
    ],
)
def test_wrong_arguments(backend: str, call: Callable[[], object], message: str) -> None:
    with dmao_kernels.use_backend(backend), pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pack(torch.zeros(2, 4), int32([1, 5])), "pack: utterance 1 must have 0 to 4 frames, got 5"),
        (lambda: pack(torch.zeros(2, 4), int32([3, -1])), "pack: utterance 1 must have 0 to 4 frames, got -1"),
        (lambda: unpack(torch.zeros(3), int32([0, 3]), 2), "unpack: utterance 0 must have 0 to 2 frames, got 3"),
        (lambda: unpack(torch.zeros(3), int32([0, 2, 1, 3]), 2), "unpack: utterance 1 must have 0 to 2 frames"),
        (lambda: unpack(torch.zeros(3), int32([0, 2]), 5), "unpack: offsets must end with the 3 packed rows, got 2"),
        (lambda: unpack(torch.zeros(3), int32([0, 4]), 5), "unpack: offsets must end with the 3 packed rows, got 4"),
    ],
)
def test_wrong_lengths(backend: str, call: Callable[[], object], message: str) -> None:
    with dmao_kernels.use_backend(backend):
        if backend == "cpu":
            with pytest.raises(RuntimeError, match=message):
                call()
        else:
            with pytest.raises((RuntimeError, IndexError)):
                call()


@native
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: torch.ops.dmao.unpack(torch.zeros(3), int32([1, 3]), 5), "offsets must begin with 0, got 1"),
        (lambda: torch.ops.dmao.pack(torch.zeros(2, 4), int32([0, 3]), 3), "offsets must have 3 elements, got 2"),
        (lambda: torch.ops.dmao.pack(torch.zeros(1, 4), int32([0, 3]), 4), "offsets must end with the 4 packed rows"),
        (lambda: torch.ops.dmao.pack(torch.zeros(4), int32([0, 3]), 3), r"x must be a CPU tensor \[B, T, \.\.\.\]"),
    ],
)
def test_operators_check_what_could_be_read_out_of_bounds(call: Callable[[], object], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        call()
