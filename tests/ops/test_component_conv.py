"""component_conv: against float64 and the eager chain, live lists, weighted statistics, both forms, compilation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import dmao_kernels
from dmao_kernels import component_conv
from dmao_kernels.ops.component_conv.reference import component_conv_reference
from dmao_kernels.testing import outputs_and_gradients
from tests.ops.batches import check_packed_is_padded, offsets_of, pack
from tests.ops.common import (
    BACKENDS,
    DTYPES,
    CountedGraphs,
    assert_compiled_training_is_the_same,
    assert_threads_do_not_change_a_bit,
    check_against_oracle,
    ids,
    native,
)

# (B, T, components, channels of a component, k)
SIZES = [
    (1, 1, 1, 1, 1),
    (2, 5, 2, 3, 7),
    (3, 70, 3, 7, 9),
    (2, 64, 4, 8, 31),
    (1, 130, 2, 41, 5),
    (2, 65, 5, 16, 3),
    (1, 200, 1, 96, 31),
    (1, 33, 2, 5, 63),
    (2, 6, 3, 0, 3),
    (0, 4, 2, 4, 3),
    (2, 0, 2, 4, 3),
]


def make(b: int, t: int, components: int, width: int, k: int, dtype: torch.dtype = torch.float32) -> list[Any]:
    """x, weight, bias, norm_weight, norm_bias."""
    c = components * width
    tensors = (
        torch.randn(b, t, 2 * c),
        torch.randn(c, k) / k**0.5,
        torch.randn(c),
        torch.rand(c) + 0.5,
        torch.randn(c),
    )
    return [tensor.to(dtype).requires_grad_() for tensor in tensors]


def check(inputs: list[Any], *more: Any, **options: Any) -> None:
    check_against_oracle(component_conv, component_conv_reference, [*inputs, *more], **options)


@native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_odd_sizes(size: tuple[int, int, int, int, int], dtype: torch.dtype) -> None:
    inputs = make(*size, dtype)
    b, t, components = size[:3]
    check(inputs)
    lengths = torch.randint(0, t + 1, (b,), dtype=torch.int32)
    live, shares = ids(*range(0, components, 2)), torch.rand(components) + 0.1
    check(inputs, shares, live, components=components, lengths=lengths)
    if b:
        packed = [pack(inputs[0].detach(), lengths).requires_grad_(), *inputs[1:]]
        check(packed, None, live, components=components, offsets=offsets_of(lengths))


@native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", ["layer", "none"])
@pytest.mark.parametrize("activation", ["silu", "relu", "gelu", "none"])
def test_norms_and_activations(activation: str, norm: str, dtype: torch.dtype) -> None:
    x, weight, bias, gain, shift = make(2, 40, 3, 11, 5, dtype)
    inputs = [x, weight, bias, gain, shift] if norm == "layer" else [x, weight, bias, None, None]
    check(inputs, None, ids(0, 2), components=3, norm=norm, activation=activation, lengths=ids(40, 13))


@native
@pytest.mark.parametrize("absent", [(2,), (3,), (4,), (2, 3, 4)])
def test_absent_vectors(absent: tuple[int, ...]) -> None:
    inputs = make(2, 30, 2, 9, 7)
    for index in absent:
        inputs[index] = None
    check(inputs, torch.tensor([1.0, 0.25]), components=2, eps=0.1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_is_the_eager_chain(backend: str) -> None:
    """Of the Conformer's module: equal weights of statistics are LayerNorm, however they are given."""
    x, weight, bias, gain, shift = make(3, 50, 4, 6, 31)
    lengths = ids(50, 20, 0)
    inside = (torch.arange(50) < lengths[:, None])[:, :, None]
    hidden = F.glu(x, -1).masked_fill(~inside, 0.0).transpose(1, 2)
    hidden = F.conv1d(hidden, weight[:, None], bias, padding=15, groups=24).transpose(1, 2)
    expected = F.silu(F.layer_norm(hidden, (24,), gain, shift)).masked_fill(~inside, 0.0)
    with dmao_kernels.use_backend(backend):
        for shares in (None, torch.full((4,), 0.7), torch.full((4,), 3.0, dtype=torch.bfloat16)):
            y = component_conv(x, weight, bias, gain, shift, shares, components=4, lengths=lengths)
            torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_copied_component_changes_no_other(backend: str) -> None:
    """Source and copy have half of the weight each in the statistics: nn.ComponentLayerNorm's promise."""
    x, weight, bias, gain, shift = (tensor.detach() for tensor in make(2, 30, 3, 5, 7))
    grown = torch.cat([torch.arange(15), torch.arange(5, 10)])
    wide = x[..., torch.cat([grown, grown + 15])]
    with dmao_kernels.use_backend(backend):
        y = component_conv(x, weight, bias, gain, shift, torch.ones(3), components=3)
        other = component_conv(
            wide,
            weight[grown],
            bias[grown],
            gain[grown],
            shift[grown],
            torch.tensor([1, 0.5, 1, 0.5]),
            components=4,
        )
    torch.testing.assert_close(other, y[..., grown])


