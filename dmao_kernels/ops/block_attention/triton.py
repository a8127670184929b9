"""Launchers of the Triton kernels of block_attention: memory, grids and tiles."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from dmao_kernels.ops._triton.config import Config, Table, choose, kind_of, precision, processors
from dmao_kernels.ops._triton.philox import threshold_of
from dmao_kernels.ops.block_attention import _backward, _forward, _parameters

_FORWARD: Table = {
    80: {
        "half": [{"TILE": 64, "QUERIES": 64, "num_warps": 4, "num_stages": 2}],
        "tf32": [{"TILE": 64, "QUERIES": 64, "num_warps": 4, "num_stages": 2}],
        "float32": [{"TILE": 32, "QUERIES": 32, "num_warps": 4, "num_stages": 1}],
    },
}
_BACKWARD: Table = {
    80: {
        "half": [{"TILE": 64, "num_warps": 4, "num_stages": 2}],
        "tf32": [{"TILE": 32, "num_warps": 4, "num_stages": 2}],
        "float32": [{"TILE": 32, "num_warps": 4, "num_stages": 1}],
    },
}
_FORWARD["hip"], _BACKWARD["hip"] = _FORWARD[80], _BACKWARD[80]


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
        q, k, v = _with_plain_rows(q), _with_plain_rows(k), _with_plain_rows(v)
        frames = max(min(frames, self.rows), 1)
        # Nothing is farther away than `frames`: so what is unbounded has a bound like the rest.
        chunk = min(chunk, frames) if chunk else frames
        all_chunks = triton.cdiv(frames, chunk)
        self.left = frames if left < 0 else min(left, frames)
        self.right = frames if right < 0 else min(right, frames)
        left_chunks = all_chunks if left_chunks < 0 else min(left_chunks, all_chunks)
        # The least and greatest distance at which somebody sees a key.
        self.least = -min(self.left, (left_chunks + 1) * chunk - 1, frames - 1)
        self.greatest = min(self.right, chunk - 1, frames - 1)
        if rel_pos is not None:
            rel_pos = _with_plain_rows(rel_pos)
            self.reach = rel_pos.shape[0] // 2
        threshold = threshold_of(p)
        self.has_positions = rel_pos is not None
        self.arguments: dict[str, Any] = {
            "q": q,
            "k": k,
            "v": v,
            "utterances": utterances.contiguous(),
            "row_offsets": row_offsets,
            "column_ids": column_ids,
            "column_offsets": column_offsets,
            "row_ids": row_ids,
            "head_mask": None if head_mask is None else head_mask.contiguous().view(torch.uint8),
            "rel_pos": rel_pos,
            "content_bias": None if content_bias is None else content_bias.contiguous(),
            "position_bias": None if position_bias is None else position_bias.contiguous(),
            "seed": seed if threshold else None,
            "rows": self.rows,
            "batch": self.batch,
            "frames": frames,
            "mask_lines": 0 if row_offsets is None else row_offsets.shape[0] - 1,
            "mask_count": 0 if column_ids is None else column_ids.shape[0],
            "q_row": q.stride(0),
            "q_head": q.stride(1),
            "k_row": k.stride(0),
            "k_head": k.stride(1),
            "v_row": v.stride(0),
            "v_head": v.stride(1),
            "rel_row": 0 if rel_pos is None else rel_pos.stride(0),
            "rel_head": 0 if rel_pos is None else rel_pos.stride(1),
            "left": self.left,
            "right": self.right,
            "chunk": chunk,
            "left_chunks": left_chunks,
            "reach": self.reach,
            "threshold": threshold,
            "keep_factor": 1 / (1 - p),
            "scale": float(scale),
            "out_row": self.heads * self.width,
            "D": self.width,
            "WIDTH": max(triton.next_power_of_2(self.width), 16),
            "BLOCK": block,
            "PRECISION": precision(q.dtype),
        }

    def config(self, op: str, table: Table) -> Config:
        """Tiles that fit into the blocks of the mask."""
        q = self.arguments["q"]
        config = choose(f"block_attention {op}", table, kind_of(q.dtype), q.device, (self.arguments["WIDTH"],))
        largest = self.block & -self.block or 128
        return config | {name: min(config[name], largest) for name in ("TILE", "QUERIES") if name in config}

    def programs(self, tile: int) -> int:
        """See _tile.py: enough tiles of rows for every utterance and all padding."""
        return self.rows // tile + self.batch


def _with_plain_rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def block_attention(q: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    problem = _Problem(q, *others)
    if q.numel() == 0 or problem.batch == 0:
        return q.new_zeros(q.shape), q.new_zeros((q.shape[1], q.shape[0]), dtype=torch.float32)
    out, lse = q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)
    config = problem.config("forward", _FORWARD)
    with torch.cuda.device_of(q):
        _forward.attention[problem.programs(config["QUERIES"]), problem.heads](
            **problem.arguments, **config, out=out, lse=lse
        )
    return out, lse


def block_attention_backward(grad_out: Tensor, q: Tensor, *others: Any) -> tuple[Tensor, ...]:
    *inputs, out, lse = others
    problem = _Problem(q, *inputs)
    arguments = problem.arguments
    rel_pos, content_bias, position_bias = inputs[14:17]
    empty = q.numel() == 0 or problem.batch == 0
    make = q.new_zeros if empty else q.new_empty
    grad_q, grad_k, grad_v = make(q.shape), make(q.shape), make(q.shape)
    parameters = tuple(make((0,) if x is None else x.shape) for x in (rel_pos, content_bias, position_bias))
    if empty:
        return grad_q, grad_k, grad_v, *parameters
    grad_rel_pos, *grad_biases = parameters
    config = problem.config("backward", _BACKWARD)
    grid = problem.programs(config["TILE"]), problem.heads
    has_biases = content_bias is not None or position_bias is not None
    bias_sums = q.new_empty((grid[1], grid[0], 2, problem.width), dtype=torch.float32) if has_biases else None
    grad_out = _with_plain_rows(grad_out)
    arguments |= config | {
        "grad_out": grad_out,
        "grad_out_row": grad_out.stride(0),
        "grad_out_head": grad_out.stride(1),
        "lse": lse,
        "inner": torch.empty_like(lse),
    }
    shape = {"D": problem.width, "WIDTH": arguments["WIDTH"]}
    with torch.cuda.device_of(q):
        _backward.query_gradients[grid](**arguments, out=out, grad_q=grad_q, bias_sums=bias_sums)
        _backward.key_gradients[grid](**arguments, grad_k=grad_k, grad_v=grad_v)
        for which, (bias, grad_bias) in enumerate(zip((content_bias, position_bias), grad_biases, strict=True)):
            if bias is not None:
                sums = bias_sums[:, :, which]
                _parameters.sum_bias[(problem.heads,)](sums, grad_bias, grid[0], **shape)
        if rel_pos is not None:
            _position_gradients(problem, grad_rel_pos, config["TILE"])
    return grad_q, grad_k, grad_v, grad_rel_pos, *grad_biases


def _position_gradients(problem: _Problem, grad_rel_pos: Tensor, tile: int) -> None:
    least, greatest = -((tile - 1 - problem.least) // tile), (problem.greatest + tile - 1) // tile
    clamped = triton.cdiv(problem.reach + tile - 1, tile)  # from here on all distances are
    first, last = max(least, -clamped), min(greatest, clamped)
    diagonals = last - first + 1
    device = grad_rel_pos.device
    # Several programs for a diagonal where there are few.
    parts = min(problem.batch, triton.cdiv(4 * processors(device), diagonals * problem.heads))
    sums = torch.empty((parts, problem.heads, diagonals, 2, tile, problem.width), dtype=torch.float32, device=device)
    arguments = {name: value for name, value in problem.arguments.items() if name != "out_row"}
    _parameters.position_gradients[diagonals, problem.heads, parts](
        **arguments,
        position_sums=sums,
        first_offset=first,
        last_offset=last,
        least_offset=least,
        greatest_offset=greatest,
    )
    _parameters.sum_positions[grad_rel_pos.shape[0], problem.heads](
        sums,
        grad_rel_pos,
        problem.heads,
        problem.reach,
        first,
        diagonals,
        parts,
        D=problem.width,
        WIDTH=problem.arguments["WIDTH"],
        TILE=tile,
        DISTANCES=16,
    )
