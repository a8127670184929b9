"""The layers' layouts: component costs of the publication, and edits of whole blocks."""

import copy
from collections.abc import Iterator

import pytest
import torch

from dmao_kernels.nn import ConformerBlock
from dmao_kernels.structure import Elastic, apply_plan, given_plan

FAMILIES = ("ffn1", "conv", "attention", "ffn2")
MASK = torch.arange(9) < torch.tensor([[9], [5]])


@pytest.fixture
def block() -> ConformerBlock:
    torch.manual_seed(0)
    block = ConformerBlock(16, 4, head_dim=4, expansion=2, kernel=5)
    for name, parameter in block.named_parameters():
        if "norm" in name:  # gains and biases that an edit could mix up
            torch.nn.init.normal_(parameter, mean=1.0)
    return block.eval()


@pytest.fixture
def x() -> Iterator[torch.Tensor]:
    return torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(1))


def edit(block: ConformerBlock, **sources: tuple[int, ...]) -> Elastic:
    elastic = Elastic(block)
    apply_plan(given_plan(sources, elastic.counts()), elastic)
    return elastic


@pytest.mark.parametrize(
    ("d", "ffn", "conv", "attention"),
    [(256, 131_520, 51_648, 65_920), (384, 295_584, 114_336, 98_688), (512, 525_184, 201_600, 131_456)],
)
def test_published_component_costs(d: int, ffn: int, conv: int, attention: int) -> None:
    elastic = Elastic(ConformerBlock(d, d // 64))
    costs = {name: module.cost for name, module in elastic.modules.items()}
    assert costs == {"ffn1": ffn, "conv": conv, "attention": attention, "ffn2": ffn}
    assert elastic.counts() == {"ffn1": 4, "conv": 4, "attention": d // 64, "ffn2": 4}


@pytest.mark.parametrize("name", FAMILIES)
def test_growth_preserves_the_function(block: ConformerBlock, x: torch.Tensor, name: str) -> None:
    before = block(x, MASK)
    for sources in ((0, 0, 1, 2, 2, 3), (0, 1, 1, 2, 3, 3, 4, 5, 5)):  # some components are copied twice
        edit(block, **{name: sources})
        torch.testing.assert_close(block(x, MASK), before, rtol=1e-5, atol=1e-5)
    assert Elastic(block).counts()[name] == 9


def test_all_families_at_once(block: ConformerBlock, x: torch.Tensor) -> None:
    before = block(x, MASK)
    edit(block, ffn1=(0, 1, 1, 2, 3), conv=(0, 0, 1, 2, 3), attention=(0, 1, 2, 3, 3), ffn2=(0, 1, 2, 2, 3, 3))
    torch.testing.assert_close(block(x, MASK), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["ffn1", "attention", "ffn2"])
def test_dropped_components_are_as_if_silenced(block: ConformerBlock, x: torch.Tensor, name: str) -> None:
    """Zero output weights of components 0 and 2 give what the smaller block gives."""
    silenced = copy.deepcopy(block)
    edit(block, **{name: (1, 3)})
    output = getattr(silenced, name).out if name == "attention" else getattr(silenced, name).w2
    with torch.no_grad():
        output.weight.unflatten(1, (4, -1))[:, [0, 2]] = 0.0
    torch.testing.assert_close(block(x, MASK), silenced(x, MASK), rtol=1e-5, atol=1e-5)


def test_dropped_channels_leave_the_statistics(block: ConformerBlock, x: torch.Tensor) -> None:
    """The dropped components' weight in the statistics is zero as well as their output."""
    silenced = copy.deepcopy(block)
    edit(block, conv=(1, 3))
    with torch.no_grad():
        silenced.conv.pointwise2.weight.unflatten(1, (4, -1))[:, [0, 2]] = 0.0
    silenced.conv.depthwise_norm._buffers["statistics_weight"] = torch.tensor([0.0, 1.0, 0.0, 1.0])
    torch.testing.assert_close(block(x, MASK), silenced(x, MASK), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_emptied_and_revived(block: ConformerBlock, x: torch.Tensor, name: str) -> None:
    elastic = edit(block, **{name: ()})
    module = getattr(block, name)
    assert module.empty
    assert all(p.numel() == 0 or "norm" in n or "bias" in n for n, p in module.named_parameters())
    without = block(x, MASK)
    torch.nn.init.normal_((module.out if name == "attention" else list(module.children())[-1]).bias)
    assert torch.equal(block(x, MASK), without)
    apply_plan(given_plan({name: (-1, -1)}, elastic.counts()), elastic)
    assert not module.empty
    assert torch.isfinite(block(x, MASK)).all()
    block(x, MASK).square().sum().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_training_goes_on_after_an_edit(block: ConformerBlock, x: torch.Tensor) -> None:
    block.train()
    optimizer = torch.optim.AdamW(block.parameters(), lr=1e-2)
    elastic = Elastic(block)
    losses = []
    for step in range(40):
        if step == 10:
            sources = {"ffn1": (0, 0, 2), "conv": (1, 1, 2, 3), "attention": (), "ffn2": (3,)}
            apply_plan(given_plan(sources, elastic.counts()), elastic, optimizer)
        loss = (block(x, MASK) - x.roll(1, 2)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[10]


def test_dropout_follows_the_width(block: ConformerBlock) -> None:
    edit(block, ffn1=(0, 0, 1, 2, 3, 3), conv=(1, 3), attention=(0,))
    rates = [getattr(block, name).dropout for name in FAMILIES]
    assert rates == pytest.approx([0.15, 0.05, 0.025, 0.1])
    assert block.attention.attention_dropout == pytest.approx(0.025)


def test_compiled_block_follows_an_edit(block: ConformerBlock, x: torch.Tensor) -> None:
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    compiled(x, MASK)
    edit(block, conv=(0, 0, 1, 3), ffn1=(1, 1, 2), ffn2=())
    torch.testing.assert_close(compiled(x, MASK), block(x, MASK), rtol=1e-5, atol=1e-5)
