"""The backward kernels of block_attention for its parameters: relative positions and biases."""

from __future__ import annotations

import triton.language as tl

from dmao_kernels.ops._triton.launch import kernel
from dmao_kernels.ops.block_attention._forward import VARYING
from dmao_kernels.ops.block_attention._tile import (
    LOG2_E,
    differentiate,
    keys_of,
    lives,
    load_distances,
    load_rows,
    score,
    span,
    unskew,
    with_bias,
)


@kernel(varying=[*VARYING, "first_offset", "last_offset", "least_offset", "greatest_offset"])
def position_gradients(
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
    position_sums,
    first_offset,
    last_offset,
    least_offset,
    greatest_offset,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
    TILE: tl.constexpr,
):
    """Sums over some utterances of the gradients of rel_pos for the two blocks of distances of one diagonal of tiles.

    Diagonals from first_offset to last_offset tiles to the right of the main one. Those two stand for all beyond them
    as well, from least_offset to greatest_offset, where distances are all clamped to one row (see `load_distances`).

    Floor, for n visible pairs: 8 D n flops. Computed are 12: both blocks are multiplied for every tile.
    """
    diagonal, head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    wide_head = head.to(tl.int64)
    bounds = (left, right, chunk, left_chunks)
    factor = scale * LOG2_E
    q += wide_head * q_head
    k += wide_head * k_head
    v += wide_head * v_head
    grad_out += wide_head * grad_out_head
    lse += wide_head * rows
    inner += wide_head * rows
    rel_pos += wide_head * rel_head

    own = first_offset + diagonal
    near = load_distances(rel_pos, rel_row, own, reach, TILE, D, WIDTH)
    far = load_distances(rel_pos, rel_row, own + 1, reach, TILE, D, WIDTH)
    near_sums = tl.zeros((TILE, WIDTH), tl.float32)
    far_sums = tl.zeros((TILE, WIDTH), tl.float32)
    parts = tl.num_programs(2)
    for utterance in range(batch * part // parts, batch * (part + 1) // parts):
        first_row, length, _ = span(utterances, utterance, batch, rows, frames, head_mask, head)
        row = first_row.to(tl.int64)
        tiles = tl.cdiv(length, TILE)
        begin_offset = tl.where(own == first_offset, tl.minimum(tl.maximum(1 - tiles, least_offset), own), own)
        end_offset = tl.where(own == last_offset, tl.maximum(tl.minimum(tiles - 1, greatest_offset), own), own) + 1
        for offset in range(begin_offset, end_offset):
            for tile in range(tl.maximum(-offset, 0), tl.minimum(tiles, tiles - offset)):
                query, key = tile * size, (tile + offset) * size
                queries = query + tl.arange(0, TILE)
                keys = key + tl.arange(0, TILE)
                key_begin, key_end = keys_of(queries, length, *bounds)
                visible = (keys[None, :] >= key_begin[:, None]) & (keys[None, :] < key_end[:, None])
                if BLOCK != 0:
                    live = lives(query, key, row_offsets, column_ids, mask_lines, mask_count, BLOCK)
                    visible &= live
                plain = load_rows(q + row * q_row, q_row, query, length, TILE, D, WIDTH)
                content = with_bias(plain, content_bias, head, D, WIDTH)
                position = with_bias(plain, position_bias, head, D, WIDTH)
                key_rows = load_rows(k + row * k_row, k_row, key, length, TILE, D, WIDTH)
                values = load_rows(v + row * v_row, v_row, key, length, TILE, D, WIDTH)
                grad = load_rows(grad_out + row * grad_out_row, grad_out_row, query, length, TILE, D, WIDTH)
                _weights, grad_scores = differentiate(
                    score(content, key_rows, position, near, far, query, key, PRECISION) * factor,
                    visible,
                    tl.load(lse + row + queries, mask=queries < length, other=0.0),
                    grad,
                    values,
                    tl.load(inner + row + queries, mask=queries < length, other=0.0),
                    seed,
                    query,
                    key,
                    threshold,
                    keep_factor,
                    utterance,
                    head,
                    PRECISION,
                )
                first, second = unskew(grad_scores.to(position.dtype), query, key)
                near_sums = tl.dot(first.T, position, near_sums, input_precision=PRECISION)
                far_sums = tl.dot(second.T, position, far_sums, input_precision=PRECISION)

    block = ((part * tl.num_programs(1) + wide_head) * tl.num_programs(0) + diagonal) * 2
    place = (block * TILE + tl.arange(0, TILE)[:, None]) * D + tl.arange(0, WIDTH)[None, :]
    inside = tl.arange(0, WIDTH)[None, :] < D
    tl.store(position_sums + place, near_sums * scale, mask=inside)
    tl.store(position_sums + place + TILE * D, far_sums * scale, mask=inside)


@kernel(varying=["reach", "first_offset", "diagonals", "parts"])
def sum_positions(
    position_sums,
    grad_rel_pos,
    heads,
    reach,
    first_offset,
    diagonals,
    parts,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    DISTANCES: tl.constexpr,
):
    """One row of the gradient of rel_pos, of one head: the sum of what `position_gradients` left for its distances."""
    row, head = tl.program_id(0), tl.program_id(1)
    column = tl.arange(0, WIDTH)[None, :]
    # Distances in the blocks of all diagonals, from 1 TILE before that of the first one on.
    least = (first_offset - 1) * TILE + 1
    count = (diagonals + 1) * TILE
    begin = tl.where(row == 0, 0, tl.maximum(row - reach - least, 0))
    end = tl.where(row == 2 * reach, count, tl.minimum(row - reach - least + 1, count))
    sums = tl.zeros((DISTANCES, WIDTH), tl.float32)
    for part in range(parts):
        blocks = position_sums + (part * heads + head).to(tl.int64) * diagonals * (2 * TILE * D)
        for at in range(begin, end, DISTANCES):
            place = at + tl.arange(0, DISTANCES)[:, None]
            # Block b, counted from the first, is the first of diagonal b and the second of diagonal b - 1.
            own = blocks + (place // TILE * 2 * TILE + place % TILE).to(tl.int64) * D + column
            inside = (place < end) & (column < D)
            sums += tl.load(own, mask=inside & (place < diagonals * TILE), other=0.0)
            sums += tl.load(own - TILE * D, mask=inside & (place >= TILE), other=0.0)
    sums = tl.sum(sums, 0)
    place = (row * heads + head).to(tl.int64) * D + tl.arange(0, WIDTH)
    tl.store(grad_rel_pos + place, sums.to(grad_rel_pos.dtype.element_ty), mask=tl.arange(0, WIDTH) < D)


@kernel(varying=["programs"])
def sum_bias(bias_sums, grad_bias, programs, D: tl.constexpr, WIDTH: tl.constexpr):
    """The gradient of a bias, of one head: the sum of what the programs of `query_gradients` left."""
    head = tl.program_id(0)
    column = tl.arange(0, WIDTH)
    bias_sums += head.to(tl.int64) * programs * (2 * D)
    sums = tl.zeros((32, WIDTH), tl.float32)
    for at in range(0, programs, 32):
        program = at + tl.arange(0, 32)[:, None]
        inside = (program < programs) & (column < D)[None, :]
        sums += tl.load(bias_sums + program * (2 * D) + column[None, :], mask=inside, other=0.0)
    sums = tl.sum(sums, 0).to(grad_bias.dtype.element_ty)
    tl.store(grad_bias + head * D + column, sums, mask=column < D)
