"""Utterances cut in chunks, each with some of the frames before it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dmao_kernels.nn.common import require_positive


@dataclass(frozen=True)
class ChunkRows:
    """How the rows of a batch are cut in chunks.

    size: frames of a chunk.  reach: frames before a chunk that go with it.
    source: int64 [M], the row that each row of the cut batch is a copy of.
    offsets: int32 [P + 1] of the cut batch: one utterance a chunk.
    own: int64 [N], for the rows of the batch in their order, where they are in the cut one.
    padded: [B, T] of padded rows; None: they are packed.
    """

    size: int
    reach: int
    source: Tensor
    offsets: Tensor
    own: Tensor
    padded: tuple[int, int] | None = None

    @classmethod
    def of(cls, lengths: Tensor, size: int, reach: int, frames: int | None = None) -> ChunkRows:
        """Of utterances with `lengths` [B] that lie one behind the other, or are padded to so many `frames`.

        Made on the device of `lengths`, for which an accelerator is waited for: keep them on the CPU, and take the
        result `to` the device.

        Raises ValueError where `size` is no positive number, or a length is not in [0, frames] (looked for on the CPU
        only, where it costs no wait).
        """
        require_positive("ChunkRows", size=size)
        lengths = lengths.long()
        if lengths.device.type == "cpu" and not torch.compiler.is_compiling():
            most = int(lengths.sum()) if frames is None else frames
            if not bool(((lengths >= 0) & (lengths <= most)).all()):
                raise ValueError(f"ChunkRows: lengths must be in [0, {most}], got {lengths.tolist()}")
        counts = (lengths + size - 1) // size
        utterance = torch.arange(len(lengths), device=lengths.device).repeat_interleave(counts)
        first = _within(counts) * size  # of each chunk, in its utterance
        end = torch.minimum(first + size, lengths[utterance])
        begin = (first - reach).clamp(min=0)
        spans = end - begin
        chunk = torch.arange(len(spans), device=lengths.device).repeat_interleave(spans)
        frame = begin[chunk] + _within(spans)
        if frames is None:
            starts = F.pad(lengths.cumsum(0), (1, 0))[:-1]
        else:
            starts = torch.arange(len(lengths), device=lengths.device) * frames
        offsets = F.pad(spans.cumsum(0), (1, 0)).int()
        own = (frame >= first[chunk]).nonzero()[:, 0]
        padded = None if frames is None else (len(lengths), frames)
        return cls(size, reach, starts[utterance[chunk]] + frame, offsets, own, padded)

    def to(self, device: torch.device) -> ChunkRows:
        """The same on another device."""
        source, offsets, own = (
            tensor.to(device, non_blocking=True) for tensor in (self.source, self.offsets, self.own)
        )
        return ChunkRows(self.size, self.reach, source, offsets, own, self.padded)


def _within(counts: Tensor) -> Tensor:
    """0 ... n - 1 for every n of `counts`, one behind the other."""
    starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
    return torch.arange(len(starts), device=counts.device) - starts
