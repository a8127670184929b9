"""depthwise_conv1d: against float64 and F.conv1d, both forms of a batch, odd sizes, determinism, compilation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import dmao_kernels
from dmao_kernels import depthwise_conv1d
from dmao_kernels.ops.depthwise_conv1d.reference import depthwise_conv1d_reference
from dmao_kernels.testing import outputs_and_gradients
from tests.ops.batches import check_packed_is_padded, offsets_of, pack
from tests.ops.common import BACKENDS, DTYPES, assert_threads_do_not_change_a_bit, check_against_oracle, ids, native

# (B, T, C, k): both sides of vectors (4, 8, 16), blocks of outputs (10, 20) and of taps (4, 8), tiles (64), spans
# (32 tiles), utterances shorter than the kernel, one tap, and nothing.
SIZES = [
    (1, 1, 1, 1),
    (2, 3, 5, 7),
    (3, 11, 9, 31),
    (1, 21, 16, 3),
    (2, 64, 17, 9),
    (2, 65, 8, 15),
    (1, 129, 33, 5),
    (2, 200, 48, 31),
    (1, 130, 7, 63),
    (1, 40, 4, 101),
    (40, 65, 3, 3),
    (3, 5, 100, 33),
    (0, 5, 4, 3),
    (2, 0, 4, 3),
    (2, 6, 0, 3),
]


def make(b: int, t: int, c: int, k: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """x, weight, bias with outputs of order one."""
    tensors = torch.randn(b, t, c), torch.randn(c, k) / k**0.5, torch.randn(c)
    return [tensor.to(dtype).requires_grad_() for tensor in tensors]


def draw_lengths(b: int, t: int) -> Tensor:
    """With an empty one and a whole one where there is room."""
    lengths = torch.randint(0, t + 1, (b,), dtype=torch.int32)
    lengths[:1], lengths[-1:] = 0, t
    return lengths


def conv1d(x: Tensor, weight: Tensor, bias: Tensor | None, *, lengths: Tensor) -> Tensor:
    """PyTorch's, utterance by utterance, without padding."""
    y = torch.zeros_like(x)
    for b, length in enumerate(lengths.tolist()):
        if length:
            rows = x[b, :length].t()[None]
            found = F.conv1d(rows, weight[:, None], bias, padding=weight.shape[1] // 2, groups=weight.shape[0])
            y = y.index_put((torch.tensor([b])[:, None], torch.arange(length)), found[0].t())
    return y


@native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_odd_sizes(size: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    inputs: list[Any] = make(*size, dtype)
    check_against_oracle(depthwise_conv1d, depthwise_conv1d_reference, inputs)
    lengths = draw_lengths(*size[:2])
    check_against_oracle(depthwise_conv1d, depthwise_conv1d_reference, inputs, lengths=lengths)
    packed = [pack(inputs[0].detach(), lengths).requires_grad_() if size[0] else inputs[0].flatten(0, 1), *inputs[1:]]
    packed[2] = None
    offsets = offsets_of(lengths)
    check_against_oracle(depthwise_conv1d, depthwise_conv1d_reference, packed, offsets=offsets)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("k", [1, 5, 31])
def test_is_conv1d_of_each_utterance(backend: str, k: int) -> None:
    inputs = make(4, 30, 10, k)
    lengths = ids(30, 0, 3, 17)
    grad = torch.randn(4, 30, 10)
    y, grads = outputs_and_gradients(conv1d, *inputs, lengths=lengths, grad_output=grad)
    with dmao_kernels.use_backend(backend):
        ours, our_grads = outputs_and_gradients(depthwise_conv1d, *inputs, lengths=lengths, grad_output=grad)
        packed = [pack(inputs[0].detach(), lengths).requires_grad_(), *inputs[1:]]
        rows, row_grads = outputs_and_gradients(
            depthwise_conv1d, *packed, offsets=offsets_of(lengths), grad_output=pack(grad, lengths)
        )
    # PyTorch's y has no bias beyond the lengths either: it starts from zeros.
    torch.testing.assert_close(ours, y)
    torch.testing.assert_close(rows, pack(y, lengths))
    for key in grads:
        torch.testing.assert_close(our_grads[key], grads[key])
        expected = grads[key] if key else pack(grads[key], lengths)
        torch.testing.assert_close(row_grads[key], expected)


@native
@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_is_padded_and_padding_never_matters(dtype: torch.dtype) -> None:
    x, *parameters = make(5, 150, 19, 15, dtype)
    check_packed_is_padded(depthwise_conv1d, x, parameters, ids(150, 0, 1, 70, 149), 19)


@native
def test_strides() -> None:
    x, weight, bias = make(3, 40, 12, 9)
    grad = torch.randn(3, 12, 40).transpose(1, 2)
    y, grads = outputs_and_gradients(depthwise_conv1d, x, weight, bias, grad_output=grad.contiguous())
    odd = [tensor.detach().repeat_interleave(2, -1)[..., ::2].requires_grad_() for tensor in (x, weight, bias)]
    assert not any(tensor.is_contiguous() for tensor in odd)
    other, other_grads = outputs_and_gradients(depthwise_conv1d, *odd, grad_output=grad)
    assert torch.equal(y, other)
    assert all(torch.equal(grads[key], other_grads[key]) for key in grads)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_lengths_and_offsets(backend: str) -> None:
    x, weight, bias = make(3, 8, 4, 3)
    lengths, offsets = ids(5, 0, 8), ids(0, 3, 8)
    twice = [tensor.repeat_interleave(2)[::2] for tensor in (lengths, offsets)]
    with dmao_kernels.use_backend(backend), torch.no_grad():
        padded = [depthwise_conv1d(x, weight, bias, lengths=given) for given in (lengths, twice[0])]
        packed = [depthwise_conv1d(x[0], weight, bias, offsets=given) for given in (offsets, twice[1])]
    assert torch.equal(*padded)
    assert torch.equal(*packed)


@native
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_number_of_threads_does_not_change_a_bit(dtype: torch.dtype) -> None:
    inputs = make(7, 333, 20, 31, dtype)
    lengths = ids(333, 64, 65, 0, 200, 7, 333)
    grad = torch.randn(7, 333, 20).to(dtype)

    def compute() -> list[Tensor]:
        y, grads = outputs_and_gradients(depthwise_conv1d, *inputs, lengths=lengths, grad_output=grad)
        return [y, *grads.values()]

    assert_threads_do_not_change_a_bit(compute)


_RUN = """
import torch
from tests.ops.test_component_conv import test_odd_sizes as whole
from tests.ops.test_depthwise_conv1d import test_odd_sizes as alone

torch.manual_seed(0)
for dtype in (torch.float32, torch.bfloat16):
    for size in ((3, 11, 9, 31), (2, 65, 8, 15), (1, 129, 33, 5), (1, 130, 7, 63)):
        alone(size, dtype)
    for size in ((2, 70, 3, 7, 9), (1, 130, 2, 40, 31)):
        whole(size, dtype)
"""


@native
def test_every_instruction_set(run_on_capability: Callable[[str], None]) -> None:
    """Of component_conv too: both are one kernel."""
    run_on_capability(_RUN)


# --- PyTorch's machinery


@native
def test_opcheck() -> None:
    x, weight, bias = make(2, 9, 6, 5)
    torch.library.opcheck(torch.ops.dmao.depthwise_conv1d.default, (x, weight, bias, ids(4, 9), None))
    torch.library.opcheck(torch.ops.dmao.depthwise_conv1d.default, (x[0], weight, None, None, ids(0, 4, 9)))
    backward = torch.ops.dmao.depthwise_conv1d_backward.default
    detached = torch.randn(2, 9, 6), x.detach(), weight.detach()
    torch.library.opcheck(backward, (*detached, ids(4, 9), None, True))
    torch.library.opcheck(backward, (*detached, None, None, False))


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_training_without_recompiling_for_new_lengths(backend: str) -> None:
    torch._dynamo.reset()
    x, weight, bias = make(1, 60, 8, 5)

    def call(rows: Tensor, offsets: Tensor) -> Tensor:
        return depthwise_conv1d(rows, weight, bias, offsets=offsets)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=True)
    with (
        dmao_kernels.use_backend(backend),
        torch._dynamo.config.patch(recompile_limit=2, fail_on_recompile_limit_hit=True),
    ):
        for bounds in ((0, 9, 40), (0, 0, 31), (0, 20, 60), (0, 10, 57)):
            rows = x[0, : bounds[-1]].detach().requires_grad_()
            grad = torch.randn(bounds[-1], 8)
            y, grads = outputs_and_gradients(call, rows, ids(*bounds), grad_output=grad)
            other, other_grads = outputs_and_gradients(compiled, rows, ids(*bounds), grad_output=grad)
            torch.testing.assert_close(other, y)
            torch.testing.assert_close(other_grads[0], grads[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_casts_like_conv1d(backend: str) -> None:
    inputs = make(2, 20, 8, 5)
    with dmao_kernels.use_backend(backend):
        with torch.autocast("cpu", torch.bfloat16):
            y = depthwise_conv1d(*inputs)
        assert torch.equal(y, depthwise_conv1d(*(tensor.detach().bfloat16() for tensor in inputs)))
    assert all(gradient.dtype == torch.float32 for gradient in torch.autograd.grad(y.float().sum(), inputs))


@native
def test_double_backward_is_refused() -> None:
    inputs = make(1, 5, 4, 3)
    (grad,) = torch.autograd.grad(depthwise_conv1d(*inputs).square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="depthwise_conv1d: double backward is not supported"):
        grad.sum().backward()


# --- What is refused


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(2, 5, 4, dtype=torch.float64)}, "x must be float32, bfloat16 or float16, got float64"),
        ({"x": torch.zeros(5, 4)}, r"x must be \[B, T, width\] without offsets, got \[5, 4\]"),
        ({"x": torch.zeros(2, 5, 3)}, r"x must have 4 columns for weight \[4, 3\], got \[2, 5, 3\]"),
        ({"weight": torch.zeros(4, 2)}, r"weight must be \[C, k\] with an odd k, got \[4, 2\]"),
        ({"weight": torch.zeros(4, 1, 3)}, r"weight must be \[C, k\] with an odd k, got \[4, 1, 3\]"),
        ({"weight": torch.zeros(4, 3).bfloat16()}, "weight must have x's dtype float32, got bfloat16"),
        ({"bias": torch.zeros(3)}, r"bias must be \[4\], got \[3\]"),
        ({"weight": torch.tensor(1.0)}, r"weight must be \[C, k\] with an odd k, got \[\]"),
        ({"bias": torch.zeros(4, device="meta")}, "bias must be on x's device cpu, got meta"),
        ({"lengths": torch.zeros(3).int()}, r"lengths must be int32 \[2\], got int32 \[3\]"),
        ({"lengths": torch.zeros(2).long()}, r"lengths must be int32 \[2\], got int64 \[2\]"),
        ({"offsets": ids(0, 10)}, r"x must be \[N, width\] with offsets, got \[2, 5, 4\]"),
        ({"offsets": ids(0, 10), "lengths": ids(5, 5)}, "give lengths .* or offsets .*, not both"),
        ({"x": torch.zeros(5, 4), "offsets": ids()}, r"offsets must be int32 \[B \+ 1\], got int32 \[0\]"),
    ],
)
def test_wrong_arguments(backend: str, changes: dict[str, Any], message: str) -> None:
    arguments = {"x": torch.zeros(2, 5, 4), "weight": torch.zeros(4, 3), **changes}
    with dmao_kernels.use_backend(backend), pytest.raises(ValueError, match=f"depthwise_conv1d: {message}"):
        depthwise_conv1d(**arguments)


@native
def test_wrong_lengths_and_offsets() -> None:
    x, weight = torch.zeros(2, 5, 4), torch.zeros(4, 3)
    for lengths in (ids(6, 0), ids(0, -1)):
        with pytest.raises(RuntimeError, match=r"depthwise_conv1d: lengths\[[01]\] must be in \[0, 5\]"):
            depthwise_conv1d(x, weight, lengths=lengths)
    for offsets in (ids(0, 4), ids(1, 5), ids(0, 6), ids(0, 4, 3, 5)):
        with pytest.raises(RuntimeError, match="depthwise_conv1d: offsets must"):
            depthwise_conv1d(x[0], weight, offsets=offsets)
