"""The backward kernels of block_attention: one pass by queries, one by keys, one along diagonals for the positions.

Each pass computes the scores again; nothing is added up between programs but partial sums of parameters' gradients,
in a fixed order. All passes cut queries and keys into tiles of one size, TILE.
"""

from __future__ import annotations

import triton.language as tl

from dmao_kernels.ops._triton.launch import kernel
from dmao_kernels.ops.block_attention._forward import VARYING
from dmao_kernels.ops.block_attention._tile import (
    LOG2_E,
    differentiate,
    keys_of,
    load_distances,
    load_rows,
    position_of,
    queries_of,
    score,
    span,
    steps,
    store_rows,
    unskew,
    utterance_of,
    with_bias,
)


@kernel(varying=VARYING)
def query_gradients(
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
    grad_out,
    grad_out_row,
    grad_out_head,
    lse,
    inner,
    out,
    out_row,
    grad_q,
    bias_sums,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
    TILE: tl.constexpr,
):
    """Gradients of a tile of queries; their column sums, by program, for the biases; grad_out . out of each row.

    Floor, for n visible pairs: 6 D n flops (10 with relative positions).
    """
    head = tl.program_id(1)
    utterance, tile = utterance_of(tl.program_id(0), utterances, batch, rows, TILE)
    first_row, length, owned = span(utterances, utterance, batch, rows, frames, head_mask, head)
    row, wide_head = first_row.to(tl.int64), head.to(tl.int64)
    q += row * q_row + wide_head * q_head
    k += row * k_row + wide_head * k_head
    v += row * v_row + wide_head * v_head
    grad_out += row * grad_out_row + wide_head * grad_out_head
    lse += wide_head * rows + row
    inner += wide_head * rows + row
    bounds = (left, right, chunk, left_chunks)
    factor = scale * LOG2_E
    if rel_pos is not None:
        rel_pos += wide_head * rel_head
    out += row * out_row + wide_head * D
    grad_q += row * out_row + wide_head * D

    query = tile * size
    queries = query + tl.arange(0, TILE)
    key_begin, key_end = keys_of(queries, length, *bounds)
    earliest, _ = keys_of(query, length, *bounds)
    _, latest = keys_of(tl.minimum(query + TILE, length) - 1, length, *bounds)
    latest = tl.where(query < length, latest, 0)
    begin, end = steps(query, earliest, latest, row_offsets, column_ids, mask_lines, mask_count, BLOCK, TILE)

    plain = load_rows(q, q_row, query, length, TILE, D, WIDTH)
    content = with_bias(plain, content_bias, head, D, WIDTH)
    grad = load_rows(grad_out, grad_out_row, query, length, TILE, D, WIDTH)
    output = load_rows(out, out_row, query, length, TILE, D, WIDTH)
    products = tl.sum(grad.to(tl.float32) * output.to(tl.float32), 1)
    tl.store(inner + queries, products, mask=queries < owned)
    log_sums = tl.load(lse + queries, mask=queries < length, other=0.0)
    content_sums = tl.zeros((TILE, WIDTH), tl.float32)
    if rel_pos is not None:
        position = with_bias(plain, position_bias, head, D, WIDTH)
        position_sums = tl.zeros((TILE, WIDTH), tl.float32)
    for step in range(begin, end):
        key = position_of(step, size, column_ids, BLOCK, TILE)
        keys = key + tl.arange(0, TILE)
        key_rows = load_rows(k, k_row, key, length, TILE, D, WIDTH)
        if rel_pos is None:
            scores = score(content, key_rows, None, None, None, query, key, PRECISION)
        else:
            offset = (key - query) // TILE
            near = load_distances(rel_pos, rel_row, offset, reach, TILE, D, WIDTH)
            far = load_distances(rel_pos, rel_row, offset + 1, reach, TILE, D, WIDTH)
            scores = score(content, key_rows, position, near, far, query, key, PRECISION)
        visible = (keys[None, :] >= key_begin[:, None]) & (keys[None, :] < key_end[:, None])
        values = load_rows(v, v_row, key, length, TILE, D, WIDTH)
        _weights, grad_scores = differentiate(
            scores * factor,
            visible,
            log_sums,
            grad,
            values,
            products,
            seed,
            query,
            key,
            threshold,
            keep_factor,
            utterance,
            head,
            PRECISION,
        )
        grad_scores = grad_scores.to(key_rows.dtype)
        content_sums = tl.dot(grad_scores, key_rows, content_sums, input_precision=PRECISION)
        if rel_pos is not None:
            first, second = unskew(grad_scores, query, key)
            position_sums = tl.dot(first, near, position_sums, input_precision=PRECISION)
            position_sums = tl.dot(second, far, position_sums, input_precision=PRECISION)

    content_sums *= scale
    both = content_sums
    if rel_pos is not None:
        position_sums *= scale
        both += position_sums
    store_rows(grad_q, out_row, query, owned, both, D, WIDTH)
    column = tl.arange(0, WIDTH)
    bias_sums += (wide_head * tl.num_programs(0) + tl.program_id(0)) * (2 * D)
    if content_bias is not None:
        tl.store(bias_sums + column, tl.sum(content_sums, 0), mask=column < D)
    if position_bias is not None:
        tl.store(bias_sums + D + column, tl.sum(position_sums, 0), mask=column < D)


