"""What a training needs in memory, computed: parameters, what AdamW keeps, what the backward pass waits for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from dmao.data import FRAME_SHIFT
from dmao.models import ConformerConfig, ConformerCTC, ctc_loss
from dmao.step import autocast

_FP32 = 4
_SHORT, _LONG = 4.0, 8.0  # seconds of audio that are run


@dataclass(frozen=True)
class Memory:
    """parameters: how many; all else in bytes.

    fixed: parameters, gradients, both moments of AdamW.
    per_second, constant: saved for the backward pass, for each second of audio in the batch and besides.
    """

    parameters: int
    fixed: int
    per_second: float
    constant: float

    def total(self, seconds: float) -> float:
        """With a batch of `seconds` of audio; slack of the allocator and temporaries of operations come on top."""
        return self.fixed + self.constant + self.per_second * seconds


def expected_memory(config: ConformerConfig, precision: str = "fp32") -> Memory:
    """What training a model with `config` needs; runs two short utterances on the CPU to see what autograd keeps.

    All that is kept grows with the number of frames, for attention keeps no scores: two lengths tell the rest.

    Args:
        config: shape of the model.
        precision: fp32 or bf16, as in the configuration of a training.
    """
    torch.manual_seed(0)
    model = ConformerCTC(config).train()
    parameters = sum(p.numel() for p in model.parameters())
    short, long = (saved_bytes(model, seconds, precision) for seconds in (_SHORT, _LONG))
    per_second = (long - short) / (_LONG - _SHORT)
    return Memory(parameters, 4 * _FP32 * parameters, per_second, short - per_second * _SHORT)


def saved_bytes(model: ConformerCTC, seconds: float, precision: str = "fp32") -> int:
    """Bytes that autograd keeps from the forward pass for the backward pass of one utterance, parameters left out."""
    kept: dict[int, Tensor] = {}  # by storage; alive, so that no storage gets the address of another

    def pack(tensor: Tensor) -> Tensor:
        kept[_storage(tensor)] = tensor
        return tensor

    frames = round(seconds / FRAME_SHIFT)
    features, lengths = torch.zeros(1, frames, model.config.inputs), torch.tensor([frames])
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with autocast(precision, features.device):
            log_probs, out_lengths = model(features, lengths)
        ctc_loss(log_probs, out_lengths, torch.ones(1, dtype=torch.int64), torch.ones(1, dtype=torch.int64))
    for parameter in model.parameters():
        kept.pop(_storage(parameter), None)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def table(rows: Iterable[tuple[str, Memory, float]]) -> str:
    """Markdown: name, memory and seconds of audio in a batch of each model."""
    head = ["model", "parameters", "parameters, gradients, AdamW", "saved per second of audio", "batch", "total"]
    lines = [head, ["---"] * len(head)]
    for name, memory, seconds in rows:
        lines.append(
            [
                name,
                f"{memory.parameters / 1e6:.2f} M",
                f"{memory.fixed / 1e9:.2f} GB",
                f"{memory.per_second / 1e6:.1f} MB",
                f"{seconds:g} s",
                f"{memory.total(seconds) / 1e9:.2f} GB",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
