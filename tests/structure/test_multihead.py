"""nn.MultiheadAttention and the transformer layers around it: heads and hidden units come and go."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import dmao_kernels
from dmao_kernels.structure import Elastic, apply_plan, given_plan
from dmao_kernels.structure.multihead import ElasticMultiheadAttention

B, T, D, HEADS = 3, 7, 16, 4
KEPT = (0, 2, 3)
PADDING = torch.arange(T) >= torch.tensor([7, 4, 2])[:, None]
CAUSAL = nn.Transformer.generate_square_subsequent_mask(T)
WINDOW = torch.ones(T, T, dtype=torch.bool).triu(3)


def spread(module: nn.Module) -> nn.Module:
    """Away from initial values that hide errors."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def keep(model: nn.Module, sources: dict[str, tuple[int, ...]], **options: object) -> Elastic:
    elastic = Elastic(model, **options)
    sources = {name: sources.get(name, tuple(range(n))) for name, n in elastic.counts().items()}
    apply_plan(given_plan(sources, elastic.counts()), elastic)
    return elastic


def silence(attention: nn.MultiheadAttention, dropped: int) -> None:
    """Without its columns of the output matrix, a head contributes nothing."""
    with torch.no_grad():
        attention.out_proj.weight.unflatten(1, (HEADS, -1))[:, dropped] = 0


MASKS = {
    "none": {},
    "padding": {"key_padding_mask": PADDING},
    "float padding": {"key_padding_mask": torch.zeros(B, T).masked_fill(PADDING, -torch.inf)},
    "window": {"attn_mask": WINDOW},
    "causal": {"attn_mask": CAUSAL, "is_causal": True},
    "causal, padding": {"attn_mask": CAUSAL.isinf(), "is_causal": True, "key_padding_mask": PADDING},
    "bias": {"attn_mask": torch.linspace(-1, 1, T * T).view(T, T)},
}


@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_attention_without_a_head(bias: bool, batch_first: bool, need_weights: bool, masks: dict) -> None:
    whole = spread(nn.MultiheadAttention(D, HEADS, bias=bias, batch_first=batch_first))
    pruned = copy.deepcopy(whole)
    silence(whole, 1)
    keep(pruned, {"": KEPT})
    x, other = torch.randn(2, B, T, D).requires_grad_()
    for key in (x, other):
        arguments = [y if batch_first else y.transpose(0, 1) for y in (x, key, key)]
        if key is x:
            arguments = [arguments[0]] * 3
        options = {**masks, "need_weights": need_weights, "average_attn_weights": False}
        (y, weights), (expected, all_weights) = (m(*arguments, **options) for m in (pruned, whole))
        torch.testing.assert_close(y, expected)
        assert y.is_contiguous() or not expected.is_contiguous()
        assert (weights is None) == (not need_weights)
        if need_weights:
            torch.testing.assert_close(weights, all_weights[:, KEPT])
            averaged = pruned(*arguments, **{**options, "average_attn_weights": True})[1]
            torch.testing.assert_close(averaged, all_weights[:, KEPT].mean(1))
        grads = [torch.autograd.grad(z.square().sum(), x, retain_graph=True)[0] for z in (y, expected)]
        torch.testing.assert_close(*grads)


def test_attention_without_heads_is_contiguous() -> None:
    attention = nn.MultiheadAttention(D, HEADS)
    keep(attention, {"": ()})
    x = torch.randn(B, T, D).transpose(0, 1)
    assert not attention(x, x, x)[0].view(-1, D).any()


