"""component_ffn: against float64, odd sizes, live lists, dropout, determinism, autograd, compilation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import dmao_kernels
from dmao_kernels import component_ffn
from dmao_kernels.ops._philox import keep_mask
from dmao_kernels.ops.component_ffn.reference import component_ffn_reference
from dmao_kernels.testing import (
    assert_close_to_oracle,
    nan_filled_empty,
    outputs_and_gradients,
    to_float64,
)
from tests.ops.common import (
    BACKENDS,
    DTYPES,
    SEED,
    CountedGraphs,
    assert_compiled_training_is_the_same,
    assert_threads_do_not_change_a_bit,
    check_against_oracle,
    ids,
    native,
)

# (tokens, d, components, unit width, d_out): both sides of vectors (4, 8, 16), panels (8, 16, 48), row blocks
# (6, 8), the dropout group (128), a tile (64), rows and blocks of gradients (192, 256), spans (256), chunks (384,
# 512).
SIZES = [
    (0, 5, 2, 3, 4),
    (1, 1, 1, 1, 1),
    (2, 3, 2, 5, 7),
    (7, 8, 3, 1, 9),
    (9, 16, 4, 4, 15),
    (17, 17, 5, 13, 31),
    (33, 47, 4, 16, 49),
    (127, 48, 4, 24, 48),
    (129, 65, 7, 9, 97),
    (130, 96, 4, 96, 96),
    (257, 193, 2, 289, 191),
    (40, 24, 3, 500, 23),
    (300, 2, 2, 64, 300),
    (3, 300, 1, 63, 20),
    (65, 10, 4, 0, 6),
    (5, 4, 0, 0, 3),
    (6, 0, 2, 4, 5),
    (6, 5, 2, 4, 0),
]


def make(
    tokens: int, d: int, components: int, width: int, d_out: int, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """x, w1, b1, w2, b2 with outputs of order one."""
    hidden = components * width
    scales = (1.0, max(d, 1) ** -0.5, 0.5, max(hidden, 1) ** -0.5, 0.5)
    shapes = ((tokens, d), (hidden, d), (hidden,), (d_out, hidden), (d_out,))
    return [
        torch.randn(shape).mul(scale).to(dtype).requires_grad_() for shape, scale in zip(shapes, scales, strict=True)
    ]


def check(inputs: list[Tensor], live: Tensor | None = None, **options: Any) -> None:
    check_against_oracle(component_ffn, component_ffn_reference, inputs, live, **options)


@native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_odd_sizes(size: tuple[int, int, int, int, int], dtype: torch.dtype) -> None:
    options = {"components": size[2], "seed": SEED}
    check(make(*size, dtype), **options)
    check(make(*size, dtype), ids(*range(0, size[2], 2)), p=0.3, **options)


@native
@pytest.mark.parametrize("p", [0.0, 0.2])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["silu", "relu", "gelu"])
def test_activations(activation: str, dtype: torch.dtype, p: float) -> None:
    inputs = make(70, 24, 4, 40, 24, dtype)
    with torch.no_grad():
        inputs[0].mul_(4)  # reach the flat parts of the activation too
    check(inputs, components=4, activation=activation, p=p, seed=SEED)


@native
def test_training_size() -> None:
    check(make(700, 128, 4, 160, 128), ids(0, 1, 3), components=4, p=0.1, seed=SEED)


@pytest.mark.parametrize("backend", BACKENDS)
def test_is_the_dense_layer(backend: str) -> None:
    x, w1, b1, w2, b2 = make(20, 12, 2, 9, 7)
    with dmao_kernels.use_backend(backend):
        y = component_ffn(x, w1, b1, w2, b2, components=2)
        torch.testing.assert_close(y, F.linear(F.silu(F.linear(x, w1, b1)), w2, b2))
        torch.testing.assert_close(component_ffn(x, w1, None, w2, None), F.linear(F.silu(F.linear(x, w1)), w2))


@native
@pytest.mark.parametrize("absent", [(2,), (4,), (2, 4)])
def test_absent_biases(absent: tuple[int, ...]) -> None:
    inputs: list[Any] = make(35, 11, 3, 21, 13)
    for index in absent:
        inputs[index] = None
    grad = torch.randn(35, 13)
    results = [
        outputs_and_gradients(function, *arguments, ids(0, 2), components=3, grad_output=grad)
        for function, arguments in (
            (component_ffn, inputs),
            (component_ffn_reference, inputs),
            (component_ffn_reference, to_float64(inputs)),
        )
    ]
    assert_close_to_oracle(*(result[0] for result in results))
    for key in results[2][1]:
        assert_close_to_oracle(*(result[1][key] for result in results), name=f"gradient {key}")


@native
@pytest.mark.parametrize("filled", [0, 3])
@pytest.mark.parametrize("live", [(), (0,), (6,), (1, 2, 5), (0, 1, 2, 3, 4, 5, 6)])
def test_live_subset_equals_the_shrunk_layer(live: tuple[int, ...], filled: int) -> None:
    """Bit for bit: the same products in the same order. Dead components hold NaN and get zeros."""
    components, width = 7, 23
    x, w1, b1, w2, b2 = make(150, 40, components, width, 33)
    units = torch.tensor([unit for c in live for unit in range(c * width, (c + 1) * width)], dtype=torch.long)
    dead = torch.ones(components * width, dtype=torch.bool)
    dead[units] = False
    with torch.no_grad():
        w1[dead], b1[dead], w2[:, dead] = torch.nan, torch.nan, torch.nan
    grad = torch.randn(150, 33)
    y, grads = outputs_and_gradients(
        component_ffn, x, w1, b1, w2, b2, ids(*live, *[components] * filled), components=components, grad_output=grad
    )
    shrunk = [x, w1[units].detach(), b1[units].detach(), w2[:, units].detach().contiguous(), b2]
    expected, shrunk_grads = outputs_and_gradients(
        component_ffn, *(tensor.requires_grad_() for tensor in shrunk), grad_output=grad
    )
    assert torch.equal(y, expected)
    assert torch.equal(grads[0], shrunk_grads[0])
    assert torch.equal(grads[1][units], shrunk_grads[1])
    assert torch.equal(grads[2][units], shrunk_grads[2])
    assert torch.equal(grads[3][:, units], shrunk_grads[3])
    assert torch.equal(grads[4], shrunk_grads[4])
    assert not grads[1][dead].any()
    assert not grads[2][dead].any()
    assert not grads[3][:, dead].any()


@native
def test_permuting_components_permutes_gradients() -> None:
    components, width = 4, 10
    x, w1, b1, w2, b2 = make(60, 16, components, width, 16)
    order = torch.tensor([2, 0, 3, 1])
    units = (order[:, None] * width + torch.arange(width)).flatten()
    grad = torch.randn(60, 16)
    y, grads = outputs_and_gradients(component_ffn, x, w1, b1, w2, b2, components=components, grad_output=grad)
    permuted = [tensor.detach().requires_grad_() for tensor in (x, w1[units], b1[units], w2[:, units], b2)]
    other, other_grads = outputs_and_gradients(component_ffn, *permuted, components=components, grad_output=grad)
    torch.testing.assert_close(other, y)
    torch.testing.assert_close(other_grads[0], grads[0])
    torch.testing.assert_close(other_grads[1], grads[1][units])
    torch.testing.assert_close(other_grads[2], grads[2][units])
    torch.testing.assert_close(other_grads[3], grads[3][:, units])


@native
def test_leading_dimensions_and_strides() -> None:
    x, w1, b1, w2, b2 = make(24, 10, 2, 12, 10)
    flat = component_ffn(x, w1, b1, w2, b2, components=2)
    assert torch.equal(component_ffn(x.view(2, 3, 4, 10), w1, b1, w2, b2).flatten(0, 2), flat)
    assert torch.equal(component_ffn(x[0], w1, b1, w2, b2), flat[0])
    odd = [tensor.detach().repeat_interleave(2, -1)[..., ::2].requires_grad_() for tensor in (x, w1, b1, w2, b2)]
    odd[0] = x.detach().t().contiguous().t().requires_grad_()
    assert not any(tensor.is_contiguous() for tensor in odd)
    grad = torch.randn(10, 24).t()
    y, grads = outputs_and_gradients(component_ffn, *odd, grad_output=grad)
    _, expected = outputs_and_gradients(component_ffn, x, w1, b1, w2, b2, grad_output=grad.contiguous())
    assert torch.equal(y, flat)
    assert all(torch.equal(grads[key], expected[key]) for key in expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_live_lists(backend: str) -> None:
    inputs = make(7, 5, 4, 3, 6)
    with dmao_kernels.use_backend(backend), torch.no_grad():
        dense, strided = (
            component_ffn(*inputs, live, components=4) for live in (ids(0, 2, 3), ids(0, 9, 2, 9, 3, 9)[::2])
        )
    assert torch.equal(dense, strided)


@native
def test_nan_and_infinity_go_where_pytorch_puts_them() -> None:
    x, w1, b1, w2, b2 = make(20, 8, 2, 20, 8)
    with torch.no_grad():
        x[3, 1], x[11, 0] = torch.nan, torch.inf
    for activation in ("silu", "relu", "gelu"):
        ours = component_ffn(x, w1, b1, w2, b2, activation=activation)
        expected = component_ffn_reference(x, w1, b1, w2, b2, activation=activation)
        assert torch.equal(ours.isnan(), expected.isnan())
        assert ours[3].isnan().all()
        assert not ours[:3].isnan().any()
    functions = component_ffn, component_ffn_reference
    grads = [outputs_and_gradients(f, x, w1, b1, w2, b2, activation="relu")[1][0] for f in functions]
    torch.testing.assert_close(*grads)  # the slope of relu is 1 at NaN
    assert grads[0][3].isfinite().all()


# --- Dropout


@native
@pytest.mark.parametrize("live", [None, (0, 2, 3)])
def test_dropout_mask_is_the_reference_mask(live: tuple[int, ...] | None) -> None:
    """With relu, b1 = 1, w1 = 0 and w2 = identity the output is the mask, scaled."""
    tokens, components, width, p = 37, 4, 37, 0.25
    hidden = components * width
    y = component_ffn(
        torch.zeros(tokens, 3),
        torch.zeros(hidden, 3),
        torch.ones(hidden),
        torch.eye(hidden),
        None,
        None if live is None else ids(*live),
        components=components,
        p=p,
        seed=SEED,
        activation="relu",
    )
    expected = keep_mask(SEED, tokens, torch.arange(hidden), p) / (1 - p)
    for component in range(components):
        if live is not None and component not in live:
            expected[:, component * width : (component + 1) * width] = 0
    assert torch.equal(y, expected)


@native
def test_dropout_keeps_the_mean_and_follows_its_seed() -> None:
    x, w1, b1, w2, b2 = make(64, 16, 1, 96, 8)
    with torch.no_grad():
        plain = component_ffn(x, w1, b1, w2, b2)
        draws = torch.stack([component_ffn(x, w1, b1, w2, b2, p=0.3, seed=torch.tensor([seed])) for seed in range(200)])
    assert not torch.equal(draws[0], draws[1])
    again = component_ffn(x, w1, b1, w2, b2, p=0.3, seed=torch.tensor([0]))
    assert torch.equal(draws[0], again)
    error = (draws.mean(0) - plain) / (draws.std(0) / math.sqrt(200))
    assert error.abs().mean() < 1.0  # of a standard normal it is 0.8
    assert error.abs().max() < 6.0


# --- Threads and instruction sets


_RUN = """
import torch
from dmao_kernels import component_ffn
from tests.ops.common import SEED, ids
from tests.ops.test_component_ffn import check, make

