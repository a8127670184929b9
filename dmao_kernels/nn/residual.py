"""Pre-norm residual blocks: how rows form utterances, what a branch and a block are, the chain of residual steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from dmao_kernels.nn.chunks import ChunkRows
from dmao_kernels.nn.norm import layer_norm
from dmao_kernels.ops import dropout_add, dropout_add_layer_norm


@dataclass(frozen=True)
class Rows:
    """How the rows of a batch form utterances.

    lengths: int32 [B] of padded rows [B, T, d]; None: all are T long.
    offsets: int32 [B + 1] of packed rows [N, d]: utterance b has the rows offsets[b] ... offsets[b + 1] - 1.
    positions: `sinusoidal_positions`, where they were made beforehand.
    chunks: how they are cut in chunks, where that was done beforehand.
    """

    lengths: Tensor | None = None
    offsets: Tensor | None = None
    positions: Tensor | None = None
    chunks: ChunkRows | None = None

    @classmethod
    def of(
        cls,
        x: Tensor,
        mask: Tensor | None,
        offsets: Tensor | None,
        positions: Tensor | None = None,
        chunks: ChunkRows | None = None,
    ) -> Rows:
        """Of a layer's arguments: ``mask`` bool [B, T] is True for the first frames of each utterance.

        Raises:
            ValueError: both mask and offsets are given, or the mask does not fit x, or has holes (looked for
                on the CPU only, where it costs no wait).
        """
        if mask is None:
            return cls(None, offsets, positions, chunks)
        if offsets is not None:
            raise ValueError("mask is for padded rows and offsets for packed ones: give one of them")
        if mask.dtype != torch.bool or mask.shape != x.shape[:-1] or mask.dim() != 2:
            raise ValueError(
                f"mask must be bool [B, T] for x [B, T, d], got {mask.dtype} {list(mask.shape)} for {list(x.shape)}"
            )
        if mask.device.type == "cpu" and not torch.compiler.is_compiling() and bool((mask[:, 1:] > mask[:, :-1]).any()):
            raise ValueError("mask must be True for the first frames of an utterance and False for the rest")
        return cls(mask.sum(1, dtype=torch.int32), None, positions, chunks)


class Branch(nn.Module, ABC):
    """LayerNorm, a transformation, dropout: what a residual block adds to its input.

    Subclasses set ``norm`` and ``dropout`` and define ``transform``. An empty branch contributes nothing, not
    even its output bias. In slots storage (see `Elastic`) the buffer ``live_slots``, bool [capacity], tells which
    components live; ``transform`` computes these. Inside a block, ``residual_chain`` calls ``transform`` (hooks on a
    branch are not run there; those on the block are).
    """

    norm: nn.LayerNorm
    dropout: float
    live_slots: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("live_slots", None)

    @property
    @abstractmethod
    def empty(self) -> bool:
        """True when no component is left."""

    @abstractmethod
    def transform(self, x: Tensor, normed: Tensor, rows: Rows) -> Tensor:
        """What stands between the norm of x, ``normed``, and the dropout of the output."""

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        offsets: Tensor | None = None,
        positions: Tensor | None = None,
        chunks: ChunkRows | None = None,
    ) -> Tensor:
        """Map ``x`` [B, T, d], or packed [N, d] with ``offsets``, to the same shape.

        ``mask`` bool [B, T] is False at padding, which never matters to the other frames, but must be finite where
        parameters train: their gradients sum up over all rows. Packed rows have none. ``offsets`` int32 [B + 1] and
        ``chunks`` see `Rows`; ``positions`` see `RelPosSelfAttention`. An empty module maps to zeros.
        """
        if self.empty:
            return torch.zeros_like(x)
        y = self.transform(x, layer_norm(x, self.norm), Rows.of(x, mask, offsets, positions, chunks))
        return dropped(self, y)


class ResidualBlock(nn.Module, ABC):
    """``x += scale * branch(x)`` for one branch after the other, then ``norm``; empty branches are skipped.

    Subclasses set the branches that ``scales`` names, and ``norm``.
    """

    scales: ClassVar[Mapping[str, float]]
    norm: nn.LayerNorm

    @property
    @abstractmethod
    def reach(self) -> int:
        """Frames before itself that a frame sees through the longest filter."""

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        offsets: Tensor | None = None,
        positions: Tensor | None = None,
        chunks: ChunkRows | None = None,
    ) -> Tensor:
        """Map ``x`` [B, T, d], or packed [N, d] with ``offsets``, to the same shape.

        ``mask`` bool [B, T] is False at padding, which must be finite where parameters train, as their gradients sum
        up over all rows; packed rows have none. ``offsets`` int32 [B + 1]: utterance b has the rows offsets[b] ...
        offsets[b + 1] - 1. ``positions``: `sinusoidal_positions` of the longest utterance (of padded rows: of T
        frames), for relative positions; ``chunks``: how the rows are cut in chunks, `reach` back. None: the block
        makes them.
        """
        steps = [(getattr(self, name), scale) for name, scale in self.scales.items()]
        return residual_chain(x, steps, self.norm, Rows.of(x, mask, offsets, positions, chunks))


def residual_chain(x: Tensor, steps: Iterable[tuple[Branch, float]], norm: nn.LayerNorm, rows: Rows) -> Tensor:
    """``x += scale * branch(x)`` for every (branch, scale), then ``norm``; empty branches are skipped.

    The residual sum of a step and the norm of the next one are one pass over the rows.
    """
    live = [(branch, scale) for branch, scale in steps if not branch.empty]
    norms = [*(branch.norm for branch, _ in live), norm]
    normed = layer_norm(x, norms[0])
    for (branch, scale), following in zip(live, norms[1:], strict=True):
        p = dropout_rate(branch, branch.dropout)
        y = branch.transform(x, normed, rows)
        x, normed = dropout_add_layer_norm(
            x,
            y,
            following.weight,
            following.bias,
            p=p,
            seed=draw_seed(p, x.device),
            scale=scale,
            eps=following.eps,
        )
    return normed


def dropped(branch: Branch, y: Tensor) -> Tensor:
    """``y`` under the branch's dropout, where no residual sum follows."""
    p = dropout_rate(branch, branch.dropout)
    return dropout_add(None, y, p=p, seed=draw_seed(p, y.device)) if p > 0.0 else y


def dropout_rate(module: nn.Module, p: float) -> float:
    """p where the module is in training, else 0."""
    return p if module.training else 0.0


def draw_seed(p: float, device: torch.device) -> Tensor | None:
    """A fresh dropout seed [1] from torch's generator of ``device`` where p > 0: reproducible, no host sync."""
    return torch.randint(2**63 - 1, (1,), dtype=torch.int64, device=device) if p > 0.0 else None
