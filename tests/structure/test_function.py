"""What an edited model computes: copies preserve the function, dropping equals building smaller."""

import copy
import pickle

import pytest
import torch
from torch import nn

from dmao_kernels.structure import Elastic, apply_plan, feedforward_layout, register_family
from tests.structure import plain
from tests.structure.plain import D, build, double_first, inputs, mixed, plan_for

ALL = list(plain.FAMILIES)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("split", ["asymmetric", "halves", "uniform"])
@pytest.mark.parametrize("cls", ALL)
def test_copies_preserve_the_function(cls, split, training):
    model = build(cls, dtype=torch.float64).train(training)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    elastic, x = Elastic(model), inputs(dtype=torch.float64)
    before = model(x)
    report = apply_plan(plan_for(elastic, lambda c: tuple(sorted([*range(c)] * 2))), elastic, split=split)
    after = model(x)
    assert report.after > report.before
    assert elastic.live_parameters() == sum(p.numel() for p in model.parameters())
    assert (after - before).abs().max() < 1e-13 * before.abs().max() * 10


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_copies_preserve_the_function_in_the_working_precision(dtype, bound):
    model, x = build(dtype=dtype).eval(), inputs(dtype=dtype)
    elastic = Elastic(model)
    before = model(x)
    apply_plan(plan_for(elastic, double_first), elastic)
    assert (model(x) - before).abs().max() <= bound * before.abs().max()


def test_a_plain_norm_over_channels_is_the_stated_exception():
    model = build(plain.LinearConvolution, dtype=torch.float64).eval()
    elastic = Elastic(model)
    x = inputs(dtype=torch.float64)
    before = model(x)
    apply_plan(plan_for(elastic, double_first), elastic)
    assert torch.allclose(model(x), before, atol=1e-12)
    model.branches[0].depthwise_norm.statistics_weight.fill_(1.0)  # what nn.LayerNorm would do
    assert not torch.allclose(model(x), before, atol=1e-6)


def by_hand(cls, keep):
    """The physically smaller module: every tensor cut with plain indexing, without the library."""
    model = build(cls, dtype=torch.float64)
    m = model.branches[0]

    def rows(width, groups=1):
        return [g * width * TOTAL[cls] + c * width + i for g in range(groups) for c in keep for i in range(width)]

    def cut(linear, out=None, into=None):
        w = linear.weight.data
        linear.weight = nn.Parameter((w[out] if out else w)[:, into] if into else w[out])
        if out and linear.bias is not None:
            linear.bias = nn.Parameter(linear.bias.data[out])

    n = len(keep)
    if cls is plain.PlainFeedForward:
        cut(m.w1, out=rows(6))
        cut(m.w2, into=rows(6))
    elif cls in (plain.PlainConvolution, plain.LinearConvolution):
        cut(m.pointwise1, out=rows(3, 2))
        cut(m.depthwise, out=rows(3))
        m.depthwise.groups = 3 * n
        cut(m.pointwise2, into=rows(3))
        norm = m.depthwise_norm
        norm.weight, norm.bias = (nn.Parameter(t.data[rows(3)]) for t in (norm.weight, norm.bias))
        if cls is plain.PlainConvolution:
            norm.running_mean, norm.running_var = norm.running_mean[rows(3)], norm.running_var[rows(3)]
        else:
            norm.statistics_weight = norm.statistics_weight[list(keep)]
    elif cls is plain.PlainAttention:
        m.heads = n
        cut(m.q, out=rows(4))
        cut(m.k, out=rows(4))
        cut(m.v, out=rows(5))
        cut(m.out, into=rows(5))
    elif cls is plain.PackedAttention:
        m.heads = n
        cut(m.qkv, out=rows(3, 3))
        cut(m.out, into=rows(3))
    else:
        cut(m.linear1, out=rows(6, 2))
        cut(m.depthwise, out=rows(6))
        m.depthwise.groups = 6 * n
        norm = m.gate_norm
        norm.weight, norm.bias = (nn.Parameter(t.data[rows(6)]) for t in (norm.weight, norm.bias))
        norm.statistics_weight = norm.statistics_weight[list(keep)]
        cut(m.linear2, into=rows(6))
    return model


TOTAL = {cls: 3 if cls is plain.PlainAttention else 4 for cls in ALL}


@pytest.mark.parametrize("keep", [(0, 2), (1,), (2, 0, 1)])
@pytest.mark.parametrize("cls", ALL)
def test_dropping_and_permuting_equal_the_model_built_by_hand(cls, keep):
    model = build(cls, dtype=torch.float64)
    elastic = Elastic(model)
    apply_plan(plan_for(elastic, keep), elastic)
    expected = by_hand(cls, keep)
    x = inputs(dtype=torch.float64)
    for m in (model, expected):
        for module in m.modules():
            if isinstance(module, nn.Dropout):
                module.eval()
        m(x).square().sum().backward()
    torch.testing.assert_close(model(x), expected(x), rtol=0, atol=0)
    for (name, p), q in zip(model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=0, msg=name)