@native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("filled", [0, 3])
@pytest.mark.parametrize("live", [(), (0,), (6,), (1, 2, 5), (0, 1, 2, 3, 4, 5, 6)])
def test_live_subset_equals_the_shrunk_layer(live: tuple[int, ...], filled: int, dtype: torch.dtype) -> None:
    """Bit for bit. Dead components hold NaN, also in the gradient, and get zeros."""
    components, width = 7, 13
    x, weight, bias, gain, shift = make(2, 140, components, width, 9, dtype)
    units = torch.tensor([u for c in live for u in range(c * width, (c + 1) * width)], dtype=torch.long)
    dead = torch.ones(components * width, dtype=torch.bool)
    dead[units] = False
    grad, shares = torch.randn(2, 140, components * width).to(dtype), torch.rand(components) + 0.1
    both = torch.cat([units, units + components * width])
    with torch.no_grad():
        x[..., dead.repeat(2)] = torch.nan
        grad[..., dead] = torch.nan
        for tensor in (weight, bias, gain, shift):
            tensor[dead] = torch.nan
    shrunk = [tensor.detach()[units].requires_grad_() for tensor in (weight, bias, gain, shift)]
    expected, small = outputs_and_gradients(
        component_conv,
        x.detach()[..., both].requires_grad_(),
        *shrunk,
        shares[list(live)],
        components=len(live),
        grad_output=grad[..., units],
    )
    y, grads = outputs_and_gradients(
        component_conv,
        x,
        weight,
        bias,
        gain,
        shift,
        shares,
        ids(*live, *[components] * filled),
        components=components,
        grad_output=grad,
    )
    assert torch.equal(y[..., units], expected)
    assert not y[..., dead].any()
    assert torch.equal(grads[0][..., both], small[0])
    assert not grads[0][..., dead.repeat(2)].any()
    for key in (1, 2, 3, 4):
        assert torch.equal(grads[key][units], small[key])
        assert not grads[key][dead].any()


@native
@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_is_padded_and_padding_never_matters(dtype: torch.dtype) -> None:
    x, *parameters = make(5, 150, 2, 10, 15, dtype)
    check_packed_is_padded(component_conv, x, parameters, ids(150, 0, 1, 70, 149), 20)


@native
def test_nan_stays_in_its_utterance() -> None:
    x, *parameters = make(3, 60, 3, 3, 5)
    y, grads = outputs_and_gradients(component_conv, x, *parameters, None, ids(0, 2), components=3)
    with torch.no_grad():
        x[1, 20, 0] = torch.nan
    other, other_grads = outputs_and_gradients(component_conv, x, *parameters, None, ids(0, 2), components=3)
    assert other[1, 18:23, :3].isnan().all()
    for utterance in (0, 2):
        assert torch.equal(other[utterance], y[utterance])
        assert torch.equal(other_grads[0][utterance], grads[0][utterance])


