"""Packed rows give what padded ones give, in all layers; padding never matters; masks that make no sense."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from dmao_kernels.nn import (
    ConformerBlock,
    ConvolutionalGatingMLP,
    ConvolutionModule,
    EBranchformerBlock,
    FeedForward,
    RelPosSelfAttention,
    SelfAttention,
)

LENGTHS = (7, 0, 1, 4)
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "feedforward": lambda: FeedForward(16, 32),
    "convolution": lambda: ConvolutionModule(16, 5),
    "attention": lambda: SelfAttention(16, 2, 8),
    "windowed attention": lambda: SelfAttention(16, 2, 8, window=(2, 1)),
    "chunked attention": lambda: SelfAttention(16, 2, 8, chunk=(3, 1)),
    "relative positions": lambda: RelPosSelfAttention(16, 2, 8),
    "learnt positions": lambda: RelPosSelfAttention(16, 2, 8, radius=3),
    "chunked convolution": lambda: ConvolutionModule(16, 5, chunk=3),
    "chunked cgmlp": lambda: ConvolutionalGatingMLP(16, 48, 5, chunk=3),
    "chunked conformer": lambda: ConformerBlock(
        16, 2, head_dim=8, expansion=2, kernel=5, positions="relative", chunk=(2, 1)
    ),
    "chunked e-branchformer": lambda: EBranchformerBlock(
        16, 2, head_dim=8, kernel=5, merge_kernel=7, positions="relative", chunk=(2, None)
    ),
    "cgmlp": lambda: ConvolutionalGatingMLP(16, 48, 5),
    "conformer": lambda: ConformerBlock(16, 2, head_dim=8, expansion=2, kernel=5),
    "conformer, relative": lambda: ConformerBlock(16, 2, head_dim=8, expansion=2, kernel=5, positions="relative"),
    "e-branchformer": lambda: EBranchformerBlock(16, 2, head_dim=8, kernel=5, merge_kernel=3, positions="relative"),
}


@pytest.fixture(params=LAYERS)
def layer(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return LAYERS[request.param]().eval()


def batch(lengths: tuple[int, ...] = LENGTHS) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Padded rows with NaN in the padding, their mask, and the offsets of the packed ones."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    x = torch.randn(len(lengths), max(lengths), 16, generator=torch.Generator().manual_seed(1))
    return x.masked_fill(~mask[..., None], torch.nan), mask, torch.tensor([0, *lengths]).cumsum(0).int()


def test_packed_equals_padded_with_gradients(layer: nn.Module) -> None:
    x, mask, offsets = batch()
    packed, x = x[mask].requires_grad_(), x.nan_to_num().requires_grad_()
    y, expected = layer(packed, offsets=offsets), layer(x, mask)[mask]
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    upstream = torch.randn_like(y)
    parameters = tuple(layer.parameters())
    ours = torch.autograd.grad(y, (packed, *parameters), upstream)
    theirs = torch.autograd.grad(expected, (x, *parameters), upstream)
    torch.testing.assert_close(ours[0], theirs[0][mask], rtol=1e-4, atol=1e-5)
    for got, wanted in zip(ours[1:], theirs[1:], strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_each_utterance_as_if_alone(layer: nn.Module) -> None:
    x, mask, offsets = batch((7, 1, 4))
    y = layer(x[mask], offsets=offsets)
    for row, length in enumerate((7, 1, 4)):
        alone = layer(x[row : row + 1, :length])[0]
        torch.testing.assert_close(y[offsets[row] : offsets[row + 1]], alone, rtol=1e-5, atol=1e-5)


def test_padding_is_not_read(layer: nn.Module) -> None:
    x, mask, _ = batch()
    torch.testing.assert_close(layer(x, mask)[mask], layer(x.nan_to_num(), mask)[mask])


def test_no_rows(layer: nn.Module) -> None:
    x = torch.randn(0, 16, requires_grad=True)
    y = layer(x, offsets=torch.zeros(3, dtype=torch.int32))
    assert y.shape == (0, 16)
    y.sum().backward()


def test_dropout_is_reproducible_and_only_in_training(layer: nn.Module) -> None:
    x, mask, offsets = batch()
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(layer.train()(x[mask], offsets=offsets))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    state = torch.get_rng_state()
    assert torch.equal(layer.eval()(x[mask], offsets=offsets), layer(x[mask], offsets=offsets))
    assert torch.equal(state, torch.get_rng_state())


def test_bfloat16_autocast(layer: nn.Module) -> None:
    x, mask, offsets = batch()
    exact = layer(x[mask], offsets=offsets)
    with torch.autocast("cpu", torch.bfloat16):
        low = layer(x[mask], offsets=offsets)
        layer.train()(x[mask], offsets=offsets).float().sum().backward()
    torch.testing.assert_close(low.float(), exact, rtol=0.05, atol=0.05)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def test_compiles_as_one_graph(layer: nn.Module) -> None:
    x, mask, offsets = batch((7, 1, 4))
    if isinstance(layer, (RelPosSelfAttention, ConformerBlock, EBranchformerBlock)):
        pytest.skip("packed rows are compiled with positions made beforehand, see below")
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x[mask], offsets=offsets), layer(x[mask], offsets=offsets))


def test_masks_that_do_not_fit() -> None:
    layer, (x, mask, offsets) = SelfAttention(16, 2, 8), batch()
    with pytest.raises(ValueError, match="give one of them"):
        layer(x, mask, offsets=offsets)
    with pytest.raises(ValueError, match=r"mask must be bool \[B, T\] for x \[B, T, d\], got torch.int64"):
        layer(x, mask.long())
    with pytest.raises(ValueError, match="mask must be True for the first frames"):
        layer(x, mask.flip(1))
