"""block_attention: attention over what is visible, with relative positions."""

from __future__ import annotations

import torch
from torch import Tensor

from dmao_kernels._library import define, operators
from dmao_kernels.block_mask import BlockMask, check_block_mask, mask_arguments
from dmao_kernels.dispatch import choose_backend, register
from dmao_kernels.ops._checks import (
    CPU_DTYPES,
    DTYPES,
    autocast,
    check_devices,
    check_dropout,
    check_float,
    describe,
    dtype_name,
    has_dtype,
    is_pair,
    without_autocast,
)
from dmao_kernels.ops._utterances import check_lengths, check_offsets
from dmao_kernels.ops.block_attention.reference import block_attention_reference

_LARGEST_HEAD = 256

# q, k, v: [N, H, D], whichever form the rows have; padded ones are [B * T, H, D].
# utterances: int32 [B, 2], the first row and the length of each; frames: no utterance is longer.
# row_offsets ... block: see `mask_arguments`.
# left, right, left_chunks: -1 where unbounded; chunk: 0 where there are none.
# rel_pos: [2R + 1, H, D]. lse: float32 [H, N], of the backward pass alone; absent gradients are empty.
_INPUTS = (
    "Tensor q, Tensor k, Tensor v, Tensor utterances, SymInt frames, Tensor? row_offsets, Tensor? column_ids, "
    "Tensor? column_offsets, Tensor? row_ids, int block, int left, int right, int chunk, int left_chunks, "
    "Tensor? head_mask, Tensor? rel_pos, Tensor? content_bias, Tensor? position_bias, float p, Tensor? seed, "
    "float scale"
)
define(f"block_attention({_INPUTS}) -> (Tensor out, Tensor lse)", triton=__package__, cuda=True)
define(
    f"block_attention_backward(Tensor grad_out, {_INPUTS}, Tensor out, Tensor lse) -> (Tensor grad_q, Tensor grad_k, "
    "Tensor grad_v, Tensor grad_rel_pos, Tensor grad_content_bias, Tensor grad_position_bias)",
    triton=__package__,
    cuda=True,
)
register("block_attention", cpu=CPU_DTYPES, triton=DTYPES, cuda=DTYPES, tf32=True)


