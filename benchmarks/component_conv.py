"""component_conv and depthwise_conv1d against eager PyTorch: `make bench ARGS="-k 'component_conv or depthwise'"`.

"eager" is what a model written in the usual way does: nn.Conv1d with groups on [B, C, T], in component_conv with
GLU, masked_fill, LayerNorm and SiLU around it on [B, T, C]. "channels-last" has the convolution as conv2d on a
channels-last image instead, which needs no transposition. Floor: 2 N C k flops for each of y, dx and dweight.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._oracle import check, run
from benchmarks.registry import Case, Problem, register
from dmao_kernels import component_conv, depthwise_conv1d
from dmao_kernels.ops.component_conv.reference import component_conv_reference
from dmao_kernels.ops.depthwise_conv1d.reference import channels_last_conv1d, depthwise_conv1d_reference

COMPONENTS = 4
SHAPES = ((16, 250, 384, 31), (8, 100, 144, 15))
SLOW = {"channels-last": "over a second per call in bfloat16"}


def make_inputs(b: int, t: int, c: int, k: int, dtype: torch.dtype, gated: bool) -> list[Tensor]:
    """x, weight, bias, and with the gate gain and bias of the norm."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(b, t, 2 * c), (c, k), (c,), (c,), (c,)] if gated else [(b, t, c), (c, k), (c,)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def conv1d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """nn.Conv1d's, from and to [B, T, C]."""
    taps = weight.shape[1]
    y = F.conv1d(x.transpose(1, 2), weight[:, None], bias, padding=taps // 2, groups=weight.shape[0])
    return y.transpose(1, 2)


def chain(convolve: Callable[..., Tensor], lengths: Tensor, *inputs: Tensor) -> Tensor:
    x, weight, bias, gain, shift = inputs
    beyond = (torch.arange(x.shape[1]) >= lengths[:, None])[:, :, None]
    y = convolve(F.glu(x, -1).masked_fill(beyond, 0.0), weight, bias)
    return F.silu(F.layer_norm(y, y.shape[-1:], gain, shift))


def make_depthwise(b: int, t: int, c: int, k: int, dtype: torch.dtype, backward: bool) -> Problem:
    inputs = make_inputs(b, t, c, k, dtype, gated=False)
    grad = torch.randn(b, t, c).to(dtype)
    # The usual layer has its rows in [B, C, T] already.
    transposed = [inputs[0].detach().mT.contiguous().requires_grad_(), *inputs[1:]]

    def eager(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv1d(x, weight[:, None], bias, padding=k // 2, groups=c)

    calls = {
        "ours": run(depthwise_conv1d, inputs, grad, backward),
        "eager": run(eager, transposed, grad.mT.contiguous(), backward),
        "channels-last": run(channels_last_conv1d, inputs, grad, backward),
    }
    size = inputs[0].nbytes
    return Problem(
        {name: call for name, call in calls.items() if dtype == torch.float32 or name not in SLOW},
        gate=lambda: check(depthwise_conv1d, depthwise_conv1d_reference, *inputs, grad=grad),
        flops=(6 if backward else 2) * b * t * c * k,
        bytes=(5 if backward else 2) * size,
        absent={} if dtype == torch.float32 else SLOW,
    )


def make_conv(b: int, t: int, c: int, k: int, dtype: torch.dtype, share: float, backward: bool) -> Problem:
    inputs = make_inputs(b, t, c, k, dtype, gated=True)
    grad = torch.randn(b, t, c).to(dtype)
    lengths = torch.full((b,), t, dtype=torch.int32)
    live = None if share == 1 else torch.arange(int(COMPONENTS * share), dtype=torch.int32)

    def ours(live: Tensor | None, *arguments: Tensor) -> Tensor:
        return component_conv(*arguments, None, live, components=COMPONENTS, lengths=lengths)

    def reference(*arguments: Tensor) -> Tensor:
        return component_conv_reference(*arguments, None, live, components=COMPONENTS, lengths=lengths)

    calls = {
        "ours": run(partial(ours, live), inputs, grad, backward),
        "eager": run(partial(chain, conv1d, lengths), inputs, grad, backward),
    }
    if live is not None:
        calls["ours, all live"] = run(partial(ours, None), inputs, grad, backward)
    elif dtype == torch.float32:
        calls["channels-last"] = run(partial(chain, channels_last_conv1d, lengths), inputs, grad, backward)
    size = grad.nbytes * share
    return Problem(
        calls,
        gate=lambda: check(partial(ours, live), reference, *inputs, grad=grad),
        flops=(6 if backward else 2) * b * t * c * k * share,
        bytes=(8 if backward else 3) * size,  # x, with its gates, counts twice, and so does its gradient
        absent={} if dtype == torch.float32 or live is not None else SLOW,
    )


for shape, dtype, backward in itertools.product(SHAPES, (torch.float32, torch.bfloat16), (False, True)):
    if dtype == torch.bfloat16 and not (backward and shape == SHAPES[0]):
        continue
    name = "B={} T={} C={} k={}".format(*shape)
    direction = "fwd+bwd" if backward else "fwd"
    register(
        Case(
            "depthwise_conv1d",
            f"{name} {direction}",
            partial(make_depthwise, *shape, dtype, backward),
            dtype=dtype,
            targets={"eager": 0.10} if backward and shape == SHAPES[0] else {},
            quick=backward and shape == SHAPES[0] and dtype == torch.float32,
        )
    )
    for share in (1.0, 0.5) if backward else (1.0,):
        register(
            Case(
                "component_conv",
                f"{name} {share:.0%} live {direction}",
                partial(make_conv, *shape, dtype, share, backward),
                dtype=dtype,
                quick=backward and shape == SHAPES[0] and share == 1 and dtype == torch.float32,
                series=f"component_conv {name} {str(dtype)[6:]} {direction}",
                density=share,
            )
        )