def test_unbatched_and_masks_per_head() -> None:
    whole = spread(nn.MultiheadAttention(D, HEADS))
    pruned = copy.deepcopy(whole)
    silence(whole, 1)
    keep(pruned, {"": KEPT})
    x = torch.randn(T, D)
    for ours, theirs in zip(pruned(x, x, x), whole(x, x, x), strict=True):
        assert ours.shape == theirs.shape
    torch.testing.assert_close(pruned(x, x, x)[0], whole(x, x, x)[0])
    masked = pruned(x, x, x, key_padding_mask=PADDING[1])[0]
    torch.testing.assert_close(masked, whole(x, x, x, key_padding_mask=PADDING[1])[0])
    per_head = torch.rand(B, HEADS, T, T) > 0.7
    per_head[..., 0] = False
    x = torch.randn(T, B, D)
    expected = whole(x, x, x, attn_mask=per_head.flatten(0, 1))[0]
    torch.testing.assert_close(pruned(x, x, x, attn_mask=per_head[:, KEPT].flatten(0, 1))[0], expected)
    with pytest.raises(ValueError, match=rf"attn_mask must be \[T, S\] or \[{B} \* 3 heads, T, S\]"):
        pruned(x, x, x, attn_mask=per_head[:2].flatten(0, 1))
    with pytest.raises(ValueError, match="attn_mask must be"):  # of another batch, though of so many heads
        pruned(x, x, x, attn_mask=per_head[:1, KEPT].flatten(0, 1))
    with pytest.raises(ValueError, match="is_causal needs the attn_mask"):
        pruned(x, x, x, is_causal=True)


def test_dropout_and_autocast() -> None:
    attention = spread(nn.MultiheadAttention(D, HEADS, dropout=0.5, batch_first=True))
    keep(attention, {"": KEPT})
    x = torch.randn(B, T, D)
    for need_weights in (False, True):
        a, b = (attention(x, x, x, need_weights=need_weights)[0] for _ in range(2))
        assert not torch.equal(a, b)
    attention.eval()
    with torch.autocast("cpu", torch.bfloat16):
        y = attention(x, x, x, key_padding_mask=PADDING)[0]
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), attention(x, x, x, key_padding_mask=PADDING)[0], rtol=0.05, atol=0.1)


def test_the_module_stays_what_it_is() -> None:
    attention = nn.MultiheadAttention(D, HEADS, batch_first=True).eval()
    x = torch.randn(B, T, D)
    before, keys = attention(x, x, x), list(attention.state_dict())
    elastic = Elastic(attention)
    assert isinstance(attention, ElasticMultiheadAttention)
    assert list(attention.state_dict()) == keys
    for ours, theirs in zip(attention(x, x, x), before, strict=True):
        assert torch.equal(ours, theirs)
    apply_plan(given_plan({"": (0, 1, 1, 2, 3)}, elastic.counts()), elastic)
    torch.testing.assert_close(attention(x, x, x)[0], before[0])
    assert attention.num_heads == 5
    again = pickle.loads(pickle.dumps(attention))
    assert torch.equal(again(x, x, x)[0], attention(x, x, x)[0])
    apply_plan(given_plan({"": ()}, elastic.counts()), elastic)
    assert attention(x, x, x)[0].count_nonzero() == 0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"kdim": 8}, "kdim"),
        ({"vdim": 8}, "vdim"),
        ({"add_bias_kv": True}, "bias_k"),
        ({"add_zero_attn": True}, "zero"),
    ],
)
def test_attention_that_is_refused(options: dict, reason: str) -> None:
    model = nn.ModuleDict({"a": nn.MultiheadAttention(D, HEADS, **options), "b": nn.MultiheadAttention(D, HEADS)})
    elastic = Elastic(model)
    assert list(elastic.modules) == ["b"]
    assert reason in elastic.refused["a"]
    with pytest.raises(ValueError, match=reason):
        Elastic(nn.ModuleList([model["a"]]))


def test_derived_attention_is_refused() -> None:
    class Other(nn.MultiheadAttention):
        pass

    with pytest.raises(ValueError, match="a class derived from MultiheadAttention"):
        Elastic(nn.Sequential(Other(D, HEADS)))


