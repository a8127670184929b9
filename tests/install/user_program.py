"""What a user's type checker sees of the public names; checked by test_typing.py, under `mypy --strict`."""

from __future__ import annotations

import torch
from dmao.controller import GrowAndDrop
from dmao.schedule import Schedule
from torch import Tensor, nn
from typing_extensions import assert_type

import dmao_kernels
from dmao_kernels import BlockMask, accelerate, can_run, compact, component_ffn, masked_linear, pack, use_backend
from dmao_kernels.nn import ConformerBlock, FeedForward
from dmao_kernels.structure import ComponentLayout, Elastic, feedforward_layout


def compute(x: Tensor, w1: Tensor, w2: Tensor, mask: BlockMask | None) -> Tensor:
    assert_type(can_run("component_ffn", x), tuple[bool, str])
    assert_type(dmao_kernels.cpu_capability(), str | None)
    assert_type(pack(x, torch.tensor([1], dtype=torch.int32)), tuple[Tensor, Tensor])
    with use_backend("reference"):
        y = masked_linear(x, w1, mask=mask)
    assert_type(y, Tensor)
    return component_ffn(y, w1, None, w2, None, components=4, activation="relu")


def train(model: nn.Module, steps: int) -> nn.Module:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    controller = GrowAndDrop(model, optimizer, Schedule(start=0.4, events=1, fraction=0.15), steps)
    for step in range(1, steps + 1):
        controller.observe()
        if controller.due(step):
            print(controller.adapt())
    assert_type(Elastic(model).counts(), dict[str, int])
    return compact(model)


def layers() -> nn.Module:
    layout = feedforward_layout("w1", "w2")
    assert_type(layout, ComponentLayout)
    model = nn.Sequential(FeedForward(16, 64, components=4), ConformerBlock(16, heads=2))
    print(accelerate(model))
    return train(model, 10)
