"""masked_linear: against float64, masks, strides, determinism, autograd, compilation; and BlockMask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import dmao_kernels
from dmao_kernels import BlockMask, masked_linear
from dmao_kernels.ops.masked_linear import LINEAR_ACTIVATIONS
from dmao_kernels.ops.masked_linear.reference import masked_linear_reference
from dmao_kernels.testing import (
    outputs_and_gradients,
)
from tests.ops.common import (
    BACKENDS,
    DTYPES,
    CountedGraphs,
    assert_compiled_training_is_the_same,
    assert_threads_do_not_change_a_bit,
    check_against_oracle,
    native,
)

# (tokens, d, d_out): both sides of vectors (4, 8, 16), row blocks (6, 8), panels (8, 16, 48), blocks of masks,
# few tokens (16), tiles (128), spans (256), inputs of a piece (384), blocks of tokens (512).
SIZES = [
    (0, 5, 4),
    (1, 1, 2),
    (2, 3, 8),
    (7, 8, 10),
    (9, 16, 14),
    (17, 17, 30),
    (33, 47, 50),
    (65, 64, 48),
    (127, 48, 96),
    (129, 65, 98),
    (130, 300, 144),
    (257, 193, 190),
    (40, 24, 514),
    (300, 2, 300),
    (3, 600, 2),
    (500, 96, 96),
    (16, 200, 70),
    (40, 900, 96),
    (1100, 40, 50),
    (6, 0, 4),
    (6, 5, 0),
]


def make(tokens: int, d: int, d_out: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """x, w, b with outputs of order one."""
    shapes = ((tokens, d), (d_out, d), (d_out,))
    scales = (1.0, max(d, 1) ** -0.5, 0.5)
    return [
        torch.randn(shape).mul(scale).to(dtype).requires_grad_() for shape, scale in zip(shapes, scales, strict=True)
    ]


def random_mask(w: Tensor, block: int, density: float = 0.5) -> BlockMask:
    full = BlockMask.full(w, block)
    return BlockMask.from_dense(torch.rand(full.rows, full.columns) < density, block)


def check(inputs: list[Any], mask: BlockMask | None = None, activation: str = "none", slack: float = 1.0) -> None:
    """Dead blocks hold NaN, and have no gradient."""
    dead = None if mask is None else ~mask.elements(*inputs[1].shape)

    def poison(guarded: list[Any]) -> None:
        if dead is not None:
            guarded[1][dead] = torch.nan

    _, grads = check_against_oracle(
        masked_linear, masked_linear_reference, inputs, mask, prepare=poison, activation=activation, slack=slack
    )
    assert dead is None or not grads[1][dead].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_odd_sizes(size: tuple[int, int, int], dtype: torch.dtype) -> None:
    inputs = make(*size, dtype)
    slack = 2.0 if size == (3, 600, 2) else 1.0  # few results of long sums: PyTorch's may all be right by chance
    check(inputs, slack=slack)
    for block in (16, 48, 64):
        check(inputs, random_mask(inputs[1], block), "glu", slack)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", LINEAR_ACTIVATIONS)
@pytest.mark.parametrize("block", [0, 16, 32, 80, 128])
def test_activations_and_blocks(block: int, activation: str, dtype: torch.dtype) -> None:
    inputs = make(90, 200, 264, dtype)
    with torch.no_grad():
        inputs[0].mul_(4)  # reach the flat parts of the activation too
    check(inputs, random_mask(inputs[1], block) if block else None, activation)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("grid", ["empty", "full", "one", "row", "column"])
def test_extreme_masks(grid: str, dtype: torch.dtype) -> None:
    inputs = make(70, 150, 100, dtype)
    live = torch.zeros(4, 5, dtype=torch.bool)
    if grid == "full":
        live[:] = True
    elif grid == "one":
        live[3, 4] = True  # the partial block at the corner
    elif grid == "row":
        live[1] = True
    elif grid == "column":
        live[:, 2] = True
    for activation in ("none", "silu"):
        for static in (False, True):
            check(inputs, BlockMask.from_dense(live, 32, static=static), activation)


@pytest.mark.parametrize("backend", BACKENDS)
def test_is_the_dense_layer(backend: str) -> None:
    x, w, b = make(20, 12, 8)
    with dmao_kernels.use_backend(backend):
        torch.testing.assert_close(masked_linear(x, w, b), F.linear(x, w, b))
        torch.testing.assert_close(masked_linear(x, w), F.linear(x, w))
        torch.testing.assert_close(masked_linear(x, w, b, activation="glu"), F.glu(F.linear(x, w, b)))


@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_absent_bias(activation: str) -> None:
    x, w, _ = make(35, 11, 26)
    check([x, w, None], random_mask(w, 16), activation)
    check([x, w, None], None, activation)


@pytest.mark.parametrize("dtype", DTYPES)
def test_full_mask_is_no_mask(dtype: torch.dtype) -> None:
    """Up to the order of sums; and a mask of whole rows and columns is the shrunk layer."""
    x, w, b = make(150, 96, 128, dtype)
    torch.testing.assert_close(masked_linear(x, w, b, BlockMask.full(w, 32)), masked_linear(x, w, b))
    grid = torch.zeros(4, 3, dtype=torch.bool)
    grid[1:3, :2] = True
    y = masked_linear(x, w, b, BlockMask.from_dense(grid, 32))
    small = masked_linear(x[:, :64].contiguous(), w[32:96, :64].contiguous(), b[32:96])
    torch.testing.assert_close(y[:, 32:96], small)
    assert torch.equal(y[:, :32], b[:32].expand(150, 32))


def test_leading_dimensions_and_strides() -> None:
    x, w, b = make(24, 10, 16)
    mask = random_mask(w, 16, 1.0)
    flat = masked_linear(x, w, b, mask)
    assert torch.equal(masked_linear(x.view(2, 3, 4, 10), w, b, mask).flatten(0, 2), flat)
    torch.testing.assert_close(masked_linear(x[0], w, b, mask), flat[0])
    wide = torch.randn(24, 30)
    wide[:, 7:17] = x.detach()
    odd = [tensor.detach().repeat_interleave(2, -1)[..., ::2].requires_grad_() for tensor in (x, w, b)]
    for other in (wide[:, 7:17], odd[0], x.detach().t().contiguous().t(), wide.view(4, 6, 30)[..., 7:17]):
        assert not other.is_contiguous()
        grad = torch.randn(16, 24).t()
        arguments = (other.requires_grad_(), odd[1], odd[2], mask)
        y, grads = outputs_and_gradients(masked_linear, *arguments, grad_output=grad.reshape(*other.shape[:-1], 16))
        _, expected = outputs_and_gradients(masked_linear, x, w, b, mask, grad_output=grad.contiguous())
        torch.testing.assert_close(y.view_as(flat), flat)
        for key in expected:
            torch.testing.assert_close(grads[key].view_as(expected[key]), expected[key])


def copies(call: Callable[[], object]) -> int:
    """How many copies of tensors a call makes."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call()
    return sum(event.count for event in profile.key_averages() if event.key in ("aten::copy_", "aten::clone"))