def block_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    lengths: Tensor | None = None,
    offsets: Tensor | None = None,
    block_mask: BlockMask | None = None,
    window: tuple[int | None, int | None] | None = None,
    chunk: tuple[int, int | None] | None = None,
    head_mask: Tensor | None = None,
    rel_pos: Tensor | None = None,
    content_bias: Tensor | None = None,
    position_bias: Tensor | None = None,
    p: float = 0.0,
    seed: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """softmax(scale * s) v per head and utterance, over the keys that each query sees, with

        s[i, j] = (q_i + content_bias) . k_j + (q_i + position_bias) . rel_pos[clamp(R + j - i, 0, 2 R)]

    where the second term is there only with rel_pos. With both biases and R >= T - 1 these are the relative
    positions of Transformer-XL (Dai et al. 2019, arXiv 1901.02860) and of the Conformer; without biases, and
    with a small R, those of Shaw et al. (2018, arXiv 1803.02155).

    Neither the scores nor the positional term are ever stored as a whole, and only tiles with visible keys are
    computed, forward and backward. All conditions on what a query sees hold together. A query that sees no key
    gives 0 and gets the gradient 0. Inputs beyond an utterance's length and those of dead heads are never read,
    may be NaN, and get gradients of exactly zero; so do the outputs there.

    Dropout on the attention weights comes from a counter-based generator, Philox4x32-7: its mask is a function of
    (seed, utterance, head, query, key) and is recomputed in the backward pass. Results are bit-identical for
    any number of threads. Under torch.autocast all floating point inputs are cast, as
    F.scaled_dot_product_attention does. Views into one projection of q, k and v are read in place.

    Floor on time: 4 D H n multiply-add flops forward and 10 D H n backward, for n pairs of a query and a key that it
    sees (with rel_pos 6 and 16), at the peak of the cores; bfloat16 is computed in float32.

    Args:
        q, k, v: float32, bfloat16 or float16, all of one shape: [B, T, H, D], or [N, H, D] with offsets; 1 <= D <= 256;
            any strides.
        lengths: int32 [B], frames of each utterance, from 0 to T; None: all have T.
        offsets: int32 [B + 1], of rows without padding: utterance b has rows offsets[b] to offsets[b + 1].
            From 0 to N, not decreasing. Without lengths.
        block_mask: a square BlockMask over positions (query, key) that covers the longest utterance; the same
            for all utterances and heads.
        window: (left, right): query i sees key j iff i - left <= j <= i + right; None is unbounded.
        chunk: (size, left_chunks): iff i // size - left_chunks <= j // size <= i // size; left_chunks None: all.
        head_mask: bool [H], False for a dead head; its output is 0. None: all live.
        rel_pos: [2 R + 1, H, D], or [2 R + 1, D] for all heads, of q's dtype; the first row is for keys R frames
            before the query.
        content_bias: [H, D] of q's dtype, or None.
        position_bias: the same; only with rel_pos.
        p: probability of dropping an attention weight, in [0, 1); kept ones are scaled by 1 / (1 - p).
        seed: int64 [1], needed when p > 0. Give every call of a step its own.
        scale: factor of the scores; None: D ** -0.5.
        All tensors are on q's device.

    Returns:
        As q in shape and dtype, contiguous.

    Raises:
        ValueError: an argument's dtype, shape, device or value is not as above.
        RuntimeError: lengths, offsets or the ids of the mask are out of range, or an utterance is longer than
            the mask covers (CPU kernels only), or this is differentiated twice.
    """
    q, k, v, rel_pos, content_bias, position_bias = autocast(q, k, v, rel_pos, content_bias, position_bias)
    _check_rows(q, k, v, lengths, offsets)
    _check_visibility(q, block_mask, window, chunk, head_mask, packed=offsets is not None)
    _check_positions(q, rel_pos, content_bias, position_bias)
    check_dropout("block_attention", p, seed)
    check_devices(
        "block_attention",
        "q",
        q.device,
        k=k,
        v=v,
        lengths=lengths,
        offsets=offsets,
        block_mask=None if block_mask is None else block_mask.column_ids,
        head_mask=head_mask,
        rel_pos=rel_pos,
        content_bias=content_bias,
        position_bias=position_bias,
        seed=seed,
    )
    if (backend := choose_backend("block_attention", q, k, v, rel_pos, content_bias, position_bias)) == "reference":
        with without_autocast(q):  # it computes bfloat16 in float32
            return block_attention_reference(
                q,
                k,
                v,
                lengths=lengths,
                offsets=offsets,
                block_mask=block_mask,
                window=window,
                chunk=chunk,
                head_mask=head_mask,
                rel_pos=rel_pos,
                content_bias=content_bias,
                position_bias=position_bias,
                p=p,
                seed=seed,
                scale=scale,
            )
    if rel_pos is not None and rel_pos.dim() == 2:
        rel_pos = rel_pos[:, None].expand(-1, q.shape[-2], -1)
    out, _ = operators(backend).block_attention(
        *(x.flatten(0, -3) for x in (q, k, v)),
        _utterances(q, lengths, offsets),
        q.shape[-3],
        *mask_arguments(block_mask),
        *_bounds(window, chunk),
        head_mask,
        rel_pos,
        content_bias,
        position_bias,
        p,
        seed,
        q.shape[-1] ** -0.5 if scale is None else scale,
    )
    return out.view(q.shape)


def _utterances(q: Tensor, lengths: Tensor | None, offsets: Tensor | None) -> Tensor:
    """int32 [B, 2]: first row and length of each utterance.

    Of packed rows never a single one, for kernels to know the forms apart: an empty one stands behind it.
    """
    if offsets is not None:
        if offsets.shape[0] == 2:
            offsets = torch.cat([offsets, offsets[1:]])
        return torch.stack([offsets.narrow(0, 0, offsets.shape[0] - 1), offsets.diff()], 1)
    batch, frames = q.shape[:2]
    first = torch.arange(batch, dtype=torch.int32, device=q.device) * frames
    return torch.stack([first, torch.full_like(first, frames) if lengths is None else lengths], 1)


