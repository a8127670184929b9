"""How source and copy share the output weights."""

import pytest
import torch

from dmao_kernels.structure import Elastic, apply_plan
from dmao_kernels.structure.gather import draw, scale, share
from tests.structure import plain
from tests.structure.plain import build, double_first, plan_for


def test_uniform_shares_lie_between_nothing_and_all():
    model = build(plain.PlainFeedForward)
    weight = model.branches[0].w2.weight
    old = weight[:, :6].detach().clone()
    elastic = Elastic(model)
    apply_plan(plan_for(elastic, double_first), elastic, split="uniform")
    kept = weight[:, :6].detach() / old
    assert ((kept >= 0) & (kept <= 1)).all()
    assert kept.std() == pytest.approx(12**-0.5, rel=0.3)
    torch.testing.assert_close(weight[:, :6] + weight[:, 6:12], old)


def test_noise_of_a_component_with_one_weight_is_none():
    whole = torch.tensor([[[3.0], [4.0]]])
    noise = scale(torch.ones(1, 2, 1), whole, "asymmetric")
    assert torch.equal(share(whole, "asymmetric", noise), whole / 2)


@pytest.mark.parametrize("split", ["asymmetric", "uniform", "halves"])
def test_an_average_on_another_device_takes_the_noise_of_the_model(split):
    assert share(torch.ones(1, 2, 3, device="meta"), split, torch.ones(1, 2, 3)).device.type == "meta"


@pytest.mark.parametrize(
    ("weights", "noise"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
def test_noise_is_drawn_in_single_precision_or_better(weights, noise):
    drawn = draw((1, 2, 3), torch.zeros(1, dtype=weights), "asymmetric", torch.Generator())
    assert drawn.dtype == noise