@native
@pytest.mark.parametrize("tokens", [5, 40])
@pytest.mark.parametrize("dtype", DTYPES)
def test_slices_of_columns_are_read_in_place(dtype: torch.dtype, tokens: int) -> None:
    """Of x, w and the gradient of y; what lies beside them is NaN."""
    x, w, _ = (tensor.detach() for tensor in make(tokens, 50, 70, dtype))
    mask = random_mask(w, 16)
    inside = [
        torch.full((tensor.shape[0], 90), torch.nan, dtype=dtype)[:, 7 : 7 + tensor.shape[1]] for tensor in (x, w)
    ]
    for wide, tensor in zip(inside, (x, w), strict=True):
        wide.copy_(tensor)
    grad = torch.full((tokens, 90), torch.nan, dtype=dtype)[:, 9:79].copy_(torch.randn(tokens, 70))
    results = {}

    def call(x: Tensor, w: Tensor, grad: Tensor) -> None:
        blocks = (mask.row_offsets, mask.column_ids, mask.column_offsets, mask.row_ids, mask.block)
        y, kept = torch.ops.dmao.masked_linear(x, w, None, *blocks, "silu", True)
        arguments = (kept, "silu", True, True, True)
        results[x.is_contiguous()] = [y, *torch.ops.dmao.masked_linear_backward(grad, x, w, *blocks, *arguments)]

    assert copies(lambda: call(*inside, grad)) == 0
    call(x, w, grad.contiguous())
    assert all(torch.equal(a, b) for a, b in zip(results[False], results[True], strict=True))
    assert copies(lambda: call(x.t().contiguous().t(), w, grad)) > 0


@native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [3, 50])
def test_alignment_does_not_matter(tokens: int, dtype: torch.dtype) -> None:
    inputs = [tensor.detach() for tensor in make(tokens, 40, 48, dtype)]
    mask = random_mask(inputs[1], 16)
    grad = torch.randn(tokens, 24).to(dtype)

    def shifted(tensor: Tensor) -> Tensor:
        return torch.empty(tensor.numel() + 1, dtype=dtype)[1:].view(tensor.shape).copy_(tensor)

    results = []
    for change in (torch.clone, shifted):
        arguments = [change(tensor).requires_grad_() for tensor in inputs]
        y, grads = outputs_and_gradients(masked_linear, *arguments, mask, activation="glu", grad_output=change(grad))
        results.append([y, *grads.values()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (0, 1), (1, 2)])
