"""ConformerCTC: published sizes, padding invariance, learning, errors; its configuration."""

import json

import pytest
import torch
from dmao.models import ConformerConfig, ConformerCTC, ctc_loss

from dmao_kernels.structure import Elastic, apply_plan, given_plan

SMALL = ConformerConfig(
    outputs=7,
    width=16,
    blocks=2,
    head_dim=8,
    expansion=2,
    kernel=5,
    front_channels=(3, 4, 5, 4),
    frequency_pooling=(2, 2),
)


def make(config: ConformerConfig = SMALL) -> ConformerCTC:
    torch.manual_seed(0)
    return ConformerCTC(config)


PUBLISHED = [
    ("conformer", 256, 19_025_455, (131_520, 51_648, 65_920)),
    ("conformer", 384, 42_066_991, (295_584, 114_336, 98_688)),
    ("conformer", 512, 74_152_495, (525_184, 201_600, 131_456)),
    ("e_branchformer", 256, 25_737_775, (131_520, 154_560, 65_920)),
    ("e_branchformer", 384, 56_854_063, (295_584, 342_432, 98_688)),
    ("e_branchformer", 512, 100_160_047, (525_184, 604_032, 131_456)),
]


@pytest.mark.parametrize(("block", "width", "parameters", "costs"), PUBLISHED)
def test_published_parameter_counts(block: str, width: int, parameters: int, costs: tuple[int, int, int]) -> None:
    """Of the whole model with 79 outputs, and of one component of FFN, convolution or cgMLP, and attention."""
    with torch.device("meta"):
        model = ConformerCTC(ConformerConfig(outputs=79, width=width, block=block))
    assert sum(p.numel() for p in model.parameters()) == parameters
    elastic = Elastic(model)
    assert elastic.live_parameters() == parameters
    ffn, convolution, attention = costs
    inner = {"ffn1": ffn, "ffn2": ffn}
    inner |= {"conv": convolution} if block == "conformer" else {"merge.cgmlp": convolution}
    inner |= {"attention" if block == "conformer" else "merge.attention": attention}
    assert {name: module.cost for name, module in elastic.modules.items()} == {
        f"blocks.{i}.{name}": cost for i in range(12) for name, cost in inner.items()
    }
    assert sum(elastic.counts().values()) == {256: 192, 384: 216, 512: 240}[width]