class NormedUnits(nn.TransformerEncoderLayer):
    def __init__(self) -> None:
        super().__init__(D, HEADS, 24, 0.0, batch_first=True)
        self.units_norm = nn.LayerNorm(24)

    def _ff_block(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear2(self.units_norm(self.linear1(x).relu()))


class GatedUnits(nn.TransformerDecoderLayer):
    def __init__(self) -> None:
        super().__init__(D, HEADS, 24, 0.0, batch_first=True)
        self.linear1 = nn.Linear(D, 48)

    def _ff_block(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear2(nn.functional.glu(self.linear1(x)))


class Experts(nn.TransformerEncoderLayer):
    def __init__(self) -> None:
        super().__init__(D, HEADS, 24, 0.0, batch_first=True)
        self.linear1 = self.linear2 = None

    def forward(self, src: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return src + self._sa_block(self.norm1(src), None, None)


class SignLinear(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight.sign() * self.weight.abs().mean(), self.bias)


def replaced(**parts: nn.Module) -> nn.Module:
    layer = nn.TransformerEncoderLayer(D, HEADS, 24, 0.0, batch_first=True)
    for name, part in parts.items():
        setattr(layer, name, part)
    return layer


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (NormedUnits(), "a class derived from TransformerEncoderLayer, whose feed-forward may be another: register_f"),
        (GatedUnits(), "a class derived from TransformerDecoderLayer, whose feed-forward"),
        (Experts(), "a class derived from TransformerEncoderLayer, whose feed-forward"),
        (replaced(linear1=SignLinear(D, 24)), "linear1 and linear2 are no plain Linears"),
        (replaced(linear1=nn.Linear(D, 48), activation=nn.GLU()), "linear1 and linear2 are no plain Linears"),
    ],
)
def test_another_feed_forward_is_left(layer: nn.Module, reason: str) -> None:
    model, x = nn.Sequential(copy.deepcopy(layer)), torch.randn(B, T, D)
    elastic = Elastic(model)
    assert elastic.refused["0"].startswith(reason)
    assert "0" not in elastic.modules
    sources = dict.fromkeys(elastic.counts(), KEPT)
    apply_plan(given_plan(sources, elastic.counts()), elastic)
    if not isinstance(layer, nn.TransformerDecoderLayer):
        assert torch.isfinite(model(x)).all()


def test_a_derived_layer_with_the_feed_forward_of_pytorch_is_elastic() -> None:
    class Named(nn.TransformerEncoderLayer):
        """Overrides nothing of the feed-forward's."""

    assert Elastic(nn.Sequential(Named(D, HEADS, 24))).counts() == {"0": 4, "0.self_attn": HEADS}


def test_an_averaged_copy_made_before_follows() -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(D, HEADS, 24, 0.0, batch_first=True), 2).eval()
    average = copy.deepcopy(model)
    elastic = Elastic(model)
    sources = dict.fromkeys(elastic.counts(), KEPT)
    apply_plan(given_plan(sources, elastic.counts()), elastic, companions=[average])
    x = torch.randn(B, T, D)
    assert torch.equal(average(x), model(x))


def reference(layer: nn.TransformerEncoderLayer) -> None:
    """Zero what ``KEPT`` leaves out: a head, and a quarter of the hidden units."""
    silence(layer.self_attn, 1)
    with torch.no_grad():
        layer.linear2.weight.unflatten(1, (4, -1))[:, 1] = 0


