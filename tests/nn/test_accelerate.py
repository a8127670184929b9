"""accelerate: what it changes computes the same; what it cannot do is left, or goes PyTorch's way, and is reported."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

import dmao_kernels
from dmao_kernels.nn import FeedForward
from dmao_kernels.swaps import register_swap
from tests.ops.common import CountedGraphs

LENGTHS = torch.tensor([7, 4, 1])
PADDING = torch.arange(7) >= LENGTHS[:, None]
CAUSAL = nn.Transformer.generate_square_subsequent_mask(7)


def twins(model: nn.Module) -> tuple[nn.Module, nn.Module, dmao_kernels.Acceleration]:
    """The model and its accelerated copy, away from initial values that hide errors."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    fast = copy.deepcopy(model)
    return model, fast, dmao_kernels.accelerate(fast)


def compare(plain: nn.Module, fast: nn.Module, x: torch.Tensor, valid: torch.Tensor, **masks: object) -> None:
    """Output, gradient of x and of all parameters, of the valid frames."""
    results = []
    for model in (plain, fast):
        leaf = x.clone().requires_grad_()
        y = model(leaf, **masks)
        y = y[0] if isinstance(y, tuple) else y
        y = y[valid] if valid.shape == y.shape[:2] else y.transpose(0, 1)[valid]
        upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
        results.append((y, *torch.autograd.grad(y, (leaf, *model.parameters()), upstream)))
    for ours, theirs in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_causal_without_a_mask_is_refused_as_by_pytorch() -> None:
    """It is a hint about the mask; attention to what comes later would be the wrong answer."""
    layer = nn.TransformerEncoderLayer(16, 4, 24, 0.0, batch_first=True)
    x = torch.randn(3, 7, 16)
    calls = {
        "attention": lambda m: m.layers[0].self_attn(x, x, x, need_weights=False, is_causal=True),
        "layer": lambda m: m.layers[0](x, is_causal=True),
        "encoder": lambda m: m(x, is_causal=True),
    }
    for call in calls.values():
        for model in twins(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).train())[:2]:
            with pytest.raises((RuntimeError, ValueError), match="is_causal"):
                call(model)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", ["relu", F.gelu, nn.SiLU()])
@pytest.mark.parametrize(
    "options", [{}, {"norm_first": True}, {"batch_first": False}, {"norm_first": True, "bias": False}], ids=str
)
def test_encoder_layer(options: dict, activation: object, training: bool) -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 24, 0.0, activation, **{"batch_first": True, **options})
    plain, fast, report = twins(layer.train(training))
    assert fast.state_dict().keys() == plain.state_dict().keys()
    if "bias" in options:  # a LayerNorm without bias
        assert [entry.name for entry in report.left if "bias" in entry.note][:1] == [""]
        return
    assert [entry.name for entry in report.changed] == ["", "self_attn"]
    assert type(fast).__name__ == "FastTransformerEncoderLayer"
    x = torch.randn(3, 7, 16)
    x = x if options.get("batch_first", True) else x.transpose(0, 1)
    everywhere = torch.ones(3, 7, dtype=torch.bool)
    compare(plain, fast, x, everywhere)
    compare(plain, fast, x, ~PADDING, src_key_padding_mask=PADDING)
    compare(plain, fast, x, everywhere, src_mask=CAUSAL, is_causal=True)
    window = torch.ones(7, 7, dtype=torch.bool).triu(3)
    compare(plain, fast, x, everywhere, src_mask=window)  # by PyTorch's forward
    compare(plain, fast, x, ~PADDING.flip(1), src_key_padding_mask=PADDING.flip(1))


