"""SpecAugment: a pure function of its generator, with counts and widths in the promised ranges."""

import pytest
import torch
from dmao.augment import SpecAugment


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def runs(flags: torch.Tensor) -> list[int]:
    """Lengths of the runs of True."""
    text = "".join("x" if flag else " " for flag in flags.tolist())
    return [len(run) for run in text.split()]


def normalised(*shape: int) -> torch.Tensor:
    x = torch.randn(*shape, generator=generator(9), dtype=torch.float64)
    return x - x.mean(1, keepdim=True)


def test_pure_function_of_the_generator() -> None:
    x, lengths = normalised(3, 200, 80), torch.tensor([200, 120, 60])
    before = x.clone()
    first, again, other = (SpecAugment()(x, lengths, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(x, before)
    state = torch.get_rng_state()
    SpecAugment()(x, lengths, generator())
    assert torch.equal(state, torch.get_rng_state())


def test_padding_is_neither_read_nor_written() -> None:
    x, lengths = normalised(2, 200, 80), torch.tensor([200, 90])
    clean = SpecAugment()(x, lengths, generator())
    x[1, 90:] = float("nan")
    poisoned = SpecAugment()(x, lengths, generator())
    assert torch.equal(clean[0], poisoned[0])
    assert torch.equal(clean[1, :90], poisoned[1, :90])
    assert poisoned[1, 90:].isnan().all()


def test_masked_values_are_the_mean_of_their_bin() -> None:
    x = normalised(1, 100, 80) + torch.arange(80)
    y = SpecAugment()(x, torch.tensor([100]), generator())
    masked = y != x
    assert 0.05 < masked.double().mean() < 0.9
    torch.testing.assert_close(y[masked], x.mean(1, keepdim=True).expand_as(x)[masked])


@pytest.mark.parametrize(("length", "most"), [(30, 2), (75, 3), (500, 20), (2000, 80)])
def test_time_masks(length: int, most: int) -> None:
    """2 .. max(2, length // 25) masks of 1-20 frames."""
    augment = SpecAugment(frequency_masks=(0, 0))
    x = torch.randn(400, length, 2, dtype=torch.float64)
    masked = (augment(x, torch.full((400,), length), generator()) != x).all(2)
    frames = masked.sum(1).double()
    assert frames.min() >= 1
    assert frames.max() <= 20 * most
    assert max(len(runs(row)) for row in masked) <= most
    # A frame escapes one mask with 1 - 10.5/length on average; counts are uniform.
    counts = torch.arange(2, most + 1, dtype=torch.float64)
    expected = (1 - (1 - 10.5 / length) ** counts).mean() * length
    assert abs(frames.mean() - expected) < 0.08 * expected


def test_extreme_lengths() -> None:
    x, lengths = normalised(2, 3, 80), torch.tensor([1, 0])
    assert torch.isfinite(SpecAugment()(x, lengths, generator())).all()


def test_single_masks_have_all_widths_and_places() -> None:
    """One mask at a time shows widths and places undisturbed by overlap."""
    augment = SpecAugment(time_masks=0, frames_per_mask=10**6, frequency_masks=(1, 1), frequency_width=5)
    x = torch.randn(3000, 4, 80, dtype=torch.float64)
    masked = (augment(x, torch.full((3000,), 4), generator()) != x).all(1)
    widths = torch.bincount(masked.sum(1), minlength=7).double() / 3000
    assert widths[0] == 0
    assert widths[6] == 0
    torch.testing.assert_close(widths[1:6], torch.full((5,), 0.2, dtype=torch.float64), rtol=0, atol=0.03)
    assert all(len(runs(row)) == 1 for row in masked[:200])
    assert masked.any(0).all()
    middle = masked.double().mean(0)[10:70]
    torch.testing.assert_close(middle, middle.mean().expand(60), rtol=0, atol=0.02)


def test_frequency_mask_counts() -> None:
    augment = SpecAugment(time_masks=0, frames_per_mask=10**6, frequency_masks=(2, 8), frequency_width=1)
    x = torch.randn(2000, 4, 5000, dtype=torch.float32)
    counts = (augment(x, torch.full((2000,), 4), generator()) != x).all(1).sum(1)
    histogram = torch.bincount(counts, minlength=10).double() / 2000
    assert histogram[:2].sum() == 0
    assert histogram[9] == 0
    torch.testing.assert_close(histogram[2:9], torch.full((7,), 1 / 7, dtype=torch.float64), rtol=0, atol=0.03)


@pytest.mark.parametrize(
    "arguments",
    [{"time_masks": -1}, {"time_width": 0}, {"frequency_masks": (3, 2)}, {"frequency_masks": (3,)}],
)
def test_errors(arguments: dict) -> None:
    with pytest.raises(ValueError, match="SpecAugment: "):
        SpecAugment(**arguments)
