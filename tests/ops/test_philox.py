"""The dropout mask: known answers of Philox4x32-10, and its statistics."""

from __future__ import annotations

import pytest
import torch

from dmao_kernels.ops._philox import keep_mask, philox4x32

# Known answers that the authors of Philox publish with their implementation (Random123, kat_vectors).
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers(
    counter: tuple[int, int, int, int], key: tuple[int, int], words: tuple[int, int, int, int]
) -> None:
    c0, c1, c2, c3 = (torch.tensor([word]) for word in counter)
    k0, k1 = (torch.tensor([word]) for word in key)
    assert tuple(word.item() for word in philox4x32((c0, c1, c2, c3), (k0, k1))) == words


def test_units_share_calls_of_the_generator_as_documented() -> None:
    seed, units, p = torch.tensor([(7 << 32) + 5]), torch.arange(200), 0.4
    mask = keep_mask(seed, 3, units, p)
    for row, unit in ((0, 0), (1, 17), (2, 63), (0, 64), (2, 135)):
        counter = torch.tensor([unit // 64 * 16 + unit % 16])
        zero = torch.tensor([0])
        words = philox4x32((counter, torch.tensor([row]), zero, zero), (torch.tensor([5]), torch.tensor([7])))
        assert mask[row, unit].item() == (words[unit // 16 % 4].item() >= round(p * 2**32))


def test_the_mask_of_a_unit_does_not_depend_on_the_others() -> None:
    seed, some = torch.tensor([-3]), torch.tensor([0, 5, 64, 100, 190])
    assert torch.equal(keep_mask(seed, 9, torch.arange(200), 0.5)[:, some], keep_mask(seed, 9, some, 0.5))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_kept_fraction(p: float) -> None:
    tokens, units = 500, 640
    mask = keep_mask(torch.tensor([11]), tokens, torch.arange(units), p).double()
    deviation = (p * (1 - p)) ** 0.5
    assert abs(mask.mean().item() - (1 - p)) < 5 * deviation / (tokens * units) ** 0.5
    assert (mask.mean(0) - (1 - p)).abs().max() < 5 * deviation / tokens**0.5
    assert (mask.mean(1) - (1 - p)).abs().max() < 5 * deviation / units**0.5


def test_seeds_differ() -> None:
    masks = [keep_mask(torch.tensor([seed]), 50, torch.arange(64), 0.5) for seed in (0, 1, 1 << 32)]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        agreement = (masks[a] == masks[b]).double().mean().item()
        assert 0.4 < agreement < 0.6


def test_extreme_probabilities() -> None:
    units = torch.arange(640)
    assert keep_mask(torch.tensor([1]), 100, units, 0.0).all()
    assert not keep_mask(torch.tensor([1]), 100, units, 1 - 1e-12).any()
