"""component_conv and its gradients as Triton kernels.

Floor: arrays of rows of live channels, once each: two (x) in, two (y, what is kept) out; backward four in, two out;
and the flops of the convolution, see dmao_kernels/ops/_triton/convolution.py. Three kernels each way, between which two
arrays more go through the L2 cache or memory:

    forward     gate | convolve | norm and activation
    backward    norm and activation, gate | convolve and ungate | sums for the taps

The gate is a pass of its own because the unrolled convolution would open every gate four times, which takes as long as
its multiply-adds.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dmao_kernels.ops._triton.activation import activate, slope
from dmao_kernels.ops._triton.config import cdiv, power_of_2
from dmao_kernels.ops._triton.convolution import convolve, convolve_backward, gather_taps, tap_gradients
from dmao_kernels.ops._triton.launch import kernel
from dmao_kernels.ops._triton.live import Channels, channels_of
from dmao_kernels.ops._triton.rows import NORM_BACKWARD_TILE, NORM_TILE, row_parts, row_tile
from dmao_kernels.ops._triton.sums import add_parts
from dmao_kernels.ops._triton.utterances import Utterances, spoken

_GATE_TILE = 2048  # elements


def component_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    statistics_weight: Tensor | None,
    live: Tensor | None,
    components: int,
    lengths: Tensor | None,
    offsets: Tensor | None,
    norm: str,
    eps: float,
    activation: str,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, and for the backward pass the normed output of the convolution and a scale per row."""
    channels = Channels(weight.shape[0], live, components)
    utterances = Utterances(x, lengths, offsets)
    rows, normalize = utterances.rows, norm != "none"
    kept_rows = rows if keep and (normalize or activation != "none") else 0
    # The kernels leave dead channels alone.
    y = (x.new_empty if live is None else x.new_zeros)((*x.shape[:-1], channels.stored))
    normed = x.new_empty((kept_rows, channels.listed))
    scales = torch.empty((rows if keep and normalize else 0,), dtype=torch.float32, device=x.device)
    if rows == 0 or channels.listed == 0:
        return y, normed, scales.zero_()
    convolved = x.new_empty((rows, channels.listed))
    taps = gather_taps(weight, bias, channels)
    convolve(_gated(x.contiguous(), channels, utterances), taps, convolved, utterances)
    tile_rows, columns, warps = row_tile(channels.listed, NORM_TILE, x.device)
    _norm[(cdiv(rows, tile_rows),)](
        convolved,
        *_vectors(norm_weight, norm_bias, statistics_weight),
        y,
        normed if kept_rows else None,
        scales if scales.numel() else None,
        *utterances.padding,
        channels.stored,
        *channels.arguments,
        eps,
        ROWS=tile_rows,
        COLUMNS=columns,
        NORM=normalize,
        ACTIVATION=activation,
        num_warps=warps,
    )
    return y, normed, scales


