"""Going over to slots storage and back, resuming, and what cannot be kept in slots."""

import copy
import re

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from dmao_kernels import BlockMask
from dmao_kernels.nn import FeedForward, SelfAttention
from dmao_kernels.structure import (
    ComponentGates,
    Elastic,
    Scores,
    apply_plan,
    apply_slot_plan,
    feedforward_layout,
    given_plan,
    glu_convolution_layout,
    make_slot_plan,
    register_family,
)
from tests.structure.plain import (
    D,
    NormedFeedForward,
    PackedAttention,
    PlainConvolution,
    PlainFeedForward,
    build,
    inputs,
    train,
)
from tests.structure.test_slots import encoder, sample, step


class GroupNormConvolution(PlainConvolution):
    def __init__(self):
        super().__init__()
        self.depthwise_norm = nn.GroupNorm(1, D)


class OneComponent(PlainFeedForward):
    """Of which there is one; it is of a class of its own to have a number of its own."""

    components = 1


register_family(GroupNormConvolution, glu_convolution_layout(norm_kind="group", pointwise="conv1d"))
register_family(OneComponent, feedforward_layout(components="components", dropout=("dropout.p",)))


def event(elastic, scores, optimizer, seed):
    plan = make_slot_plan(elastic, scores.values(), 0.3, seed=seed, revive=True)
    apply_slot_plan(plan, elastic, optimizer)
    scores.follow_slots(plan.sources)
    return plan


def start(make):
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    elastic = Elastic(model, storage="slots", headroom=1.7)
    return model, optimizer, elastic, Scores(elastic)


def go_on(model, optimizer, elastic, scores, steps):
    losses = []
    for i in steps:
        losses.append(step(model, optimizer, sample(24, i)))
        scores.update()
        optimizer.step()
        if i % 2:
            event(elastic, scores, optimizer, i)
    return losses


