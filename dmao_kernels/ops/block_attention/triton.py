"""Launchers of the Triton kernels of block_attention: memory, grids and tiles."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dmao_kernels.ops._triton.config import (
    Config,
    Table,
    cdiv,
    choose,
    kind_of,
    options_of,
    power_of_2,
    precision,
    processors,
)
from dmao_kernels.ops._triton.philox import threshold_of
from dmao_kernels.ops.block_attention import _backward, _forward, _parameters

_KERNELS: tuple[str, ...] = (
    *("forward", "queries", "keys"),
    *("forward with positions", "queries with positions", "keys with positions", "positions"),
)
# By dtype and padded width (64: or less), a column for each kernel: (TILE, num_warps, num_stages, and QUERIES of the
# forward kernel where that is not TILE). First for much shared memory (160 KiB and more), then for little (GeForce,
# AMD). Rows are divided among warps by 16, so that more than TILE / 16 warps compute some of it twice, except in
# float32; that is still better than values that do not fit into registers.
_ROOMY_TILES: dict[str, tuple[tuple[int, ...], ...]] = {
    "half 64": ((64, 8, 2, 128), (64, 4, 2), (64, 4, 2), (64, 4, 2), (64, 8, 2), (32, 4, 2), (32, 4, 1)),
    "half 128": ((64, 8, 2, 128), (64, 4, 1), (64, 4, 1), (32, 8, 1), (32, 4, 1), (32, 8, 1), (16, 8, 1)),
    "half 256": ((64, 8, 1, 128), (32, 4, 1), (32, 4, 1), *[(16, 4, 1)] * 4),
    "float32 64": ((32, 8, 1),) * 7,
    "float32 128": ((32, 8, 1), *[(16, 8, 1)] * 4, (16, 4, 1), (16, 8, 1)),
    "float32 256": ((16, 8, 1),) * 7,
}
_TIGHT_TILES: dict[str, tuple[tuple[int, ...], ...]] = {
    "half 64": ((64, 8, 2, 128), (64, 4, 2), (64, 4, 1), *[(32, 4, 1)] * 4),
    "half 128": ((32, 8, 1, 128), (32, 4, 1), (32, 4, 1), (32, 8, 1), (32, 4, 1), (32, 8, 1), (16, 8, 1)),
    "half 256": ((32, 4, 1, 64), (32, 4, 1), (32, 4, 1), *[(16, 4, 1)] * 4),
    "float32 64": ((32, 8, 1),) * 7,
    "float32 128": ((16, 8, 1),) * 7,
    "float32 256": ((16, 8, 1),) * 7,
}


def _configs(*tiles: int) -> list[Config]:
    return [dict(zip(("TILE", "num_warps", "num_stages", "QUERIES"), tiles, strict=False))]


def _named(table: dict[str, tuple[tuple[int, ...], ...]]) -> dict[str, list[Config]]:
    table = table | {kind.replace("float32", "tf32"): tiles for kind, tiles in table.items() if "float32" in kind}
    return {
        f"{kind} {kernel}": _configs(*each)
        for kind, tiles in table.items()
        for kernel, each in zip(_KERNELS, tiles, strict=True)
    }


_ROOMY, _TIGHT = _named(_ROOMY_TILES), _named(_TIGHT_TILES)
_SMALL = {name: _configs(16 if "float32" in name else 32, 4, 1) for name in _ROOMY}
# Measured on one H200, docs/GPU.md; all others are chosen by what the machine code asks for.
_HOPPER = _ROOMY | {
    "half 64 forward": _configs(64, 4, 3),
    "half 64 queries": _configs(64, 4, 3),
    "half 64 keys": _configs(64, 4, 3),
    "half 64 forward with positions": _configs(64, 4, 3),
    "half 64 queries with positions": _configs(64, 4, 2),
    "half 64 keys with positions": _configs(64, 4, 2),
    "half 64 positions": _configs(32, 4, 2),
}
# sm_80 has registers for less, and sm_100 tensor memory: there eight warps share the columns.
_AMPERE = _ROOMY | {
    "half 64 keys": _configs(64, 4, 1),
    "half 64 forward with positions": _configs(32, 4, 2),
    "half 64 queries with positions": _configs(32, 4, 2),
    "half 64 positions": _configs(32, 8, 1),
    "float32 64 forward": _configs(32, 8, 2),
}
_BLACKWELL = _ROOMY | {f"half 64 {kernel} with positions": _configs(64, 8, 2) for kernel in _KERNELS[:3]}
_AMD = (
    _TIGHT
    | {f"half 128 {kernel}": _configs(32, 4, 1) for kernel in _KERNELS[3:]}
    | {"half 128 keys with positions": _configs(16, 4, 1)}
    | {f"half 64 {kernel}": _configs(64, 4, 1) for kernel in _KERNELS[1:5]}
    | {f"half 64 {kernel}": _configs(32, 2, 1) for kernel in _KERNELS[5:]}
    | {f"float32 64 {kernel}": _configs(32, 4, 1) for kernel in _KERNELS[:3]}
    | {f"float32 64 {kernel}": _configs(16, 2, 1) for kernel in _KERNELS[3:]}
    | {f"float32 128 {kernel}": _configs(16, 4, 1) for kernel in _KERNELS[4:]}
)
_TABLE: Table = {
    80: _AMPERE,
    86: _TIGHT,
    90: _HOPPER,
    100: _BLACKWELL,
    120: _TIGHT,
    "hip": _AMD,
    "interpreter": _SMALL,
}


class _Problem:
    """The inputs as kernels take them; arguments as in the schema."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        utterances: Tensor,
        frames: int,
        row_offsets: Tensor | None,
        column_ids: Tensor | None,
        column_offsets: Tensor | None,
        row_ids: Tensor | None,
        block: int,
        left: int,
        right: int,
        chunk: int,
        left_chunks: int,
        head_mask: Tensor | None,
        rel_pos: Tensor | None,
        content_bias: Tensor | None,
        position_bias: Tensor | None,
        p: float,
        seed: Tensor | None,
        scale: float,
    ) -> None:
        self.rows, self.heads, self.width = q.shape
        self.batch, self.block, self.reach = utterances.shape[0], block, 0
        self.out_row = self.heads * self.width
        self.empty = q.numel() == 0 or self.batch == 0
        q, k, v = _with_plain_rows(q), _with_plain_rows(k), _with_plain_rows(v)
        frames = max(min(frames, self.rows), 1)
        # Nothing is farther away than `frames`: so what is unbounded has a bound like the rest.
        chunk = min(chunk, frames) if chunk else frames
        all_chunks = cdiv(frames, chunk)
        self.left = frames if left < 0 else min(left, frames)
        self.right = frames if right < 0 else min(right, frames)
        left_chunks = all_chunks if left_chunks < 0 else min(left_chunks, all_chunks)
        # The least and greatest distance at which somebody sees a key.
        self.least = -min(self.left, (left_chunks + 1) * chunk - 1, frames - 1)
        self.greatest = min(self.right, chunk - 1, frames - 1)
        if rel_pos is not None:
            rel_pos = _with_plain_rows(rel_pos)
            self.reach = rel_pos.shape[0] // 2
        self.q, self.rel_pos = q, rel_pos
        threshold = threshold_of(p)
        # What all kernels take, in order: before the size of a tile, and behind it.
        self._before: tuple[Any, ...] = (
            *(q, k, v, utterances.contiguous()),
            *(row_offsets, column_ids, column_offsets, row_ids),
            None if head_mask is None else head_mask.contiguous().view(torch.uint8),
            rel_pos,
            None if content_bias is None else content_bias.contiguous(),
            None if position_bias is None else position_bias.contiguous(),
            seed if threshold else None,
            *(self.rows, self.batch, frames),
            0 if row_offsets is None else row_offsets.shape[0] - 1,
            0 if column_ids is None else column_ids.shape[0],
            *(*q.stride()[:2], *k.stride()[:2], *v.stride()[:2]),
            *((0, 0) if rel_pos is None else rel_pos.stride()[:2]),
            *(self.left, self.right, chunk, left_chunks, self.reach),
        )
        self._behind = threshold, 1 / (1 - p), float(scale)
        self.padded = max(power_of_2(self.width), 16)
        self.constants = self.width, self.padded, block, precision(q.dtype)

    def inputs(self, tile: int) -> tuple[Any, ...]:
        """The first arguments of every kernel, from q to scale."""
        return *self._before, tile, *self._behind

    def launch(self, name: str, run: Callable[[Config], Any]) -> Any:
        """run(config), with the configuration for the kernel of that name, whose tiles fit into the mask's blocks."""
        q, width = self.q, self.padded
        largest = self.block & -self.block or 128

        def fitting(config: Config) -> Any:
            tiles = {side: min(config[side], largest) for side in ("TILE", "QUERIES") if side in config}
            warps = config["num_warps"] * tiles["TILE"] // config["TILE"]
            return run(config | tiles | {"num_warps": max(warps, 1)})

        with_positions = self.rel_pos is not None and name != "positions"
        kernel = f"{name} with positions" if with_positions else name
        kind = f"{kind_of(q.dtype)} {max(width, 64)} {kernel}"
        return fitting(choose(f"block_attention {name}", _TABLE, kind, q.device, (width, largest), fitting))

    def programs(self, tile: int) -> int:
        """See _tile.py: enough tiles of rows for every utterance and all padding."""
        return self.rows // tile + self.batch


