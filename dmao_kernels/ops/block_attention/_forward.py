"""The forward kernel of block_attention."""

from __future__ import annotations

import triton.language as tl

from dmao_kernels.ops._triton.launch import kernel
from dmao_kernels.ops.block_attention._tile import (
    LOG2_E,
    kept,
    keys_of,
    load_distances,
    load_rows,
    position_of,
    score,
    skew,
    span,
    steps,
    store_rows,
    utterance_of,
    with_bias,
)

# Sizes that vary from batch to batch or from call to call: no kernel is compiled for their values.
VARYING = [
    *("rows", "batch", "frames", "mask_lines", "mask_count"),
    *("left", "right", "chunk", "left_chunks", "reach", "size", "threshold"),
]


@kernel(varying=VARYING)
def attention(
    q,
    k,
    v,
    utterances,
    row_offsets,
    column_ids,
    column_offsets,
    row_ids,
    head_mask,
    rel_pos,
    content_bias,
    position_bias,
    seed,
    rows,
    batch,
    frames,
    mask_lines,
    mask_count,
    q_row,
    q_head,
    k_row,
    k_head,
    v_row,
    v_head,
    rel_row,
    rel_head,
    left,
    right,
    chunk,
    left_chunks,
    reach,
    size,
    threshold,
    keep_factor,
    scale,
    out,
    lse,
    out_row,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
    TILE: tl.constexpr,
    QUERIES: tl.constexpr,
):
    """Outputs of a tile of queries, and the logarithms (of base 2) of their sums of exponentials.

    Floor, for n visible pairs: 4 D n flops (6 with relative positions). Read: q once, k and v (and 2 TILE rows of
    rel_pos at first, then TILE) once per tile of queries, mostly from L2; written: the output, 4 bytes a row and head.
    """
    tl.static_assert(rel_pos is None or QUERIES == TILE)
    head = tl.program_id(1)
    utterance, tile = utterance_of(tl.program_id(0), utterances, batch, rows, QUERIES)
    first_row, length, owned = span(utterances, utterance, batch, rows, frames, head_mask, head)
    row = first_row.to(tl.int64)
    q_head_rows = q + row * q_row + head.to(tl.int64) * q_head
    k_head_rows = k + row * k_row + head.to(tl.int64) * k_head
    v_head_rows = v + row * v_row + head.to(tl.int64) * v_head

    query = tile * QUERIES
    queries = query + tl.arange(0, QUERIES)
    bounds = (left, right, chunk, left_chunks)
    key_begin, key_end = keys_of(queries, length, *bounds)
    earliest, _ = keys_of(query, length, *bounds)
    _, latest = keys_of(tl.minimum(query + QUERIES, length) - 1, length, *bounds)
    latest = tl.where(query < length, latest, 0)
    begin, end = steps(query, earliest, latest, row_offsets, column_ids, mask_lines, mask_count, BLOCK, TILE)

    plain = load_rows(q_head_rows, q_row, query, length, QUERIES, D, WIDTH)
    content = with_bias(plain, content_bias, head, D, WIDTH)
    factor = scale * LOG2_E
    if rel_pos is not None:
        position = with_bias(plain, position_bias, head, D, WIDTH)
        distances = rel_pos + head.to(tl.int64) * rel_head
        if BLOCK == 0:
            near = load_distances(distances, rel_row, begin - tile, reach, TILE, D, WIDTH)
            first = tl.dot(position, near.T, input_precision=PRECISION)

    top = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    sums = tl.zeros((QUERIES, WIDTH), tl.float32)
    for step in range(begin, end):
        key = position_of(step, size, column_ids, BLOCK, TILE)
        keys = key + tl.arange(0, TILE)
        key_rows = load_rows(k_head_rows, k_row, key, length, TILE, D, WIDTH)
        if rel_pos is None:
            scores = score(content, key_rows, None, None, None, query, key, PRECISION)
        elif BLOCK == 0:  # the first block of this tile was the second one of its neighbour
            far = load_distances(distances, rel_row, step - tile + 1, reach, TILE, D, WIDTH)
            second = tl.dot(position, far.T, input_precision=PRECISION)
            scores = tl.dot(content, key_rows.T, skew(first, second, query, key), input_precision=PRECISION)
            first = second
        else:
            offset = (key - query) // TILE
            near = load_distances(distances, rel_row, offset, reach, TILE, D, WIDTH)
            far = load_distances(distances, rel_row, offset + 1, reach, TILE, D, WIDTH)
            scores = score(content, key_rows, position, near, far, query, key, PRECISION)
        visible = (keys[None, :] >= key_begin[:, None]) & (keys[None, :] < key_end[:, None])
        scores = tl.where(visible, scores * factor, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        shift = tl.where(new_top == float("-inf"), 0.0, new_top)  # nothing seen so far
        weights = tl.math.exp2(scores - shift[:, None])
        fade = tl.math.exp2(top - shift)
        total = total * fade + tl.sum(weights, 1)
        if seed is not None:
            keep = kept(seed, query, key, threshold, utterance, head, QUERIES, TILE)
            weights = tl.where(keep, weights * keep_factor, 0.0)
        values = load_rows(v_head_rows, v_row, key, length, TILE, D, WIDTH)
        sums = tl.dot(weights.to(values.dtype), values, sums * fade[:, None], input_precision=PRECISION)
        top = new_top

    seen = total != 0.0  # true if it is NaN
    sums = tl.where(seen[:, None], sums / total[:, None], 0.0)
    out_head = out + row * out_row + head.to(tl.int64) * D
    store_rows(out_head, out_row, query, owned, sums, D, WIDTH)
    log_sums = tl.where(seen, top + tl.math.log2(total), float("-inf"))
    tl.store(lse + head.to(tl.int64) * rows + row + queries, log_sums, mask=queries < owned)
