"""What the tests of operations over utterances share: batches in both forms."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dmao_kernels.testing import outputs_and_gradients
from tests.ops.common import ids


def offsets_of(lengths: Tensor) -> Tensor:
    """First rows of packed utterances, and the number of rows."""
    return torch.cat([ids(0), lengths.cumsum(0, dtype=torch.int32)])


def pack(padded: Tensor, lengths: Tensor) -> Tensor:
    return torch.cat([utterance[:length] for utterance, length in zip(padded, lengths.tolist(), strict=True)])


def poison_padding(padded: Tensor, lengths: Tensor) -> Tensor:
    """A leaf with NaN in the padding."""
    poisoned = padded.detach().clone()
    for utterance, length in zip(poisoned, lengths.tolist(), strict=True):
        utterance[length:] = torch.nan
    return poisoned.requires_grad_(padded.requires_grad)


def check_packed_is_padded(
    op: Callable[..., Tensor], x: Tensor, parameters: list[Tensor], lengths: Tensor, channels: int
) -> None:
    """Bit for bit, output and all gradients, with NaN in the padding of x and of the gradient."""
    grad = torch.randn(*x.shape[:2], channels).to(x.dtype)
    y, grads = outputs_and_gradients(
        op, poison_padding(x, lengths), *parameters, lengths=lengths, grad_output=poison_padding(grad, lengths)
    )
    rows, row_grads = outputs_and_gradients(
        op,
        pack(x.detach(), lengths).requires_grad_(),
        *parameters,
        offsets=offsets_of(lengths),
        grad_output=pack(grad, lengths),
    )
    beyond = torch.arange(x.shape[1]) >= lengths[:, None]
    for padded, packed in ((y, rows), (grads[0], row_grads[0])):
        assert torch.equal(pack(padded, lengths), packed)
        assert not padded[beyond].any()
    assert grads.keys() == row_grads.keys() == {*range(1 + len(parameters))}
    assert all(torch.equal(grads[key], row_grads[key]) for key in range(1, 1 + len(parameters)))