@pytest.mark.parametrize("activation", ["none", "silu"])
def test_only_the_gradients_that_are_needed(activation: str, needed: tuple[int, ...]) -> None:
    inputs = make(33, 40, 50)
    _, expected = outputs_and_gradients(masked_linear, *inputs, activation=activation)
    some = [tensor.detach().requires_grad_(i in needed) for i, tensor in enumerate(inputs)]
    _, grads = outputs_and_gradients(masked_linear, *some, activation=activation)
    assert tuple(grads) == needed
    assert all(torch.equal(grads[key], expected[key]) for key in needed)


def test_nan_and_infinity_go_where_pytorch_puts_them() -> None:
    x, w, b = make(20, 40, 16)
    with torch.no_grad():
        x[3, 1], x[11, 0] = torch.nan, torch.inf
    for activation in LINEAR_ACTIVATIONS:
        ours = masked_linear(x, w, b, activation=activation)
        expected = masked_linear_reference(x, w, b, activation=activation)
        if activation == "gelu":  # PyTorch's of infinity is NaN on some machines
            linear = masked_linear_reference(x, w, b)
            expected = linear * torch.special.ndtr(linear)
        assert torch.equal(ours.isnan(), expected.isnan())
        assert not ours[:3].isnan().any()
    grads = [
        outputs_and_gradients(f, x, w, b, activation="relu")[1][0] for f in (masked_linear, masked_linear_reference)
    ]
    torch.testing.assert_close(*grads)  # the slope of relu is 1 at NaN
    assert grads[0][3].isfinite().all()


# --- Threads and instruction sets


_RUN = """
import torch
from tests.ops.test_masked_linear import check, make, random_mask

torch.manual_seed(0)
for dtype in (torch.float32, torch.bfloat16):
    for size in ((1, 1, 2), (33, 47, 50), (129, 65, 98), (150, 300, 140)):
        inputs = make(*size, dtype)
        check(inputs)
        check(inputs, random_mask(inputs[1], 16), "glu")
        check(inputs, random_mask(inputs[1], 64), "gelu")
"""


@native
def test_every_instruction_set(run_on_capability: Callable[[str], None]) -> None:
    run_on_capability(_RUN)


@native
@pytest.mark.parametrize("block", [0, 32])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_number_of_threads_does_not_change_a_bit(dtype: torch.dtype, block: int) -> None:
    inputs = make(700, 200, 164, dtype)
    mask = random_mask(inputs[1], block) if block else None
    grad = torch.randn(700, 164).to(dtype)

    def compute() -> list[Tensor]:
        y, grads = outputs_and_gradients(masked_linear, *inputs, mask, activation="silu", grad_output=grad)
        return [y, *grads.values()]

    assert_threads_do_not_change_a_bit(compute)


# --- PyTorch's machinery


@pytest.mark.parametrize("backend", BACKENDS)
def test_compile_without_recompiling_for_new_lengths_or_masks(backend: str) -> None:
    def call(x: Tensor, w: Tensor, b: Tensor, mask: BlockMask) -> Tensor:
        return masked_linear(x, w, b, mask, activation="silu").sin()

    graphs = CountedGraphs()
    compiled = torch.compile(call, fullgraph=True, backend=graphs)
    x, w, b = make(40, 70, 90)
    with dmao_kernels.use_backend(backend):
        for tokens, density in ((40, 0.3), (23, 0.5), (31, 0.7), (17, 0.8), (9, 0.4)):
            mask = random_mask(w, 16, density)
            torch.testing.assert_close(compiled(x[:tokens], w, b, mask), call(x[:tokens], w, b, mask))
    assert graphs.count <= 2  # one for the first shape, one for any


def test_compiled_training_gives_the_same_gradients() -> None:
    inputs = make(30, 40, 50)
    mask = random_mask(inputs[1], 16)

    def call(*arguments: Tensor) -> Tensor:
        return masked_linear(*arguments, mask, activation="glu")

    assert_compiled_training_is_the_same(call, *inputs, grad_output=torch.randn(30, 25))


@native
@pytest.mark.parametrize("block", [0, 16])
def test_opcheck(block: int) -> None:
    x, w, b = make(20, 40, 50)
    mask = random_mask(w, 16)
    blocks = (mask.row_offsets, mask.column_ids, mask.column_offsets, mask.row_ids, 16) if block else (None,) * 4 + (0,)
    torch.library.opcheck(torch.ops.dmao.masked_linear, (x, w, b, *blocks, "silu", True))
    kept = torch.randn(20, 50)
    arguments = (torch.randn(20, 50), x.detach(), w.detach(), *blocks, kept, "silu", True, False, True)
    torch.library.opcheck(torch.ops.dmao.masked_linear_backward, arguments)


