"""SpecAugment on padded batches, a pure function of the features and a random generator."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_MOST = 1000  # masks


@dataclass(frozen=True)
class SpecAugment:
    """Time and frequency masking (Park et al., 2019) with the counts of arXiv 2506.13180.

    Per utterance of L frames: between ``time_masks`` and max(``time_masks``, L // ``frames_per_mask``) masks
    of 1 to ``time_width`` frames; between the two numbers of ``frequency_masks`` masks of 1 to
    ``frequency_width`` bins. Counts, widths and places are uniform; masks may overlap. Masked values become
    the utterance's mean of their bin (zero after mean normalisation).
    """

    time_masks: int = 2
    frames_per_mask: int = 25
    time_width: int = 20
    frequency_masks: tuple[int, int] = (2, 8)
    frequency_width: int = 5

    def __post_init__(self) -> None:
        object.__setattr__(self, "frequency_masks", tuple(self.frequency_masks))
        if not 0 <= self.time_masks <= _MOST or min(self.frames_per_mask, self.time_width, self.frequency_width) < 1:
            raise ValueError(f"SpecAugment: counts must be 0 to {_MOST} and widths at least 1, got {self}")
        masks = self.frequency_masks
        if len(masks) != 2 or not 0 <= masks[0] <= masks[1] <= _MOST:
            raise ValueError(f"SpecAugment: frequency_masks must be (least, most), {_MOST} at most, got {masks}")

    def __call__(self, features: Tensor, lengths: Tensor, generator: torch.Generator) -> Tensor:
        """A masked copy of ``features`` [B, T, bins]; frames at and beyond ``lengths`` [B] stay as they are.

        ``generator`` is a CPU generator; the masks depend on it and on the lengths alone.
        """
        batch, frames, bins = features.shape
        lengths = lengths.cpu().long()
        valid = torch.arange(frames) < lengths.unsqueeze(1)
        most = torch.clamp(lengths // self.frames_per_mask, min=self.time_masks)
        in_time = _masks(torch.full_like(most, self.time_masks), most, self.time_width, lengths, frames, generator)
        least, most = (torch.full((batch,), count) for count in self.frequency_masks)
        in_frequency = _masks(least, most, self.frequency_width, torch.full((batch,), bins), bins, generator)
        masked = (in_time.unsqueeze(2) | in_frequency.unsqueeze(1)) & valid.unsqueeze(2)

        inside = valid.unsqueeze(2).to(features.device)
        total = torch.where(inside, features, 0.0).sum(1, keepdim=True)
        mean = total / lengths.clamp(min=1).to(features.device).view(-1, 1, 1)
        return torch.where(masked.to(features.device), mean, features)


def _masks(least: Tensor, most: Tensor, width: int, extents: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Bool [B, size], True under one of least..most intervals of 1..width places within each extent [B]."""
    draws = torch.rand(int(most.max()) + 1, len(extents), 2, generator=generator, dtype=torch.float64)
    counts = least + (draws[0, :, 0] * (most - least + 1)).long()
    widths = 1 + (draws[1:, :, 0] * torch.clamp(extents, max=width)).long()
    starts = (draws[1:, :, 1] * (extents - widths + 1)).long()
    used = torch.arange(len(widths)).unsqueeze(1) < counts
    places = torch.arange(size)
    inside = (places >= starts.unsqueeze(2)) & (places < (starts + widths).unsqueeze(2)) & used.unsqueeze(2)
    return inside.any(0)
