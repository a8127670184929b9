"""Learnable gates: they scale components, follow edits, and learn which components are useless."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dmao_kernels.structure import ComponentGates, Elastic, Scores, apply_plan, make_plan
from tests.structure import plain
from tests.structure.plain import build, inputs, mixed, plan_for, train


def gate_of(elastic, name):
    m = elastic.modules[name]
    return m.place(m.gate).tensor


def test_gates_begin_as_nothing_and_scale_components():
    model, x = build(dtype=torch.float64).eval(), inputs(dtype=torch.float64)
    before = model(x)
    parameters = [id(p) for p in model.parameters()]
    elastic = Elastic(model)
    live = elastic.live_parameters()
    gates = ComponentGates(elastic)
    assert torch.equal(model(x), before)
    assert elastic.live_parameters() == live
    assert set(parameters) <= {id(p) for p in model.parameters()}
    assert sum(g.numel() for g in gates.parameters()) == sum(elastic.counts().values())
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for gate in gates.parameters():
            gate.copy_(torch.linspace(0, 1, len(gate)))
    shut = model(x)
    gates.fold()
    torch.testing.assert_close(model(x), shut)
    assert {id(p) for p in model.parameters()} == set(parameters)
    for m in elastic.modules.values():
        first = m.view(m.layout.output[0], m.place(m.layout.output[0]).tensor)[:, 0]
        assert not first.any()  # its gate was 0
    torch.testing.assert_close(twin(x), before)  # copies are not touched
    assert Elastic(model).counts() == elastic.counts()


def test_gates_follow_edits():
    model, x = build(dtype=torch.float64).eval(), inputs(dtype=torch.float64)
    elastic = Elastic(model)
    gates = ComponentGates(elastic)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(x).square().sum().backward()
    optimizer.step()
    old = {n: gate_of(elastic, n).detach().clone() for n in elastic.modules}
    moments = {n: optimizer.state[gate_of(elastic, n)]["exp_avg"].clone() for n in elastic.modules}
    before = model(x)
    apply_plan(plan_for(elastic, lambda c: (*range(c), c - 1)), elastic, optimizer)
    torch.testing.assert_close(model(x), before)
    plan = plan_for(elastic, mixed)
    apply_plan(plan, elastic, optimizer)
    for name in elastic.modules:
        index = [*range(1, len(old[name])), len(old[name]) - 1, len(old[name]) - 1]
        assert torch.equal(gate_of(elastic, name), old[name][index])
        assert torch.equal(optimizer.state[gate_of(elastic, name)]["exp_avg"], moments[name][index])
    apply_plan(plan_for(elastic, ()), elastic, optimizer)
    apply_plan(plan_for(elastic, (-1,)), elastic, optimizer)
    assert all(gate.tolist() == [1.0] for gate in gates.parameters())
    model(x).sum().backward()
    gates.fold()
    model(x)


def test_companions_need_gates_as_well():
    model = build(plain.PlainFeedForward)
    bare = copy.deepcopy(model)
    elastic = Elastic(model)
    gates = ComponentGates(elastic)
    gated = copy.deepcopy(model)
    with pytest.raises(ValueError, match=r"no submodule w2.parametrizations"):
        apply_plan(plan_for(elastic, mixed), elastic, companions=[bare])
    apply_plan(plan_for(elastic, mixed), elastic, companions=[gated])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), gated.parameters(), strict=True))
    gates.fold(companions=[gated])
    assert model.state_dict().keys() == gated.state_dict().keys() == bare.state_dict().keys()
    apply_plan(plan_for(elastic, mixed), elastic, companions=[gated])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), gated.parameters(), strict=True))


def test_gated_models_compile():
    model = build(plain.PlainFeedForward).eval()
    ComponentGates(Elastic(model))
    x = plain.inputs()
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(x), model(x))


def test_penalty_weighs_by_cost():
    elastic = Elastic(build(plain.PlainFeedForward, plain.PackedAttention))
    gates = ComponentGates(elastic)
    assert gates.penalty(0.5).item() == pytest.approx(0.5)
    gates.penalty(1.0).backward()
    a, b = elastic.modules.values()
    ratio = gate_of(elastic, a.name).grad[0] / gate_of(elastic, b.name).grad[0]
    assert ratio.item() == pytest.approx(a.cost / b.cost)
    apply_plan(plan_for(elastic, ()), elastic)
    assert gates.penalty(1.0).item() == 0.0


def test_twice_is_refused():
    elastic = Elastic(build(plain.PlainFeedForward))
    ComponentGates(elastic)
    with pytest.raises(ValueError, match=r"branches.0 has gates already"):
        ComponentGates(elastic)


def test_training_the_gates_finds_the_useless_components():
    """Two of four components of every module are useless: the teacher gets nothing from them."""
    torch.manual_seed(0)
    teacher = plain.Residual(plain.PlainFeedForward(), plain.PackedAttention())
    useless = {"branches.0": [1, 2], "branches.1": [0, 3]}
    elastic = Elastic(teacher)
    with torch.no_grad():
        for m in elastic.modules.values():
            view = m.view(m.layout.output[0], m.place(m.layout.output[0]).tensor)
            view.mul_(4.0)
            view[:, useless[m.name]] = 0.0
    for module in teacher.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    student = copy.deepcopy(teacher)
    elastic = Elastic(student)
    with torch.no_grad():
        for m in elastic.modules.values():
            view = m.view(m.layout.output[0], m.place(m.layout.output[0]).tensor)
            view[:, useless[m.name]] = 0.2 * torch.randn_like(view[:, useless[m.name]])
    gates = ComponentGates(elastic)
    scores = Scores(elastic, "gate", beta=0.5)
    optimizer = torch.optim.Adam(gates.parameters(), lr=2e-2)  # the gates alone decide
    for step in range(150):
        x = inputs(step, batch=8)
        optimizer.zero_grad()
        (F.mse_loss(student(x), teacher(x).detach()) + gates.penalty(0.02)).backward()
        scores.update()
        optimizer.step()
    values = scores.values()
    for name, lowest in useless.items():
        assert sorted(values[name].argsort()[:2].tolist()) == lowest
        assert values[name][lowest].max() < 0.5 * values[name].max()
    plan = make_plan(elastic.groups(values), fraction=0.4)
    dropped = {m.name: m.dropped for m in plan.modules}
    assert all(set(dropped[name]) <= set(lowest) for name, lowest in useless.items())
    assert plan.dropped >= 3
    apply_plan(plan, elastic, optimizer)
    scores.follow(plan)
    gates.fold()
    train(student, torch.optim.AdamW(student.parameters()), 2)
