"""compact: the same function in plain PyTorch, with which PyTorch's own tools can do what they like."""

import copy
import pickle
import warnings

import pytest
import torch
from dmao.models import ConformerConfig, ConformerCTC
from torch import nn

import dmao_kernels
from dmao_kernels import BlockMask, accelerate, compact, use_backend
from dmao_kernels import nn as layers
from dmao_kernels.plain import layers as plain
from dmao_kernels.plain import register_plain
from dmao_kernels.structure import ComponentGates, Elastic, apply_plan, discover
from tests.structure import plain as foreign
from tests.structure.plain import build, inputs, mixed, plan_for

LAYERS = {
    "feed-forward": lambda: layers.FeedForward(12, 24, 0.1, activation="relu"),
    "convolution": lambda: layers.ConvolutionModule(12, 5),
    "gating mlp": lambda: layers.ConvolutionalGatingMLP(12, 48, 3),
    "attention": lambda: layers.SelfAttention(12, 4, 6),
    "window": lambda: layers.SelfAttention(12, 4, 6, window=(2, 1)),
    "chunk": lambda: layers.SelfAttention(12, 4, 6, chunk=(3, 1)),
    "sinusoids": lambda: layers.RelPosSelfAttention(12, 4, 6),
    "sinusoids, window": lambda: layers.RelPosSelfAttention(12, 4, 6, window=(3, 3)),
    "table": lambda: layers.RelPosSelfAttention(12, 4, 6, radius=2),
    "chunked conformer": lambda: layers.ConformerBlock(12, 4, head_dim=4, kernel=5, chunk=(3, 1)),
    "chunked e-branchformer": lambda: layers.EBranchformerBlock(
        12, 4, head_dim=4, kernel=5, merge_kernel=3, chunk=(3, None)
    ),
    "conformer": lambda: layers.ConformerBlock(12, 4, head_dim=4, kernel=5, positions="relative"),
    "e-branchformer": lambda: layers.EBranchformerBlock(12, 4, head_dim=4, kernel=5, merge_kernel=3),
}
MASK = torch.arange(7) < torch.tensor([[7], [4]])


def edited(name, sources=mixed):
    """The layer with parameters away from their start, after an edit."""
    layer = LAYERS[name]()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    elastic = Elastic(layer)
    apply_plan(plan_for(elastic, sources), elastic)
    return layer.eval()


def is_ours(kind):
    return kind.__module__.startswith("dmao_kernels.") and kind.__module__ != "dmao_kernels.plain.layers"


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_compute_the_same(name, masked):
    layer, x = edited(name), inputs()
    mask = MASK if masked else None
    before = copy.deepcopy(layer.state_dict())
    made = compact(layer)
    expected, found = layer(x, mask), made(x, mask)
    valid = MASK if masked else torch.ones_like(MASK)
    torch.testing.assert_close(found[valid], expected[valid], rtol=1e-5, atol=2e-6)
    assert found.isfinite().all()
    assert not any(is_ours(kind) for module in made.modules() for kind in type(module).__mro__)
    assert set(made.state_dict()) <= {name.replace("statistics_weight", "share") for name in before}
    assert sum(p.numel() for p in made.parameters()) == sum(p.numel() for p in layer.parameters())
    assert all(torch.equal(t, before[n]) for n, t in layer.state_dict().items())
    made.train()(x, mask).sum().backward()
    assert all(p.grad is None for p in layer.parameters())


@pytest.mark.parametrize("name", LAYERS)
def test_what_stands_in_the_padding_never_matters(name):
    made, x = compact(edited(name)), inputs()
    poisoned = x.masked_fill(~MASK[..., None], 1e4)
    assert torch.equal(made(x, MASK)[MASK], made(poisoned, MASK)[MASK])


