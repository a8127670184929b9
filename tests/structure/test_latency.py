"""LatencyCost, on a clock that the modules themselves move, and once on the real one."""

import copy
import random

import pytest
import torch
from torch import nn

from dmao_kernels.nn import ConformerBlock
from dmao_kernels.structure import Elastic, LatencyCost, feedforward_layout, latency, register_family

D = 8


class Clock:
    """Stands still unless somebody works."""

    def __init__(self):
        self.now = 0
        self.noise = lambda ns: ns

    def work(self, ns):
        self.now += int(self.noise(ns))

    def perf_counter_ns(self):
        return self.now


CLOCK = Clock()


class Slow(nn.Module):
    """A feed-forward module that takes ``own`` per component and ``shared`` besides; backward as long again."""

    def __init__(self, own=1000, shared=300, square=0):
        super().__init__()
        self.up, self.down = nn.Linear(D, 16), nn.Linear(16, D)
        self.own, self.shared, self.square = own, shared, square

    def forward(self, x, scale=1.0):
        n = self.up.out_features // 4
        ns = self.own * n + self.shared + self.square * n * n
        CLOCK.work(ns)
        y = self.down(torch.relu(self.up(x))) * scale
        if y.requires_grad:
            y.register_hook(lambda grad: CLOCK.work(ns))
        return y


class Other(Slow):
    pass


for cls in (Slow, Other):
    register_family(cls, feedforward_layout(up="up", down="down", norm=None))


class Net(nn.Module):
    def __init__(self, *blocks, rest=0):
        super().__init__()
        self.blocks, self.rest = nn.ModuleList(blocks), rest
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        CLOCK.work(self.rest)
        for block in self.blocks:
            x = x + self.dropout(block(x, scale=0.5))
        return {"out": [x]}


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    monkeypatch.setattr(latency, "time", CLOCK)
    CLOCK.noise = lambda ns: ns
    return CLOCK


def x():
    return torch.randn(3, D, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("backward", "times"), [(True, 2), (False, 1)])
def test_own_shared_and_fixed(backward, times):
    elastic = Elastic(Net(Slow(), Other(own=50, shared=0), Slow(), rest=777))
    costs = LatencyCost(x(), backward=backward, reps=5).measure(elastic)
    assert (costs.unit, costs.measured) == ("ns", True)
    assert costs.own == {"blocks.0": times * 1000, "blocks.1": times * 50, "blocks.2": times * 1000}
    assert costs.shared == {"blocks.0": times * 300, "blocks.1": 0, "blocks.2": times * 300}
    assert costs.fixed == 777
    assert costs.total(elastic.counts()) == 777 + times * (2 * (4 * 1000 + 300) + 4 * 50)


def test_a_function_as_example():
    calls = []

    def run(model):
        calls.append(model)
        model(x())["out"][0].square().mean().backward()

    elastic = Elastic(Net(Slow(), rest=5))
    costs = LatencyCost(run).measure(elastic)
    assert (costs.own, costs.fixed) == ({"blocks.0": 2000}, 5)
    assert all(model is not elastic.model for model in calls)


def test_noise_that_only_adds_is_seen_through(clock):
    rng = random.Random(0)
    clock.noise = lambda ns: ns * (1 + 0.02 * rng.random()) + (50 * ns if rng.random() < 0.35 else 0)
    costs = LatencyCost(x(), reps=61).measure(Elastic(Net(Slow())))
    assert costs.own["blocks.0"] == pytest.approx(2000, rel=0.05)


@pytest.mark.parametrize("own", [0, 1])
def test_what_noise_hides_is_refused(clock, own):
    rng = random.Random(0)
    clock.noise = lambda ns: ns * (1 + rng.random())
    model = Net(Slow(own, shared=10**6))
    with pytest.raises(ValueError, match=r"blocks.0 \(feedforward\) takes .* ms as it is and .* raise reps \(9\)"):
        LatencyCost(x(), reps=9).measure(Elastic(model))


def test_more_passes_where_the_machine_is_noisy(clock):
    seen = []
    for spread in (0.0, 0.5):
        rng, passes = random.Random(0), [0]

        def noise(ns, rng=rng, passes=passes, spread=spread):
            passes[0] += 1
            return ns * (1 + spread * rng.random())

        clock.noise = noise
        LatencyCost(x(), reps=9).measure(Elastic(Net(Slow(1000, shared=4000))))
        seen.append(passes[0])
    assert seen[0] < seen[1] <= seen[0] * latency.MOST_ROUNDS


def test_a_module_that_grows_dearer_has_no_negative_shared_cost():
    costs = LatencyCost(x()).measure(Elastic(Net(Slow(own=1000, shared=0, square=100))))
    assert costs.shared == {"blocks.0": 0}
    assert costs.own == {"blocks.0": 2 * (1000 + 8 * 100)}  # the line through nothing and twice the width


def test_model_and_random_state_are_left_alone():
    model = Net(Slow(), Other())
    model(x())["out"][0].sum().backward()
    before, grads = copy.deepcopy(model.state_dict()), [p.grad.clone() for p in model.parameters()]
    forwards, state = [b.__dict__.get("forward") for b in model.blocks], torch.get_rng_state()
    LatencyCost(x()).measure(Elastic(model))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    torch.testing.assert_close([p.grad for p in model.parameters()], grads, rtol=0, atol=0)
    assert [b.__dict__.get("forward") for b in model.blocks] == forwards == [None, None]
    assert torch.equal(torch.get_rng_state(), state)


def test_frozen_modules_and_no_grad():
    model = Net(Slow(), Other()).requires_grad_(False)
    assert LatencyCost(x()).measure(Elastic(model)).own == {"blocks.0": 1000, "blocks.1": 1000}  # forward alone
    with torch.no_grad():
        assert LatencyCost(x()).measure(Elastic(Net(Slow()))).own == {"blocks.0": 2000}


def test_errors():
    with pytest.raises(ValueError, match=r"reps must be 5 or more, got 4"):
        LatencyCost(x(), reps=4)
    with pytest.raises(ValueError, match=r"example must call blocks.0, but it was not called"):
        LatencyCost(lambda model: CLOCK.work(5)).measure(Elastic(Net(Slow())))
    elastic = Elastic(Net(Slow(), Other()))
    elastic.modules["blocks.1"].stored = 0
    with pytest.raises(ValueError, match=r"every module must have components, got none in blocks.1"):
        LatencyCost(x()).measure(elastic)


def test_layers_of_ours_inside_their_block_in_real_time(monkeypatch):
    """A block calls `transform` and not the modules themselves; wide ones, so that no neighbour hides their cost."""
    monkeypatch.undo()
    assert latency.time is not CLOCK
    block = ConformerBlock(64, heads=8, expansion=32, kernel=3)
    elastic = Elastic(nn.ModuleList([block]))
    frames = torch.randn(2, 100, 64)
    cost = LatencyCost(lambda model: model[0](frames).sum().backward())
    with latency._record_calls({name: m.module for name, m in elastic.modules.items()}) as calls:
        block(frames)
    assert {name: call.entry for name, call in calls.items()} == dict.fromkeys(elastic.modules, "transform")
    assert not any("transform" in m.module.__dict__ for m in elastic.modules.values())
    with latency._record_calls({"ffn": block.ffn1}) as outer:
        block.ffn1(frames)
    assert outer["ffn"].entry == "forward"
    name = next(n for n, m in elastic.modules.items() if m.layout.family == "feedforward")
    component, shared = cost._fit(elastic, elastic.modules[name], calls[name], torch.device("cpu"))
    assert component > 1000
    assert shared >= 0
