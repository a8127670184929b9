"""ConvolutionModule against plain PyTorch; padding never leaks."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dmao_kernels.nn import ConvolutionModule


def mirror(module: ConvolutionModule, x: torch.Tensor) -> torch.Tensor:
    """The published module: pointwise convolutions as 1x1 convolutions over [B, C, T]."""
    first, second = module.pointwise1, module.pointwise2
    y = module.norm(x).transpose(1, 2)
    y = F.conv1d(y, first.weight.unsqueeze(2), first.bias)
    value, gate = y.chunk(2, dim=1)
    y = module.depthwise(value * torch.sigmoid(gate)).transpose(1, 2)
    norm = module.depthwise_norm
    y = F.silu(F.layer_norm(y, y.shape[-1:], norm.weight, norm.bias)).transpose(1, 2)
    return F.conv1d(y, second.weight.unsqueeze(2), second.bias).transpose(1, 2)


def test_matches_the_published_module_with_gradients() -> None:
    torch.manual_seed(0)
    module = ConvolutionModule(12, kernel=5, dropout=0.0, components=3)
    x = torch.randn(2, 9, 12, requires_grad=True)
    inputs = (x, *module.parameters())
    y, expected = module(x), mirror(module, x)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    upstream = torch.randn_like(y)
    for got, wanted in zip(
        torch.autograd.grad(y, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_padding_never_leaks() -> None:
    torch.manual_seed(0)
    module = ConvolutionModule(8, kernel=7).eval()
    x = torch.randn(2, 10, 8)
    x[1, 6:] = float("nan")
    mask = torch.arange(10) < torch.tensor([[10], [6]])
    y = module(x, mask)
    torch.testing.assert_close(y[1:, :6], module(x[1:, :6]))
    torch.testing.assert_close(y[:1], module(x[:1]))


def test_dropout_on_the_output() -> None:
    torch.manual_seed(0)
    module = ConvolutionModule(64, kernel=3, dropout=0.5)
    share = (module(torch.randn(2, 50, 64)) == 0).float().mean()
    assert 0.4 < share < 0.6


def test_empty_gives_zeros() -> None:
    module, x = ConvolutionModule(8), torch.randn(2, 3, 8)
    module.components = 0
    assert module.empty
    assert torch.equal(module(x), torch.zeros(2, 3, 8))


def test_parameters_are_ordinary() -> None:
    module = ConvolutionModule(8, kernel=3)
    assert isinstance(module.depthwise, nn.Conv1d)
    assert module.depthwise.weight.shape == (8, 1, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"d": 8, "kernel": 4}, "kernel must be odd, got 4"),
        ({"d": 10}, "d must be a multiple of components, got d=10, components=4"),
        ({"d": 8, "dropout": -0.1}, "dropout must be in"),
    ],
)
def test_errors(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"ConvolutionModule: {message}"):
        ConvolutionModule(**arguments)