torch.manual_seed(0)
for dtype in (torch.float32, torch.bfloat16):
    for size in ((1, 1, 1, 1, 1), (33, 47, 4, 16, 49), (129, 65, 7, 9, 97), (150, 200, 3, 230, 40)):
        inputs = make(*size, dtype)
        check(inputs, components=size[2])
        live = ids(*range(0, size[2], 2))
        check(inputs, live, components=size[2], p=0.3, seed=SEED, activation="gelu")
"""


@native
def test_every_instruction_set(run_on_capability: Callable[[str], None]) -> None:
    run_on_capability(_RUN)


@native
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_number_of_threads_does_not_change_a_bit(dtype: torch.dtype) -> None:
    """Nor does the size of the tiles and of the blocks of tokens, which follow it."""
    inputs = make(700, 50, 4, 60, 41, dtype)
    grad = torch.randn(700, 41).to(dtype)

    def compute() -> list[Tensor]:
        y, grads = outputs_and_gradients(
            component_ffn, *inputs, ids(0, 1, 3), components=4, p=0.1, seed=SEED, grad_output=grad
        )
        return [y, *grads.values()]

    assert_threads_do_not_change_a_bit(compute)


# --- PyTorch's machinery


@native
@pytest.mark.parametrize("live", [None, (0, 2)])
@pytest.mark.parametrize("keep", [True, False])
def test_opcheck(live: tuple[int, ...] | None, keep: bool) -> None:
    inputs = make(9, 6, 3, 5, 4)
    if not keep:
        inputs = [tensor.detach() for tensor in inputs]
    arguments = (*inputs, None if live is None else ids(*live), 3, 0.2, SEED, "silu", keep)
    torch.library.opcheck(torch.ops.dmao.component_ffn.default, arguments)


@native
def test_opcheck_backward() -> None:
    x, w1, b1, w2, b2 = (tensor.detach() for tensor in make(9, 6, 3, 5, 4))
    live = ids(1, 2)
    y, kept = torch.ops.dmao.component_ffn(x, w1, b1, w2, b2, live, 3, 0.2, SEED, "silu", True)
    for needs in ((True,) * 5, (False,) * 5, (False, False, True, True, False)):
        arguments = (torch.randn_like(y), x, w1, w2, live, kept, 3, 0.2, SEED, "silu", *needs)
        torch.library.opcheck(torch.ops.dmao.component_ffn_backward.default, arguments)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compile_without_recompiling_for_new_lengths_or_live_lists(backend: str) -> None:
    def call(x: Tensor, live: Tensor, seed: Tensor, *weights: Tensor) -> Tensor:
        return component_ffn(x, *weights, live, components=6, p=0.1, seed=seed).sin()

    graphs = CountedGraphs()
    compiled = torch.compile(call, fullgraph=True, backend=graphs)
    x, *weights = make(40, 8, 6, 5, 8)
    with dmao_kernels.use_backend(backend):
        for tokens, live in (
            (40, (0, 1, 2)),
            (23, (0, 3)),
            (31, (1, 2, 4, 5)),
            (17, (0, 1, 2, 3, 4)),
            (9, (2, 5)),
        ):
            seed = torch.tensor([tokens])
            ours = compiled(x[:tokens], ids(*live), seed, *weights)
            torch.testing.assert_close(ours, call(x[:tokens], ids(*live), seed, *weights))
    assert graphs.count <= 2  # one for the first shape, one for any


@native
def test_compiled_training_gives_the_same_gradients() -> None:
    inputs = make(30, 8, 3, 5, 8)

    def call(*arguments: Tensor) -> Tensor:
        return component_ffn(*arguments, components=3, p=0.1, seed=SEED)

    assert_compiled_training_is_the_same(call, *inputs, ids(0, 2), grad_output=torch.randn(30, 8))


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_casts_like_linear(backend: str) -> None:
    inputs = make(30, 8, 2, 8, 8)
    with dmao_kernels.use_backend(backend):
        with torch.autocast("cpu", torch.bfloat16):
            y = component_ffn(*inputs, components=2)
        assert y.dtype == torch.bfloat16
        grads = torch.autograd.grad(y.float().square().sum(), inputs)
        assert all(gradient.dtype == torch.float32 for gradient in grads)
        low = [tensor.detach().bfloat16().requires_grad_() for tensor in inputs]
        expected = component_ffn(*low, components=2)
        assert torch.equal(y, expected)
        low_grads = torch.autograd.grad(expected.float().square().sum(), low)
    assert all(torch.equal(a, b.float()) for a, b in zip(grads, low_grads, strict=True))


@native
def test_only_what_needs_gradients_keeps_memory() -> None:
    inputs = make(10, 4, 1, 6, 4)
    with torch.no_grad():
        assert not component_ffn(*inputs).requires_grad
    weights = [tensor.detach() for tensor in inputs[1:]]
    y = component_ffn(inputs[0], *weights)
    (grad,) = torch.autograd.grad(y.sum(), inputs[0])
    torch.testing.assert_close(grad, torch.autograd.grad(component_ffn_reference(*inputs).sum(), inputs[0])[0])


@native
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_do_not_depend_on_which_are_wanted(dtype: torch.dtype) -> None:
    """Bit for bit, for every subset of the inputs; what is not wanted is not written."""
    inputs = [tensor.detach() for tensor in make(300, 21, 4, 33, 18, dtype)]
    live, grad = ids(0, 1, 3), torch.randn(300, 18).to(dtype)
    options = {"components": 4, "p": 0.1, "seed": SEED}

    def gradients(wanted: tuple[int, ...]) -> dict[int | str, Tensor]:
        chosen = [tensor.clone().requires_grad_(index in wanted) for index, tensor in enumerate(inputs)]
        with nan_filled_empty():
            return outputs_and_gradients(component_ffn, *chosen, live, grad_output=grad, **options)[1]

    everything = gradients((0, 1, 2, 3, 4))
    for count in range(1, 5):
        for wanted in itertools.combinations(range(5), count):
            found = gradients(wanted)
            assert tuple(found) == wanted
            assert all(torch.equal(found[index], everything[index]) for index in wanted)


@native
def test_double_backward_is_refused() -> None:
    inputs = make(5, 4, 1, 6, 4)
    (grad,) = torch.autograd.grad(component_ffn(*inputs).square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        grad.sum().backward()


# --- What is refused


def _options(**changes: Any) -> dict[str, Any]:
    x, w1, b1, w2, b2 = (tensor.detach() for tensor in make(3, 4, 2, 5, 6))
    return {"x": x, "w1": w1, "b1": b1, "w2": w2, "b2": b2, "components": 2, **changes}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(3, 4, dtype=torch.float64)}, "x must be float32, bfloat16 or float16, got float64"),
        ({"x": torch.tensor(1.0)}, r"x must be \[\.\.\., d\], got a scalar"),
        ({"x": torch.zeros(3, 5)}, r"w1 must be \[10, 5\], got \[10, 4\]"),
        ({"w1": torch.zeros(10)}, r"w1 must be \[F, d\]"),
        ({"w1": torch.zeros(10, 4).bfloat16()}, "w1 must have x's dtype float32, got bfloat16"),
        ({"b1": torch.zeros(9)}, r"b1 must be \[10\], got \[9\]"),
        ({"w2": torch.zeros(6, 9)}, r"w2 must be \[6, 10\], got \[6, 9\]"),
        ({"b2": torch.zeros(1, 6)}, r"b2 must be \[6\], got \[1, 6\]"),
        ({"components": 3}, "components must divide the 10 hidden units, got 3"),
        ({"components": 0}, "components must divide the 10 hidden units, got 0"),
        ({"live": torch.tensor([0])}, r"live must be int32 \[n\], got int64 \[1\]"),
        ({"live": [0]}, r"live must be int32 \[n\], got a list"),
        ({"activation": "tanh"}, "activation must be one of silu, relu, gelu, got 'tanh'"),
        ({"p": 0.1, "seed": 0}, r"seed must be int64 \[1\] when p > 0, got a int"),
        ({"p": 1.0}, r"p must be in \[0, 1\), got 1.0"),
        ({"p": math.nan}, r"p must be in \[0, 1\), got nan"),
        ({"p": 0.1}, r"seed must be int64 \[1\] when p > 0, got None"),
        ({"p": 0.1, "seed": torch.tensor(1)}, r"seed must be int64 \[1\] when p > 0, got int64 \[\]"),
        ({"w1": torch.zeros(10, 4, device="meta")}, "w1 must be on x's device cpu, got meta"),
    ],
)
def test_wrong_arguments(backend: str, changes: dict[str, Any], message: str) -> None:
    with dmao_kernels.use_backend(backend), pytest.raises(ValueError, match=f"component_ffn: {message}"):
        component_ffn(**_options(**changes))


@native
@pytest.mark.parametrize("live", [(3,), (-1,), (1, 1), (1, 0), (2, 1)])
def test_wrong_live_lists(live: tuple[int, ...]) -> None:
    with pytest.raises(RuntimeError, match="component_ffn: live"):
        component_ffn(**_options(live=ids(*live)))


@native
def test_backward_without_kept_pre_activations_is_an_error() -> None:
    inputs = make(3, 4, 2, 5, 6)
    y, _ = torch.ops.dmao.component_ffn(*inputs, None, 2, 0.0, None, "silu", False)
    with pytest.raises(RuntimeError, match="keep=True"):
        y.sum().backward()