@pytest.mark.parametrize("lengths", [(50, 33, 4, 31), (4, 4, 4, 4), (51, 51, 51, 51), (7, 50, 49, 48)], ids=str)
@pytest.mark.parametrize(
    "changes", [{}, {"positions": "relative"}, {"block": "e_branchformer", "positions": "relative"}], ids=str
)
def test_padding_never_matters(lengths: tuple[int, ...], changes: dict) -> None:
    model, frames = make(ConformerConfig.from_dict({**SMALL.to_dict(), **changes})).eval(), max(lengths)
    x = torch.randn(4, frames, 80)
    for row, length in enumerate(lengths):
        x[row, length:] = float("nan")
    y, out_lengths = model(x, torch.tensor(lengths))
    assert y.shape == (4, frames // 4, 7)
    assert out_lengths.tolist() == [length // 4 for length in lengths]
    for row, length in enumerate(lengths):
        alone, _ = model(x[row : row + 1, :length], torch.tensor([length]))
        torch.testing.assert_close(y[row : row + 1, : length // 4], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("time_pooling", "length"), [((3, 2), 29), ((1, 1), 9), ((2, 3), 25)])
def test_other_subsampling(time_pooling: tuple[int, int], length: int) -> None:
    config = ConformerConfig.from_dict({**SMALL.to_dict(), "time_pooling": time_pooling})
    model = make(config).eval()
    x = torch.randn(2, 31, 80)
    y, out_lengths = model(x, torch.tensor([31, length]))
    assert out_lengths.tolist() == [31 // config.subsampling, length // config.subsampling]
    alone, _ = model(x[1:, :length], torch.tensor([length]))
    torch.testing.assert_close(y[1:, : alone.shape[1]], alone, rtol=1e-5, atol=1e-5)


def test_padding_gets_no_gradient() -> None:
    model = make().eval()
    x = torch.randn(2, 40, 80, requires_grad=True)
    y, out_lengths = model(x, torch.tensor([40, 21]))
    y[1, : out_lengths[1]].sum().backward()
    assert torch.equal(x.grad[1, 21:], torch.zeros(19, 80))
    assert x.grad[1, :20].abs().sum(1).min() > 0


def test_log_probabilities() -> None:
    model, x = make(), torch.randn(2, 40, 80)
    y, _ = model(x, torch.tensor([40, 21]))
    torch.testing.assert_close(y[0].exp().sum(-1), torch.ones(10))
    torch.testing.assert_close(y[1, :5].exp().sum(-1), torch.ones(5))
    assert not y[1, 5:].any()
    with torch.autocast("cpu", torch.bfloat16):
        low, _ = model.eval()(x, torch.tensor([40, 21]))
    assert y.dtype == low.dtype == torch.float32


def test_learns_a_batch_in_bfloat16() -> None:
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    x, lengths = torch.randn(2, 40, 80), torch.tensor([40, 36])
    targets, target_lengths = torch.tensor([1, 2, 3, 4, 5]), torch.tensor([3, 2])
    losses = []
    for _ in range(30):
        with torch.autocast("cpu", torch.bfloat16):
            log_probs, out_lengths = model(x, lengths)
        result = ctc_loss(log_probs, out_lengths, targets, target_lengths)
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        losses.append(result.loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_rebuilt_from_a_checkpoint() -> None:
    model = make().eval()
    config = ConformerConfig.from_dict(json.loads(json.dumps(model.config.to_dict())))
    assert config == SMALL
    rebuilt = ConformerCTC(config).eval()
    rebuilt.load_state_dict(model.state_dict())
    x, lengths = torch.randn(1, 20, 80), torch.tensor([20])
    assert torch.equal(rebuilt(x, lengths)[0], model(x, lengths)[0])


def test_edited_model_rebuilt_from_a_checkpoint() -> None:
    """The structure first, then the weights, and with them the statistics weights of the norms."""
    model = make().eval()
    elastic = Elastic(model)
    sources = {
        "blocks.0.ffn1": (0, 1, 1, 3),
        "blocks.0.attention": (),
        "blocks.1.conv": (0, 0, 1, 2, 3),
        "blocks.1.ffn2": (2,),
    }
    apply_plan(given_plan(sources, elastic.counts()), elastic)
    state = json.loads(json.dumps({"config": model.config.to_dict(), "structure": elastic.state_dict()}))
    rebuilt = ConformerCTC(ConformerConfig.from_dict(state["config"])).eval()
    Elastic(rebuilt).load_state_dict(state["structure"])
    rebuilt.load_state_dict(model.state_dict())
    x, lengths = torch.randn(2, 20, 80), torch.tensor([20, 13])
    assert torch.equal(rebuilt(x, lengths)[0], model(x, lengths)[0])
    rates = [[getattr(b, n).dropout for n in ("ffn1", "conv", "ffn2")] for b in rebuilt.blocks]
    assert rates == [[getattr(b, n).dropout for n in ("ffn1", "conv", "ffn2")] for b in model.blocks]


@pytest.mark.parametrize(
    ("shape", "lengths", "message"),
    [
        ((2, 20, 80), [20, 3], "utterance 1 has 3 frames, at least 4 are needed"),
        ((2, 20, 80), [20, 21], "utterance 1 has 21 frames, but features hold only 20"),
        ((2, 20, 80), [20, -1], "utterance 1 has -1 frames"),
        ((0, 20, 80), [], "got an empty batch"),
        ((2, 20, 40), [20, 20], r"features must be \[B, T, 80\], got \[2, 20, 40\]"),
        ((20, 80), [20], r"features must be \[B, T, 80\], got \[20, 80\]"),
        ((2, 20, 80), [20], r"lengths must be integer \[2\], got torch.int64 \[1\]"),
        ((2, 20, 80), [20.0, 20.0], r"lengths must be integer \[2\], got torch.float32 \[2\]"),
    ],
)
def test_errors(shape: tuple[int, ...], lengths: list, message: str) -> None:
    with pytest.raises(ValueError, match=f"ConformerCTC: .*{message}"):
        make()(torch.randn(shape), torch.tensor(lengths))


def test_integer_features_are_refused() -> None:
    with pytest.raises(ValueError, match=r"features must be floating point, got torch\.int64"):
        make()(torch.ones(1, 20, 80, dtype=torch.long), torch.tensor([20]))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"outputs": 1}, "outputs must be at least 2"),
        ({"outputs": 9, "width": 100}, "width must be a multiple of head_dim=64, got 100"),
        ({"outputs": 9, "width": 66, "heads": 2}, "width must be a multiple of components=4, got 66"),
        ({"outputs": 9, "kernel": 4}, "kernel must be odd, got 4"),
        ({"outputs": 9, "head_dim": 0}, "head_dim must be at least 1, got 0"),
        ({"outputs": 9, "heads": 0}, "heads must be at least 1, got 0"),
        ({"outputs": 9, "dropout": 1.0}, "dropout must be in"),
        ({"outputs": 9, "activation": "tanh"}, "activation must be"),
        ({"outputs": 9, "front_channels": (32, 64)}, "front_channels must be 4 numbers"),
        ({"outputs": 9, "time_pooling": (2, 0)}, "time_pooling must be 2 numbers from 1 to 65536"),
        ({"outputs": 9, "inputs": 3, "frequency_pooling": (2, 2)}, "frequency_pooling must be"),
        ({"outputs": 9, "blocks": -1}, "blocks must be at least 0, got -1"),
        ({"outputs": 9, "block": "transformer"}, "block must be one of conformer, e_branchformer, got transformer"),
        ({"outputs": 9, "positions": "absolute"}, "positions must be one of none, relative, got absolute"),
        ({"outputs": 9, "chunk": 0}, "chunk must be at least 1 or null, got 0"),
        ({"outputs": 9, "left_chunks": 2}, "left_chunks must be null without chunk, got 2"),
        (
            {"outputs": 9, "intermediate": [3, 12]},
            r"intermediate must be ascending numbers from 1 to 11, got \(3, 12\)",
        ),
        ({"outputs": 9, "intermediate": [6, 3]}, "intermediate must be ascending"),
        ({"outputs": 9, "intermediate": [0]}, "intermediate must be ascending"),
        ({"outputs": 9, "intermediate_weight": 1.0}, "intermediate_weight must be between 0 and 1"),
        ({"outputs": 9, "intermediate_output": "none"}, "intermediate_output must be one of shared, own"),
        ({"outputs": 9, "depth": 3}, r"unknown fields \['depth'\]"),
        ({"width": 64}, "outputs is missing"),
    ],
)
def test_config_errors(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"ConformerConfig: {message}"):
        ConformerConfig.from_dict(values)


def test_heads_are_free() -> None:
    assert ConformerConfig(outputs=9).heads == 4
    config = ConformerConfig.from_dict({**SMALL.to_dict(), "heads": 5})
    y, _ = make(config)(torch.randn(1, 20, 80), torch.tensor([20]))
    assert torch.isfinite(y).all()