def component_conv_backward(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    statistics_weight: Tensor | None,
    live: Tensor | None,
    normed: Tensor,
    scales: Tensor,
    components: int,
    lengths: Tensor | None,
    offsets: Tensor | None,
    norm: str,
    eps: float,
    activation: str,
    bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, weight and, empty without one, bias, norm_weight and norm_bias."""
    channels = Channels(weight.shape[0], live, components)
    utterances = Utterances(x, lengths, offsets)
    rows = utterances.rows
    grad_x = (x.new_empty if live is None else x.new_zeros)(x.shape)
    grad_weight = torch.zeros_like(weight, memory_format=torch.contiguous_format)
    wanted = bias, norm_weight is not None, norm_bias is not None
    grad_bias, grad_gain, grad_shift = (weight.new_zeros(channels.stored if want else 0) for want in wanted)
    grads = grad_x, grad_weight, grad_bias, grad_gain, grad_shift
    if rows == 0 or channels.listed == 0:
        return grads
    x = x.contiguous()
    grad = x.new_empty((rows, channels.listed))
    tile_rows, columns, warps = row_tile(channels.listed, NORM_BACKWARD_TILE, x.device)
    parts, part_tiles = row_parts(rows, tile_rows)
    partial = torch.empty((parts, 2, channels.listed), dtype=torch.float32, device=x.device)
    _norm_backward[(parts,)](
        grad_y.contiguous(),
        normed if norm != "none" or activation != "none" else None,
        scales if norm != "none" else None,
        *_vectors(norm_weight, norm_bias, statistics_weight),
        grad,
        partial,
        *utterances.padding,
        channels.stored,
        *channels.arguments,
        part_tiles,
        ROWS=tile_rows,
        COLUMNS=columns,
        NORM=norm != "none",
        ACTIVATION=activation,
        num_warps=warps,
    )
    if norm_weight is not None or norm_bias is not None:
        add_parts(partial, _given(grad_gain), _given(grad_shift), channels)
    convolve_backward(grad, gather_taps(weight, None, channels), grad_x, utterances, x, channels)
    gated = _gated(x, channels, utterances)
    tap_gradients(grad, gated, utterances, channels, grad_weight, _given(grad_bias))
    return grads


def _gated(x: Tensor, channels: Channels, utterances: Utterances) -> Tensor:
    """The GLU of the listed channels, [rows, listed]; nothing in the padding."""
    gated = x.new_empty((utterances.rows, channels.listed))
    columns = min(power_of_2(channels.listed), 256)
    tile_rows = _GATE_TILE // columns
    _gate[(cdiv(utterances.rows, tile_rows) * cdiv(channels.listed, columns),)](
        x,
        gated,
        *utterances.padding,
        channels.stored,
        *channels.arguments,
        ROWS=tile_rows,
        COLUMNS=columns,
    )
    return gated


def _given(vector: Tensor) -> Tensor | None:
    return vector if vector.numel() else None


def _vectors(*vectors: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(None if vector is None else vector.contiguous() for vector in vectors)


_VARYING = ["frames", "row_count", "components"]


@kernel(varying=_VARYING)
def _gate(
    x_ptr,
    out_ptr,
    lengths_ptr,
    frames,
    row_count,
    stored,
    live_ptr,
    listed,
    components,
    width,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    column_tiles = tl.cdiv(listed, COLUMNS)
    rows = tl.program_id(0) // column_tiles * ROWS + tl.arange(0, ROWS)
    places = tl.program_id(0) % column_tiles * COLUMNS + tl.arange(0, COLUMNS)
    channel, _, lives = channels_of(live_ptr, places, listed, components, width, ALIGN)
    inside = spoken(rows, lengths_ptr, frames, row_count)[:, None] & lives[None, :]
    place = rows[:, None].to(tl.int64) * 2 * stored + channel[None, :]
    value = tl.load(x_ptr + place, inside, 0.0).to(tl.float32)
    opening = tl.sigmoid(tl.load(x_ptr + place + stored, inside, 0.0).to(tl.float32))
    out = out_ptr + rows[:, None].to(tl.int64) * listed + places[None, :]
    stored_here = (rows < row_count)[:, None] & (places < listed)[None, :]
    tl.store(out, (value * opening).to(out_ptr.dtype.element_ty), stored_here)


@triton.jit
def _parameters(gain_ptr, shift_ptr, statistics_ptr, channel, component, lives, COLUMNS: tl.constexpr):
    """Gain and shift of the norm, and each channel's share in the statistics, of one row of places."""
    gain = tl.full((COLUMNS,), 1.0, tl.float32)
    shift = tl.zeros((COLUMNS,), tl.float32)
    if gain_ptr is not None:
        gain = tl.load(gain_ptr + channel, lives, 0.0).to(tl.float32)
    if shift_ptr is not None:
        shift = tl.load(shift_ptr + channel, lives, 0.0).to(tl.float32)
    share = tl.where(lives, 1.0, 0.0)
    if statistics_ptr is not None:
        share = tl.load(statistics_ptr + component, lives, 0.0)
    # The smallest normal number where nothing lives.
    share = share / tl.maximum(tl.sum(share, 0), 1.1754944e-38)
    return gain[None, :], shift[None, :], share[None, :]


@kernel(varying=_VARYING)
def _norm(
    convolved_ptr,
    gain_ptr,
    shift_ptr,
    statistics_ptr,
    y_ptr,
    normed_ptr,
    scales_ptr,
    lengths_ptr,
    frames,
    row_count,
    stored,
    live_ptr,
    listed,
    components,
    width,
    ALIGN: tl.constexpr,
    eps,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    NORM: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    places = tl.arange(0, COLUMNS)
    channel, component, lives = channels_of(live_ptr, places, listed, components, width, ALIGN)
    gain, shift, share = _parameters(gain_ptr, shift_ptr, statistics_ptr, channel, component, lives, COLUMNS)
    speaks = spoken(rows, lengths_ptr, frames, row_count)
    inside = speaks[:, None] & lives[None, :]
    compact = rows[:, None].to(tl.int64) * listed + places[None, :]
    normed = tl.load(convolved_ptr + compact, inside, 0.0).to(tl.float32)
    if NORM:
        normed -= tl.sum(normed * share, 1)[:, None]
        scale = 1.0 / tl.sqrt_rn(tl.sum(normed * normed * share, 1) + eps)
        normed = tl.where(inside, normed * scale[:, None], 0.0)
        if scales_ptr is not None:
            tl.store(scales_ptr + rows, tl.where(speaks, scale, 0.0), rows < row_count)
    if normed_ptr is not None:
        stored_here = (rows < row_count)[:, None] & (places < listed)[None, :]
        tl.store(normed_ptr + compact, normed.to(normed_ptr.dtype.element_ty), stored_here)
    y = tl.where(inside, activate(normed * gain + shift, ACTIVATION), 0.0)
    place = rows[:, None].to(tl.int64) * stored + channel[None, :]
    tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), (rows < row_count)[:, None] & lives[None, :])