def _with_plain_rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def block_attention(q: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    problem = _Problem(q, *others)
    if problem.empty:
        return q.new_zeros(q.shape), q.new_zeros((q.shape[1], q.shape[0]), dtype=torch.float32)
    out, lse = q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)

    def run(config: Config) -> None:
        tile, queries = config["TILE"], config.get("QUERIES", config["TILE"])
        grid = problem.programs(queries), problem.heads
        arguments = (*problem.inputs(tile), out, lse, problem.out_row, *problem.constants, tile, queries)
        _forward.attention[grid](*arguments, **options_of(config))

    problem.launch("forward", run)
    return out, lse


def block_attention_backward(grad_out: Tensor, q: Tensor, *others: Any) -> tuple[Tensor, ...]:
    *inputs, out, lse = others
    problem = _Problem(q, *inputs)
    make = q.new_zeros if problem.empty else q.new_empty
    grad_q, grad_k, grad_v = make(q.shape), make(q.shape), make(q.shape)
    rel_pos, content_bias, position_bias = inputs[14:17]
    grad_rel_pos, *grad_biases = (make((0,) if x is None else x.shape) for x in (rel_pos, content_bias, position_bias))
    results = grad_q, grad_k, grad_v, grad_rel_pos, *grad_biases
    if problem.empty:
        return results
    grad_out = _with_plain_rows(grad_out)
    gradients = (grad_out, *grad_out.stride()[:2], lse, torch.empty_like(lse))

    def by_queries(config: Config) -> Tensor:
        tile = config["TILE"]
        grid = problem.programs(tile), problem.heads
        bias_sums = q.new_empty((grid[1], grid[0], 2, problem.width), dtype=torch.float32)
        arguments = (*problem.inputs(tile), *gradients, out, problem.out_row, grad_q, bias_sums)
        _backward.query_gradients[grid](*arguments, *problem.constants, tile, **options_of(config))
        return bias_sums

    def by_keys(config: Config) -> None:
        tile = config["TILE"]
        grid = problem.programs(tile), problem.heads
        arguments = (*problem.inputs(tile), *gradients, grad_k, grad_v, problem.out_row)
        _backward.key_gradients[grid](*arguments, *problem.constants, tile, **options_of(config))

    bias_sums = problem.launch("queries", by_queries)
    problem.launch("keys", by_keys)
    if content_bias is not None:
        _sum_bias(problem, bias_sums[:, :, 0], grad_biases[0])
    if position_bias is not None:
        _sum_bias(problem, bias_sums[:, :, 1], grad_biases[1])
    if rel_pos is not None:
        problem.launch("positions", functools.partial(_position_gradients, problem, gradients, grad_rel_pos))
    return results


