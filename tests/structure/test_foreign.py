"""Classes of packages are known by their paths: stand-ins of the same structure and path (the real ones: tests/zoo)."""

from __future__ import annotations

import copy
import pickle
import sys
import types

import pytest
import torch
from torch import Tensor, nn

import dmao_kernels
from dmao_kernels.structure import Elastic, apply_plan, feedforward_layout, find_family, given_plan, register_family
from tests.ops.common import CountedGraphs

D, H = 8, 16
X = torch.randn(2, 5, D, generator=torch.Generator().manual_seed(1))


class Mlp(nn.Module):
    """timm's."""

    def __init__(self, norm: nn.Module | None = None, act: nn.Module | None = None) -> None:
        super().__init__()
        self.fc1, self.act, self.drop1 = nn.Linear(D, H), act or nn.GELU(), nn.Dropout(0.0)
        self.norm, self.fc2, self.drop2 = norm or nn.Identity(), nn.Linear(H, D), nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop2(self.fc2(self.norm(self.drop1(self.act(self.fc1(x))))))


class RelPosMHAXL(nn.Module):
    """SpeechBrain's, as far as its tensors go."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = 4, 2
        self.in_proj_weight = nn.Parameter(torch.randn(3 * D, D))
        self.linear_pos, self.out_proj = nn.Linear(D, D, bias=False), nn.Linear(D, D)
        self.pos_bias_u, self.pos_bias_v = (nn.Parameter(torch.randn(2, 4)) for _ in range(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = (x @ self.in_proj_weight.T).view(2, 5, self.num_heads, 3 * self.head_dim).chunk(3, dim=-1)
        q = q + self.pos_bias_u.view(self.num_heads, self.head_dim)
        p = self.linear_pos(x).view(2, 5, self.num_heads, self.head_dim) * self.pos_bias_v.view(self.num_heads, -1)
        weights = torch.einsum("bthk,bshk->bhts", q, k + p).softmax(-1)
        return self.out_proj(torch.einsum("bhts,bshk->bthk", weights, v).flatten(2)), weights


class Branch(nn.Module):
    """Takes and returns (x, positions), as ESPnet's cgMLP."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Linear(D, H), nn.Linear(H, D)

    def forward(self, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return self.w2(self.w1(pair[0]).relu()), pair[1]


@pytest.fixture(autouse=True)
def paths(monkeypatch):
    monkeypatch.setattr(Mlp, "__module__", "timm.layers.mlp")
    monkeypatch.setattr(RelPosMHAXL, "__module__", "speechbrain.nnet.attention")


def test_nothing_is_imported() -> None:
    assert not {"timm", "torchvision", "torchaudio", "transformers", "espnet", "speechbrain"} & sys.modules.keys()


def test_a_path_names_a_class_and_what_derives_from_it() -> None:
    class Derived(Mlp):
        pass

    model = nn.Sequential(Derived(), Mlp(nn.LayerNorm(H)))
    elastic = Elastic(model)
    assert elastic.counts() == {"0": 4}
    assert elastic.refused == {"1": "a norm runs over the hidden units of all components"}
    register_family(Derived, "another")
    assert find_family(model[0]).layout == "another"


def test_heads_first_whatever_the_state() -> None:
    attention = RelPosMHAXL()
    stored, before = copy.deepcopy(attention.state_dict()), attention(X)[0]
    average = copy.deepcopy(attention)
    elastic = Elastic(attention)
    assert attention.pos_bias_u.shape == (4, 2)
    assert torch.equal(attention(X)[0], before)
    attention.load_state_dict(stored)  # of the class as it is
    attention.load_state_dict(attention.state_dict())
    assert torch.equal(attention(X)[0], before)
    Elastic(copy.deepcopy(attention))  # once is enough
    apply_plan(given_plan({"": (0, 1, 1, 2, 3)}, elastic.counts()), elastic, companions=[average])
    torch.testing.assert_close(attention(X)[0], before)
    torch.testing.assert_close(average(X)[0], before)
    apply_plan(given_plan({"": ()}, elastic.counts()), elastic)
    zeros, weights = attention(X)
    assert not zeros.any()
    assert weights is None


def test_empty_modules_that_take_tuples() -> None:
    branch = Branch()
    register_family(branch, (feedforward_layout(norm=None), 4))
    elastic = Elastic(branch)
    apply_plan(given_plan({"": ()}, elastic.counts()), elastic)
    y, positions = branch((X, X))
    assert positions is X
    assert torch.equal(y, torch.zeros_like(X))


def test_empty_modules_whose_arguments_are_given_by_name() -> None:
    class Masked(Mlp):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return super().forward(x) * mask

    elastic = Elastic(model := Masked())
    apply_plan(given_plan({"": ()}, elastic.counts()), elastic)
    for empty in (model, dmao_kernels.compact(model)):
        assert torch.equal(empty(mask=torch.ones(5, 1), x=X), torch.zeros_like(X))


def test_named_swap() -> None:
    plain = nn.Sequential(Mlp(), Mlp(nn.LayerNorm(H)), Mlp(act=nn.Tanh()))
    fast = copy.deepcopy(plain)
    report = dmao_kernels.accelerate(fast)
    assert [(e.name, e.kind, e.note) for e in report.changed] == [
        ("0", "Mlp", "Linear, activation, dropout, Linear as one operation")
    ]
    notes = {entry.name: entry.note for entry in report.left}
    assert notes["1"] == "a norm runs over the hidden units"
    assert notes["2"] == "an activation other than ReLU, GELU and SiLU"
    assert list(fast.state_dict()) == list(plain.state_dict())
    assert dmao_kernels.accelerate(fast).changed == ()
    for model in (fast, copy.deepcopy(fast), fast.double()):
        x = X.to(model[0].fc1.weight.dtype)
        torch.testing.assert_close(model(x), plain.to(x.dtype)(x))
    assert isinstance(fast[0], Mlp)
    elastic = Elastic(fast)
    apply_plan(given_plan({"0": (0, 2), "2": (0, 1, 2, 3)}, elastic.counts()), elastic)
    assert fast[0].fc1.out_features == H // 2


@pytest.mark.parametrize("name", ["fc1", "act", "norm", "drop2"])
def test_hooks_inside_of_a_named_swap(name: str) -> None:
    early, late = Mlp(), Mlp()
    early.get_submodule(name).register_forward_hook(lambda *_: 2 * _[2])
    report = dmao_kernels.accelerate(early)
    assert [entry.name for entry in report.left] == ([] if name == "drop2" else ["", "fc1", "fc2"])
    assert dmao_kernels.accelerate(late).changed
    late.load_state_dict(early.state_dict())
    late.get_submodule(name).register_forward_hook(lambda *_: 2 * _[2])
    for model in (early, late):
        torch.testing.assert_close(model(X), Mlp.forward(model, X))


def test_named_swap_with_arguments_by_name_and_compiled() -> None:
    fast = Mlp()
    dmao_kernels.accelerate(fast)
    torch.testing.assert_close(fast(x=X), fast(X))
    graphs = CountedGraphs()
    compiled = torch.compile(fast, fullgraph=True, backend=graphs)
    for x in (X, -X):
        torch.testing.assert_close(compiled(x), fast(x))
    assert graphs.count == 1


def test_named_swap_is_pickled(monkeypatch) -> None:
    for name in ("timm", "timm.layers", "timm.layers.mlp"):
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(Mlp=Mlp, __path__=[]))
    fast = Mlp()
    dmao_kernels.accelerate(fast)
    again = pickle.loads(pickle.dumps(fast))
    assert type(again) is type(fast)
    torch.testing.assert_close(again(X), fast(X))
