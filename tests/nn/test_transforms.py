"""torch.func, forward-mode derivatives, the device meta: kernels leave them to the reference."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacfwd, jvp, vmap

import dmao_kernels
from dmao_kernels import block_attention, dropout_add, pack
from dmao_kernels.nn import ComponentLayerNorm, ConformerBlock, EBranchformerBlock, FeedForward

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "feed-forward": lambda: FeedForward(16, 32),
    "conformer": lambda: ConformerBlock(16, 2),
    "e-branchformer": lambda: EBranchformerBlock(16, 2),
    "encoder layer": lambda: nn.TransformerEncoderLayer(16, 2, 24, 0.0, batch_first=True),
    "sequence": lambda: nn.Sequential(nn.Linear(16, 24), nn.SiLU(), nn.Linear(24, 16)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_forward_mode(name: str) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name]().eval()
    dmao_kernels.accelerate(layer)
    x, direction = torch.randn(2, 2, 5, 16)
    _, found = jvp(layer, (x,), (direction,))
    with torch.no_grad():
        expected = (layer(x + 1e-2 * direction) - layer(x - 1e-2 * direction)) / 2e-2
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_every_sample(name: str) -> None:
    torch.manual_seed(0)
    layer = LAYERS[name]().eval()
    dmao_kernels.accelerate(layer)
    parameters = {key: value.detach() for key, value in layer.named_parameters()}
    x = torch.randn(3, 5, 16)

    def loss(values: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(layer, values, (x[None],)).square().sum()

    found = vmap(grad(loss), (None, 0))(parameters, x)
    for index, sample in enumerate(x):
        layer.zero_grad()
        layer(sample[None]).square().sum().backward()
        for key, parameter in layer.named_parameters():
            torch.testing.assert_close(found[key][index], parameter.grad, rtol=1e-3, atol=1e-4)


def test_operations_have_tangents() -> None:
    x = torch.randn(1, 3, 2, 8)
    for function in (
        lambda x: block_attention(x, x, x),
        lambda x: dropout_add(x, x),
        lambda x: pack(x.flatten(2), torch.tensor([3], dtype=torch.int32))[0],
    ):
        assert jvp(function, (x,), (torch.randn_like(x),))[1].abs().sum() > 0
        with dmao_kernels.use_backend("cpu"), pytest.raises(RuntimeError, match="no forward-mode derivatives"):
            jvp(function, (x,), (torch.randn_like(x),))


def test_a_jacobian_of_an_accelerated_network() -> None:
    net = nn.Sequential(nn.Linear(2, 32), nn.SiLU(), nn.Linear(32, 1))
    x = torch.randn(5, 2)
    expected = vmap(jacfwd(net))(x)
    dmao_kernels.accelerate(net)
    torch.testing.assert_close(vmap(jacfwd(net))(x), expected)


def test_compiled_transforms() -> None:
    net, x, direction = LAYERS["sequence"](), *torch.randn(2, 5, 16)
    functions = {
        "forward": lambda x, d: jvp(net, (x,), (d,))[1],
        "backward": lambda x, d: grad(lambda x: (net(x) * d).sum())(x),
    }
    expected = {name: function(x, direction) for name, function in functions.items()}
    dmao_kernels.accelerate(net)
    for name, function in functions.items():
        compiled = torch.compile(function, backend="aot_eager")
        torch.testing.assert_close(compiled(x, direction), expected[name])
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), net(x))


@pytest.mark.parametrize("name", LAYERS)
def test_shapes_on_meta(name: str) -> None:
    layer = LAYERS[name]()
    dmao_kernels.accelerate(layer)
    layer.to("meta")
    assert layer(torch.empty(2, 5, 16, device="meta")).shape == (2, 5, 16)
    assert ComponentLayerNorm(16, 4).to("meta")(torch.empty(2, 16, device="meta")).shape == (2, 16)
