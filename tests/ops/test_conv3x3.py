"""conv3x3 against F.conv2d in float64: values, gradients, odd sizes, poison, determinism, errors."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dmao_kernels import conv3x3, use_backend
from dmao_kernels.testing import Poison, assert_close_to_oracle, nan_filled_empty, outputs_and_gradients, to_float64
from tests.ops.common import assert_threads_do_not_change_a_bit

SHAPES = (
    # images, height, width, in, out
    (1, 9, 8, 3, 5),
    (2, 1, 1, 1, 1),
    (1, 17, 5, 1, 33),
    (2, 8, 80, 16, 17),
    (1, 40, 7, 33, 16),
    (3, 2, 1, 2, 2),
    (1, 160, 3, 4, 8),
)


def make(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, bias: bool = True) -> list[torch.Tensor | None]:
    images, height, width, channels, out = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(images, height, width, channels, generator=generator).to(dtype).requires_grad_()
    weight = (torch.randn(out, channels, 3, 3, generator=generator) / channels**0.5).to(dtype).requires_grad_()
    return [x, weight, torch.randn(out, generator=generator).to(dtype).requires_grad_() if bias else None]


def plain(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=1).permute(0, 2, 3, 1)


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


def test_nothing_around_the_tensors_is_read_or_written() -> None:
    poison = Poison()
    x, weight, bias = (poison.around(t) for t in make((1, 11, 6, 3, 9)))
    y = conv3x3(x, weight, bias)
    grads = torch.autograd.grad(y.sum(), (x, weight, bias))
    assert all(t.isfinite().all() for t in (y, *grads))
    poison.check()


@pytest.mark.parametrize("sizes", [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_empty_images(sizes: tuple[int, ...]) -> None:
    _, weight, bias = make((1, 1, 1, 3, 5))
    x = torch.zeros(*sizes, 3, requires_grad=True)
    y = conv3x3(x, weight, bias)
    assert y.shape == (*sizes, 5)
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


def test_same_bits_for_any_number_of_threads() -> None:
    inputs = make((2, 61, 9, 5, 18))
    upstream = torch.randn(2, 61, 9, 18)

    def compute() -> list[Tensor]:
        y, grads = outputs_and_gradients(conv3x3, *inputs, grad_output=upstream)
        return [y, *grads.values()]

    assert_threads_do_not_change_a_bit(compute)


def test_only_wanted_gradients() -> None:
    x, weight, bias = make((1, 5, 4, 2, 3))
    y = conv3x3(x.detach(), weight, bias)
    assert all(grad is not None for grad in torch.autograd.grad(y.sum(), (weight, bias)))
    (grad,) = torch.autograd.grad(conv3x3(x, weight, bias).sum(), weight, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward is not supported"):
        grad.sum().backward()


def test_opcheck_and_compile() -> None:
    x, weight, bias = make((1, 9, 4, 2, 3))
    taps = weight.detach().permute(2, 3, 1, 0).contiguous().requires_grad_()
    torch.library.opcheck(torch.ops.dmao.conv3x3.default, (x, taps, bias))
    compiled = torch.compile(conv3x3, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, weight, bias), conv3x3(x, weight, bias))


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
