"""CTC loss against a sum over all alignments; utterances without alignment are skipped and counted."""

import itertools

import pytest
import torch
from dmao.models import ctc_loss


def brute_force(log_probs: torch.Tensor, labels: list[int]) -> torch.Tensor:
    """-log of the summed probability of all frame-wise label sequences that collapse to ``labels``."""
    frames, outputs = log_probs.shape
    paths = []
    for path in itertools.product(range(outputs), repeat=frames):
        collapsed = [label for label, _ in itertools.groupby(path) if label != 0]
        if collapsed == labels:
            paths.append(log_probs[torch.arange(frames), torch.tensor(path)].sum())
    return -torch.stack(paths).logsumexp(0)


def batch(*shape: int) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(*shape, dtype=torch.float64).log_softmax(-1).requires_grad_()


def test_sum_over_alignments_per_label() -> None:
    log_probs = batch(3, 4, 3)
    labels, frames = [[1, 2], [2, 2], []], [4, 3, 2]
    expected = sum(brute_force(row[:n], y) for row, n, y in zip(log_probs, frames, labels, strict=True)) / 4
    result = ctc_loss(log_probs, torch.tensor(frames), torch.tensor([1, 2, 2, 2]), torch.tensor([2, 2, 0]))
    torch.testing.assert_close(result.loss, expected)
    assert (result.labels, result.skipped) == (4, 0)


@pytest.mark.parametrize("too_long", [[1, 2, 1, 2, 1], [1, 1, 1], [2, 1, 1, 2]])
def test_labels_that_do_not_fit_are_skipped(too_long: list[int]) -> None:
    """Also where only the blanks between equal labels do not fit."""
    log_probs = batch(2, 4, 3)
    targets = torch.tensor([1, 2, *too_long])
    result = ctc_loss(log_probs, torch.tensor([4, 4]), targets, torch.tensor([2, len(too_long)]))
    alone = ctc_loss(log_probs[:1], torch.tensor([4]), torch.tensor([1, 2]), torch.tensor([2]))
    torch.testing.assert_close(result.loss, alone.loss)
    assert (result.labels, result.skipped) == (2, 1)
    assert alone.skipped == 0
    (grad,) = torch.autograd.grad(result.loss, log_probs)
    assert torch.equal(grad[1], torch.zeros(4, 3, dtype=torch.float64))
    assert grad[0].abs().sum() > 0


def test_exactly_fitting_labels_count() -> None:
    log_probs = batch(1, 5, 3)
    result = ctc_loss(log_probs, torch.tensor([5]), torch.tensor([2, 1, 1, 2]), torch.tensor([4]))
    torch.testing.assert_close(result.loss, brute_force(log_probs[0], [2, 1, 1, 2]) / 4)
    assert result.skipped == 0


def test_equal_labels_of_two_utterances_are_no_repetition() -> None:
    log_probs = batch(2, 1, 3)
    result = ctc_loss(log_probs, torch.tensor([1, 1]), torch.tensor([1, 1]), torch.tensor([1, 1]))
    torch.testing.assert_close(result.loss, -log_probs[:, 0, 1].mean())
    assert result.skipped == 0


def test_nothing_fits() -> None:
    log_probs = batch(1, 1, 3)
    result = ctc_loss(log_probs, torch.tensor([1]), torch.tensor([1, 2]), torch.tensor([2]))
    result.loss.backward()
    assert result.loss == 0
    assert (result.labels, result.skipped) == (0, 1)
    assert torch.equal(log_probs.grad, torch.zeros(1, 1, 3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("frames", "targets", "lengths", "message"),
    [
        ([4, 4], [1, 2], [1, 2], r"targets must be \[3\], the sum of target_lengths, got \[2\]"),
        ([4, 4], [1, 3], [1, 1], r"targets must be in \[0, 3\)"),
        ([4, 4], [1, 0], [1, 1], "not the blank 0"),
        ([4, 4], [1, -1], [1, 1], "targets must be in"),
        ([4, 5], [1, 1], [1, 1], r"out_lengths must be in \[0, 4\], got \[4, 5\]"),
        ([4], [1, 1], [1, 1], r"out_lengths must be \[2\], got \[1\]"),
        ([4, 4], [1, 1], [3, -1], "target_lengths must not be negative"),
    ],
)
def test_errors(frames: list[int], targets: list[int], lengths: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=f"ctc_loss: .*{message}"):
        ctc_loss(batch(2, 4, 3), torch.tensor(frames), torch.tensor(targets), torch.tensor(lengths))


def test_empty_batch() -> None:
    empty = torch.zeros(0, dtype=torch.long)
    with pytest.raises(ValueError, match="with B > 0"):
        ctc_loss(torch.zeros(0, 4, 3), empty, empty, empty)
