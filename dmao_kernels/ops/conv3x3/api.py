"""conv3x3: convolution of channels-last images with 3 x 3 filters."""

from __future__ import annotations

import torch
from torch import Tensor

from dmao_kernels._library import define, operators, register_fake
from dmao_kernels.dispatch import choose_backend, register
from dmao_kernels.ops._checks import CPU_DTYPES, autocast, describe, dtype_name, is_pair
from dmao_kernels.ops.conv3x3.reference import conv3x3_reference

_LARGEST_WINDOW = 255  # pixels: numbers of them are bytes

# taps: [3, 3, C, O]; those of backward_images are upside down and back to front, [3, 3, O, C]. pooling is empty
# where there is none, and choice then [0]; else choice says which pixel of its window a value of y is.
define("conv3x3(Tensor x, Tensor taps, Tensor? bias, Tensor? valid, int[] pooling) -> (Tensor y, Tensor choice)")
define(
    "conv3x3_backward_images(Tensor grad_y, Tensor choice, Tensor taps, Tensor x, Tensor? valid, int[] pooling)"
    " -> Tensor"
)
define(
    "conv3x3_backward_filters(Tensor grad_y, Tensor choice, Tensor x, Tensor? valid, int[] pooling)"
    " -> (Tensor grad_taps, Tensor grad_bias)"
)
register("conv3x3", cpu=CPU_DTYPES)


def conv3x3(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    valid: Tensor | None = None,
    pooling: tuple[int, int] | None = None,
) -> Tensor:
    """F.conv2d(x, weight, bias, padding=1) with the channels last, then perhaps relu(max_pool2d(y, pooling)).

    A front end of few channels over large images is what PyTorch's CPU convolutions are slow at, above all their
    gradients. This is Winograd's convolution (Lavin and Gray, 2015): tiles of 2 x 2 pixels of y are computed from
    4 x 4 of x together, so that NaN or infinity in one of those reaches all pixels of a tile. Results are
    bit-identical for any number of threads. Under torch.autocast all inputs are cast, as F.conv2d does.

    Floor on time: 8 B H W C O flops for y, for the gradient of x and for that of the filters each, at the peak of
    the cores; bfloat16 is computed in float32.

    Args:
        x: float32 or bfloat16 [B, H, W, C]; any strides.
        weight: [O, C, 3, 3] of x's dtype, as nn.Conv2d has it.
        bias: [O], or None.
        valid: bool [B, H'], rows of the result that are not zero; None: all. Others have no gradient.
        pooling: rows and columns of a window, of at most 255 pixels; None: neither ReLU nor pooling.

    Returns:
        [B, H', W', O] in x's dtype, contiguous; H' and W' are H and W, or H // pooling[0] and W // pooling[1].

    Raises:
        ValueError: an argument's dtype, shape or device is not as above.
        RuntimeError: this is differentiated twice (CPU kernels only).
    """
    x, weight, bias = autocast(x, weight, bias)
    _check(x, weight, bias)
    _check_output(x, valid, pooling)
    if (backend := choose_backend("conv3x3", x, weight, bias)) == "reference":
        return conv3x3_reference(x, weight, bias, valid=valid, pooling=pooling)
    window = [] if pooling is None else list(pooling)
    y, _choice = operators(backend).conv3x3(x, weight.permute(2, 3, 1, 0), bias, valid, window)
    return y


def _check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if x.dtype not in CPU_DTYPES:
        raise ValueError(f"conv3x3: x must be float32 or bfloat16, got {dtype_name(x)}")
    if x.dim() != 4:
        raise ValueError(f"conv3x3: x must be [B, H, W, C], got {list(x.shape)}")
    if weight.dim() != 4 or list(weight.shape[1:]) != [x.shape[3], 3, 3]:
        raise ValueError(f"conv3x3: weight must be [O, {x.shape[3]}, 3, 3], got {list(weight.shape)}")
    if bias is not None and list(bias.shape) != [weight.shape[0]]:
        raise ValueError(f"conv3x3: bias must be [{weight.shape[0]}], got {list(bias.shape)}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and (tensor.dtype != x.dtype or tensor.device != x.device):
            raise ValueError(
                f"conv3x3: {name} must have x's dtype and device, {dtype_name(x)} on {x.device}, "
                f"got {describe(tensor)} on {tensor.device}"
            )


def _check_output(x: Tensor, valid: Tensor | None, pooling: tuple[int, int] | None) -> None:
    if pooling is not None and (not is_pair(pooling) or min(pooling) < 1 or pooling[0] * pooling[1] > _LARGEST_WINDOW):
        raise ValueError(
            f"conv3x3: pooling must be two positive sizes of a window of at most {_LARGEST_WINDOW} pixels, "
            f"got {pooling}"
        )
    if valid is None:
        return
    shape = [x.shape[0], x.shape[1] // (1 if pooling is None else pooling[0])]
    if valid.dtype != torch.bool or list(valid.shape) != shape or valid.device != x.device:
        raise ValueError(f"conv3x3: valid must be bool {shape} on {x.device}, got {describe(valid)} on {valid.device}")


def _output_shape(x: Tensor, out: int, pooling: list[int]) -> tuple[int, ...]:
    rows, columns = pooling or (1, 1)
    return x.shape[0], x.shape[1] // rows, x.shape[2] // columns, out


@register_fake("conv3x3")
def _conv3x3(
    x: Tensor, taps: Tensor, bias: Tensor | None, valid: Tensor | None, pooling: list[int]
) -> tuple[Tensor, Tensor]:
    shape = _output_shape(x, taps.shape[3], pooling)
    return x.new_empty(shape), x.new_empty(shape if pooling else (0,), dtype=torch.uint8)


@register_fake("conv3x3_backward_images")
def _conv3x3_backward_images(
    grad_y: Tensor, choice: Tensor, taps: Tensor, x: Tensor, valid: Tensor | None, pooling: list[int]
) -> Tensor:
    return x.new_empty(x.shape)


@register_fake("conv3x3_backward_filters")
def _conv3x3_backward_filters(
    grad_y: Tensor, choice: Tensor, x: Tensor, valid: Tensor | None, pooling: list[int]
) -> tuple[Tensor, Tensor]:
    return x.new_empty((3, 3, x.shape[3], grad_y.shape[3])), x.new_empty(grad_y.shape[3])