@pytest.mark.parametrize("accelerated", ["no", "before", "after"])
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_encoder(training: bool, norm_first: bool, accelerated: str) -> None:
    layer = nn.TransformerEncoderLayer(D, HEADS, 24, 0.0, batch_first=True, norm_first=norm_first)
    whole = spread(nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first)).train(training)
    pruned = copy.deepcopy(whole)
    for part in whole.layers:
        reference(part)
    if accelerated == "before":
        dmao_kernels.accelerate(pruned)
    keep(pruned, {f"layers.{i}{part}": KEPT for i in (0, 1) for part in ("", ".self_attn")})
    if accelerated == "after":
        report = dmao_kernels.accelerate(pruned)
        assert {entry.kind for entry in report.changed} == {
            "TransformerEncoder", "TransformerEncoderLayer", "ElasticMultiheadAttention"
        }  # fmt: skip
    x = torch.randn(B, T, D)

    def compare(valid: Tensor, **masks: Tensor) -> None:
        with torch.no_grad():  # where PyTorch's fast path would be taken
            torch.testing.assert_close(pruned(x, **masks)[valid], whole(x, **masks)[valid], rtol=1e-4, atol=1e-4)
        y, expected = (m(x, **masks)[valid] for m in (pruned, whole))
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)

    compare(torch.ones(B, T, dtype=torch.bool))
    compare(~PADDING, src_key_padding_mask=PADDING)
    compare(torch.ones(B, T, dtype=torch.bool), mask=CAUSAL)
    compare(torch.ones(B, T, dtype=torch.bool), mask=WINDOW)


@pytest.mark.parametrize("accelerated", [False, True])
def test_layers_without_attention(accelerated: bool) -> None:
    layer = spread(nn.TransformerEncoderLayer(D, HEADS, 24, 0.0, batch_first=True)).eval()
    whole = copy.deepcopy(layer)
    with torch.no_grad():
        whole.self_attn.out_proj.weight.zero_()
        whole.self_attn.out_proj.bias.zero_()
    keep(layer, {"self_attn": ()})
    if accelerated:
        dmao_kernels.accelerate(layer)
    x = torch.randn(B, T, D)
    torch.testing.assert_close(layer(x), whole(x))
    with pytest.raises(ValueError, match="cannot lose all its components"):
        keep(nn.TransformerEncoderLayer(D, HEADS, 24), {"": ()})


def test_decoder_layer() -> None:
    whole = spread(nn.TransformerDecoderLayer(D, HEADS, 24, 0.0, batch_first=True)).eval()
    pruned = copy.deepcopy(whole)
    reference(whole)
    silence(whole.multihead_attn, 1)
    keep(pruned, {"": KEPT, "self_attn": KEPT, "multihead_attn": KEPT})
    x, memory = torch.randn(2, B, T, D)
    y = pruned(x, memory, tgt_mask=CAUSAL, memory_key_padding_mask=PADDING, tgt_is_causal=True)
    expected = whole(x, memory, tgt_mask=CAUSAL, memory_key_padding_mask=PADDING, tgt_is_causal=True)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("headroom", [1.0, 1.5])
@pytest.mark.parametrize("sources", [KEPT, (), (0, 0, 1)], ids=str)
def test_heads_in_slots_are_those_of_tight_storage(sources, headroom, need_weights, accelerated) -> None:
    """Dead slots count in no average, and a module without heads contributes nothing, not even its output bias."""
    torch.manual_seed(0)
    tight = spread(nn.MultiheadAttention(D, HEADS, batch_first=True))
    slots, x = copy.deepcopy(tight), torch.randn(B, T, D)
    keep(tight, {"": sources})
    elastic = keep(slots, {"": sources}, storage="slots", headroom=headroom)
    if accelerated:
        dmao_kernels.accelerate(slots)
    (expected, averaged), (y, weights) = (m(x, x, x, PADDING, need_weights=need_weights) for m in (tight, slots))
    y, expected = y[~PADDING], expected[~PADDING]
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    assert y.any() == bool(sources)
    if need_weights and sources:
        torch.testing.assert_close(weights[~PADDING], averaged[~PADDING], rtol=1e-4, atol=1e-5)
    y.square().sum().backward()
    ((_, m),) = elastic.modules.items()
    dead = [m.view(name, tensor.grad)[:, ~m.slots] for name, tensor in m.tensors()]
    assert not any(grad.any() for grad in dead)
    assert slots.out_proj.bias.grad.any() == bool(sources)
