"""LoRA beside elastic modules: refused where the layout does not name its matrices, followed where it does."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dmao_kernels.structure import ComponentLayout, Elastic, Scores, apply_plan
from tests.structure import plain
from tests.structure.plain import D, build, double_first, drop_second, inputs, mixed, plan_for, train

RANK = 2


class LoRA(nn.Module):
    """y = base(x) + b(a(x)), the base frozen."""

    def __init__(self, base):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Linear(base.in_features, RANK, bias=False)
        self.b = nn.Linear(RANK, base.out_features, bias=False)

    def forward(self, x):
        return self.base(x) + self.b(self.a(x))


class Adapted(nn.Module):
    """A feed-forward module with adapters at both matrices, which tells its layout."""

    def __init__(self):
        super().__init__()
        self.up, self.down = LoRA(nn.Linear(D, 24)), LoRA(nn.Linear(24, D))

    def forward(self, x):
        return self.down(F.silu(self.up(x)))

    def component_layout(self):
        tensors = {
            "up.base.weight": "(C u) d",
            "up.base.bias": "(C u)",
            "up.b.weight": "(C u) r",
            "down.base.weight": "e (C u)",
            "down.a.weight": "r (C u)",
        }
        attributes = ("up.base.out_features", "up.b.out_features", "down.base.in_features", "down.a.in_features")
        layout = ComponentLayout(
            family="feedforward",
            tensors=tensors,
            # both matrices behind the hidden units: copies share what leaves through either
            output=("down.base.weight", "down.a.weight"),
            scored="up.b.weight",  # the base is frozen: without gradients it has no scores
            shared=("up.a.weight", "down.b.weight", "down.base.bias"),
            attributes=dict.fromkeys(attributes, "(C u)"),
        )
        return layout, 4


def test_adapters_that_the_layout_does_not_name_are_refused():
    model = build(plain.PlainFeedForward)
    model.branches[0].w1 = LoRA(model.branches[0].w1)
    message = (
        r"w1.weight must be .* of LoRA, but it does not exist \(inside of it are base.weight, a.weight, b.weight: me"
    )
    with pytest.raises(ValueError, match=message):
        Elastic(model)
    model = build(plain.PlainFeedForward)
    elastic = Elastic(model)
    model.branches[0].w2 = LoRA(model.branches[0].w2)  # after discovery
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="merge adapters first"):
        apply_plan(plan_for(elastic, mixed), elastic)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_adapters_elsewhere_do_no_harm():
    model = build(plain.PlainFeedForward)
    model.classify = LoRA(model.classify)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    elastic = Elastic(model)
    train(model, optimizer, 2)
    apply_plan(plan_for(elastic, mixed), elastic, optimizer)
    losses = train(model, optimizer, 20)
    assert losses[-1] < losses[0]


def test_adapters_in_the_layout_follow():
    model = plain.Residual(Adapted())
    nn.init.normal_(model.branches[0].down.b.weight)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    elastic = Elastic(model)
    scores = Scores(elastic)
    x, target = inputs(), torch.randn(2, 7, 5)

    def step():
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), target)
        loss.backward()
        scores.update()
        optimizer.step()
        return loss.item()

    losses = [step() for _ in range(3)]
    before = model(x)
    for sources, same in ((double_first, True), (drop_second, False)):
        plan = plan_for(elastic, sources)
        apply_plan(plan, elastic, optimizer)
        scores.follow(plan)
        assert torch.allclose(model(x), before, atol=1e-5) == same
    assert model.branches[0].up.b.weight.shape == (24, RANK)
    assert all(v.shape in (p.shape, ()) for p, s in optimizer.state.items() for v in s.values())
    losses += [step() for _ in range(30)]
    assert losses[-1] < losses[0]
    assert scores.values()["branches.0"].all()
