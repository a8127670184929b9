"""RelPosSelfAttention against materialised relative positions, in both forms, and its components."""

import math

import pytest
import torch
import torch.nn.functional as F

from dmao_kernels.nn import RelPosSelfAttention, sinusoidal_positions
from dmao_kernels.structure import Elastic, apply_plan, given_plan


def make(radius: int | None = None, dropout: float = 0.0, heads: int = 3) -> RelPosSelfAttention:
    torch.manual_seed(0)
    module = RelPosSelfAttention(8, heads, 4, dropout, radius=radius)
    for name, parameter in module.named_parameters():
        if "bias" in name:
            torch.nn.init.normal_(parameter)
    return module


def split(x: torch.Tensor, module: RelPosSelfAttention) -> torch.Tensor:
    return x.unflatten(-1, (module.heads, module.head_dim)).transpose(-2, -3)


def transformer_xl(module: RelPosSelfAttention, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Dai et al. (2019), the positional scores computed for all distances and shifted into place."""
    frames = x.shape[1]
    q, k, v = (split(linear(module.norm(x)), module) for linear in (module.q, module.k, module.v))
    distance = torch.arange(frames - 1, -frames, -1.0)
    angle = distance[:, None] * 10000 ** (-torch.arange(0.0, 8.0, 2.0) / 8)
    p = split(module.pos(torch.cat([angle.sin(), angle.cos()], 1)), module)
    content = (q + module.content_bias[:, None]) @ k.mT
    position = (q + module.position_bias[:, None]) @ p.mT
    position = F.pad(position, (1, 0)).unflatten(-1, (2, frames)).flatten(-3, -1)
    position = position.view(*q.shape[:2], 2 * frames, frames)[:, :, 1:].reshape(*q.shape[:2], frames, -1)
    return finish(module, content + position[..., :frames], v, mask)


def shaw(module: RelPosSelfAttention, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Shaw et al. (2018), equation 4, a key of its own for every pair."""
    q, k, v = (split(linear(module.norm(x)), module) for linear in (module.q, module.k, module.v))
    frame = torch.arange(x.shape[1])
    index = (frame[None] - frame[:, None]).clamp(-module.radius, module.radius) + module.radius
    keys = module.table[index].permute(2, 0, 1, 3)
    return finish(module, q @ k.mT + torch.einsum("bhid,hijd->bhij", q, keys), v, mask)


def finish(module: RelPosSelfAttention, scores: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    scores = (scores / math.sqrt(module.head_dim)).masked_fill(~mask[:, None, None], -math.inf)
    weights = scores.softmax(-1) * mask[:, None, :, None]
    return module.out((weights @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("radius", [None, 2, 20])
def test_matches_the_materialised_form_with_gradients(radius: int | None) -> None:
    module, x = make(radius), torch.randn(3, 7, 8, requires_grad=True)
    mask = torch.arange(7) < torch.tensor([[7], [1], [4]])
    inputs = (x, *module.parameters())
    y = module(x, mask)
    expected = (transformer_xl if radius is None else shaw)(module, x, mask)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    upstream = torch.randn_like(y)
    for got, wanted in zip(
        torch.autograd.grad(y, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_positions_can_be_made_beforehand() -> None:
    module, x = make(), torch.randn(2, 7, 8)
    expected = module(x)
    for frames in (7, 12):
        positions = sinusoidal_positions(frames, 8, x)
        torch.testing.assert_close(module(x, positions=positions), expected, rtol=1e-5, atol=1e-5)
    offsets = torch.tensor([0, 7, 14], dtype=torch.int32)
    torch.testing.assert_close(module(x.flatten(0, 1), offsets=offsets), expected.flatten(0, 1), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"positions must have 13 rows at least for 7 frames, got \[11, 8\]"):
        module(x, positions=sinusoidal_positions(6, 8, x))


def test_order_matters() -> None:
    module, x = make().eval(), torch.randn(1, 6, 8)
    assert not torch.allclose(module(x.flip(1)), module(x).flip(1), atol=1e-3)


@pytest.mark.parametrize("radius", [None, 3])
def test_a_component_is_a_head_with_its_positions(radius: int | None) -> None:
    """Copies preserve the function; what is left after drops is what the heads gave alone."""
    module, x = make(radius).eval(), torch.randn(2, 6, 8)
    before = module(x)
    elastic = Elastic(module)
    assert elastic.counts() == {"": 3}
    per_head = {None: 3 * 36 + 32 + 32 + 4 + 4, 3: 3 * 36 + 32 + 7 * 4}[radius]
    assert elastic.modules[""].own_cost == per_head
    apply_plan(given_plan({"": (0, 0, 1, 2, 2)}, elastic.counts()), elastic)
    torch.testing.assert_close(module(x), before, rtol=1e-5, atol=1e-5)
    smaller, silenced = make(radius).eval(), make(radius).eval()
    elastic = Elastic(smaller)
    apply_plan(given_plan({"": (1,)}, elastic.counts()), elastic)
    with torch.no_grad():
        silenced.out.weight.unflatten(1, (3, 4))[:, [0, 2]] = 0.0
    torch.testing.assert_close(smaller(x), silenced(x), rtol=1e-5, atol=1e-5)
    apply_plan(given_plan({"": ()}, elastic.counts()), elastic)
    assert torch.equal(smaller(x), torch.zeros_like(x))


@pytest.mark.parametrize("radius", [None, 2])
def test_batches_without_frames(radius: int | None) -> None:
    module = make(radius)
    for shape in ((2, 0, 8), (0, 5, 8), (0, 0, 8)):
        x = torch.zeros(shape, requires_grad=True)
        y = module(x)
        y.sum().backward()
        assert y.shape == x.grad.shape == shape
    for offsets in ([0], [0, 0, 0]):
        assert module(torch.zeros(0, 8), offsets=torch.tensor(offsets, dtype=torch.int32)).shape == (0, 8)


def test_errors() -> None:
    with pytest.raises(ValueError, match="RelPosSelfAttention: d must be even for sinusoidal positions, got 7"):
        RelPosSelfAttention(7, 2)
    with pytest.raises(ValueError, match="RelPosSelfAttention: radius must be at least 1, got 0"):
        RelPosSelfAttention(8, 2, radius=0)
