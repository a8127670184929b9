"""FeedForward against plain PyTorch, its dropout, and its empty state."""

import pytest
import torch
from torch import nn

from dmao_kernels.nn import FeedForward

ACTIVATIONS = {"silu": nn.SiLU, "relu": nn.ReLU, "gelu": nn.GELU}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(3, 7), (1, 1), (2, 0)])
def test_matches_plain_pytorch(activation: str, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    ours = FeedForward(10, 24, dropout=0.1, components=3, activation=activation).eval()
    plain = nn.Sequential(ours.norm, ours.w1, ACTIVATIONS[activation](), ours.w2)
    x = torch.randn(*shape, 10, requires_grad=True)
    inputs = (x, *ours.parameters())
    y, expected = ours(x), plain(x)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    upstream = torch.randn_like(y)
    actual_grads = torch.autograd.grad(y, inputs, upstream)
    expected_grads = torch.autograd.grad(expected, inputs, upstream)
    for actual, wanted in zip(actual_grads, expected_grads, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-5)


def test_dropout_follows_the_generator() -> None:
    torch.manual_seed(0)
    ffn, x = FeedForward(16, 64, dropout=0.3), torch.randn(4, 5, 16)
    torch.manual_seed(1)
    first, second = ffn(x), ffn(x)
    torch.manual_seed(1)
    again = ffn(x)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert 0.15 < (first == 0).float().mean() < 0.45
    ffn.eval()
    assert torch.equal(ffn(x), ffn(x))


def test_no_random_number_is_drawn_without_dropout() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 16)
    for ffn in (FeedForward(16, 64, dropout=0.0), FeedForward(16, 64, dropout=0.5).eval()):
        state = torch.get_rng_state()
        ffn(x)
        assert torch.equal(state, torch.get_rng_state())


def test_empty_gives_zeros() -> None:
    ffn, x = FeedForward(16, 64), torch.randn(2, 3, 16)
    ffn.components = 0
    assert ffn.empty
    assert torch.equal(ffn(x), torch.zeros(2, 3, 16))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"hidden": 10, "components": 4},
            "hidden must be a multiple of components, got hidden=10, components=4",
        ),
        ({"hidden": 0}, "hidden must be at least 1, got 0"),
        ({"hidden": 8, "dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"hidden": 8, "activation": "tanh"}, "activation"),
    ],
)
def test_errors(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"FeedForward: {message}"):
        FeedForward(8, **arguments)
