"""Live lists and block masks in a state: what would lead plans or kernels astray is refused when it is loaded."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from dmao_kernels.block_mask import BlockMask
from dmao_kernels.nn import FeedForward, MaskedLinear
from dmao_kernels.structure import Elastic

BYTES = [2, 255, 1, 0]  # of a bool tensor in a file


def bools(values: list[int]) -> torch.Tensor:
    return torch.frombuffer(bytearray(values), dtype=torch.bool)


class Pair(nn.Module):
    """A module that does not know of slots beside one that does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.known = FeedForward(16, 32, 0.0)
        self.layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x + self.known(x))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (bools([1, 0, 1, 1, 0, 0, 0, 0]), r"must have the live slots first, got \[1, 0, 1, 1"),
        (torch.arange(8), "must be a bool tensor, got torch.int64"),
        (torch.ones(3, dtype=torch.bool), "size mismatch"),
        (torch.ones((), dtype=torch.bool), "size mismatch"),
        ([True] * 8, "received <class 'list'>"),
    ],
)
def test_live_lists_are_checked_when_they_are_loaded(value, said):
    model = Pair()
    elastic = Elastic(model, storage="slots")
    names = [name for name in model.state_dict() if name.endswith("live_slots")]
    assert len(names) == len(elastic.modules) >= 2
    for name in names:
        with pytest.raises(RuntimeError, match=said) as caught:
            model.load_state_dict({**model.state_dict(), name: value})
        assert name in str(caught.value)
        with pytest.raises(RuntimeError, match=said):
            copy.deepcopy(model).load_state_dict({**model.state_dict(), name: value})


def test_any_byte_of_a_live_list_counts_as_one():
    model = Pair()
    elastic = Elastic(model, storage="slots")
    x = torch.randn(2, 5, 16)
    state, expected = copy.deepcopy(model.state_dict()), model(x)
    for name in [name for name in state if name.endswith("live_slots")]:
        state[name] = bools([7 * int(live) for live in state[name]])
    for assign in (False, True):
        model.load_state_dict(state, assign=assign)
        assert elastic.counts() == dict.fromkeys(elastic.modules, 4)
        assert torch.equal(model(x), expected)
    elastic.to_tight()
    assert not any(module._load_state_dict_pre_hooks for module in model.modules())


@pytest.mark.parametrize("grid", [torch.ones(2, 2, dtype=torch.int64), [[True, True], [True, True]]])
def test_block_masks_are_checked_when_they_are_loaded(grid):
    layer = MaskedLinear(32, 32, block=16)
    with pytest.raises(RuntimeError, match="live_blocks must be a bool tensor, got"):
        layer.load_state_dict({**layer.state_dict(), "live_blocks": grid})


@pytest.mark.parametrize("assign", [False, True])
def test_any_byte_of_a_block_mask_counts_as_one(assign):
    layer = MaskedLinear(32, 32, block=16)
    layer.load_state_dict({**layer.state_dict(), "live_blocks": bools(BYTES).view(2, 2)}, assign=assign)
    expected = BlockMask.from_dense(torch.tensor([[True, True], [True, False]]), 16)
    for found, tensor in zip(layer.mask.tensors, expected.tensors, strict=True):
        assert torch.equal(found, tensor)
    assert layer.live_blocks.view(torch.uint8).tolist() == [[1, 1], [1, 0]]


@pytest.mark.parametrize("components", [True, 10**9, 1.0, "4"])
def test_widths_that_are_none(components):
    elastic = Elastic(Pair())
    state = elastic.state_dict()
    name = next(iter(state["modules"]))
    state["modules"][name]["components"] = components
    with pytest.raises(ValueError, match=f"{name}: components must be a count, got {components}"):
        elastic.load_state_dict(state)
    state["modules"][name] = 4
    with pytest.raises(ValueError, match=f"{name} must be a mapping, got 4"):
        elastic.load_state_dict(state)
