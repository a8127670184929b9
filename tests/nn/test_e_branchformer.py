"""EBranchformerBlock: published order and costs, empty branches, edits, compilation."""

import pytest
import torch
import torch.nn.functional as F

from dmao_kernels.nn import ConvolutionalGatingMLP, EBranchformerBlock
from dmao_kernels.structure import Elastic, apply_plan, given_plan

MASK = torch.arange(9) < torch.tensor([[9], [5]])


def make(dropout: float = 0.0) -> EBranchformerBlock:
    torch.manual_seed(0)
    block = EBranchformerBlock(16, 4, head_dim=4, expansion=2, kernel=5, merge_kernel=3, dropout=dropout)
    for name, parameter in block.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, mean=1.0)
    return block.eval()


def conv(module: torch.nn.Conv1d, x: torch.Tensor) -> torch.Tensor:
    return module(x.transpose(1, 2)).transpose(1, 2)


def cgmlp(module: ConvolutionalGatingMLP, x: torch.Tensor) -> torch.Tensor:
    values, gates = F.gelu(F.linear(module.norm(x), module.linear1.weight, module.linear1.bias)).chunk(2, -1)
    gates = conv(module.depthwise, F.layer_norm(gates, gates.shape[-1:], *module.gate_norm.parameters()))
    return F.linear(values * gates, module.linear2.weight, module.linear2.bias)


def mirror(block: EBranchformerBlock, x: torch.Tensor) -> torch.Tensor:
    merge = block.merge
    x = x + 0.5 * block.ffn1(x)
    parts = [m.new_zeros(()).expand_as(x) for m in (x, x)]
    if not merge.attention.empty:
        parts[0] = merge.attention(x)
    if not merge.cgmlp.empty:
        parts[1] = cgmlp(merge.cgmlp, x)
    if not merge.empty:
        both = torch.cat(parts, -1)
        x = x + F.linear(both + conv(merge.depthwise, both), merge.linear.weight, merge.linear.bias)
    x = x + 0.5 * block.ffn2(x)
    return block.norm(x)


@pytest.mark.parametrize("emptied", [(), ("attention",), ("cgmlp",), ("attention", "cgmlp")])
def test_published_form_with_gradients(emptied: tuple[str, ...]) -> None:
    block, x = make(), torch.randn(2, 7, 16, requires_grad=True)
    for name in emptied:
        setattr(getattr(block.merge, name), "heads" if name == "attention" else "components", 0)
    inputs = [x, *(p for n, p in block.named_parameters() if not any(e in n for e in (*emptied, "merge") if emptied))]
    y, expected = block(x), mirror(block, x)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    upstream = torch.randn_like(y)
    for got, wanted in zip(
        torch.autograd.grad(y, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("d", "cost"), [(256, 154_560), (384, 342_432), (512, 604_032)])
def test_published_component_costs(d: int, cost: int) -> None:
    with torch.device("meta"):
        elastic = Elastic(EBranchformerBlock(d, d // 64))
    assert elastic.modules["merge.cgmlp"].cost == cost
    assert elastic.counts() == {"ffn1": 4, "merge.attention": d // 64, "merge.cgmlp": 4, "ffn2": 4}


def test_growth_preserves_the_function() -> None:
    block, x = make(), torch.randn(2, 9, 16)
    before = block(x, MASK)
    elastic = Elastic(block)
    sources = {"merge.cgmlp": (0, 0, 1, 2, 3, 3), "merge.attention": (0, 1, 1, 2, 3), "ffn1": (0, 1, 2, 2, 3)}
    apply_plan(given_plan(sources, elastic.counts()), elastic)
    torch.testing.assert_close(block(x, MASK), before, rtol=1e-5, atol=1e-5)


def test_emptied_and_revived() -> None:
    block, x = make(), torch.randn(2, 9, 16)
    elastic = Elastic(block)
    apply_plan(given_plan({"merge.cgmlp": (), "merge.attention": ()}, elastic.counts()), elastic)
    torch.testing.assert_close(block(x), mirror(block, x), rtol=1e-5, atol=1e-5)
    apply_plan(given_plan({"merge.cgmlp": (-1, -1)}, elastic.counts()), elastic)
    block.train()(x, MASK).square().sum().backward()
    assert all(p.grad is not None for p in block.merge.cgmlp.parameters())


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_compiles_as_one_graph(dropout: float) -> None:
    block, x = make(dropout).train(), torch.randn(2, 9, 16, requires_grad=True)
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    compiled(x, MASK).sum().backward()
    block.eval(), compiled.eval()
    torch.testing.assert_close(compiled(x, MASK), block(x, MASK), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden": 20}, r"hidden must be a multiple of 2 \* components, got hidden=20, 2 \* components=8"),
        ({"hidden": 16, "kernel": 4}, "kernel must be odd, got 4"),
        ({"hidden": 16, "dropout": 1.0}, "dropout must be in"),
    ],
)
def test_errors(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"ConvolutionalGatingMLP: {message}"):
        ConvolutionalGatingMLP(8, **arguments)
    with pytest.raises(ValueError, match="EBranchformerBlock: merge_kernel must be odd, got 2"):
        EBranchformerBlock(16, 1, merge_kernel=2)
