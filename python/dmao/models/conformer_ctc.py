"""Conformer encoder with a CTC output: the model that grow-and-drop trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmao.models.frontend import VggFrontEnd
from dmao_kernels import unpack
from dmao_kernels.nn import ACTIVATIONS, ConformerBlock, EBranchformerBlock, sinusoidal_positions

BLOCKS = {"conformer": ConformerBlock, "e_branchformer": EBranchformerBlock}
POSITIONS = ("none", "relative")


@dataclass(frozen=True)
class ConformerConfig:
    """Shape of a ConformerCTC before any edit; ``outputs`` counts the blank.

    ``block`` is "conformer" or "e_branchformer", ``positions`` "none" or "relative" (Transformer-XL's), ``heads``
    None stands for ``width // head_dim``, ``attention_dropout`` None for ``dropout``. Defaults are the published
    settings (arXiv 2506.13180) at width 256.
    """

    outputs: int
    inputs: int = 80
    width: int = 256
    blocks: int = 12
    heads: int | None = None
    head_dim: int = 64
    expansion: int = 4
    kernel: int = 31
    components: int = 4
    dropout: float = 0.1
    attention_dropout: float | None = None
    output_dropout: float = 0.1
    activation: str = "silu"
    front_channels: tuple[int, ...] = (32, 64, 64, 32)
    time_pooling: tuple[int, ...] = (2, 2)
    frequency_pooling: tuple[int, ...] = (1, 1)
    block: str = "conformer"
    positions: str = "none"

    def __post_init__(self) -> None:
        for name in ("front_channels", "time_pooling", "frequency_pooling"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("inputs", "width", "head_dim", "expansion", "kernel", "components"):
            self._require(getattr(self, name) >= 1, name, "at least 1")
        if self.heads is None:
            self._require(self.width % self.head_dim == 0, "width", f"a multiple of head_dim={self.head_dim}")
            object.__setattr__(self, "heads", self.width // self.head_dim)
        self._require(self.heads is not None and self.heads >= 1, "heads", "at least 1")
        self._require(self.outputs >= 2, "outputs", "at least 2 (the blank and one label)")
        self._require(self.blocks >= 0, "blocks", "at least 0")
        self._require(self.kernel % 2 == 1, "kernel", "odd")
        self._require(self.width % self.components == 0, "width", f"a multiple of components={self.components}")
        self._require(self.activation in ACTIVATIONS, "activation", f"one of {', '.join(ACTIVATIONS)}")
        self._require(self.block in BLOCKS, "block", f"one of {', '.join(BLOCKS)}")
        self._require(self.positions in POSITIONS, "positions", f"one of {', '.join(POSITIONS)}")
        self._require(self.positions == "none" or self.width % 2 == 0, "width", "even with positions")
        if self.attention_dropout is None:
            object.__setattr__(self, "attention_dropout", self.dropout)
        for name in ("dropout", "attention_dropout", "output_dropout"):
            self._require(0.0 <= getattr(self, name) < 1.0, name, "in [0, 1)")
        for name, count in (("front_channels", 4), ("time_pooling", 2), ("frequency_pooling", 2)):
            sizes = getattr(self, name)
            self._require(len(sizes) == count and min(sizes) >= 1, name, f"{count} numbers of at least 1")
        first, second = self.frequency_pooling
        self._require(self.inputs // first // second >= 1, "frequency_pooling", f"at most inputs={self.inputs}")

    def _require(self, ok: bool, name: str, expected: str) -> None:
        if not ok:
            raise ValueError(f"ConformerConfig: {name} must be {expected}, got {getattr(self, name)}")

    @property
    def subsampling(self) -> int:
        """Feature frames per output frame."""
        return self.time_pooling[0] * self.time_pooling[1]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, for YAML, JSON and checkpoints."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ConformerConfig:
        """The inverse of ``to_dict``; an unknown name is a ValueError."""
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"ConformerConfig: unknown fields {unknown}, expected some of {sorted(known)}")
        if "outputs" not in values:
            raise ValueError("ConformerConfig: outputs is missing")
        return cls(**values)


class ConformerCTC(nn.Module):
    """VGG front end, Conformer (or E-Branchformer) blocks, dropout, Linear to label posteriors.

    An utterance's output is the same, to rounding, alone and padded in a batch. From the front end to the
    output the utterances lie one behind the other, so that padding costs nothing.
    """

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        self.config = config
        assert config.heads is not None  # settled by ConformerConfig
        self.front = VggFrontEnd(
            config.inputs, config.width, config.front_channels, config.time_pooling, config.frequency_pooling
        )
        block = BLOCKS[config.block]
        self.blocks = nn.ModuleList(
            block(
                config.width,
                config.heads,
                head_dim=config.head_dim,
                expansion=config.expansion,
                kernel=config.kernel,
                dropout=config.dropout,
                attention_dropout=config.attention_dropout,
                components=config.components,
                activation=config.activation,
                positions=config.positions,
            )
            for _ in range(config.blocks)
        )
        self.output = nn.Linear(config.width, config.outputs)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the labels per output frame.

        Args:
            features: float [B, T, inputs]; what stands at and beyond an utterance's length is ignored.
            lengths: integer [B], frames per utterance. On the CPU they cost no device sync.

        Returns:
            ``log_probs`` float32 [B, T', outputs] (float64 of a float64 model), zero beyond an utterance's end,
            and ``out_lengths`` int64 [B], on the device of ``lengths``, with T' = T // subsampling.

        Raises:
            ValueError: wrong shape or dtype, an empty batch, or an utterance longer than T or shorter than
                one output frame.
        """
        self._check(features, lengths)
        x, offsets = self.front(features, lengths)
        out_lengths = lengths.long() // self.config.subsampling
        positions = None
        if self.config.positions == "relative":
            positions = sinusoidal_positions(int(out_lengths.max()), self.config.width, x)
        for block in self.blocks:
            x = block(x, offsets=offsets, positions=positions)
        logits = self.output(F.dropout(x, self.config.output_dropout, self.training))
        dtype = torch.promote_types(logits.dtype, torch.float32)
        log_probs = F.log_softmax(logits, dim=-1, dtype=dtype)
        return unpack(log_probs, offsets, features.shape[1] // self.config.subsampling), out_lengths

    def _check(self, features: Tensor, lengths: Tensor) -> None:
        inputs, shortest = self.config.inputs, self.config.subsampling
        if features.dim() != 3 or features.shape[2] != inputs:
            raise ValueError(f"ConformerCTC: features must be [B, T, {inputs}], got {list(features.shape)}")
        batch, frames, _ = features.shape
        if batch == 0:
            raise ValueError("ConformerCTC: features must hold at least one utterance, got an empty batch")
        if not features.is_floating_point():
            raise ValueError(f"ConformerCTC: features must be floating point, got {features.dtype}")
        if lengths.shape != (batch,) or lengths.is_floating_point():
            raise ValueError(
                f"ConformerCTC: lengths must be integer [{batch}], got {lengths.dtype} {list(lengths.shape)}"
            )
        for index, length in enumerate(lengths.tolist()):
            if length < shortest:
                raise ValueError(f"ConformerCTC: utterance {index} has {length} frames, at least {shortest} are needed")
            if length > frames:
                raise ValueError(
                    f"ConformerCTC: utterance {index} has {length} frames, but features hold only {frames}"
                )