def test_empty_modules():
    x = inputs()
    for name in ("feed-forward", "convolution", "gating mlp", "attention"):
        made = compact(edited(name, ()))
        assert not made(x).any()
        assert not made.state_dict()
    layer = edited("conformer", lambda c: ())
    assert set(compact(layer).state_dict()) == {"norm.weight", "norm.bias"}
    torch.testing.assert_close(compact(layer)(x), layer(x))
    for part in ("merge.attention", "merge.cgmlp"):
        layer = LAYERS["e-branchformer"]().eval()
        elastic = Elastic(layer)
        counts = elastic.counts()
        apply_plan(dmao_kernels.structure.given_plan({part: ()}, counts), elastic)
        made = compact(layer)
        torch.testing.assert_close(made(x, MASK)[MASK], layer(x, MASK)[MASK], rtol=1e-5, atol=2e-6)
        assert not any(key.startswith(part) for key in made.state_dict())


def test_gates_swaps_and_empty_forwards_of_foreign_models():
    model = build()
    model.extra = nn.Sequential(nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 12))
    elastic = Elastic(model)
    gates = ComponentGates(elastic)
    with torch.no_grad():
        for gate in gates.parameters():
            gate.copy_(torch.rand_like(gate) + 0.5)
    apply_plan(plan_for(elastic, mixed), elastic)
    apply_plan(dmao_kernels.structure.given_plan({"branches.3": ()}, elastic.counts()), elastic)
    accelerate(model)
    assert is_ours(type(model.extra))
    x = inputs()
    expected = model.eval()(x), model.extra(x)
    made = compact(model)
    torch.testing.assert_close(made(x), expected[0])
    torch.testing.assert_close(made.extra(x), expected[1])
    assert type(made.extra) is nn.Sequential
    assert made.branches[3].heads == model.branches[3].heads == 0  # what a parent may read
    empty = {name for name in model.state_dict() if name.startswith("branches.3")}
    folded = {name.replace(".parametrizations", "").replace(".original", "") for name in model.state_dict()}
    assert set(made.state_dict()) == {name for name in folded - empty if not name.endswith(".gate")} - {
        name.replace(".parametrizations", "").replace(".original", "") for name in empty
    }
    assert torch.equal(model(x), expected[0])
    with pytest.raises(ValueError, match="no elastic module"):
        Elastic(compact(edited("conformer")))


def test_block_masks_and_activations_of_linear_layers():
    for activation, width in (("none", 40), ("silu", 40), ("gelu", 40), ("relu", 40), ("glu", 20)):
        linear = layers.MaskedLinear(33, 40, activation=activation)
        linear.mask = BlockMask.from_dense(torch.tensor([[1, 0, 1], [0, 1, 1], [1, 0, 0]]).bool(), 16)
        x = torch.randn(5, 33)
        for dead in (0.0, torch.nan, torch.inf):
            with torch.no_grad():
                linear.weight[~linear.mask.elements(40, 33)] = dead
            made = compact(nn.Sequential(linear))[0]
            assert made(x).shape == (5, width)
            torch.testing.assert_close(made(x), linear(x), rtol=1e-5, atol=1e-5)


class Derived(layers.FeedForward):
    """A layer of somebody's own."""

    def transform(self, x, normed, rows):
        return 2 * super().transform(x, normed, rows)


def test_what_is_refused():
    model = nn.Sequential(nn.Linear(3, 3), Derived(12, 24))
    with pytest.raises(ValueError, match=r"compact: 1 \(Derived\) is made of this library's operations"):
        compact(model)
    register_plain(Derived, lambda module, plain: nn.Identity())
    assert isinstance(compact(model)[1], nn.Identity)
    with pytest.raises(ValueError, match="padded rows with a mask, not packed"):
        compact(edited("conformer"))(torch.randn(7, 12), offsets=torch.tensor([0, 7], dtype=torch.int32))


def test_mode_sharing_and_tied_weights():
    layer = layers.FeedForward(12, 24)
    model = nn.Sequential(layer, nn.Linear(12, 12), layer).train()
    model[1].weight = layer.w2.weight = nn.Parameter(torch.randn(12, 12))
    layer.w1 = nn.Linear(12, 12)
    made = compact(model)
    assert made[0] is made[2]
    assert made[0].training
    assert made[1].weight is made[0].w2.weight
    assert not compact(model.eval())[0].training