def test_resumes_bit_for_bit():
    run = start(encoder)
    go_on(*run, range(4))
    saved = copy.deepcopy([part.state_dict() for part in run])
    assert saved[2]["slots"] == {n: m.stored for n, m in run[2].modules.items()}
    losses = go_on(*run, range(4, 8))
    again = start(encoder)
    for part, state in reversed(list(zip(again, saved, strict=True))):  # the structure before the rest
        if part is not again[3]:
            part.load_state_dict(state)
    again[3].load_state_dict(saved[3])
    assert go_on(*again, range(4, 8)) == losses
    assert again[2].counts() == run[2].counts()
    for a, b in zip(again[0].state_dict().values(), run[0].state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_state_of_other_slots_is_refused():
    slots, tight = Elastic(encoder(), storage="slots"), Elastic(encoder())
    other = Elastic(encoder(), storage="slots", headroom=3)
    for target, state in ((slots, tight), (tight, slots), (slots, other)):
        before = target.counts()
        with pytest.raises(ValueError, match=r"load_state_dict: the slots must be .*same storage and headroom"):
            target.load_state_dict(state.state_dict())
        assert target.counts() == before


def test_there_and_back_changes_nothing():
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    train(model, optimizer, 2)
    average = AveragedModel(model)
    elastic = Elastic(model)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict(), average.state_dict(), elastic.state_dict()))
    x = inputs()
    y = model.eval()(x)
    elastic.to_slots(1.5, optimizer, [average])
    assert elastic.widths() == {n: -(-3 * c // 2) for n, c in elastic.counts().items()}
    torch.testing.assert_close(model(x), y)
    torch.testing.assert_close(average.eval()(x), y)
    assert model.branches[0].dropout.p == 0.1
    elastic.to_tight(optimizer, [average])
    after = model.state_dict(), optimizer.state_dict(), average.state_dict(), elastic.state_dict()
    for a, b in zip(before[:3:2], after[:3:2], strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)
    for i, state in before[1]["state"].items():
        assert all(torch.equal(v, after[1]["state"][i][k]) for k, v in state.items())
    assert before[3] == after[3]
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
    assert not any(m._forward_hooks or "forward" in vars(m) for m in model.modules())


def test_dead_slots_of_ordinary_modules_stay_zero_whatever_the_activation():
    """sigmoid(0) is not 0, so that gradients reach the dead columns of the second matrix."""

    class Sigmoid(PlainFeedForward):
        def forward(self, x):
            return self.w2(torch.sigmoid(self.w1(self.norm(x))))

    register_family(Sigmoid, feedforward_layout())
    model = build(Sigmoid)
    elastic = Elastic(model, storage="slots")
    m = elastic.modules["branches.0"]
    for optimizer in (
        torch.optim.AdamW(model.parameters(), lr=1e-2, amsgrad=True),
        torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9, nesterov=True, weight_decay=0.1),
    ):
        train(model, optimizer, 3)
        for name, tensor in m.tensors():
            for t in (tensor, tensor.grad, *optimizer.state[tensor].values()):
                if t is not None and t.dim():
                    assert not m.view(name, t)[:, ~m.slots].any()
                    assert m.view(name, t)[:, m.slots].any()


def test_an_empty_module_contributes_nothing_and_learns_nothing():
    model = build(PlainFeedForward, PlainFeedForward)
    elastic = Elastic(model, storage="slots")
    apply_plan(given_plan({"branches.1": ()}, elastic.counts()), elastic)
    x = inputs()
    assert not model.branches[1](x).any()
    model(x).sum().backward()
    assert not any(p.grad.any() for p in model.branches[1].parameters())
    assert model.branches[0].w1.weight.grad.any()
    assert (
        elastic.live_parameters()
        == sum(p.numel() for p in model.parameters())
        - sum(p.numel() for p in model.branches[1].parameters())
        - sum(p.numel() for p in (model.branches[0].w1.weight, model.branches[0].w1.bias, model.branches[0].w2.weight))
        // 2
    )


def test_norms_notice_an_edit_in_place():
    """Without headroom all weights of a norm's statistics are equal at first, and then they are not."""
    outputs = []
    for storage in ("tight", "slots"):
        model = encoder()
        elastic = Elastic(model, storage=storage, headroom=1.0)
        model(sample(24, 0))
        plan = given_plan({n: (*range(1, c), c - 1) for n, c in elastic.counts().items()}, elastic.counts())
        apply_plan(plan, elastic, split="halves")
        outputs.append(model(sample(24, 0)))
    torch.testing.assert_close(*outputs, rtol=1e-3, atol=1e-5)


def test_what_cannot_be_kept_in_slots():
    with pytest.raises(ValueError, match="storage must be tight or slots, got 'loose'"):
        Elastic(encoder(), storage="loose")
    with pytest.raises(ValueError, match=r"headroom must be finite and 1 or more, got 0\.5"):
        Elastic(encoder(), storage="slots", headroom=0.5)
    elastic = Elastic(encoder(), storage="slots")
    with pytest.raises(ValueError, match="to_slots: the model is in slots storage already"):
        elastic.to_slots()
    with pytest.raises(
        ValueError, match=r"Elastic: blocks\.0\.ffn1 is in slots storage already: go on with the Elastic"
    ):
        Elastic(copy.deepcopy(elastic.model))
    with pytest.raises(ValueError, match="ComponentGates: gates need tight storage"):
        ComponentGates(elastic)
    with pytest.raises(ValueError, match=re.escape("shaw has 6 slots, too few for 7 components")):
        apply_plan(given_plan({"shaw": (0, 0, 1, 1, 2, 2, -1)}, elastic.counts()), elastic)
    plan = make_slot_plan(elastic, Scores(elastic).values())
    apply_plan(given_plan({"shaw": (0, 1)}, elastic.counts()), elastic)
    with pytest.raises(ValueError, match="the plan was not made for this model as it is now"):
        apply_slot_plan(plan, elastic)

    elastic = Elastic(model := encoder())
    with pytest.raises(ValueError, match="to_tight: the model is in tight storage already"):
        elastic.to_tight()
    apply_plan(given_plan({"shaw": (0, 0, 1, 1, 2, 2)}, elastic.counts()), elastic)
    with pytest.raises(ValueError, match=r"shaw has 6 components, more than a headroom of 1\.5 has room for: 5"):
        elastic.to_slots(1.5)
    model.shaw.q.mask = BlockMask.full(model.shaw.q.weight, 16)
    with pytest.raises(ValueError, match=r"shaw: the block mask over q\.weight cannot follow its components"):
        elastic.to_slots()
    with pytest.raises(ValueError, match=r"shaw: the block mask over q\.weight"):
        apply_plan(given_plan({"shaw": (0, 1, 2)}, elastic.counts()), elastic)
    with pytest.raises(ValueError, match=r"shaw: the block mask over q\.weight"):
        Elastic(copy.deepcopy(model))
    model.shaw.q.mask = None
    slots = Elastic(encoder(), storage="slots")
    on_device = make_slot_plan(slots, Scores(slots).values())
    slots.modules["shaw"].module.q.mask = BlockMask.full(slots.modules["shaw"].module.q.weight, 16)
    with pytest.raises(ValueError, match=r"shaw: the block mask over q\.weight"):
        apply_slot_plan(on_device, slots)
    with pytest.raises(ValueError, match="split must be one of asymmetric, halves, uniform, got 'half'"):
        apply_slot_plan(plan, elastic, split="half")
    ComponentGates(gated := Elastic(encoder()))
    with pytest.raises(ValueError, match="has gates: fold them first"):
        gated.to_slots()


@pytest.mark.parametrize("classes", [(PlainFeedForward,), (PlainFeedForward, PackedAttention)])
def test_a_plan_of_the_device_is_carried_out_as_one_of_the_host(classes):
    """With two modules the first one is empty, and comes back."""
    one, two = (Elastic(build(*classes), storage="slots") for _ in range(2))
    if len(classes) > 1:
        for elastic in (one, two):
            apply_plan(given_plan({"branches.0": ()}, elastic.counts()), elastic)
    scores = {name: torch.arange(float(m.stored)).masked_fill(~m.slots, torch.nan) for name, m in one.modules.items()}
    plan = make_slot_plan(one, scores, 0.3, seed=3, revive=True)
    apply_slot_plan(plan, one, split="halves")
    apply_plan(plan.plan, two, split="halves")
    assert sum(m.changed for m in plan.plan.modules) == len(classes)
    for (name, tensor), expected in zip(one.model.state_dict().items(), two.model.state_dict().values(), strict=True):
        assert torch.equal(tensor, expected), name


def test_tensors_that_were_changed_by_hand_are_refused():
    elastic = Elastic(model := build(PlainFeedForward))
    model.branches[0].w1.weight.data = torch.zeros(20, D)
    with pytest.raises(ValueError, match=r"branches.0: w1.weight must have the shape \[24, 12\].*got \[20, 12\]"):
        elastic.to_slots()


def test_a_norm_over_all_components_is_refused():
    model = build(NormedFeedForward)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="inner is a norm over all components, whose statistics would count dead"):
        Elastic(model, storage="slots")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(ValueError, match="depthwise_norm is a norm over all components"):
        Elastic(build(GroupNormConvolution), storage="slots")