def _bounds(
    window: tuple[int | None, int | None] | None, chunk: tuple[int, int | None] | None
) -> tuple[int, int, int, int]:
    """left, right, chunk, left_chunks as the operator takes them."""
    left, right = window or (None, None)
    size, left_chunks = chunk or (0, None)
    return (
        -1 if left is None else left,
        -1 if right is None else right,
        size,
        -1 if left_chunks is None else left_chunks,
    )


def _check_rows(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor | None, offsets: Tensor | None) -> None:
    check_float("block_attention", "q", q)
    form = ["B", "T", "H", "D"] if offsets is None else ["N", "H", "D"]
    if q.dim() != len(form):
        which = "without" if offsets is None else "with"
        raise ValueError(f"block_attention: q must be [{', '.join(form)}] {which} offsets, got {list(q.shape)}")
    if not 1 <= q.shape[-1] <= _LARGEST_HEAD:
        raise ValueError(f"block_attention: D must be in [1, {_LARGEST_HEAD}], got {q.shape[-1]}")
    for name, tensor in (("k", k), ("v", v)):
        if tensor.shape != q.shape or tensor.dtype != q.dtype:
            raise ValueError(f"block_attention: {name} must be as q, {describe(q)}, got {describe(tensor)}")
    if offsets is not None:
        if lengths is not None:
            raise ValueError("block_attention: lengths must be None with offsets")
        check_offsets("block_attention", offsets)
    elif lengths is not None:
        check_lengths("block_attention", lengths, q.shape[0])


def _check_visibility(
    q: Tensor,
    block_mask: BlockMask | None,
    window: tuple[int | None, int | None] | None,
    chunk: tuple[int, int | None] | None,
    head_mask: Tensor | None,
    *,
    packed: bool,
) -> None:
    if window is not None and not (is_pair(window) and all(x is None or _is_whole(x, 0) for x in window)):
        raise ValueError(f"block_attention: window must be (left, right), each >= 0 or None, got {window}")
    if chunk is not None and not (
        is_pair(chunk) and _is_whole(chunk[0], 1) and (chunk[1] is None or _is_whole(chunk[1], 0))
    ):
        raise ValueError(f"block_attention: chunk must be (size >= 1, left_chunks >= 0 or None), got {chunk}")
    check_block_mask("block_attention", "block_mask", block_mask)
    if block_mask is not None:
        if block_mask.rows != block_mask.columns:
            raise ValueError(
                f"block_attention: block_mask must be square, got {block_mask.rows} x {block_mask.columns} blocks"
            )
        if not packed and block_mask.rows * block_mask.block < q.shape[1]:
            raise ValueError(
                f"block_attention: block_mask must cover {q.shape[1]} frames, got {block_mask.rows} blocks of "
                f"{block_mask.block}"
            )
    if head_mask is not None and (not has_dtype(head_mask, torch.bool) or list(head_mask.shape) != [q.shape[-2]]):
        raise ValueError(f"block_attention: head_mask must be bool [{q.shape[-2]}], got {describe(head_mask)}")


def _is_whole(bound: int | None, least: int) -> bool:
    return bound is not None and not isinstance(bound, float) and bound >= least


def _check_positions(
    q: Tensor, rel_pos: Tensor | None, content_bias: Tensor | None, position_bias: Tensor | None
) -> None:
    heads, width = q.shape[-2:]
    if rel_pos is not None and (
        rel_pos.dim() not in (2, 3)
        or rel_pos.shape[0] % 2 == 0
        or list(rel_pos.shape[1:]) not in ([heads, width], [width])
    ):
        raise ValueError(
            f"block_attention: rel_pos must be [2 R + 1, {heads}, {width}] or [2 R + 1, {width}], "
            f"got {list(rel_pos.shape)}"
        )
    if position_bias is not None and rel_pos is None:
        raise ValueError("block_attention: position_bias must be None without rel_pos")
    for name, bias in (("content_bias", content_bias), ("position_bias", position_bias)):
        if bias is not None and list(bias.shape) != [heads, width]:
            raise ValueError(f"block_attention: {name} must be [{heads}, {width}], got {list(bias.shape)}")
    for name, tensor in (("rel_pos", rel_pos), ("content_bias", content_bias), ("position_bias", position_bias)):
        if tensor is not None and tensor.dtype != q.dtype:
            raise ValueError(f"block_attention: {name} must have q's dtype {dtype_name(q)}, got {dtype_name(tensor)}")
