"""conv3x3: convolution of channels-last images with 3 x 3 filters."""

from __future__ import annotations

import torch
from torch import Tensor

from dmao_kernels._library import define
from dmao_kernels.dispatch import choose_backend, register
from dmao_kernels.ops._describe import describe, dtype_name
from dmao_kernels.ops.conv3x3.reference import conv3x3_reference

_DTYPES = (torch.float32, torch.bfloat16)

# taps: [3, 3, C, O]. The gradient of x is a conv3x3 again, with mirrored filters.
define("conv3x3(Tensor x, Tensor taps, Tensor? bias) -> Tensor")
define("conv3x3_backward(Tensor grad_y, Tensor x) -> (Tensor grad_taps, Tensor grad_bias)")
register("conv3x3", dtypes=_DTYPES)


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.conv2d(x, weight, bias, padding=1) with the channels last: [B, H, W, C] to [B, H, W, O].

    A front end of few channels over large images is what PyTorch's CPU convolutions are slow at, above all their
    gradients. Results are bit-identical for any number of threads. Under torch.autocast all inputs are cast, as
    F.conv2d does.

    Floor on time: 18 B H W C O flops for y, for the gradient of x and for that of the filters each, at the peak of
    the cores; bfloat16 is computed in float32.

    Args:
        x: float32 or bfloat16 [B, H, W, C]; any strides.
        weight: [O, C, 3, 3] of x's dtype, as nn.Conv2d has it.
        bias: [O], or None.

    Returns:
        [B, H, W, O] in x's dtype, contiguous.

    Raises:
        ValueError: an argument's dtype, shape or device is not as above.
        RuntimeError: this is differentiated twice (CPU kernels only).
    """
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    _check(x, weight, bias)
    if choose_backend("conv3x3", x, weight, bias) == "reference":
        return conv3x3_reference(x, weight, bias)
    return torch.ops.dmao.conv3x3(x, weight.permute(2, 3, 1, 0), bias)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if x.dtype not in _DTYPES:
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


@torch.library.register_fake("dmao::conv3x3")
def _conv3x3(x: Tensor, taps: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:3], taps.shape[3]))


@torch.library.register_fake("dmao::conv3x3_backward")
def _conv3x3_backward(grad_y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty((3, 3, x.shape[3], grad_y.shape[3])), x.new_empty(grad_y.shape[3])