@native
def test_double_backward_is_refused() -> None:
    x, w, b = make(5, 4, 6)
    (grad,) = torch.autograd.grad(masked_linear(x, w, b).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        grad.sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_casts_like_linear(backend: str) -> None:
    inputs = make(30, 8, 8)
    with dmao_kernels.use_backend(backend):
        with torch.autocast("cpu", torch.bfloat16):
            y = masked_linear(*inputs)
        assert y.dtype == torch.bfloat16
        grads = torch.autograd.grad(y.float().square().sum(), inputs)
        assert all(gradient.dtype == torch.float32 for gradient in grads)
        low = [tensor.detach().bfloat16().requires_grad_() for tensor in inputs]
        assert torch.equal(y, masked_linear(*low))


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64])
def test_autocast_casts_nothing_that_is_refused(dtype: torch.dtype) -> None:
    x, w, b = (tensor.detach() for tensor in make(30, 8, 8))
    with torch.autocast("cpu", torch.bfloat16):
        assert F.linear(x.double(), w.double()).dtype == torch.float64
        with pytest.raises(ValueError, match="masked_linear: x must be float32, bfloat16 or float16, got"):
            masked_linear(x.to(dtype), w, b)


# --- What is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 32, dtype=torch.float64)}, "x must be float32, bfloat16 or float16, got float64"),
        ({"x": torch.tensor(1.0)}, r"x must be \[..., d\], got a scalar"),
        ({"w": torch.zeros(3)}, r"w must be \[d_out, d\], got \[3\]"),
        ({"w": torch.zeros(64, 31)}, r"w must be \[64, 32\], got \[64, 31\]"),
        ({"b": torch.zeros(63)}, r"b must be \[64\], got \[63\]"),
        ({"b": torch.zeros(64).bfloat16()}, "b must have x's dtype float32, got bfloat16"),
        ({"activation": "tanh"}, "activation must be one of none, silu, relu, gelu, glu, got 'tanh'"),
        ({"w": torch.zeros(63, 32), "b": None, "activation": "glu"}, "glu needs an even number of rows of w, got 63"),
        ({"mask": BlockMask.full(torch.zeros(64, 33), 16)}, r"\[4, 2\] blocks of 16 over w \[64, 32\], got \[4, 3\]"),
        ({"w": torch.zeros(64, 32, device="meta")}, "w must be on x's device cpu, got meta"),
        ({"mask": BlockMask.full(torch.zeros(64, 32), 16).to("meta")}, "mask must be on x's device cpu, got meta"),
    ],
)
def test_refuses(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"x": torch.zeros(2, 32), "w": torch.zeros(64, 32), "b": torch.zeros(64), "mask": None}
    with pytest.raises(ValueError, match=message):
        masked_linear(**(arguments | change))


def test_a_dense_mask_is_refused() -> None:
    x, w, dense = torch.zeros(2, 32), torch.zeros(64, 32), torch.ones(64, 32, dtype=torch.bool)
    with pytest.raises(TypeError, match=r"masked_linear: mask must be a BlockMask \(.*\), got a Tensor"):
        masked_linear(x, w, mask=dense)


@native
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"column_ids": [0, 3, 0]}, r"column_ids\[1\] must be in \[0, 3\), got 3"),
        ({"column_ids": [0, -1, 0]}, r"column_ids\[1\] must be in \[0, 3\), got -1"),
        ({"column_ids": [2, 1, 0]}, r"column_ids must ascend within a line, but column_ids\[1\] = 1 follows 2"),
        ({"row_ids": [0, 4, 0]}, r"row_ids\[1\] must be in \[0, 4\), got 4"),
        ({"row_offsets": [0, 2, 1, 3, 3]}, "row_offsets must not decrease"),
        ({"row_offsets": [0, 2, 9, 3, 3]}, "row_offsets must not decrease"),
        ({"row_offsets": [0, 2, 3, 3, 4]}, "row_offsets must begin with 0 and end within the 3 ids, got 0 and 4"),
        ({"column_offsets": [1, 2, 3, 3]}, "column_offsets must begin with 0 and end within the 3 ids, got 1 and 3"),
    ],
)
def test_refuses_what_would_read_out_of_bounds(change: dict[str, list[int]], message: str) -> None:
    tensors = {
        "row_offsets": [0, 2, 3, 3, 3],
        "column_ids": [0, 1, 0],
        "column_offsets": [0, 2, 3, 3],
        "row_ids": [0, 1, 0],
    }
    mask = BlockMask(
        16, 4, 3, **{name: torch.tensor(ids, dtype=torch.int32) for name, ids in (tensors | change).items()}
    )
    with pytest.raises(RuntimeError, match=message):
        masked_linear(torch.zeros(2, 48), torch.zeros(64, 48), None, mask)