def test_a_module_of_one_slot():
    """It has room for no copy, and an event must not mind."""
    elastic = Elastic(model := build(OneComponent, PlainFeedForward), storage="slots", headroom=1.0)
    assert elastic.counts()["branches.0"] == 1
    before = model(inputs())
    plan = given_plan({"branches.0": (0,), "branches.1": (0, 0, 1, 2)}, elastic.counts())
    apply_plan(plan, elastic)
    scores = {name: torch.ones(m.stored) for name, m in elastic.modules.items()}
    apply_slot_plan(make_slot_plan(elastic, scores, 0.3), elastic)
    assert model(inputs()).shape == before.shape


def test_an_average_that_the_optimizer_keeps_is_edited_as_the_weights():
    model = build(PlainFeedForward)
    optimizer = torch.optim.ASGD(model.parameters(), lr=1e-2)
    train(model, optimizer, 2)
    elastic = Elastic(model)
    elastic.to_slots(2.0, optimizer)
    apply_plan(given_plan({"branches.0": (0, 0, 1, 2, 3)}, elastic.counts()), elastic, optimizer)
    for parameter in model.parameters():  # which it averages from step t0 = 1e6 on; until then it takes them
        assert torch.equal(optimizer.state[parameter]["ax"], parameter)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_masks_are_those_of_tight_storage(dtype):
    """With the rates as they were: the hidden units and heads that live have the numbers they would have."""
    torch.manual_seed(0)
    layers = [FeedForward(D, 48, 0.3, 4), SelfAttention(D, 3, 8, 0.3)]
    for layer in layers:
        tight, slots = nn.Sequential(layer.to(dtype)), nn.Sequential(copy.deepcopy(layer))
        elastic = Elastic(slots, storage="slots", headroom=1.5)
        results = []
        for model in (tight, slots):
            torch.manual_seed(1)
            results.append(model(inputs(dtype=dtype)))
        torch.testing.assert_close(*results)
        assert elastic.widths() != elastic.counts()