@pytest.mark.parametrize("accelerated", [False, True])
def test_attention_of_pytorch(accelerated):
    """Two heads of four, an even number, for which PyTorch would take its fast path; four; none."""
    layer = nn.TransformerEncoderLayer(12, 4, 24, 0.1, batch_first=True)
    model = nn.TransformerEncoder(layer, 3).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    elastic = Elastic(model)
    counts = elastic.counts()
    heads = {"layers.0.self_attn": (0, 2), "layers.1.self_attn": (0, 1, 1, 3), "layers.2.self_attn": ()}
    sources = {name: tuple(range(count)) for name, count in counts.items()} | heads
    apply_plan(dmao_kernels.structure.given_plan(sources, counts), elastic)
    keys = [name for name in model.state_dict() if not name.startswith("layers.2.self_attn")]
    if accelerated:
        accelerate(model)
    made, x = compact(model), inputs()
    kinds = [type(each.self_attn) for each in made.layers]
    assert kinds == [plain.MultiheadAttention, nn.MultiheadAttention, plain.Empty]
    assert list(made.state_dict()) == keys
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(made(x), model(x), rtol=1e-4, atol=1e-5)
            found, expected = (each(x, src_key_padding_mask=~MASK)[MASK] for each in (made, model))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    attention = made.layers[0].self_attn
    program = torch.export.export(attention, (x, x, x))
    assert all(name.startswith(("aten.", "<built-in")) for name in operators(program))
    torch.testing.assert_close(program.module()(x, x, x), attention(x, x, x))


@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("after", ["no event", "an event", "an event without heads"])
@pytest.mark.parametrize("kind", [nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer])
def test_gates_of_attention_of_pytorch(kind, after, accelerated):
    model = kind(12, 4, batch_first=True, **({} if kind is nn.MultiheadAttention else {"dim_feedforward": 24}))
    elastic = Elastic(nn.ModuleList([model.eval()]))
    gates = ComponentGates(elastic)
    with torch.no_grad():
        for gate in gates.parameters():
            gate.copy_(torch.rand_like(gate) + 0.5)
    if after != "no event":
        apply_plan(plan_for(elastic, mixed if after == "an event" else (0, 2)), elastic)
    if after.endswith("without heads"):
        attention = "0" if kind is nn.MultiheadAttention else "0.self_attn"
        apply_plan(dmao_kernels.structure.given_plan({attention: ()}, elastic.counts()), elastic)
    if accelerated:
        accelerate(model)
    made, x = compact(model), inputs()
    arguments = {nn.MultiheadAttention: (x, x, x), nn.TransformerEncoderLayer: (x,)}.get(kind, (x, x.flip(1)))
    found, expected = made(*arguments), model(*arguments)
    for ours, theirs in zip(found, expected, strict=True) if isinstance(found, tuple) else [(found, expected)]:
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert not any(name.endswith("gate") for name in made.state_dict())
    assert not any(is_ours(type(module)) for module in made.modules())


def operators(program):
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


def small_conformer(block="conformer"):
    config = ConformerConfig(
        outputs=9, inputs=20, width=32, blocks=2, head_dim=16, positions="relative", block=block, kernel=7
    )
    model = ConformerCTC(config)
    elastic = Elastic(model)
    counts = elastic.counts()
    sources = {name: mixed(count) for name, count in counts.items()} | {"blocks.1.ffn2": ()}
    apply_plan(dmao_kernels.structure.given_plan(sources, counts), elastic)
    return model.eval()


