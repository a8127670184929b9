"""MaskedLinear in the place of nn.Linear, and its mask in edits and in saved states."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dmao_kernels import BlockMask
from dmao_kernels.nn import MaskedLinear
from tests.ops.common import CountedGraphs

GRID = torch.tensor([[True, False, True], [False, False, False], [True, True, False]])


def make(activation: str = "none") -> MaskedLinear:
    layer = MaskedLinear(40, 48, activation=activation, block=16)
    layer.mask = BlockMask.from_dense(GRID, 16)
    return layer


def dead_elements() -> torch.Tensor:
    return ~GRID.repeat_interleave(16, 0).repeat_interleave(16, 1)[:48, :40]


@pytest.mark.parametrize("bias", [True, False])
def test_takes_the_place_of_linear(bias: bool) -> None:
    linear = nn.Linear(20, 12, bias).eval()
    ours = MaskedLinear.from_linear(linear)
    x = torch.randn(3, 5, 20)
    torch.testing.assert_close(ours(x), linear(x))
    assert ours.weight is linear.weight
    assert ours.bias is linear.bias
    assert not ours.training
    assert ours.mask is None
    assert ours.state_dict().keys() == linear.state_dict().keys()
    fresh = MaskedLinear(20, 12, bias)
    fresh.load_state_dict(linear.state_dict())
    assert torch.equal(fresh.weight, linear.weight)
    linear.load_state_dict(ours.state_dict())


@pytest.mark.parametrize("activation", ["none", "silu", "glu"])
def test_masked_weights_get_no_gradient_and_are_not_read(activation: str) -> None:
    layer = make(activation)
    dead = dead_elements()
    with torch.no_grad():
        expected = F.linear(torch.ones(7, 40), layer.weight.masked_fill(dead, 0), layer.bias)
        layer.weight[dead] = torch.nan
    expected = {"none": expected, "silu": F.silu(expected), "glu": F.glu(expected)}[activation]
    y = layer(torch.ones(7, 40))
    torch.testing.assert_close(y, expected)
    y.sum().backward()
    assert layer.weight.grad is not None
    assert not layer.weight.grad[dead].any()
    assert layer.weight.grad[~dead].all()


def test_state_carries_the_mask() -> None:
    layer = make()
    assert torch.equal(layer.state_dict()["live_blocks"], GRID)
    other = MaskedLinear(40, 48, block=16)
    other.load_state_dict(layer.state_dict())
    assert other.mask is not None
    assert torch.equal(other.mask.to_dense(), GRID)
    x = torch.randn(4, 40)
    assert torch.equal(other(x), layer(x))
    other.load_state_dict(nn.Linear(40, 48).state_dict())
    assert other.mask is None
    with pytest.raises(RuntimeError, match=r"live_blocks: \[2, 2\] blocks of 32"):
        MaskedLinear(40, 48, block=32).load_state_dict(layer.state_dict())


def test_state_carries_the_size_of_blocks() -> None:
    layer = MaskedLinear(100, 100)
    layer.mask = BlockMask.from_dense(torch.tensor([[True, False], [True, True]]), 96)
    state = layer.state_dict()
    with pytest.raises(RuntimeError, match=r"live_blocks: \[2, 2\] blocks of 64 cover .* the state has \[2, 2\] of 96"):
        MaskedLinear(100, 100).load_state_dict(state)
    for wrong in (torch.tensor([96]), torch.tensor(96.0), 96):
        with pytest.raises(RuntimeError, match=r"live_block_size must be a tensor int64 \[\], got"):
            MaskedLinear(100, 100, block=96).load_state_dict({**state, "live_block_size": wrong})
    del state["live_block_size"]  # a state of 0.1
    for assign in (False, True):
        other = MaskedLinear(100, 100, block=96)
        other.load_state_dict(state, assign=assign)
        assert other.state_dict().keys() == layer.state_dict().keys()
        assert torch.equal(other(torch.ones(1, 100)), layer(torch.ones(1, 100)))
    del state["live_blocks"]
    with pytest.raises(RuntimeError, match="live_blocks must be a bool tensor, got NoneType"):
        layer.load_state_dict({**state, "live_block_size": torch.tensor(96)})


def test_a_state_for_a_layer_without_memory() -> None:
    saved, x = make(), torch.ones(1, 40)
    with torch.device("meta"):
        layer = MaskedLinear(40, 48, block=16)
    layer.load_state_dict(saved.state_dict(), assign=True)
    assert all(tensor.device.type == "cpu" for tensor in layer.state_dict().values())
    assert torch.equal(layer(x), saved(x))
    other = MaskedLinear(40, 48, block=16)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), saved(x))


def test_a_state_of_other_modules_leaves_the_mask() -> None:
    model = nn.Sequential(make(), nn.Linear(48, 2))
    model.load_state_dict({"1.bias": torch.ones(2)}, strict=False)
    assert model[0].mask is not None
    assert torch.equal(model[0].mask.to_dense(), GRID)
    model.load_state_dict({"0.weight": torch.ones(48, 40)}, strict=False)
    assert model[0].mask is None


def test_mask_can_be_set_copied_and_cleared() -> None:
    layer = make()
    twin = copy.deepcopy(layer)
    layer.mask = BlockMask.full(layer.weight, 32)
    assert layer.block == 32
    assert layer.mask is not None
    assert layer.mask.density == 1.0
    layer.mask = None
    assert layer.mask is None
    assert "live_blocks" not in layer.state_dict()
    assert twin.mask is not None
    assert torch.equal(twin.mask.to_dense(), GRID)
    assert "density=0.444" in repr(twin)
    with pytest.raises(ValueError, match=r"mask must have \[3, 3\] blocks of 16"):
        layer.mask = BlockMask.from_dense(GRID[:2], 16)


def test_mask_moves_with_the_layer() -> None:
    layer = make().to("meta")
    assert layer.mask is not None
    assert layer.mask.device.type == "meta"


def test_compiles_once_for_all_masks() -> None:
    layer, graphs = make(), CountedGraphs()
    compiled = torch.compile(layer, fullgraph=True, backend=graphs)
    x = torch.randn(6, 40)
    for grid in (GRID, ~GRID, GRID.roll(1, 0), GRID.flip(1) | GRID):
        layer.mask = BlockMask.from_dense(grid, 16)
        torch.testing.assert_close(compiled(x), layer(x))
    assert graphs.count <= 2


def test_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="activation must be one of none, silu, relu, gelu, glu, got 'tanh'"):
        MaskedLinear(4, 4, activation="tanh")
    with pytest.raises(ValueError, match="glu needs an even number of out_features, got 5"):
        MaskedLinear(4, 5, activation="glu")
    with pytest.raises(ValueError, match="block must be a multiple of 16"):
        MaskedLinear(4, 4, block=24)
