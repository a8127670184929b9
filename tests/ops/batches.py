"""What the tests of operations over utterances share: batches in both forms, and the comparison with float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dmao_kernels.testing import (
    Poison,
    assert_close_to_oracle,
    nan_filled_empty,
    outputs_and_gradients,
    to_float64,
)
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


def check_against_oracle(
    function: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    inputs: list[Any],
    channels: int,
    peer: Callable[..., Tensor] | None = None,
    **options: Any,
) -> None:
    """Output and all gradients by the house's rule, from poisoned memory; `peer` is PyTorch in the same dtype."""
    x = inputs[0]
    grad = torch.randn(*x.shape[:-1], channels).to(x.dtype)
    poison = Poison()
    guarded = [poison.around(v) if isinstance(v, Tensor) and v.dtype.is_floating_point else v for v in inputs]
    with nan_filled_empty():
        ours, our_grads = outputs_and_gradients(function, *guarded, grad_output=grad, **options)
    poison.check()
    same, same_grads = outputs_and_gradients(peer or reference, *inputs, grad_output=grad, **options)
    truth, true_grads = outputs_and_gradients(reference, *to_float64(inputs), grad_output=grad, **options)
    assert_close_to_oracle(ours, same, truth)
    assert our_grads.keys() == true_grads.keys()
    for key, gradient in true_grads.items():
        assert_close_to_oracle(our_grads[key], same_grads[key], gradient, name=f"gradient {key}")
