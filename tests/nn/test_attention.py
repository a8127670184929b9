"""SelfAttention against torch.nn.MultiheadAttention and a naive mirror for free numbers of heads."""

import math

import pytest
import torch
from torch import nn

from dmao_kernels.nn import SelfAttention


def mirror(module: SelfAttention, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Softmax attention head by head; a frame in the padding sees nothing."""
    normed, width = module.norm(x), module.head_dim
    results = []
    for head in range(module.heads):
        rows = slice(head * width, (head + 1) * width)
        q, k, v = (normed @ linear.weight[rows].T + linear.bias[rows] for linear in (module.q, module.k, module.v))
        logits = q @ k.transpose(1, 2) / math.sqrt(width)
        if mask is not None:
            logits = logits.masked_fill(~mask[:, None, :], -math.inf)
        weights = logits.softmax(-1)
        results.append((weights if mask is None else weights * mask[:, :, None]) @ v)
    return module.out(torch.cat(results, -1))


@pytest.mark.parametrize(("heads", "head_dim"), [(2, 4), (3, 5), (1, 16)])
@pytest.mark.parametrize("lengths", [None, (7, 1, 4)])
def test_matches_mirror_with_gradients(heads: int, head_dim: int, lengths: tuple[int, ...] | None) -> None:
    torch.manual_seed(0)
    module = SelfAttention(8, heads, head_dim, dropout=0.0)
    x = torch.randn(3, 7, 8, requires_grad=True)
    mask = None if lengths is None else torch.arange(7) < torch.tensor(lengths).unsqueeze(1)
    inputs = (x, *module.parameters())
    y, expected = module(x, mask), mirror(module, x, mask)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    upstream = torch.randn_like(y)
    for got, wanted in zip(
        torch.autograd.grad(y, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_matches_torch_multihead_attention() -> None:
    torch.manual_seed(0)
    ours = SelfAttention(16, heads=4, head_dim=4).eval()
    theirs = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    theirs.in_proj_weight.data = torch.cat([ours.q.weight, ours.k.weight, ours.v.weight]).detach()
    theirs.in_proj_bias.data = torch.cat([ours.q.bias, ours.k.bias, ours.v.bias]).detach()
    theirs.out_proj = ours.out
    x = torch.randn(2, 9, 16)
    mask = torch.arange(9) < torch.tensor([[9], [5]])
    normed = ours.norm(x)
    expected, _ = theirs(normed, normed, normed, key_padding_mask=~mask, need_weights=False)
    torch.testing.assert_close(ours(x, mask)[mask], expected[mask], rtol=1e-5, atol=1e-5)


def test_padding_never_leaks() -> None:
    torch.manual_seed(0)
    module = SelfAttention(8, 2, 4).eval()
    x = torch.randn(2, 10, 8)
    mask = torch.arange(10) < torch.tensor([[10], [6]])
    torch.testing.assert_close(module(x, mask)[1:, :6], module(x[1:, :6]), rtol=1e-5, atol=1e-5)


def test_no_positional_encoding() -> None:
    torch.manual_seed(0)
    module, x = SelfAttention(8, 2, 4).eval(), torch.randn(1, 6, 8)
    order = torch.randperm(6)
    torch.testing.assert_close(module(x[:, order]), module(x)[:, order], rtol=1e-5, atol=1e-5)


def test_dropout_only_in_training() -> None:
    torch.manual_seed(0)
    module, x = SelfAttention(8, 2, 4, dropout=0.5), torch.randn(2, 6, 8)
    assert not torch.equal(module(x), module(x))
    module.eval()
    assert torch.equal(module(x), module(x))


def test_attention_dropout_is_separate() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 6, 8)
    weights_only = SelfAttention(8, 2, 4, dropout=0.0, attention_dropout=0.5)
    assert not torch.equal(weights_only(x), weights_only(x))
    assert not (weights_only(x) == 0).any()
    output_only = SelfAttention(8, 2, 4, dropout=0.5, attention_dropout=0.0)
    y, undropped = output_only(x), output_only.eval()(x)
    torch.testing.assert_close(y, torch.where(y == 0, 0.0, 2 * undropped), rtol=1e-5, atol=1e-6)
    assert 0.2 < (y == 0).float().mean() < 0.8


def test_empty_gives_zeros() -> None:
    module, x = SelfAttention(8, 2, 4), torch.randn(2, 3, 8)
    module.heads = 0
    assert module.empty
    assert torch.equal(module(x), torch.zeros(2, 3, 8))


def test_errors() -> None:
    with pytest.raises(ValueError, match="SelfAttention: heads must be at least 1, got 0"):
        SelfAttention(8, 0)
    with pytest.raises(ValueError, match=r"SelfAttention: dropout must be in \[0, 1\), got 2"):
        SelfAttention(8, 1, dropout=2)
