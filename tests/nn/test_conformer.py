"""ConformerBlock: published order, skipping of empty modules, compilation, autocast."""

import pytest
import torch

from dmao_kernels.nn import ConformerBlock


def make(dropout: float = 0.0) -> ConformerBlock:
    torch.manual_seed(0)
    return ConformerBlock(16, 2, head_dim=8, expansion=2, kernel=5, dropout=dropout)


def test_published_order() -> None:
    block, x = make(), torch.randn(2, 7, 16)
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    y = x + 0.5 * block.ffn1(x)
    y = y + block.conv(y, mask)
    y = y + block.attention(y, mask)
    y = y + 0.5 * block.ffn2(y)
    torch.testing.assert_close(block(x, mask), block.norm(y))


@pytest.mark.parametrize(
    "emptied", [("ffn1",), ("conv",), ("attention",), ("ffn2",), ("ffn1", "conv", "attention", "ffn2")]
)
def test_empty_modules_are_skipped(emptied: tuple[str, ...]) -> None:
    block, x = make(), torch.randn(2, 7, 16)

    def fail(*_: object) -> None:
        raise AssertionError("an empty module was called")

    for name in emptied:
        module = getattr(block, name)
        setattr(module, "heads" if name == "attention" else "components", 0)
        module.register_forward_pre_hook(fail)
    y = x
    for name, scale in (("ffn1", 0.5), ("conv", 1.0), ("attention", 1.0), ("ffn2", 0.5)):
        if name not in emptied:
            y = y + scale * getattr(block, name)(y)
    torch.testing.assert_close(block(x), block.norm(y))


def test_padding_never_leaks() -> None:
    block, x = make().eval(), torch.randn(2, 9, 16)
    mask = torch.arange(9) < torch.tensor([[9], [5]])
    torch.testing.assert_close(block(x, mask)[1:, :5], block(x[1:, :5]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_compiles_as_one_graph(dropout: float) -> None:
    block, x = make(dropout), torch.randn(2, 7, 16, requires_grad=True)
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    compiled(x, mask).sum().backward()
    block.eval(), compiled.eval()
    torch.testing.assert_close(compiled(x, mask), block(x, mask), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_inductor_trains_the_same() -> None:
    """The default backend of torch.compile generates code around the operators; gradients are the eager ones."""
    gradients = []
    for compiled in (False, True):
        torch.manual_seed(0)
        block = make(0.0)
        x = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
        step = torch.compile(block, fullgraph=True) if compiled else block
        step(x, torch.arange(7) < torch.tensor([[7], [4]])).square().sum().backward()
        gradients.append([x.grad, *(p.grad for p in block.parameters())])
    for eager, ours in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-5)


def test_bfloat16_autocast() -> None:
    block, x = make(0.1), torch.randn(2, 7, 16, requires_grad=True)
    exact = block.eval()(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = block(x)
        block.train()(x).float().sum().backward()
    assert torch.isfinite(x.grad).all()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in block.parameters())
    torch.testing.assert_close(y.float(), exact, rtol=0.05, atol=0.05)
