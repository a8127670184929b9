"""pack, unpack: utterances one behind the other instead of padded to a common length, and back."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dmao_kernels._library import define, operators, register_fake
from dmao_kernels.dispatch import choose_backend, register
from dmao_kernels.ops._checks import check_devices
from dmao_kernels.ops._utterances import check_lengths, check_offsets
from dmao_kernels.ops.packing.reference import pack_reference, unpack_reference

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# Each is the other's gradient.
define("pack(Tensor x, Tensor offsets, SymInt rows) -> Tensor", triton=__package__)
define("unpack(Tensor packed, Tensor offsets, SymInt frames) -> Tensor", triton=__package__)
for _op in ("pack", "unpack"):  # they copy bytes
    register(_op, cpu=_DTYPES, triton=_DTYPES)


def pack(x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The utterances of a padded batch one behind the other, without the padding.

    Padding is not read, and its gradient is zero. The number of rows is read from `lengths`, for which an
    accelerator is waited for; torch.compile(fullgraph=True) takes that with
    torch._dynamo.config.capture_scalar_outputs. torch.autocast changes nothing.

    Floor on time: one copy, 2 N ... elements at memory bandwidth.

    Args:
        x: [B, T, ...], any dtype and strides.
        lengths: int32 [B] on x's device, each in [0, T].

    Returns:
        packed: [N, ...], N the sum of the lengths.
        offsets: int32 [B + 1]; utterance b is packed[offsets[b] : offsets[b + 1]].

    Raises:
        ValueError: an argument's dtype, shape or device is not as above.
        RuntimeError: a length is out of range (CPU kernels; the reference: IndexError or RuntimeError).
    """
    if x.dim() < 2:
        raise ValueError(f"pack: x must be [B, T, ...], got {list(x.shape)}")
    check_lengths("pack", lengths, x.shape[0])
    check_devices("pack", "x", x.device, lengths=lengths)
    offsets = F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    rows = int(offsets[-1])
    # For tracing, where nothing is known of the number.
    torch._check(rows >= 0, lambda: "pack: lengths must not be negative, got ones of a negative sum")
    if (backend := choose_backend("pack", x, lengths)) == "reference":
        return pack_reference(x, offsets, rows), offsets
    return operators(backend).pack(x, offsets, rows), offsets


def unpack(packed: Tensor, offsets: Tensor, frames: int) -> Tensor:
    """The inverse of `pack`: utterances padded with zeros to a common length.

    The gradient of the padding is not read. torch.autocast changes nothing.

    Floor on time: N ... elements read and B T ... written at memory bandwidth.

    Args:
        packed: [N, ...], any dtype and strides.
        offsets: int32 [B + 1] on packed's device; utterance b is packed[offsets[b] : offsets[b + 1]].
        frames: T, at least the longest utterance.

    Returns:
        [B, T, ...].

    Raises:
        ValueError: an argument's dtype, shape or device is not as above.
        RuntimeError: offsets do not ascend from 0 to N, or an utterance is longer than `frames` (CPU kernels; the
            reference: IndexError or RuntimeError).
    """
    if packed.dim() < 1:
        raise ValueError("unpack: packed must be [N, ...], got a scalar")
    check_offsets("unpack", offsets)
    check_devices("unpack", "packed", packed.device, offsets=offsets)
    if frames < 0:
        raise ValueError(f"unpack: frames must not be negative, got {frames}")
    if (backend := choose_backend("unpack", packed, offsets)) == "reference":
        return unpack_reference(packed, offsets, frames)
    return operators(backend).unpack(packed, offsets, frames)


@register_fake("pack")
def _pack(x: Tensor, offsets: Tensor, rows: int) -> Tensor:
    return x.new_empty((rows, *x.shape[2:]))


@register_fake("unpack")
def _unpack(packed: Tensor, offsets: Tensor, frames: int) -> Tensor:
    return packed.new_empty((offsets.shape[0] - 1, frames, *packed.shape[1:]))
