"""Modules inside a layer of which it takes weight and bias: what would not be run is refused."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from dmao_kernels.nn import ConvolutionalGatingMLP, ConvolutionModule, EBranchformerBlock, FeedForward


class Adapted(nn.Module):
    """As LoRA's: the weight and bias of what it wraps, and another forward."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base, self.weight, self.bias = base, base.weight, base.bias

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.base(x)


@pytest.mark.parametrize(
    ("make", "path"),
    [
        (lambda: FeedForward(16, 32), "w1"),
        (lambda: FeedForward(16, 32), "w2"),
        (lambda: ConvolutionModule(16), "depthwise"),
        (lambda: ConvolutionalGatingMLP(16, 64), "depthwise"),
        (lambda: EBranchformerBlock(16, 2), "merge.depthwise"),
    ],
)
def test_what_stands_inside_is_run_or_refused(make: Callable[[], nn.Module], path: str) -> None:
    name, x = path.split(".")[-1], torch.randn(2, 5, 16)
    layer = make()
    layer.set_submodule(path, Adapted(layer.get_submodule(path)))
    with pytest.raises(TypeError, match=rf"{name} must be a (Linear|Conv1d).* got a Adapted, whose forward would not"):
        layer(x)
    for old in (nn.utils.spectral_norm, lambda module: prune.l1_unstructured(module, "weight", 0.5)):
        layer = make()
        old(layer.get_submodule(path))
        with pytest.raises(TypeError, match=rf"{name} must have a parameter 'weight', got one that a hook makes"):
            layer(x)
    prune.remove(layer.get_submodule(path), "weight")
    layer(x)
    for new in (parametrizations.weight_norm, parametrizations.spectral_norm):
        layer = make()
        before = layer(x)
        new(layer.get_submodule(path))
        layer(x).sum().backward()
        assert all(p.grad is not None for p in layer.get_submodule(path).parameters())
        assert before.shape == layer(x).shape


def test_what_runs_the_same_stays() -> None:
    layer, x = FeedForward(16, 32).eval(), torch.randn(2, 5, 16)
    expected = layer(x)
    layer.w1.register_forward_pre_hook(lambda module, inputs: None)  # of who watches
    assert torch.equal(layer(x), expected)
    replica = layer._replicate_for_data_parallel()
    replica.w1 = layer.w1._replicate_for_data_parallel()
    replica.w1.weight, replica.w1.bias = layer.w1.weight, layer.w1.bias  # attributes, as DataParallel leaves them
    assert torch.equal(replica(x), expected)
    layer.w1 = torch.compile(layer.w1, backend="eager")
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("offload", [False, True])
def test_hooks_of_accelerate(offload: bool) -> None:
    """They set `forward`; those that move inputs compute the same, those that fetch weights would have to be run."""
    layer, x = FeedForward(16, 32).eval(), torch.randn(2, 5, 16)
    expected = layer(x)
    layer.w1._hf_hook, layer.w1.forward = SimpleNamespace(offload=offload), layer.w1.forward
    if offload:
        with pytest.raises(TypeError, match="w1 must be a Linear"):
            layer(x)
    else:
        assert torch.equal(layer(x), expected)