LOAD = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("dmao", "dmao_kernels"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
import torch
inputs, expected = torch.load(sys.argv[2], weights_only=True)
found, lengths = torch.export.load(sys.argv[1]).module()(*inputs)
assert not any(name.split(".")[0].startswith("dmao") for name in sys.modules)
torch.testing.assert_close(found, expected)
print("same")
"""


@pytest.mark.parametrize("block", ["conformer", "e_branchformer"])
def test_exported_it_runs_where_this_library_is_not(block, tmp_path, run_python):
    model = small_conformer(block)
    made = compact(model)
    auto = torch.export.Dim.AUTO
    example = torch.randn(2, 50, 20), torch.tensor([50, 30])
    program = torch.export.export(made, example, dynamic_shapes=({0: auto, 1: auto}, {0: auto}))
    assert all(name.startswith(("aten.", "<built-in")) for name in operators(program))
    torch.export.save(program, tmp_path / "model.pt2")
    features, lengths = torch.randn(3, 63, 20), torch.tensor([63, 33, 20])
    log_probs, out_lengths = model(features, lengths)
    found, found_lengths = made(features, lengths)
    assert torch.equal(found_lengths, out_lengths)
    valid = torch.arange(found.shape[1]) < out_lengths[:, None]
    torch.testing.assert_close(found[valid], log_probs[valid], rtol=1e-4, atol=1e-5)
    torch.save(((features, lengths), found.detach()), tmp_path / "expected.pt")
    result = run_python("-c", LOAD, str(tmp_path / "model.pt2"), str(tmp_path / "expected.pt"))
    assert result.stdout.split() == ["same"], result.stderr


class OwnForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(12, 24), nn.Linear(24, 12)

    def forward(self, x):
        return dmao_kernels.component_ffn(x, self.up.weight, self.up.bias, self.down.weight, self.down.bias)


def test_a_forward_that_calls_operations_itself():
    model, x = OwnForward().eval(), inputs()
    made = compact(model)
    with use_backend("reference"):
        program = torch.export.export(made, (x,))
    assert all(name.startswith("aten.") for name in operators(program))
    torch.testing.assert_close(program.module()(x), model(x))


def test_dynamic_quantization():
    """Every Linear becomes int8; the outputs stay near."""
    made, x = compact(small_conformer()), (torch.randn(2, 50, 20), torch.tensor([50, 50]))
    linears = sum(type(module) is nn.Linear for module in made.modules())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao says that torchao will take its place
        quantised = torch.ao.quantization.quantize_dynamic(made, {nn.Linear}, dtype=torch.qint8)
        kinds = [module for module in quantised.modules() if isinstance(module, torch.ao.nn.quantized.dynamic.Linear)]
        found = quantised(*x)[0]
    assert len(kinds) == linears > 10
    expected = made(*x)[0]
    assert (found - expected).abs().mean() < 0.02 * expected.std()
    assert (found - expected).abs().max() < 0.2 * expected.std()
    assert not torch.equal(found, expected)


def test_bfloat16():
    layer, x = edited("conformer").bfloat16(), inputs(dtype=torch.bfloat16)
    exact = copy.deepcopy(layer).float()(x.float())
    ours, made = layer(x).float(), compact(layer)(x).float()
    assert (made - exact).abs().max() < 2 * (ours - exact).abs().max() + 0.02


def test_registered_families_need_nothing():
    model = build(*foreign.FAMILIES).eval()
    x = inputs()
    assert torch.equal(compact(model)(x), model(x))


@pytest.mark.parametrize("compiled", [False, True])
def test_modules_of_other_packages_stay_free_of_this_library(compiled):
    model = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 12))
    discover(model, x := inputs())
    elastic = Elastic(model)
    apply_plan(plan_for(elastic, mixed), elastic)
    made = compact(torch.compile(model, backend="eager") if compiled else model)
    assert type(made) is nn.Sequential
    assert b"dmao" not in pickle.dumps(made)
    assert torch.equal(made(x), model(x))


def test_what_was_compiled_is_replaced_too():
    layer = edited("feed-forward")
    model = nn.Sequential(torch.compile(layer, backend="eager"))
    made = compact(model)
    assert type(made[0]) is plain.FeedForward
    torch.testing.assert_close(made(x := inputs()), layer(x))


def test_slots_are_refused():
    model = layers.ConformerBlock(12, 4, head_dim=4, kernel=5)
    elastic = Elastic(model, storage="slots")
    with pytest.raises(ValueError, match=r"compact: ffn1 is in slots storage: call Elastic.to_tight\(\) first"):
        compact(model)
    aside = copy.deepcopy(elastic)
    aside.to_tight()
    torch.testing.assert_close(compact(aside.model.eval())(x := torch.randn(1, 7, 12)), model.eval()(x))
    model.train()
    elastic.to_tight()
    compact(model)
