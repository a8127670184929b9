"""Adapters of peft: refused at elastic matrices until they are merged, harmless elsewhere."""

import pytest
import torch

from dmao_kernels.structure import Elastic, apply_plan
from tests.structure import plain
from tests.structure.plain import build, inputs, mixed, plan_for

peft = pytest.importorskip("peft", reason="peft is not installed (make test-integrations)")


def test_merged_adapters():
    model = peft.get_peft_model(build(plain.PlainFeedForward), peft.LoraConfig(target_modules=["w1", "w2"]))
    with pytest.raises(
        ValueError, match=r"of Linear, but it is a \w+ \(inside of it are base_layer.weight.*merge adapters"
    ):
        Elastic(model)
    x = inputs()
    expected = model.eval()(x)
    merged = model.merge_and_unload()
    elastic = Elastic(merged)
    torch.testing.assert_close(merged(x), expected)
    apply_plan(plan_for(elastic, mixed), elastic)
    assert merged(x).shape == expected.shape


def test_adapters_elsewhere():
    model = peft.get_peft_model(build(plain.PlainFeedForward), peft.LoraConfig(target_modules=["classify"]))
    elastic = Elastic(model)
    apply_plan(plan_for(elastic, mixed), elastic)
    model(inputs()).sum().backward()