@pytest.mark.parametrize("training", [True, False])
def test_encoder_packs_once(training: bool) -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 24, 0.0, batch_first=True, norm_first=True)
    plain, fast, report = twins(nn.TransformerEncoder(layer, 3, nn.LayerNorm(16), enable_nested_tensor=False))
    plain.train(training), fast.train(training)
    assert sum(entry.kind == "TransformerEncoderLayer" for entry in report.changed) == 3
    x = torch.randn(3, 7, 16)
    compare(plain, fast, x, torch.ones(3, 7, dtype=torch.bool))
    compare(plain, fast, x, ~PADDING, src_key_padding_mask=PADDING)
    with torch.no_grad():
        x[PADDING] = torch.nan
        assert fast(x, src_key_padding_mask=PADDING).isfinite().all()


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention(batch_first: bool) -> None:
    plain, fast, _ = twins(nn.MultiheadAttention(16, 4, batch_first=batch_first))
    x = torch.randn(3, 7, 16) if batch_first else torch.randn(7, 3, 16)

    def attend(module: nn.MultiheadAttention, **options: object) -> object:
        return module(x, x, x, **{"need_weights": False, **options})

    for padding in (None, PADDING, torch.zeros(3, 7).masked_fill(PADDING, -torch.inf)):
        (ours, _), (theirs, _) = (attend(module, key_padding_mask=padding) for module in (fast, plain))
        valid = torch.ones(3, 7, dtype=torch.bool) if padding is None else ~PADDING
        ours, theirs = (y if batch_first else y.transpose(0, 1) for y in (ours, theirs))
        torch.testing.assert_close(ours[valid], theirs[valid], rtol=1e-4, atol=1e-4)
    for options in (
        {"need_weights": True},
        {"attn_mask": torch.randn(7, 7)},
        {"key_padding_mask": torch.randn(3, 7)},
        {"attn_mask": CAUSAL, "is_causal": True},
    ):
        ours, theirs = attend(fast, **options), attend(plain, **options)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    other = torch.randn_like(x)
    torch.testing.assert_close(fast(x, other, other), plain(x, other, other))


@pytest.mark.parametrize("frames", [3, 9])
@pytest.mark.parametrize("batch_first", [True, False])
def test_padding_of_another_length_is_refused_as_by_pytorch(batch_first: bool, frames: int) -> None:
    x, padding = torch.randn(3, 7, 16) if batch_first else torch.randn(7, 3, 16), torch.zeros(3, frames) > 0
    layer = nn.TransformerEncoderLayer(16, 4, 24, 0.0, batch_first=batch_first)
    for model in twins(nn.TransformerEncoder(layer, 1, enable_nested_tensor=False))[:2]:
        attention = model.layers[0].self_attn
        with pytest.raises((RuntimeError, AssertionError), match="key_padded_mask"):
            attention(x, x, x, padding, need_weights=False)
        for module in (model, model.layers[0]):
            with pytest.raises((RuntimeError, AssertionError), match="key_padded_mask"):
                module(x, src_key_padding_mask=padding)


@pytest.mark.parametrize("batch_first", [True, False])
def test_outputs_are_contiguous(batch_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 24, 0.0, batch_first=batch_first)
    _, fast, _ = twins(nn.TransformerEncoder(layer, 1, enable_nested_tensor=False))
    x = torch.randn(7, 7, 16)
    for y in (fast(x), fast.layers[0](x), fast.layers[0].self_attn(x, x, x, need_weights=False)[0]):
        assert y.is_contiguous()


@pytest.mark.parametrize(
    "modules",
    [
        (nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8)),
        (nn.LayerNorm(8), nn.Linear(8, 12), nn.GELU(), nn.Dropout(0.0), nn.Linear(12, 5), nn.Dropout(0.0)),
        (nn.Linear(8, 12, bias=False), nn.SiLU(), nn.Linear(12, 12), nn.SiLU(), nn.Linear(12, 3, bias=False)),
    ],
    ids=("plain", "with more around", "chain"),
)
def test_feed_forward_in_a_sequence(modules: tuple[nn.Module, ...]) -> None:
    plain, fast, report = twins(nn.Sequential(*modules))
    assert [entry.kind for entry in report.changed] == ["Sequential"]
    compare(plain, fast, torch.randn(3, 7, 8), torch.ones(3, 7, dtype=torch.bool))
    plain.double(), fast.double()
    x = torch.randn(2, 8, dtype=torch.float64)
    assert torch.equal(fast(x), plain(x))  # float64 goes PyTorch's way


def test_dropout_of_a_sequence_is_only_in_training() -> None:
    _, fast, _ = twins(nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 8)))
    x = torch.randn(5, 8)
    assert not torch.equal(fast(x), fast(x))
    fast.eval()
    assert torch.equal(fast(x), fast(x))