@kernel(varying=VARYING)
def key_gradients(
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
    grad_out,
    grad_out_row,
    grad_out_head,
    lse,
    inner,
    grad_k,
    grad_v,
    out_row,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
    TILE: tl.constexpr,
):
    """Gradients of a tile of keys and values.

    Floor, for n visible pairs: 8 D n flops (10 with relative positions).
    """
    head = tl.program_id(1)
    utterance, tile = utterance_of(tl.program_id(0), utterances, batch, rows, TILE)
    first_row, length, owned = span(utterances, utterance, batch, rows, frames, head_mask, head)
    row, wide_head = first_row.to(tl.int64), head.to(tl.int64)
    q += row * q_row + wide_head * q_head
    k += row * k_row + wide_head * k_head
    v += row * v_row + wide_head * v_head
    grad_out += row * grad_out_row + wide_head * grad_out_head
    lse += wide_head * rows + row
    inner += wide_head * rows + row
    bounds = (left, right, chunk, left_chunks)
    factor = scale * LOG2_E
    if rel_pos is not None:
        rel_pos += wide_head * rel_head
    grad_k += row * out_row + wide_head * D
    grad_v += row * out_row + wide_head * D

    key = tile * size
    keys = key + tl.arange(0, TILE)
    query_begin, query_end = queries_of(keys, length, *bounds)
    earliest, _ = queries_of(key, length, *bounds)
    _, latest = queries_of(tl.minimum(key + TILE, length) - 1, length, *bounds)
    latest = tl.where(key < length, latest, 0)
    begin, end = steps(key, earliest, latest, column_offsets, row_ids, mask_lines, mask_count, BLOCK, TILE)

    key_rows = load_rows(k, k_row, key, length, TILE, D, WIDTH)
    values = load_rows(v, v_row, key, length, TILE, D, WIDTH)
    key_sums = tl.zeros((TILE, WIDTH), tl.float32)
    value_sums = tl.zeros((TILE, WIDTH), tl.float32)
    for step in range(begin, end):
        query = position_of(step, size, row_ids, BLOCK, TILE)
        queries = query + tl.arange(0, TILE)
        plain = load_rows(q, q_row, query, length, TILE, D, WIDTH)
        content = with_bias(plain, content_bias, head, D, WIDTH)
        if rel_pos is None:
            scores = score(content, key_rows, None, None, None, query, key, PRECISION)
        else:
            position = with_bias(plain, position_bias, head, D, WIDTH)
            offset = (key - query) // TILE
            near = load_distances(rel_pos, rel_row, offset, reach, TILE, D, WIDTH)
            far = load_distances(rel_pos, rel_row, offset + 1, reach, TILE, D, WIDTH)
            scores = score(content, key_rows, position, near, far, query, key, PRECISION)
        visible = (queries[:, None] >= query_begin[None, :]) & (queries[:, None] < query_end[None, :])
        grad = load_rows(grad_out, grad_out_row, query, length, TILE, D, WIDTH)
        inside = (queries >= 0) & (queries < length)
        weights, grad_scores = differentiate(
            scores * factor,
            visible,
            tl.load(lse + queries, mask=inside, other=0.0),
            grad,
            values,
            tl.load(inner + queries, mask=inside, other=0.0),
            seed,
            query,
            key,
            threshold,
            keep_factor,
            utterance,
            head,
            PRECISION,
        )
        value_sums = tl.dot(weights.to(grad.dtype).T, grad, value_sums, input_precision=PRECISION)
        key_sums = tl.dot(grad_scores.to(content.dtype).T, content, key_sums, input_precision=PRECISION)

    store_rows(grad_k, out_row, key, owned, key_sums * scale, D, WIDTH)
    store_rows(grad_v, out_row, key, owned, value_sums, D, WIDTH)