@native
def test_strides() -> None:
    inputs = make(3, 40, 2, 6, 9)
    grad = torch.randn(3, 12, 40).transpose(1, 2)
    y, grads = outputs_and_gradients(component_conv, *inputs, torch.ones(1), grad_output=grad.contiguous())
    odd = [tensor.detach().repeat_interleave(2, -1)[..., ::2].requires_grad_() for tensor in inputs]
    assert not any(tensor.is_contiguous() for tensor in odd)
    other, other_grads = outputs_and_gradients(component_conv, *odd, torch.ones(2)[::2], grad_output=grad)
    assert torch.equal(y, other)
    assert all(torch.equal(grads[key], other_grads[key]) for key in grads)


@native
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_number_of_threads_does_not_change_a_bit(dtype: torch.dtype) -> None:
    inputs = make(7, 333, 3, 7, 31, dtype)
    lengths = ids(333, 64, 65, 0, 200, 7, 333)
    grad = torch.randn(7, 333, 21).to(dtype)

    def compute() -> list[Tensor]:
        y, grads = outputs_and_gradients(
            component_conv, *inputs, None, ids(0, 2), components=3, lengths=lengths, grad_output=grad
        )
        return [y, *grads.values()]

    assert_threads_do_not_change_a_bit(compute)


# --- PyTorch's machinery


@native
@pytest.mark.parametrize("keep", [True, False])
def test_opcheck(keep: bool) -> None:
    inputs = make(2, 9, 3, 4, 5)
    if not keep:
        inputs = [tensor.detach() for tensor in inputs]
    options = 3, ids(4, 9), None, "layer", 1e-5, "silu", keep
    operator = torch.ops.dmao.component_conv.default
    torch.library.opcheck(operator, (*inputs, torch.rand(3), ids(0, 2), *options))
    torch.library.opcheck(operator, (inputs[0], inputs[1], None, None, None, None, None, *options))


@native
def test_opcheck_backward() -> None:
    x, weight, bias, gain, shift = (tensor.detach() for tensor in make(2, 9, 3, 4, 5))
    for norm, vectors in (("layer", (gain, shift, torch.rand(3))), ("none", (None, None, None))):
        options = 3, ids(4, 9), None, norm, 1e-5, "silu"
        y, *kept = torch.ops.dmao.component_conv(x, weight, bias, *vectors, ids(0, 2), *options, True)
        arguments = torch.randn_like(y), x, weight, *vectors, ids(0, 2), *kept, *options, norm == "layer"
        torch.library.opcheck(torch.ops.dmao.component_conv_backward.default, arguments)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compile_without_recompiling_for_new_lengths_or_live_lists(backend: str) -> None:
    def call(x: Tensor, live: Tensor, offsets: Tensor, *parameters: Tensor) -> Tensor:
        return component_conv(x, *parameters, None, live, components=6, offsets=offsets).sin()

    graphs = CountedGraphs()
    compiled = torch.compile(call, fullgraph=True, backend=graphs)
    x, *parameters = make(1, 40, 6, 4, 5)
    with dmao_kernels.use_backend(backend):
        for rows, live in ((40, (0, 1, 2)), (23, (0, 3)), (31, (1, 2, 4, 5)), (17, (0, 1, 2, 3, 4)), (9, (2, 5))):
            arguments = x[0, :rows], ids(*live), ids(0, 5, rows), *parameters
            torch.testing.assert_close(compiled(*arguments), call(*arguments))
    assert graphs.count <= 2  # one for the first shape, one for any


@native
def test_the_operator_refuses_a_gain_without_a_norm() -> None:
    """Called by itself: its backward pass would leave the gain out."""
    x, *vectors = make(1, 6, 1, 4, 3)
    with pytest.raises(RuntimeError, match="norm_weight and norm_bias must be None without a norm"):
        torch.ops.dmao.component_conv(x, *vectors, None, None, 1, None, None, "none", 1e-5, "none", True)