def test_edit_then_backward_equals_a_fresh_model_with_these_tensors():
    model = build(dtype=torch.float64).eval()
    elastic = Elastic(model)
    apply_plan(plan_for(elastic, mixed), elastic)
    physical = build(seed=5, dtype=torch.float64).eval()
    again = Elastic(physical)
    again.load_state_dict(elastic.state_dict())
    physical.load_state_dict(model.state_dict())
    x = inputs(dtype=torch.float64)
    for m in (model, physical):
        m(x).square().sum().backward()
    for (name, p), q in zip(model.named_parameters(), physical.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name


def test_empty_modules_contribute_nothing_and_can_be_revived():
    model = build(dtype=torch.float64).eval()
    x = inputs(dtype=torch.float64)
    elastic = Elastic(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(x).sum().backward()
    optimizer.step()
    apply_plan(plan_for(elastic, ()), elastic, optimizer)
    bare = model.classify(model.norm(x))
    assert torch.equal(model(x), bare)
    assert elastic.live_parameters() == sum(p.numel() for m in (model.classify, model.norm) for p in m.parameters())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), bare)
        assert twin.state_dict().keys() == model.state_dict().keys()
    model(x).sum().backward()
    optimizer.step()
    report = apply_plan(plan_for(elastic, (-1,)), elastic, optimizer)
    assert set(report.fresh.values()) == {(0,)}
    assert all("forward" not in vars(m) for m in model.modules())
    # The output weights are zero, and the output biases, which were trained before, are silenced with them.
    assert torch.equal(model(x), model.classify(model.norm(x)))
    for m in elastic.modules.values():
        bias = m.place(m.layout.shared[-1]).tensor
        assert not any(bool(value.any()) for key, value in optimizer.state[bias].items() if key != "step")
    optimizer.zero_grad()
    model(x).square().sum().backward()
    for m in elastic.modules.values():
        for name in m.layout.output:
            assert m.place(name).tensor.grad.abs().sum() > 0
            assert not m.place(name).tensor.any()
    optimizer.step()
    optimizer.step()


def test_an_empty_module_keeps_a_forward_of_its_own():
    model = build(plain.PlainFeedForward)
    branch, x = model.branches[0], inputs()
    branch.forward = own = lambda x: x + 1.0
    elastic = Elastic(model)
    apply_plan(plan_for(elastic, ()), elastic)
    assert not branch(x).any()
    assert not branch(x=x).any()
    with pytest.raises(TypeError, match="empty module: the first argument must be a tensor, got list"):
        branch([x])
    apply_plan(plan_for(elastic, (-1,)), elastic)
    assert branch.forward is own


def test_fresh_components_start_as_the_module_would():
    model = build()
    elastic = Elastic(model)
    apply_plan(plan_for(elastic, ()), elastic)
    rng = torch.get_rng_state()
    apply_plan(plan_for(elastic, (-1,), seed=4), elastic)
    assert torch.equal(torch.get_rng_state(), rng)
    ff, conv, weighted, *_ = model.branches
    assert 0.5 / D**0.5 < ff.w1.weight.abs().max() <= 1 / D**0.5
    assert torch.equal(conv.depthwise_norm.running_var, torch.ones(3))
    assert torch.equal(conv.depthwise_norm.weight, torch.ones(3))
    assert torch.equal(weighted.depthwise_norm.weight, torch.ones(3))
    assert torch.equal(weighted.depthwise_norm.statistics_weight, torch.ones(1))
    assert not ff.w2.weight.any()


def test_part_of_a_larger_module():
    """The feed-forward half of nn.TransformerEncoderLayer; not to be emptied, its residual is inside."""

    class Layer(nn.TransformerEncoderLayer):
        pass

    register_family(Layer, feedforward_layout("linear1", "linear2", norm="norm2"), can_be_empty=False)
    model = nn.Sequential(Layer(D, 3, 24, dropout=0.0, batch_first=True, dtype=torch.float64)).eval()
    elastic, x = Elastic(model), inputs(dtype=torch.float64)
    before = model(x)
    assert [group.keep for group in elastic.groups({"0": [1.0] * 4, "0.self_attn": [1.0] * 3})] == [1, 0]
    with pytest.raises(ValueError, match="cannot lose all its components"):
        apply_plan(plan_for(elastic, ()), elastic)
    apply_plan(plan_for(elastic, double_first), elastic)
    torch.testing.assert_close(model(x), before, rtol=1e-12, atol=1e-12)
    with torch.no_grad():  # where PyTorch would take a fast path for the widths as built
        torch.testing.assert_close(model(x), before, rtol=1e-12, atol=1e-12)
    assert elastic.counts() == {"0": 5, "0.self_attn": 4}
