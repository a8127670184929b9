"""Other people's kernels for like problems, compiled in the same way, as a yardstick."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from unittest import mock

import torch
import triton
import triton.language as tl

ROWS, WIDTH, HIDDEN = 4000, 384, 1536
PEERS: dict[str, Callable[[torch.dtype], None]] = {}


def peer(name: str, needs: str = "torch") -> Callable[[Callable[[torch.dtype], None]], Callable[[torch.dtype], None]]:
    """Registers a peer whose package is installed."""

    def register(function: Callable[[torch.dtype], None]) -> Callable[[torch.dtype], None]:
        if importlib.util.find_spec(needs) is not None:
            PEERS[name] = function
        return function

    return register


@triton.jit
def matmul(a, b, c, M, N, K, row_a, row_b, row_c, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr):
    """c = a @ b, row-major, as in Triton's first tutorial on it."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    step = tl.arange(0, STEP)
    a_tile = a + rows[:, None] * row_a + step[None, :]
    b_tile = b + step[:, None] * row_b + columns[None, :]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for k in range(0, K, STEP):
        left = tl.load(a_tile, mask=(rows[:, None] < M) & (k + step[None, :] < K), other=0.0)
        right = tl.load(b_tile, mask=(k + step[:, None] < K) & (columns[None, :] < N), other=0.0)
        total = tl.dot(left, right, total)
        a_tile += STEP
        b_tile += STEP * row_b
    tile = c + rows[:, None] * row_c + columns[None, :]
    tl.store(tile, total.to(c.dtype.element_ty), mask=(rows[:, None] < M) & (columns[None, :] < N))


def multiply(dtype: torch.dtype, rows: int, columns: int, step: int, warps: int, stages: int) -> None:
    a, b = torch.empty(ROWS, WIDTH, dtype=dtype), torch.empty(WIDTH, HIDDEN, dtype=dtype)
    c = torch.empty(ROWS, HIDDEN, dtype=dtype)
    grid = (triton.cdiv(ROWS, rows), triton.cdiv(HIDDEN, columns))
    sizes = (ROWS, HIDDEN, WIDTH, WIDTH, HIDDEN, HIDDEN)
    matmul[grid](a, b, c, *sizes, ROWS=rows, COLUMNS=columns, STEP=step, num_warps=warps, num_stages=stages)


@peer("matmul 128x128x32")
def matmul_128_128_32(dtype: torch.dtype) -> None:
    multiply(dtype, 128, 128, 32, 8, 3 if triton.runtime.driver.active.get_current_target().backend == "cuda" else 2)


@peer("matmul 128x64x64")
def matmul_128_64_64(dtype: torch.dtype) -> None:
    multiply(dtype, 128, 64, 64, 4, 3 if triton.runtime.driver.active.get_current_target().backend == "cuda" else 2)


@triton.jit
def flash_attention(
    q, k, v, out, log_sum, frames, scale, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr
):
    """softmax(scale q k^T) v of one head, contiguous [heads, frames, WIDTH]: Dao 2023, algorithm 1, without masks."""
    rows = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    columns, keys = tl.arange(0, WIDTH), tl.arange(0, KEYS)
    head = tl.program_id(1).to(tl.int64) * frames * WIDTH
    tile = head + rows[:, None] * WIDTH + columns[None, :]
    query = tl.load(q + tile, mask=rows[:, None] < frames, other=0.0)
    largest = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    sums = tl.zeros((QUERIES, WIDTH), tl.float32)
    for first in range(0, frames, KEYS):
        inside = first + keys < frames
        key = tl.load(k + head + (first + keys[None, :]) * WIDTH + columns[:, None], mask=inside[None, :], other=0.0)
        scores = tl.where(inside[None, :], tl.dot(query, key) * (scale * 1.44269504), float("-inf"))
        new = tl.maximum(largest, tl.max(scores, 1))
        weights, factor = tl.math.exp2(scores - new[:, None]), tl.math.exp2(largest - new)
        total = total * factor + tl.sum(weights, 1)
        value = tl.load(v + head + (first + keys[:, None]) * WIDTH + columns[None, :], mask=inside[:, None], other=0.0)
        sums = tl.dot(weights.to(value.dtype), value, sums * factor[:, None])
        largest = new
    tl.store(out + tile, (sums / total[:, None]).to(out.dtype.element_ty), mask=rows[:, None] < frames)
    tl.store(log_sum + tl.program_id(1) * frames + rows, largest + tl.math.log2(total), mask=rows < frames)


def attend(dtype: torch.dtype, queries: int, keys: int, warps: int, stages: int) -> None:
    """`flash_attention` at heads of 64."""
    q, k, v, out = (torch.empty(6, ROWS, 64, dtype=dtype) for _ in range(4))
    sizes = {"WIDTH": 64, "QUERIES": queries, "KEYS": keys, "num_warps": warps, "num_stages": stages}
    flash_attention[(triton.cdiv(ROWS, queries), 6)](q, k, v, out, torch.empty(6, ROWS), ROWS, 0.125, **sizes)


@peer("flash attention forward, D=64")
def flash_attention_64(dtype: torch.dtype) -> None:
    attend(dtype, 128, 64, 8, 2)


@peer("torch.sparse bsr_dense_addmm 64x64")
def bsr_dense_addmm(dtype: torch.dtype) -> None:
    """PyTorch's block-sparse weight times dense activations."""
    with mock.patch("torch.utils._triton.has_triton", return_value=True):
        kernels = importlib.import_module("torch.sparse._triton_ops")
    dense = torch.zeros(HIDDEN, WIDTH, dtype=dtype)
    for block in range(WIDTH // 64):
        dense[128 * block : 128 * block + 64, 64 * block : 64 * block + 64] = 1
    weight = dense.to_sparse_bsr((64, 64))
    x, c = torch.zeros(WIDTH, 4096, dtype=dtype), torch.zeros(HIDDEN, 4096, dtype=dtype)
    meta = {"GROUP_SIZE_ROW": 4, "num_stages": 3, "num_warps": 4, "SPLIT_N": 64}
    kernels.bsr_dense_addmm(c, weight, x, beta=0, meta=meta)


@peer("Liger layer_norm", needs="liger_kernel")
def liger_layer_norm(dtype: torch.dtype) -> None:
    """LayerNorm alone, without the residual step."""
    kernels = importlib.import_module("liger_kernel.ops.layer_norm")
    x, weight = torch.empty(ROWS, WIDTH, dtype=dtype), torch.empty(WIDTH, dtype=dtype)
    kernels.layer_norm_forward(x, weight, weight, 1e-5)
