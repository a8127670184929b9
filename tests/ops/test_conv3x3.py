"""conv3x3 against F.conv2d and max_pool2d in float64: values, gradients, poison, determinism, errors."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dmao_kernels import conv3x3, use_backend
from dmao_kernels.testing import Poison, assert_close_to_oracle, nan_filled_empty, outputs_and_gradients, to_float64
from tests.ops.common import BACKENDS, assert_threads_do_not_change_a_bit

SHAPES = (
    # images, height, width, in, out
    (1, 9, 8, 3, 5),
    (2, 1, 1, 1, 1),
    (1, 17, 5, 1, 33),
    (2, 37, 80, 1, 8),
    (2, 8, 80, 16, 17),
    (1, 40, 7, 33, 16),
    (3, 2, 1, 2, 2),
    (1, 160, 3, 4, 8),
    (1, 30, 45, 32, 64),
)
POOLINGS = ((2, 1), (2, 2), (3, 2), (1, 1), (1, 3), (17, 15))


def make(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, bias: bool = True) -> list[torch.Tensor | None]:
    images, height, width, channels, out = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(images, height, width, channels, generator=generator).to(dtype).requires_grad_()
    weight = (torch.randn(out, channels, 3, 3, generator=generator) / channels**0.5).to(dtype).requires_grad_()
    return [x, weight, torch.randn(out, generator=generator).to(dtype).requires_grad_() if bias else None]


def plain(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1).permute(0, 2, 3, 1)


def whole_numbers(*tensors: torch.Tensor) -> None:
    """Small ones, of which all sums are exact: of equal pixels every implementation chooses the first."""
    with torch.no_grad():
        for tensor in tensors:
            tensor.copy_((2 * tensor).round().clamp(-4, 4))


def some_rows(images: int, rows: int) -> torch.Tensor:
    return torch.rand(images, rows, generator=torch.Generator().manual_seed(1)) < 0.7


def pooled(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *, valid: torch.Tensor, pooling: tuple[int, int]
) -> torch.Tensor:
    y = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1)
    return F.relu(F.max_pool2d(y, pooling)).permute(0, 2, 3, 1) * valid[:, :, None, None]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_float64(shape: tuple[int, ...], dtype: torch.dtype, bias: bool) -> None:
    inputs = make(shape, dtype, bias)
    upstream = torch.randn(*shape[:3], shape[4]).to(dtype)
    with nan_filled_empty():
        ours, our_grads = outputs_and_gradients(conv3x3, *inputs, grad_output=upstream)
    torchs, torch_grads = outputs_and_gradients(plain, *inputs, grad_output=upstream)
    truth, true_grads = outputs_and_gradients(plain, *to_float64(inputs), grad_output=upstream)
    assert_close_to_oracle(ours, torchs, truth, slack=2)
    for key in true_grads:
        assert_close_to_oracle(our_grads[key], torch_grads[key], true_grads[key], slack=4, name=f"gradient {key}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pooling", POOLINGS, ids=str)
@pytest.mark.parametrize("shape", [(2, 41, 31, 3, 5), (1, 17, 80, 1, 33), (1, 20, 16, 16, 32)], ids=str)
def test_pooling_exactly(shape: tuple[int, ...], pooling: tuple[int, int], dtype: torch.dtype) -> None:
    inputs = make(shape, dtype)
    valid = some_rows(shape[0], shape[1] // pooling[0])
    upstream = torch.randn(*valid.shape, shape[2] // pooling[1], shape[4]).to(dtype)
    whole_numbers(*inputs, upstream)
    with nan_filled_empty():
        ours, our_grads = outputs_and_gradients(conv3x3, *inputs, grad_output=upstream, valid=valid, pooling=pooling)
    truth, true_grads = outputs_and_gradients(
        pooled, *to_float64(inputs), grad_output=upstream, valid=valid, pooling=pooling
    )
    assert torch.equal(ours, truth.to(dtype))
    for key, grad in true_grads.items():
        assert torch.equal(our_grads[key], grad.to(dtype)), f"gradient {key}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_are_not_valid(dtype: torch.dtype) -> None:
    inputs = make((2, 21, 6, 5, 9), dtype)
    valid = some_rows(2, 21)
    y, grads = outputs_and_gradients(
        conv3x3, *inputs, valid=valid, grad_output=torch.full((2, 21, 6, 9), torch.nan).to(dtype)
        .masked_fill(valid[:, :, None, None], 1.0)
    )  # fmt: skip
    whole, expected = outputs_and_gradients(
        conv3x3, *inputs, grad_output=valid[:, :, None, None].expand(2, 21, 6, 9).to(dtype)
    )
    assert torch.equal(y, whole.masked_fill(~valid[:, :, None, None], 0.0))
    for key, grad in expected.items():
        assert torch.equal(grads[key], grad)


def test_nan_is_pooled_as_in_pytorch() -> None:
    x, weight, bias = make((1, 8, 8, 1, 1))
    with torch.no_grad():
        x[0, 3, 3] = torch.nan
    y = conv3x3(x, weight, bias, pooling=(2, 1))
    expected = F.relu(F.max_pool2d(conv3x3(x, weight, bias).permute(0, 3, 1, 2), (2, 1))).permute(0, 2, 3, 1)
    assert 0 < y.isnan().sum() < y.numel()
    torch.testing.assert_close(y, expected, rtol=0.0, atol=0.0, equal_nan=True)


@pytest.mark.parametrize("pooling", [None, (2, 2)])
def test_nothing_around_the_tensors_is_read_or_written(pooling: tuple[int, int] | None) -> None:
    poison = Poison()
    x, weight, bias = (poison.around(t) for t in make((1, 11, 7, 3, 9)))
    y = conv3x3(x, weight, bias, pooling=pooling, valid=torch.ones(1, 5 if pooling else 11, dtype=torch.bool))
    grads = torch.autograd.grad(y.sum(), (x, weight, bias))
    assert all(t.isfinite().all() for t in (y, *grads))
    poison.check()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sizes", [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_empty_images(sizes: tuple[int, ...], backend: str) -> None:
    _, weight, bias = make((1, 1, 1, 3, 5))
    x = torch.zeros(*sizes, 3, requires_grad=True)
    with use_backend(backend):
        y = conv3x3(x, weight, bias)
        assert y.shape == (*sizes, 5)
        grads = torch.autograd.grad(y.sum(), (x, weight, bias))
    assert not any(grad.any() for grad in grads)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pooling", [None, (2, 1)])
def test_no_channels(pooling: tuple[int, int] | None, backend: str) -> None:
    x, weight, bias = make((2, 4, 3, 2, 5))
    rows = 4 if pooling is None else 2
    with use_backend(backend):
        alone = conv3x3(x[..., :0], weight[:, :0], bias, pooling=pooling)
        assert conv3x3(x, weight[:0], bias[:0], pooling=pooling).shape == (2, rows, 3, 0)
    assert torch.equal(alone, (bias if pooling is None else bias.relu()).expand(2, rows, 3, 5))


@pytest.mark.parametrize("sizes", [(0, 6, 6), (2, 0, 6), (2, 6, 0), (2, 3, 6), (2, 6, 3)])
def test_images_without_a_whole_window(sizes: tuple[int, ...]) -> None:
    _, weight, bias = make((1, 1, 1, 3, 5))
    x = torch.randn(*sizes, 3, requires_grad=True)
    y = conv3x3(x, weight, bias, pooling=(4, 4))
    assert y.shape == (sizes[0], sizes[1] // 4, sizes[2] // 4, 5)
    with use_backend("reference"):
        assert y.shape == conv3x3(x, weight, bias, pooling=(4, 4)).shape
    grads = torch.autograd.grad(y.sum(), (x, weight, bias))
    assert not any(grad.any() for grad in grads)


def test_strided_input() -> None:
    x, weight, bias = make((2, 9, 8, 6, 5))
    view = x.detach().permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert torch.equal(conv3x3(view, weight, bias), conv3x3(x, weight, bias))


def test_images_do_not_meet() -> None:
    x, weight, bias = make((3, 10, 4, 2, 3))
    together = conv3x3(x, weight, bias)
    for i in range(3):
        assert torch.equal(together[i : i + 1], conv3x3(x[i : i + 1], weight, bias))


@pytest.mark.parametrize("pooling", [None, (2, 1)])
def test_same_bits_for_any_number_of_threads(pooling: tuple[int, int] | None) -> None:
    inputs = make((2, 61, 9, 5, 18))
    upstream = torch.randn(2, 30 if pooling else 61, 9, 18)

    def compute() -> list[Tensor]:
        y, grads = outputs_and_gradients(conv3x3, *inputs, grad_output=upstream, pooling=pooling)
        return [y, *grads.values()]

    assert_threads_do_not_change_a_bit(compute)


def test_only_wanted_gradients() -> None:
    x, weight, bias = make((1, 5, 4, 2, 3))
    y = conv3x3(x.detach(), weight, bias)
    assert all(grad is not None for grad in torch.autograd.grad(y.sum(), (weight, bias)))
    (grad,) = torch.autograd.grad(conv3x3(x, weight, bias).sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        grad.sum().backward()


@pytest.mark.parametrize("pooling", [None, (2, 1)])
def test_opcheck_and_compile(pooling: tuple[int, int] | None) -> None:
    x, weight, bias = make((1, 9, 4, 2, 3))
    valid = torch.ones(1, 4 if pooling else 9, dtype=torch.bool)
    taps = weight.detach().permute(2, 3, 1, 0).contiguous().requires_grad_()
    window = list(pooling or ())
    torch.library.opcheck(torch.ops.dmao.conv3x3.default, (x, taps, bias, valid, window))
    y, choice = torch.ops.dmao.conv3x3(x.detach(), taps.detach(), None, valid, window)
    mirrored = taps.detach().flip(0, 1).transpose(2, 3)
    arguments = (y, choice, mirrored, x.detach(), valid, window)
    torch.library.opcheck(torch.ops.dmao.conv3x3_backward_images.default, arguments)
    arguments = (y, choice, x.detach(), valid, window)
    torch.library.opcheck(torch.ops.dmao.conv3x3_backward_filters.default, arguments)
    compiled = torch.compile(conv3x3, fullgraph=True, backend="aot_eager")
    arguments = {"valid": valid, "pooling": pooling}
    results = [
        outputs_and_gradients(f, x, weight, bias, grad_output=torch.ones_like(y), **arguments)
        for f in (compiled, conv3x3)
    ]
    torch.testing.assert_close(*results, rtol=0.0, atol=0.0)


def test_autocast_and_reference_backend() -> None:
    x, weight, bias = make((1, 9, 4, 2, 3))
    with torch.autocast("cpu", torch.bfloat16):
        low = conv3x3(x, weight, bias)
    assert low.dtype == torch.bfloat16
    with use_backend("reference"):
        torch.testing.assert_close(conv3x3(x, weight, bias), conv3x3(x, weight, bias).detach())
        expected = conv3x3(x, weight, bias)
    torch.testing.assert_close(conv3x3(x, weight, bias), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("index", "wrong", "message"),
    [
        (0, torch.zeros(1, 4, 4, 2, dtype=torch.float64), "x must be float32 or bfloat16, got float64"),
        (0, torch.zeros(4, 4, 2), r"x must be \[B, H, W, C\], got \[4, 4, 2\]"),
        (1, torch.zeros(3, 5, 3, 3), r"weight must be \[O, 2, 3, 3\], got \[3, 5, 3, 3\]"),
        (2, torch.zeros(4), r"bias must be \[3\], got \[4\]"),
        (2, torch.zeros(3).bfloat16(), "bias must have x's dtype and device, float32 on cpu, got bfloat16"),
    ],
)
def test_errors(index: int, wrong: torch.Tensor, message: str) -> None:
    inputs = make((1, 4, 4, 2, 3))
    inputs[index] = wrong
    with pytest.raises(ValueError, match=f"conv3x3: {message}"):
        conv3x3(*inputs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pooling": (0, 1)}, r"pooling must be two positive sizes .* 255 pixels, got \(0, 1\)"),
        ({"pooling": (16, 16)}, r"pooling must be two positive sizes .* 255 pixels, got \(16, 16\)"),
        ({"pooling": 2}, r"pooling must be two positive sizes .* 255 pixels, got 2"),
        ({"valid": torch.ones(1, 9)}, r"valid must be bool \[1, 9\] on cpu, got float32 \[1, 9\]"),
        ({"valid": torch.ones(1, 9).bool(), "pooling": (2, 1)}, r"valid must be bool \[1, 4\] .* got bool \[1, 9\]"),
    ],
)
def test_errors_about_the_output(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"conv3x3: {message}"):
        conv3x3(*make((1, 9, 4, 2, 3)), **arguments)
