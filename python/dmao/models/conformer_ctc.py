"""Conformer encoder with a CTC output: the model that grow-and-drop trains."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmao.models.frontend import VggFrontEnd
from dmao_kernels import unpack
from dmao_kernels.nn import ACTIVATIONS, ChunkRows, ConformerBlock, EBranchformerBlock, sinusoidal_positions

BLOCKS = {"conformer": ConformerBlock, "e_branchformer": EBranchformerBlock}
POSITIONS = ("none", "relative")
OUTPUTS = ("shared", "own")
_WIDEST, _DEEPEST = 1 << 16, 1 << 10  # beyond them is a mistake, or somebody else's wish to fill the memory


@dataclass(frozen=True)
class ConformerShape:
    """Shape of a ConformerCTC before any edit, but for what data decide.

    ``block`` is "conformer" or "e_branchformer", ``positions`` "none" or "relative" (Transformer-XL's), ``heads``
    None stands for ``width // head_dim``, ``attention_dropout`` None for ``dropout``. Defaults are the published
    settings (arXiv 2506.13180) at width 256.

    Streaming: ``chunk`` output frames are a chunk, and no output depends on frames behind its chunk but through the
    front end (`front_lookahead`); attention sees ``left_chunks`` chunks before its own, None: all.

    Intermediate CTC (Lee and Watanabe, 2021): the loss behind the blocks ``intermediate`` (numbers from 1, below
    ``blocks``) weighs ``intermediate_weight`` in all, the ordinary one the rest; through the model's output layer, or,
    with ``intermediate_output`` "own", through one each.
    """

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
    chunk: int | None = None
    left_chunks: int | None = None
    intermediate: tuple[int, ...] = ()
    intermediate_weight: float = 0.3
    intermediate_output: str = "shared"


@dataclass(frozen=True, kw_only=True)
class ConformerConfig(ConformerShape):
    """The whole shape: with the number of outputs, blank included, and of features per frame."""

    outputs: int
    inputs: int = 80

    def __post_init__(self) -> None:
        for name in ("front_channels", "time_pooling", "frequency_pooling", "intermediate"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("inputs", "width", "head_dim", "expansion", "kernel", "components"):
            self._require(getattr(self, name) >= 1, name, "at least 1")
        if self.heads is None:
            self._require(self.width % self.head_dim == 0, "width", f"a multiple of head_dim={self.head_dim}")
            object.__setattr__(self, "heads", self.width // self.head_dim)
        self._require(self.heads is not None and self.heads >= 1, "heads", "at least 1")
        self._require(self.outputs >= 2, "outputs", "at least 2 (the blank and one label)")
        for name in ("inputs", "width", "head_dim", "expansion", "kernel", "components", "heads", "outputs"):
            self._require(getattr(self, name) <= _WIDEST, name, f"at most {_WIDEST}")
        self._require(self.blocks <= _DEEPEST, "blocks", f"at most {_DEEPEST}")
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
            fits = len(sizes) == count and 1 <= min(sizes) <= max(sizes) <= _WIDEST
            self._require(fits, name, f"{count} numbers from 1 to {_WIDEST}")
        self._check_options()
        first, second = self.frequency_pooling
        self._require(self.inputs // first // second >= 1, "frequency_pooling", f"at most inputs={self.inputs}")

    def _check_options(self) -> None:
        self._require(self.chunk is None or self.chunk >= 1, "chunk", "at least 1 or null")
        self._require(self.left_chunks is None or self.left_chunks >= 0, "left_chunks", "at least 0 or null")
        self._require(self.left_chunks is None or self.chunk is not None, "left_chunks", "null without chunk")
        inner = self.intermediate
        ascending = all(a < b for a, b in itertools.pairwise((0, *inner, self.blocks))) or not inner
        self._require(ascending, "intermediate", f"ascending numbers from 1 to {self.blocks - 1}")
        self._require(0 < self.intermediate_weight < 1, "intermediate_weight", "between 0 and 1")
        self._require(self.intermediate_output in OUTPUTS, "intermediate_output", f"one of {', '.join(OUTPUTS)}")

    def _require(self, ok: bool, name: str, expected: str) -> None:
        if not ok:
            raise ValueError(f"ConformerConfig: {name} must be {expected}, got {getattr(self, name)}")

    @property
    def subsampling(self) -> int:
        """Feature frames per output frame."""
        return self.time_pooling[0] * self.time_pooling[1]

    @property
    def front_lookahead(self) -> int:
        """Feature frames behind an output frame's own that its front end sees: two frames per pair of convolutions."""
        return 2 * (1 + self.time_pooling[0])

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
        blocks = [
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
                chunk=None if config.chunk is None else (config.chunk, config.left_chunks),
            )
            for _ in range(config.blocks)
        ]
        self.blocks = nn.ModuleList(blocks)
        self._reach = max((each.reach for each in blocks), default=0)
        self.output = nn.Linear(config.width, config.outputs)
        own = config.intermediate if config.intermediate_output == "own" else ()
        self.intermediate = nn.ModuleList(nn.Linear(config.width, config.outputs) for _ in own)

    def forward(self, features: Tensor, lengths: Tensor, *, intermediate: bool = False) -> tuple[Tensor, ...]:
        """Log-probabilities of the labels per output frame.

        Args:
            features: float [B, T, inputs]; what stands at and beyond an utterance's length is ignored.
            lengths: integer [B], frames per utterance. On the CPU they cost no device sync.
            intermediate: return the log-probabilities behind the blocks ``config.intermediate`` as well.

        Returns:
            ``log_probs`` float32 [B, T', outputs] (float64 of a float64 model), zero beyond an utterance's end,
            and ``out_lengths`` int64 [B], on the device of ``lengths``, with T' = T // subsampling; behind them, with
            ``intermediate``, further log-probabilities as the first.

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
        chunks = self._chunks(out_lengths, x.device)
        outputs = self._intermediate_outputs() if intermediate else {}
        found = []
        for number, block in enumerate(self.blocks, 1):
            x = block(x, offsets=offsets, positions=positions, chunks=chunks)
            if number in outputs:
                found.append(self._log_probs(outputs[number], x))
        frames = features.shape[1] // self.config.subsampling
        last, *inner = (unpack(y, offsets, frames) for y in (self._log_probs(self.output, x), *found))
        return last, out_lengths, *inner

    def _intermediate_outputs(self) -> dict[int, nn.Module]:
        """Output layers by the numbers of the blocks before them."""
        own = list(self.intermediate) or [self.output] * len(self.config.intermediate)
        return dict(zip(self.config.intermediate, own, strict=True))

    def _log_probs(self, output: nn.Module, x: Tensor) -> Tensor:
        logits = output(F.dropout(x, self.config.output_dropout, self.training))
        dtype = torch.promote_types(logits.dtype, torch.float32)
        return F.log_softmax(logits, dim=-1, dtype=dtype)

    def _chunks(self, out_lengths: Tensor, device: torch.device) -> ChunkRows | None:
        """How the packed frames are cut; the same for all blocks."""
        if self.config.chunk is None:
            return None
        return ChunkRows.of(out_lengths, self.config.chunk, self._reach).to(device)

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