@pytest.mark.parametrize("padding", ["same", 2])
def test_depthwise_convolution(padding: object) -> None:
    plain, fast, report = twins(nn.Conv1d(6, 6, 5, padding=padding, groups=6))
    assert len(report.changed) == 1
    compare(plain, fast, torch.randn(3, 6, 9), torch.ones(3, 6, dtype=torch.bool))
    torch.testing.assert_close(fast(torch.randn(6, 9, generator=torch.Generator().manual_seed(0))).shape, (6, 9))


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 4, 24, 0.0, nn.GELU(), batch_first=True)
    return nn.TransformerEncoder(layer, 2, nn.LayerNorm(16), enable_nested_tensor=False)


def sequence() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 24), nn.SiLU(), nn.Dropout(0.0), nn.Linear(24, 16))


class Adapter(nn.Module):
    """As LoRA's: a Linear's weight and bias, and another forward."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base

    weight = property(lambda self: self.base.weight)
    bias = property(lambda self: self.base.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.base(x)


INSIDE = [
    (encoder, "layers.0"),
    (encoder, "norm"),
    *((encoder, f"layers.1.{name}") for name in ("linear1", "activation", "dropout", "dropout1", "norm2")),
    *((sequence, str(position)) for position in range(4)),
]


@pytest.mark.parametrize(("make", "name"), INSIDE)
def test_hooks_that_come_later_are_run(make, name: str) -> None:
    plain, fast, _ = twins(make())
    shapes = []

    def twice(_: nn.Module, __: object, y: torch.Tensor) -> torch.Tensor:
        shapes.append(y.shape)
        return 2 * y

    x, everywhere = torch.randn(3, 7, 16), torch.ones(3, 7, dtype=torch.bool)
    handles = [model.get_submodule(name).register_forward_hook(twice) for model in (plain, fast)]
    compare(plain, fast, x, everywhere)
    if make is encoder:
        compare(plain, fast, x, ~PADDING, src_key_padding_mask=PADDING)
    assert shapes[::2] == shapes[1::2]
    for handle in handles:
        handle.remove()
    compare(plain, fast, x, everywhere)
    assert len(shapes) == (4 if make is encoder else 2)


@pytest.mark.parametrize(
    ("make", "name"), [(encoder, "layers.1.linear1"), (encoder, "layers.0.linear2"), (sequence, "0"), (sequence, "3")]
)
def test_modules_that_come_later_are_called(make, name: str) -> None:
    plain, fast, _ = twins(make())
    x, everywhere = torch.randn(3, 7, 16), torch.ones(3, 7, dtype=torch.bool)
    for model in (plain, fast):
        model.get_submodule(name).forward = Adapter(copy.copy(model.get_submodule(name))).forward
    compare(plain, fast, x, everywhere)
    for model in (plain, fast):
        del model.get_submodule(name).forward
        model.set_submodule(name, Adapter(model.get_submodule(name)))
    compare(plain, fast, x, everywhere)


@pytest.mark.parametrize("options", [{"add_zero_attn": True}, {"add_bias_kv": True}, {"dropout": 1.0}], ids=str)
def test_an_attention_that_comes_later(options: dict) -> None:
    plain, fast, _ = twins(encoder().layers[0])
    for model in (plain, fast):
        torch.manual_seed(0)
        model.self_attn = nn.MultiheadAttention(16, 4, batch_first=True, **options)
    compare(plain, fast, torch.randn(3, 7, 16), torch.ones(3, 7, dtype=torch.bool))


def test_an_attention_that_changes_later() -> None:
    plain, fast, _ = twins(encoder().layers[0])
    x = torch.randn(3, 7, 16)
    for model in (plain, fast):
        model.self_attn.add_zero_attn = True
    compare(plain, fast, x, torch.ones(3, 7, dtype=torch.bool))
    results = [model.self_attn(x, x, x, need_weights=False)[0] for model in (plain, fast)]
    torch.testing.assert_close(results[1], results[0])


def test_pruning_that_comes_later() -> None:
    """A pre-hook makes the weight anew in every call."""
    plain, fast, _ = twins(sequence())
    x = torch.randn(5, 16)
    for model in (plain, fast):
        prune.l1_unstructured(model[0], "weight", 0.5)
        for _ in range(2):
            model(x).square().mean().backward()
    torch.testing.assert_close(fast[0].weight_orig.grad, plain[0].weight_orig.grad)


@pytest.mark.parametrize("make", [encoder, lambda: encoder().layers[0], sequence])
def test_compiles_once(make) -> None:
    _, fast, _ = twins(make())
    graphs = CountedGraphs()
    compiled = torch.compile(fast, fullgraph=True, backend=graphs)
    for _ in range(3):
        x = torch.randn(3, 7, 16)
        torch.testing.assert_close(compiled(x), fast(x), rtol=1e-4, atol=1e-4)
    assert graphs.count == 1


class Derived(nn.TransformerEncoderLayer):
    def forward(self, src: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return -src


def hooked(model: nn.Module, name: str) -> nn.Module:
    model.get_submodule(name).register_forward_hook(lambda *_: None)
    return model


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Derived(8, 2), "derived from TransformerEncoderLayer"),
        (nn.TransformerEncoderLayer(8, 2, activation=F.tanh), "an activation other than"),
        (nn.TransformerEncoderLayer(8, 2).double(), "float64"),
        (nn.MultiheadAttention(8, 2, kdim=4), "another width"),
        (nn.MultiheadAttention(8, 2, add_bias_kv=True), "additional keys"),
        (nn.Conv1d(4, 8, 3, padding=1), "not depthwise"),
        (nn.Conv1d(4, 4, 3, groups=4), "not as long as its input"),
        (nn.Conv1d(4, 4, 3, padding="same", dilation=2, groups=4), "dilated"),
        (hooked(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), "0"), "a Linear inside has hooks"),
        (hooked(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), "1"), "a ReLU inside has hooks"),
        (hooked(nn.TransformerEncoderLayer(8, 2, activation=nn.GELU()), "activation"), "a GELU inside has hooks"),
        (nn.Sequential(nn.Linear(4, 4), nn.GELU("tanh"), nn.Linear(4, 4)), "no faster version"),
        (nn.LSTM(4, 4), "no faster version"),
        (FeedForward(8, 16), "already"),
    ],
)
def test_what_is_left_and_why(model: nn.Module, reason: str) -> None:
    classes = [type(module) for module in model.modules() if not isinstance(module, nn.MultiheadAttention)]
    report = dmao_kernels.accelerate(model)
    left = [entry.note for entry in report.left]
    assert any(reason in note for note in left), left
    assert reason in str(report)
    assert [type(m) for m in model.modules() if not isinstance(m, nn.MultiheadAttention)] == classes


def test_modules_stay_what_they_are() -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    parameters, modules, keys = list(model.parameters()), list(model.modules()), list(model.state_dict())
    first = dmao_kernels.accelerate(model)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert list(model.state_dict()) == keys
    assert dmao_kernels.accelerate(model).changed == ()
    assert "changed: 5 modules" in str(first)
    assert "TransformerEncoderLayer: all of the layer on packed frames" in str(first)
    x = torch.randn(2, 5, 8)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other.eval()(x), model.eval()(x))


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_compile(dtype: torch.dtype, norm_first: bool) -> None:
    plain, fast, _ = twins(nn.TransformerEncoderLayer(16, 2, 24, 0.0, batch_first=True, norm_first=norm_first))
    x = torch.randn(3, 7, 16)
    with torch.autocast("cpu", dtype):
        low = fast(x)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, plain(x), rtol=0.1, atol=0.1)
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), fast(x), rtol=1e-4, atol=1e-4)


def test_a_swap_of_ones_own() -> None:
    class Slow(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + x

    class Fast(Slow):
        """doubling at once."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    register_swap(Slow, Fast, lambda module: None)
    model = nn.Sequential(Slow())
    assert "Slow: doubling at once: 0" in str(dmao_kernels.accelerate(model))
    assert type(model[0]) is Fast
    with pytest.raises(TypeError, match="Fast must be a subclass of Linear"):
        register_swap(nn.Linear, Fast, lambda module: None)
