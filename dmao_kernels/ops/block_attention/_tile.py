"""What the Triton kernels of block_attention share: which tiles are computed, and their scores.

A program owns a tile of TILE queries (or keys) of one utterance and head and goes through tiles of the other side.
Programs are numbered over all rows: utterance b, whose first row is f, has the programs from f // TILE + b on, which is
enough whatever its length, and none of another utterance. So packed and padded rows are the same, the grid is known
without looking at lengths, and programs of padding write zeros.

Relative positions. In a tile of queries i0 + m and keys j0 + n, `offset` = (j0 - i0) / TILE tiles to the right, stand
distances j - i = offset * TILE + n - m: 2 TILE - 1 of them, in two blocks of TILE,

    block b = distances from (b - 1) TILE + 1 to b TILE,  of which this tile needs b = offset and b = offset + 1.

Products with the rows of rel_pos for a block are a tile [queries, distances]. From row m of the first are needed the
columns c >= TILE - 1 - m, and from the second the others: both merge into one tile, of which the rows are then rotated,
row m by m + 1 (`skew`). That is one tl.gather within rows, 64 shuffles for 64 x 64 elements a warp; no score is ever
written to memory, and products are exact in float32. Each block serves two neighbouring tiles.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dmao_kernels.ops._triton.philox import keep_tile, load_seed

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)


# --- Utterances


@triton.jit
def _clamp(x, low, high):
    return tl.minimum(tl.maximum(x, low), high)


@triton.jit
def utterance_of(program, utterances, batch, rows, TILE: tl.constexpr):
    """(utterance, index of its tile) of a program."""
    begun = 0
    for at in range(0, batch, 128):
        b = at + tl.arange(0, 128)
        first = _clamp(tl.load(utterances + 2 * b, mask=b < batch, other=0), 0, rows)
        begun += tl.sum(((first // TILE + b <= program) & (b < batch)).to(tl.int32), 0)
    b = tl.maximum(begun - 1, 0)
    first = _clamp(tl.load(utterances + 2 * b), 0, rows)
    return b, program - (first // TILE + b)


@triton.jit
def span(utterances, utterance, batch, rows, frames, head_mask, head):
    """(first row, length, rows up to the next utterance); no row of a dead head is looked at."""
    first = _clamp(tl.load(utterances + 2 * utterance), 0, rows)
    length = _clamp(tl.load(utterances + 2 * utterance + 1), 0, tl.minimum(frames, rows - first))
    following = tl.load(utterances + 2 * utterance + 2, mask=utterance + 1 < batch, other=rows)
    owned = tl.maximum(_clamp(following, first, rows) - first, length)
    if head_mask is not None:
        length = tl.where(tl.load(head_mask + head) != 0, length, 0)
    return first, length, owned


# --- What is visible, by position


@triton.jit
def keys_of(query, length, left, right, chunk, left_chunks):
    """[begin, end) of the keys that a query sees by window, chunk and length; both ascend with it."""
    own = query // chunk
    begin = tl.maximum(tl.maximum(query - left, (own - left_chunks) * chunk), 0)
    end = tl.minimum(tl.minimum(query + right, own * chunk + chunk - 1) + 1, length)
    return begin, tl.where(query < length, end, 0)


@triton.jit
def queries_of(key, length, left, right, chunk, left_chunks):
    """[begin, end) of the queries that see a key."""
    own = key // chunk
    begin = tl.maximum(tl.maximum(key - right, own * chunk), 0)
    end = tl.minimum(tl.minimum(key + left + 1, (own + left_chunks + 1) * chunk), length)
    return begin, tl.where(key < length, end, 0)


@triton.jit
def _listed(line, offsets, ids, lines, count):
    """Where the list of a line of blocks begins and ends; lines behind the mask are empty."""
    begin = _clamp(tl.load(offsets + line, mask=line < lines, other=0), 0, count)
    end = _clamp(tl.load(offsets + line + 1, mask=line < lines, other=0), begin, count)
    return begin, end


@triton.jit
def steps(first, begin, end, offsets, ids, lines, count, BLOCK: tl.constexpr, TILE: tl.constexpr):
    """[begin, end) of the steps that visit all live tiles between positions begin and end.

    first: position of the tile for which it is, by which its line of the mask is found.
    """
    if BLOCK == 0:
        first_step, last_step = begin // TILE, tl.cdiv(end, TILE)
    else:
        first_id, last_id = _listed(first // BLOCK, offsets, ids, lines, count)
        before, after = 0, 0
        for at in range(first_id, last_id, 128):
            place = at + tl.arange(0, 128)
            block = tl.load(ids + place, mask=place < last_id, other=0)
            before += tl.sum(((block * BLOCK + BLOCK <= begin) & (place < last_id)).to(tl.int32), 0)
            after += tl.sum(((block * BLOCK >= end) & (place < last_id)).to(tl.int32), 0)
        first_step, last_step = (first_id + before) * (BLOCK // TILE), (last_id - after) * (BLOCK // TILE)
    return first_step, tl.where(begin < end, last_step, first_step)


@triton.jit
def position_of(step, ids, BLOCK: tl.constexpr, TILE: tl.constexpr):
    """First position of the tile that a step visits."""
    if BLOCK == 0:
        position = step * TILE
    else:
        position = tl.load(ids + step // (BLOCK // TILE)) * BLOCK + step % (BLOCK // TILE) * TILE
    return position


@triton.jit
def lives(query, key, offsets, ids, lines, count, BLOCK: tl.constexpr):
    """Whether the block with this query and key lives."""
    begin, end = _listed(query // BLOCK, offsets, ids, lines, count)
    found = 0
    for at in range(begin, end, 128):
        place = at + tl.arange(0, 128)
        found += tl.sum((tl.load(ids + place, mask=place < end, other=-1) == key // BLOCK).to(tl.int32), 0)
    return found > 0


# --- Rows


@triton.jit
def load_rows(pointer, stride, first, end, COUNT: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr):
    """[COUNT, WIDTH] of the rows from `first` on; zeros for those from `end` on (or before 0)."""
    row = tl.arange(0, COUNT)[:, None]
    column = tl.arange(0, WIDTH)[None, :]
    inside = (first + row >= 0) & (first + row < end)
    if D < WIDTH:
        inside &= column < D
    return tl.load(pointer + tl.cast(first, tl.int64) * stride + row * stride + column, mask=inside, other=0.0)


@triton.jit
def store_rows(pointer, stride, first, end, values, D: tl.constexpr, WIDTH: tl.constexpr):
    """The rows of `values` as rows from `first` on, as far as they are before `end`."""
    row = tl.arange(0, values.shape[0])[:, None]
    column = tl.arange(0, WIDTH)[None, :]
    inside = (first + row < end) & (column < D)
    place = pointer + tl.cast(first, tl.int64) * stride + row * stride + column
    tl.store(place, values.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def load_bias(bias, head, D: tl.constexpr, WIDTH: tl.constexpr):
    """[1, WIDTH] in float32."""
    column = tl.arange(0, WIDTH)
    return tl.load(bias + head * D + column, mask=column < D, other=0.0).to(tl.float32)[None, :]


@triton.jit
def with_bias(queries, bias, head, D: tl.constexpr, WIDTH: tl.constexpr):
    """queries + bias of a head, in the dtype of the queries."""
    if bias is not None:
        queries = (queries.to(tl.float32) + load_bias(bias, head, D, WIDTH)).to(queries.dtype)
    return queries


# --- Relative positions


@triton.jit
def load_distances(rel_pos, stride, block, reach, TILE: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr):
    """[TILE, WIDTH]: the rows of rel_pos for a block of distances; rel_pos points to the head."""
    distance = (block - 1) * TILE + 1 + reach
    first = _clamp(distance, 0, 2 * reach)
    row = (_clamp(distance + tl.arange(0, TILE), 0, 2 * reach) - first)[:, None]
    column = tl.arange(0, WIDTH)[None, :]
    place = rel_pos + tl.cast(first, tl.int64) * stride + row * stride + column
    return tl.load(place) if D == WIDTH else tl.load(place, mask=column < D, other=0.0)


@triton.jit
def _in_first_block(TILE: tl.constexpr):
    """Which columns of each row of a skewed tile are of the first of its two blocks."""
    return tl.arange(0, TILE)[None, :] + tl.arange(0, TILE)[:, None] >= TILE - 1


@triton.jit
def skew(first, second):
    """[queries, keys] from the products [queries, distances] with both blocks."""
    TILE: tl.constexpr = first.shape[0]
    index = (tl.arange(0, TILE)[None, :] - tl.arange(0, TILE)[:, None] + (TILE - 1)) & (TILE - 1)
    return tl.gather(tl.where(_in_first_block(TILE), first, second), index, 1)


@triton.jit
def unskew(values):
    """[queries, distances] of both blocks from [queries, keys]; zeros where a block has nothing of the tile."""
    TILE: tl.constexpr = values.shape[0]
    index = (tl.arange(0, TILE)[None, :] + tl.arange(0, TILE)[:, None] + 1) & (TILE - 1)
    rotated = tl.gather(values, index, 1)
    first = _in_first_block(TILE)
    zero = tl.zeros_like(rotated)
    return tl.where(first, rotated, zero), tl.where(first, zero, rotated)


# --- Scores and gradients of a tile


@triton.jit
def score(content, keys, position, near, far, PRECISION: tl.constexpr):
    """Scores [queries, keys] without their scale; near and far: the two blocks of distances, or None.

    The positions come first: their two products are then no longer held in registers when the others begin.
    """
    if near is not None:
        first = tl.dot(position, near.T, input_precision=PRECISION)
        second = tl.dot(position, far.T, input_precision=PRECISION)
        scores = tl.dot(content, keys.T, skew(first, second), input_precision=PRECISION)
    else:
        scores = tl.dot(content, keys.T, input_precision=PRECISION)
    return scores


@triton.jit
def kept(seed, query, key, threshold, utterance, head, QUERIES: tl.constexpr, KEYS: tl.constexpr):
    """bool [QUERIES, KEYS]: which weights of the tile whose first query and key these are dropout keeps."""
    low, high = load_seed(seed)
    return keep_tile(low, high, query + tl.arange(0, QUERIES), key, KEYS, threshold, utterance, head)


@triton.jit
def differentiate(
    scores,
    visible,
    lse,
    grad,
    values,
    inner,
    seed,
    query,
    key,
    threshold,
    keep_factor,
    utterance,
    head,
    PRECISION: tl.constexpr,
):
    """(weights after dropout, gradients of the scaled scores) of a tile, in float32.

    scores, lse: in units of log 2. grad: of the output rows, inner: each of them times its output.
    """
    weights = tl.where(visible, tl.math.exp2(scores - lse[:, None]), 0.0)
    dropped = weights
    grad_weights = tl.dot(grad, values.T, input_precision=PRECISION)
    if seed is not None:
        TILE: tl.constexpr = scores.shape[0]
        keep = kept(seed, query, key, threshold, utterance, head, TILE, TILE)
        grad_weights = tl.where(keep, grad_weights * keep_factor, 0.0)
        dropped = tl.where(keep, weights * keep_factor, 0.0)
    return dropped, weights * (grad_weights - inner[:, None])
