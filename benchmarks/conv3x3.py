"""conv3x3 against F.conv2d, on the images of the VGG front end: `make bench ARGS="-k conv3x3"`.

Each peer gets its own layout: "eager" [B, C, H, W], "channels-last" the memory format of that name. With pooling they
are followed by max_pool2d and ReLU. Floor: Winograd's 8 H W C O flops for y, for the gradient of x (which an image of
features does not need) and for that of the filters.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._oracle import check, run
from benchmarks.registry import Case, Problem, register
from dmao_kernels import conv3x3
from dmao_kernels.ops.conv3x3.reference import conv3x3_reference


@dataclass(frozen=True)
class Layer:
    """An image of `frames` rows of 80 features, and the windows of the pooling, if any."""

    frames: int
    inputs: int
    outputs: int
    pooling: tuple[int, int] | None = None

    def __str__(self) -> str:
        pooled = " pooling {}x{}".format(*self.pooling) if self.pooling else ""
        return f"{self.frames}x80 C={self.inputs} O={self.outputs}{pooled}"


FRONT_END = (Layer(2000, 1, 32), Layer(2000, 32, 64, (2, 1)), Layer(1000, 64, 64), Layer(1000, 64, 32, (2, 1)))


def make(layer: Layer, dtype: torch.dtype, backward: bool) -> Problem:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, layer.frames, 80, layer.inputs), (layer.outputs, layer.inputs, 3, 3), (layer.outputs,)]
    x, weight, bias = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    if layer.pooling:  # sums of whole numbers are exact: nobody chooses another pixel of a window because of rounding
        x, weight, bias = ((2 * tensor).round().clamp(-4, 4) for tensor in (x, weight, bias))
    x.requires_grad_(layer.inputs > 1)
    filters = [weight.requires_grad_(), bias.requires_grad_()]
    rows = layer.frames // (layer.pooling[0] if layer.pooling else 1)
    grad = torch.randn(1, rows, 80, layer.outputs, generator=generator).to(dtype)

    def eager(image: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = F.conv2d(image, weight, bias, padding=1)
        return y if layer.pooling is None else F.relu(F.max_pool2d(y, layer.pooling))

    def image(tensor: Tensor, memory_format: torch.memory_format) -> Tensor:
        moved = tensor.detach().permute(0, 3, 1, 2).contiguous(memory_format=memory_format)
        return moved.requires_grad_(tensor.requires_grad)

    def peer(memory_format: torch.memory_format) -> Callable[[], object]:
        return run(eager, [image(x, memory_format), *filters], image(grad, memory_format), backward)

    ours, plain = (partial(function, pooling=layer.pooling) for function in (conv3x3, conv3x3_reference))
    products = (2 + x.requires_grad) if backward else 1
    forward, gradients = x.nbytes + grad.nbytes, x.nbytes * (1 + x.requires_grad) + grad.nbytes
    return Problem(
        {
            "ours": run(ours, [x, *filters], grad, backward),
            "eager": peer(torch.contiguous_format),
            "channels-last": peer(torch.channels_last),
        },
        gate=lambda: check(ours, plain, x, *filters, grad=grad, slack=2, gradient_slack=4),
        flops=8.0 * products * layer.frames * 80 * layer.inputs * layer.outputs,
        bytes=forward + backward * gradients,
    )


for layer, dtype, backward in itertools.product(FRONT_END, (torch.float32, torch.bfloat16), (False, True)):
    if dtype == torch.bfloat16 and layer.pooling:
        continue
    register(
        Case(
            "conv3x3",
            f"{layer} {'fwd+bwd' if backward else 'fwd'}",
            partial(make, layer, dtype, backward),
            dtype=dtype,
            quick=backward and layer.inputs == 32,
        )
    )
