"""ComponentLayerNorm: LayerNorm with equal weights, invariant to copies, stable, and never out of date."""

import copy

import pytest
import torch
import torch.nn.functional as F

from dmao_kernels.nn import ComponentLayerNorm
from dmao_kernels.nn.norm import layer_norm


def make(channels: int = 12, components: int = 3, dtype: torch.dtype = torch.float64) -> ComponentLayerNorm:
    torch.manual_seed(0)
    norm = ComponentLayerNorm(channels, components).to(dtype)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    return norm


def set_weights(norm: ComponentLayerNorm, *weights: float) -> None:
    """What an edit does: the buffer becomes another tensor."""
    norm._buffers["statistics_weight"] = torch.tensor(weights, dtype=norm.statistics_weight.dtype)


def oracle(norm: ComponentLayerNorm, x: torch.Tensor) -> torch.Tensor:
    """The docstring's formula in fp64, summed channel by channel."""
    weights = norm.statistics_weight.double()
    width = norm.weight.numel() // weights.numel()
    share = torch.stack([weights[c // width] / (weights.sum() * width) for c in range(norm.weight.numel())])
    x = x.double()
    mean = torch.einsum("...c,c->...", x, share).unsqueeze(-1)
    variance = torch.einsum("...c,c->...", (x - mean) ** 2, share).unsqueeze(-1)
    return (x - mean) / (variance + norm.eps).sqrt() * norm.weight.double() + norm.bias.double()


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_equal_weights_are_layer_norm(weight: float) -> None:
    norm, x = make(), torch.randn(2, 5, 12, dtype=torch.float64)
    set_weights(norm, weight, weight, weight)
    assert torch.equal(norm(x), F.layer_norm(x, (12,), norm.weight, norm.bias, norm.eps))


@pytest.mark.parametrize("weights", [(1.0, 0.5, 0.5), (2.0, 0.0, 1.0), (1.0, 1e-3, 7.0)])
def test_weighted_statistics(weights: tuple[float, ...]) -> None:
    norm, x = make(), torch.randn(2, 5, 12, dtype=torch.float64)
    set_weights(norm, *weights)
    torch.testing.assert_close(norm(x), oracle(norm, x), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(norm(x), F.layer_norm(x, (12,), norm.weight, norm.bias, norm.eps), atol=1e-2)


def test_gradients() -> None:
    norm, x = make(6, 3), torch.randn(2, 2, 6, dtype=torch.float64, requires_grad=True)
    set_weights(norm, 1.0, 0.5, 0.25)

    def call(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(norm, {"weight": weight, "bias": bias}, x)

    assert torch.autograd.gradcheck(call, (x, norm.weight, norm.bias))


def test_copy_with_half_the_weight_changes_nothing() -> None:
    norm, x = make(), torch.randn(7, 12, dtype=torch.float64)
    before = norm(x)
    channels = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7, 8, 9, 10, 11])
    grown = make(16, 4)
    grown.weight.data, grown.bias.data = norm.weight.data[channels], norm.bias.data[channels]
    set_weights(grown, 1.0, 0.5, 0.5, 1.0)
    torch.testing.assert_close(grown(x[:, channels]), before[:, channels], rtol=1e-13, atol=1e-13)
    set_weights(grown, 1.0, 1.0, 1.0, 1.0)
    assert not torch.allclose(grown(x[:, channels]), before[:, channels], atol=1e-3)


def test_stable_far_from_zero() -> None:
    norm = make(12, 3, torch.float32)
    set_weights(norm, 1.0, 0.5, 0.5)
    x = torch.randn(64, 12) + 1e3
    ours = (norm(x).double() - oracle(norm, x)).abs().max()
    set_weights(norm, 1.0, 1.0, 1.0)
    peer = (norm(x).double() - oracle(norm, x)).abs().max()
    assert ours <= 2 * peer + 1e-5


def test_low_precision_input_and_output() -> None:
    norm = make(12, 3, torch.float32)
    set_weights(norm, 1.0, 0.5, 0.5)
    x = torch.randn(64, 12).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x)
    assert y.dtype == torch.bfloat16
    # Statistics in fp32: the result is the exact one, rounded once.
    torch.testing.assert_close(y, oracle(norm, x).bfloat16(), rtol=2**-7, atol=1e-6)


def test_changed_weights_are_noticed() -> None:
    norm, x = make(), torch.randn(4, 12, dtype=torch.float64)
    for weights in ((1.0, 0.5, 0.5), (1.0, 1.0, 1.0), (0.0, 0.0, 3.0)):
        set_weights(norm, *weights)
        torch.testing.assert_close(norm(x), oracle(norm, x), rtol=1e-12, atol=1e-12)
    state = copy.deepcopy(norm.state_dict())
    fresh = make()
    fresh.load_state_dict(state)
    assert torch.equal(fresh(x), norm(x))
    assert torch.equal(copy.deepcopy(norm)(x), norm(x))
    norm.statistics_weight.fill_(1.0)
    norm.refresh_statistics()
    assert torch.equal(norm(x), F.layer_norm(x, (12,), norm.weight, norm.bias, norm.eps))


def test_compiles_before_and_after_an_edit() -> None:
    norm, x = make(), torch.randn(4, 12, dtype=torch.float64)
    compiled = torch.compile(norm, backend="aot_eager", fullgraph=True)
    for weights in ((1.0, 1.0, 1.0), (1.0, 0.5, 0.5)):
        set_weights(norm, *weights)
        torch.testing.assert_close(compiled(x), oracle(norm, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("weights", [(0.0, 0.0, 0.0), (1.0, -1.0, 1.0), (1.0, float("nan"), 1.0)])
def test_bad_weights(weights: tuple[float, ...]) -> None:
    norm = make()
    set_weights(norm, *weights)
    with pytest.raises(ValueError, match="ComponentLayerNorm: statistics_weight must"):
        norm(torch.randn(2, 12, dtype=torch.float64))


def test_bad_sizes() -> None:
    with pytest.raises(ValueError, match="channels must be a multiple of components, got channels=10"):
        ComponentLayerNorm(10, 3)
    with pytest.raises(ValueError, match="components must be at least 1, got 0"):
        ComponentLayerNorm(10, 0)


@pytest.mark.parametrize(
    "norm", [torch.nn.LayerNorm(24), ComponentLayerNorm(24, 3)], ids=lambda norm: type(norm).__name__
)
def test_gradients_in_bfloat16_are_summed_in_float32(norm: torch.nn.Module) -> None:
    torch.manual_seed(0)
    x = torch.randn(2000, 24).bfloat16()
    grad = (torch.randn(2000, 24) + 0.3).bfloat16()  # sums far above one term: what bfloat16 sums lose
    layer_norm(x, norm).backward(grad)
    normed = F.layer_norm(x.double(), (24,))
    for found, exact in ((norm.bias.grad, grad.double().sum(0)), (norm.weight.grad, (grad.double() * normed).sum(0))):
        assert (found - exact).norm() < 1e-4 * exact.norm()