@kernel(varying=[*_VARYING, "part_tiles"])
def _norm_backward(
    grad_y_ptr,
    normed_ptr,
    scales_ptr,
    gain_ptr,
    shift_ptr,
    statistics_ptr,
    grad_ptr,
    partial_ptr,
    lengths_ptr,
    frames,
    row_count,
    stored,
    live_ptr,
    listed,
    components,
    width,
    ALIGN: tl.constexpr,
    part_tiles,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    NORM: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """The gradient by the convolution's output; a program adds up part_tiles tiles of rows for gain and shift."""
    places = tl.arange(0, COLUMNS)
    channel, component, lives = channels_of(live_ptr, places, listed, components, width, ALIGN)
    gain, shift, share = _parameters(gain_ptr, shift_ptr, statistics_ptr, channel, component, lives, COLUMNS)
    for_gain = tl.zeros((ROWS, COLUMNS), tl.float32)
    for_shift = tl.zeros((ROWS, COLUMNS), tl.float32)
    first_tile = tl.program_id(0) * part_tiles
    for tile in range(first_tile, min(first_tile + part_tiles, tl.cdiv(row_count, ROWS))):
        rows = tile * ROWS + tl.arange(0, ROWS)
        inside = spoken(rows, lengths_ptr, frames, row_count)[:, None] & lives[None, :]
        compact = rows[:, None].to(tl.int64) * listed + places[None, :]
        place = rows[:, None].to(tl.int64) * stored + channel[None, :]
        grad = tl.load(grad_y_ptr + place, inside, 0.0).to(tl.float32)
        if normed_ptr is not None:
            normed = tl.load(normed_ptr + compact, inside, 0.0).to(tl.float32)
            grad *= slope(normed * gain + shift, ACTIVATION)
            for_gain += grad * normed
            for_shift += grad
            grad *= gain
        if NORM:
            scale = tl.load(scales_ptr + rows, rows < row_count, 0.0)[:, None]
            product = tl.sum(grad * normed, 1)[:, None]
            grad = (grad - share * (tl.sum(grad, 1)[:, None] + normed * product)) * scale
        stored_here = (rows < row_count)[:, None] & (places < listed)[None, :]
        tl.store(grad_ptr + compact, grad.to(grad_ptr.dtype.element_ty), stored_here)
    part = partial_ptr + tl.program_id(0).to(tl.int64) * 2 * listed + places
    tl.store(part, tl.sum(for_gain, 0), places < listed)
    tl.store(part + listed, tl.sum(for_shift, 0), places < listed)