@native
def test_compiled_training_gives_the_same_gradients() -> None:
    inputs = make(2, 30, 3, 5, 7)

    def call(*arguments: Tensor) -> Tensor:
        return component_conv(*arguments, None, ids(0, 2), components=3, lengths=ids(30, 12))

    assert_compiled_training_is_the_same(call, *inputs, grad_output=torch.randn(2, 30, 15))


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_casts_like_conv1d(backend: str) -> None:
    inputs = make(2, 20, 2, 4, 5)
    with dmao_kernels.use_backend(backend):
        with torch.autocast("cpu", torch.bfloat16):
            y = component_conv(*inputs, torch.tensor([1.0, 0.5]), components=2)
        low = [tensor.detach().bfloat16() for tensor in inputs]
        assert torch.equal(y, component_conv(*low, torch.tensor([1.0, 0.5]), components=2))
    assert all(gradient.dtype == torch.float32 for gradient in torch.autograd.grad(y.float().sum(), inputs))


@native
def test_only_what_needs_gradients_keeps_memory() -> None:
    inputs = make(2, 10, 1, 6, 3)
    with torch.no_grad():
        assert not component_conv(*inputs).requires_grad
    y, *kept = torch.ops.dmao.component_conv(*inputs, None, None, 1, None, None, "layer", 1e-5, "silu", False)
    assert [tensor.numel() for tensor in kept] == [0, 0]
    with pytest.raises(RuntimeError, match="keep=True"):
        y.sum().backward()


@native
def test_double_backward_is_refused() -> None:
    inputs = make(1, 5, 1, 4, 3)
    (grad,) = torch.autograd.grad(component_conv(*inputs).square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="component_conv: double backward is not supported"):
        grad.sum().backward()


# --- What is refused


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(2, 5, 4)}, r"x must have 8 columns for weight \[4, 3\], got \[2, 5, 4\]"),
        ({"norm_weight": torch.zeros(8)}, r"norm_weight must be \[4\], got \[8\]"),
        ({"norm_bias": torch.zeros(4).bfloat16()}, "norm_bias must have x's dtype float32, got bfloat16"),
        ({"components": 3}, "components must divide the 4 channels, got 3"),
        ({"live": torch.tensor([0])}, r"live must be int32 \[n\], got int64 \[1\]"),
        ({"norm": "batch"}, "norm must be one of layer, none, got 'batch'"),
        ({"norm": "none", "norm_bias": torch.zeros(4)}, "norm_bias must be None with norm 'none', got float32"),
        ({"activation": "tanh"}, "activation must be one of silu, relu, gelu, none, got 'tanh'"),
        ({"statistics_weight": torch.ones(3)}, r"statistics_weight must be floating point \[2\], got float32 \[3\]"),
        ({"statistics_weight": torch.ones(2).int()}, r"statistics_weight must be floating point \[2\], got int32"),
        ({"statistics_weight": torch.ones(2, requires_grad=True)}, "statistics_weight must not require gradients"),
        ({"statistics_weight": torch.ones(2, device="meta")}, "statistics_weight must be on x's device cpu, got meta"),
    ],
)
def test_wrong_arguments(backend: str, changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"x": torch.zeros(2, 5, 8), "weight": torch.zeros(4, 3), "components": 2, **changes}
    with dmao_kernels.use_backend(backend), pytest.raises(ValueError, match=f"component_conv: {message}"):
        component_conv(**arguments)


@native
@pytest.mark.parametrize("live", [(3,), (-1,), (1, 1), (1, 0), (2, 1)])
def test_wrong_live_lists(live: tuple[int, ...]) -> None:
    with pytest.raises(RuntimeError, match="component_conv: live"):
        component_conv(torch.zeros(2, 5, 8), torch.zeros(4, 3), live=ids(*live), components=2)


@native
@pytest.mark.parametrize("shares", [(-1.0, 2.0), (torch.nan, 1.0), (0.0, 0.0)])
def test_wrong_weights_of_statistics(shares: tuple[float, float]) -> None:
    with pytest.raises(RuntimeError, match="component_conv: statistics_weight must"):
        component_conv(torch.zeros(2, 5, 8), torch.zeros(4, 3), statistics_weight=torch.tensor(shares), components=2)