def _sum_bias(problem: _Problem, sums: Tensor, grad_bias: Tensor) -> None:
    _parameters.sum_bias[(problem.heads,)](sums, grad_bias, sums.shape[1], problem.width, problem.padded)


def _position_gradients(problem: _Problem, gradients: tuple[Any, ...], grad_rel_pos: Tensor, config: Config) -> None:
    tile, device = config["TILE"], grad_rel_pos.device
    least, greatest = -((tile - 1 - problem.least) // tile), (problem.greatest + tile - 1) // tile
    clamped = cdiv(problem.reach + tile - 1, tile)  # from here on all distances are
    first, last = max(least, -clamped), min(greatest, clamped)
    diagonals = last - first + 1
    # Several programs for a diagonal where there are few.
    parts = min(problem.batch, cdiv(4 * processors(device), diagonals * problem.heads))
    sums = torch.empty((parts, problem.heads, diagonals, 2, tile, problem.width), dtype=torch.float32, device=device)
    arguments = (*problem.inputs(tile), *gradients, sums, first, last, least, greatest)
    grid = diagonals, problem.heads, parts
    _parameters.position_gradients[grid](*arguments, *problem.constants, tile, **options_of(config))
    _parameters.sum_positions[grad_rel_pos.shape[0], problem.heads](
        sums,
        grad_rel_pos,
        problem.heads,
        problem.reach,
        first,
        diagonals,
        parts,
        D=problem.width,
        WIDTH=problem.padded,
        TILE=tile,
        DISTANCES=16,
    )
