"""discover: what is found is a pair, and what is no pair is refused with the reason."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmao_kernels import BlockMask
from dmao_kernels.nn import MaskedLinear
from dmao_kernels.structure import Elastic, apply_plan, discover, given_plan, register_family
from tests.structure.plain import PlainAttention, PlainFeedForward

D, H = 8, 12
X = torch.randn(2, 5, D, generator=torch.Generator().manual_seed(3))


class Block(nn.Module):
    """Linears a, b, c, and what a function makes of them."""

    def __init__(self, function: Callable[..., Tensor], a: int = H, b: int = H, c: int = H) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(D, a), nn.Linear(D, b, bias=False), nn.Linear(c, D)
        self.norm = nn.LayerNorm(H)
        self.scale = nn.Parameter(torch.ones(H))
        self.gain = nn.Parameter(torch.ones(1))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def two_layer(act: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda m, x: m.c(act(m.a(x)))


def halves(gate: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda m, x: m.c(gate(m.a(x)))


def tanh_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.044715 * x.pow(3))))


PLAIN = {
    "relu": F.relu,
    "in place": partial(F.relu, inplace=True),
    "method": lambda h: h.relu_().square(),
    "gelu, dropout": lambda h: F.dropout(F.gelu(h), 0.1, training=False),
    "swish by hand": lambda h: h * torch.sigmoid(h),
    "gelu by hand": tanh_gelu,
    "masked": lambda h: F.silu(h).masked_fill(torch.zeros(2, 5, 1, dtype=torch.bool), 0.0),
    "reshaped": lambda h: F.relu(h.view(-1, h.shape[-1])).unflatten(0, (2, 5)),
    "transposed": lambda h: F.relu(h.transpose(0, 1)).transpose(0, 1),
    "cast": lambda h: F.relu(h.double()).to(torch.float32).type_as(X),
    "prelu": lambda h: F.prelu(h, torch.full((1,), 0.1)),
}
GATED = {
    "swiglu": (lambda m, x: m.c(F.silu(m.a(x)) * m.b(x)), {}),
    "bilinear": (lambda m, x: m.c(m.a(x).mul(m.b(x))), {}),
    "geglu, scaled": (lambda m, x: m.c(m.gain * F.gelu(m.a(x)) * m.b(x)), {}),
    "maxout": (lambda m, x: m.c(torch.maximum(F.relu(m.a(x)), m.b(x))), {}),
    "glu": (halves(F.glu), {"a": 2 * H}),
    "chunk": (halves(lambda h: h.chunk(2, dim=-1)[0] * torch.sigmoid(h.chunk(2, dim=-1)[1])), {"a": 2 * H}),
    "split": (halves(lambda h: torch.mul(*F.gelu(h).split(h.shape[-1] // 2, -1))), {"a": 2 * H}),
    "slices": (halves(lambda h: F.silu(h[..., h.shape[-1] // 2 :]) * h[..., : h.shape[-1] // 2]), {"a": 2 * H}),
}


def check(block: Block) -> None:
    """Copies preserve the function; a drop is what zero output weights are."""
    model = nn.Sequential(block)
    discover(model, X)
    elastic = Elastic(model)
    before, oracle = model(X), copy.deepcopy(model)
    apply_plan(given_plan({"0": (0, 1, 1, 2, 3)}, elastic.counts()), elastic)
    torch.testing.assert_close(model(X), before, rtol=1e-4, atol=1e-4)
    apply_plan(given_plan({"0": (0, 3, 4)}, elastic.counts()), elastic)
    with torch.no_grad():
        oracle[0].c.weight.unflatten(1, (4, -1))[:, 1] = 0
    torch.testing.assert_close(model(X), oracle(X), rtol=1e-4, atol=1e-4)
    assert model[0].c.in_features == 9
    assert model(X).requires_grad


@pytest.mark.parametrize("activation", PLAIN.values(), ids=PLAIN)
def test_linear_activation_linear(activation: Callable) -> None:
    block = Block(two_layer(activation))
    found = discover(nn.Sequential(block), X).found
    assert [(p.owner, p.up, p.down, p.units, p.gated) for p in found] == [("0", ("0.a",), "0.c", H, False)]
    check(block)


@pytest.mark.parametrize(("function", "widths"), GATED.values(), ids=GATED)
def test_gated_pairs(function: Callable, widths: dict) -> None:
    block = Block(function, **widths)
    pair = discover(nn.Sequential(block), X).found[0]
    assert (pair.owner, pair.down, pair.units, pair.gated) == ("0", "0.c", H, True)
    assert pair.up == (("0.a",) if widths else ("0.a", "0.b"))
    check(block)


REFUSED = {
    "no activation": (lambda m, x: m.c(m.a(x)), {}, "no activation stands between it and 0.c"),
    "norm": (lambda m, x: m.c(F.relu(m.norm(m.a(x)))), {}, "its output goes to layer_norm"),
    "softmax": (lambda m, x: m.c(m.a(x).softmax(-1)), {}, "its output goes to softmax"),
    "scaled": (lambda m, x: m.c(F.relu(m.a(x)) * m.scale), {}, "its output goes to mul"),
    "skip": (lambda m, x: m.c(F.relu(m.a(x)) + x.repeat(1, 1, 2)[..., :H]), {}, "its output goes to add"),
    "sum": (lambda m, x: m.c(F.relu(h := m.a(x))) + h.mean(), {}, "its output goes to mean"),
    "returned": (lambda m, x: (m.c(F.relu(h := m.a(x))), {"h": [h]}), {}, "its output leaves the model"),
    "read": (lambda m, x: m.c(F.relu(h := m.a(x))) + h.tolist()[0][0][0], {}, "its output goes to tolist"),
    "time": (lambda m, x: m.c(F.relu(m.a(x).transpose(1, 2)).mT), {}, "its output goes to transpose"),
    "heads": (lambda m, x: m.c(F.relu(m.a(x).view(2, 5, 3, 4)).flatten(2)), {}, "its output goes to view"),
    "twice": (lambda m, x: m.c(F.relu(m.a(x))) + m.c(F.relu(m.a(-x))), {}, "0.a is called 2 times"),
    "pooled": (lambda m, x: m.c(F.relu(m.a(x)).mean(1, keepdim=True)), {}, "its output goes to mean"),
    "shared": (lambda m, x: m.c(F.relu(m.a(x))) + m.c(F.relu(m.b(x))), {}, "0.c is called 2 times"),
    "one half": (lambda m, x: m.c(F.relu(m.a(x).chunk(2, -1)[0])), {"a": 2 * H}, "only one half of its output is used"),
    "interleaved": (lambda m, x: m.c(m.a(x)[..., ::2] * m.a(x)[..., 1::2]), {"a": 2 * H}, "goes to getitem"),
    "weight": (lambda m, x: m.c(F.relu(m.a(x))) + m.a.weight.sum(), {}, "its parameters are used by sum"),
    "matrix": (lambda m, x: F.linear(F.relu(m.a(x)), m.scale.expand(D, H)), {}, "a matrix that is of no nn.Linear"),
    "width": (lambda m, x: m.c(F.relu(m.a(x))), {"a": 10, "c": 10}, "its 10 units cannot be cut in 4 components"),
}


@pytest.mark.parametrize(("function", "widths", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(function: Callable, widths: dict, reason: str) -> None:
    model = nn.Sequential(Block(function, **widths)).train()
    discovery = discover(model, X)
    assert discovery.found == ()
    assert reason in discovery.refused["0.a"]
    assert reason in str(discovery)
    assert model[0].a.training
    with pytest.raises(ValueError, match="no elastic module"):
        Elastic(model)


def test_used_by_two() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.c, self.d = nn.Linear(D, H), nn.Linear(H, D), nn.Linear(H, D)

        def forward(self, x: Tensor) -> Tensor:
            h = F.relu(self.a(x))
            return self.c(h) + self.d(h)

    assert discover(Two(), X).refused["a"] == "its output goes to c and d"


def test_chains_and_neighbours() -> None:
    """The units before come first; one module holds one pair."""
    chain = nn.Sequential(*(m for _ in range(3) for m in (nn.Linear(D, D), nn.ReLU())), nn.Linear(D, D))
    discovery = discover(chain, X)
    assert [(p.up, p.down) for p in discovery.found] == [(("0",), "2")]
    assert discovery.refused == {
        "4": "the model holds another pair: give each a module of its own",
        "6": "its output leaves the model",
    }
    assert Elastic(chain).counts() == {"": 4}
    nested = nn.ModuleDict({"x": nn.ModuleList([nn.Linear(D, H), nn.Linear(H, D)]), "unused": nn.Linear(D, D)})
    nested.forward = lambda x: nested["x"][1](F.relu(nested["x"][0](x)))
    found = discover(nested, {"x": X})
    assert [p.owner for p in found.found] == ["x"]
    assert found.refused == {"unused": "not called on this example"}


def test_known_families_are_left() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.known, self.attention, self.block = PlainFeedForward(), PlainAttention(), Block(GATED["swiglu"][0])
            self.into, self.out = nn.Linear(D, 12), nn.Linear(12, D)

        def forward(self, x: Tensor) -> Tensor:
            x = self.into(x)
            return self.block(self.out(self.attention(x) + self.known(x)))

    model = Model()
    discovery = discover(model, (X,))
    assert [pair.owner for pair in discovery.found] == ["block"]
    assert discovery.refused.keys() == {"into", "out"}
    elastic = Elastic(model)
    assert elastic.counts() == {"known": 4, "attention": 3, "block": 4}
    assert not elastic.modules["block"].can_be_empty
    assert discover(model, X).found == ()
    again = Elastic(copy.deepcopy(model))
    assert again.counts() == elastic.counts()


def test_families_that_are_not_elastic_tell_why() -> None:
    class Squared(nn.TransformerEncoderLayer):
        def _ff_block(self, x: Tensor) -> Tensor:
            return self.linear2(self.linear1(x).relu().square())

    found = discover(nn.Sequential(Squared(8, 2, 16, batch_first=True), nn.Identity()), torch.randn(2, 5, 8))
    assert found.refused["0.linear1"].startswith("0 is not elastic: a class derived from TransformerEncoderLayer")


def test_tied_and_derived_linears() -> None:
    class Own(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(D, D), nn.ReLU(), nn.Linear(D, D), nn.Sequential(Own(D, H), nn.ReLU(), Own(H, D)))
    model[2].weight = model[0].weight
    discovery = discover(model, X)
    assert discovery.found == ()
    assert discovery.refused["0"] == discovery.refused["2"] == "its weight is tied to another"
    assert "a class derived from Linear (Own)" in discovery.refused["3.0"]

    two = nn.Sequential(*(nn.Sequential(nn.Linear(D, H), nn.ReLU(), nn.Linear(H, D)) for _ in range(2)))
    two[1][0].bias = two[0][0].bias
    discovery = discover(two, X)
    assert discovery.found == ()
    assert discovery.refused["0.0"] == discovery.refused["1.0"] == "its bias is tied to another"


def assigned(index: object, value: object = 0.0) -> Callable[..., Tensor]:
    def forward(m: Block, x: Tensor) -> Tensor:
        h = F.relu(m.a(x)).clone()
        h[index] = value
        return m.c(h)

    return forward


@pytest.mark.parametrize("index", [0, slice(1), (slice(None), 2), torch.tensor([True, False]), X[..., 0] > 0])
def test_frames_may_be_assigned(index: object) -> None:
    assert len(discover(Block(assigned(index)), X).found) == 1
    refused = discover(Block(assigned(index, torch.arange(H, dtype=torch.float32))), X).refused
    assert refused["a"] == "a part of its output is assigned"


@pytest.mark.parametrize("index", [(..., 0), (0, 0, 0), (slice(None), slice(None), slice(2)), X.new_ones(2, 5, H) > 0])
def test_units_may_not_be_assigned(index: object) -> None:
    assert discover(Block(assigned(index)), X).refused["a"] == "a part of its output is assigned"


@pytest.mark.parametrize("way", ["to", "data", "from"])
def test_parameters_may_not_be_assigned(way: str) -> None:
    def forward(m: Block, x: Tensor) -> Tensor:
        with torch.no_grad():
            if way == "to":
                m.a.weight[0] = 0.0
            elif way == "data":
                m.a.bias.data = torch.arange(float(H))
            else:
                torch.zeros(H)[:] = m.a.bias
        return m.c(F.relu(m.a(x)))

    assert discover(Block(forward), X).refused["a"] == "its parameters are used by setitem"


def test_a_neighbour_may_have_a_block_mask() -> None:
    block = Block(lambda m, x: m.c(F.relu(m.a(m.mix(x)))))
    block.mix = MaskedLinear(D, D, block=16)
    block.mix.mask = BlockMask.full(block.mix.weight, 16)
    assert len(discover(block, X).found) == 1
    elastic, before = Elastic(block), block(X)
    ((name, count),) = elastic.counts().items()
    apply_plan(given_plan({name: (*range(1, count), 0)}, elastic.counts()), elastic)
    torch.testing.assert_close(block(X), before)


def test_units_that_are_kept_elsewhere_leave() -> None:
    kept = torch.zeros(2, 5, H)

    def forward(m: Block, x: Tensor) -> Tensor:
        h = F.relu(m.a(x))
        kept[:] = h
        return m.c(h)

    assert discover(Block(forward), X).refused["a"] == "its output is assigned to a part of another tensor"


def test_one_module_may_be_registered() -> None:
    model = nn.Sequential(nn.Linear(D, H), nn.ReLU(), nn.Linear(H, D))
    with pytest.raises(TypeError, match=r"must be a subclass of nn.Module, its dotted path, or a module"):
        register_family(None, "no")
    register_family(model, "a reason")
    with pytest.raises(ValueError, match="a reason"):
        Elastic(model)


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError, match="example must be a tensor, a tuple or a mapping of arguments, got None"):
        discover(nn.Linear(D, D), None)
    with pytest.raises(ValueError, match="components must be a whole number from 1, got 0"):
        discover(nn.Linear(D, D), torch.randn(2, D), components=0)
