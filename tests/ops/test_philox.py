"""The dropout mask: known answers of Philox4x32-7, and its statistics."""

from __future__ import annotations

import pytest
import torch

from dmao_kernels.ops._philox import keep_mask, kept, philox4x32

# Known answers that the authors of Philox publish with their implementation (Random123, kat_vectors).
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0x4DFCCABA, 0x190A87F0, 0xC47362BA, 0xB6B5242A),
    ),
]


def philox_by_hand(counter: tuple[int, ...], key: tuple[int, int], rounds: int = 7) -> tuple[int, ...]:
    """The paper's definition in Python's unbounded integers."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(rounds):
        high0, low0 = divmod(0xD2511F53 * c0, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c2, 2**32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


def test_the_definition_by_hand_has_ten_rounds_right_too() -> None:
    """What Random123 publishes for ten rounds, the number that other libraries use."""
    ten = (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert philox_by_hand((0, 0, 0, 0), (0, 0), rounds=10) == ten


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers(
    counter: tuple[int, int, int, int], key: tuple[int, int], words: tuple[int, int, int, int]
) -> None:
    c0, c1, c2, c3 = (torch.tensor([word]) for word in counter)
    k0, k1 = (torch.tensor([word]) for word in key)
    assert tuple(word.item() for word in philox4x32((c0, c1, c2, c3), (k0, k1))) == words
    assert philox_by_hand(counter, key) == words


def test_units_share_calls_of_the_generator_as_documented() -> None:
    seed, units, p = torch.tensor([(7 << 32) + 5]), torch.arange(200), 0.4
    mask = keep_mask(seed, 3, units, p)
    for row, unit in ((0, 0), (1, 17), (2, 63), (0, 64), (1, 127), (2, 135), (0, 199)):
        counter = (unit // 128 * 16 + unit % 16, row, 0, 0)
        word = philox_by_hand(counter, (5, 7))[unit // 16 % 4]
        bits = word >> 16 if unit % 128 >= 64 else word & 0xFFFF
        assert mask[row, unit].item() == (bits >= round(p * 2**16))


def test_streams_are_the_last_two_words_of_the_counter() -> None:
    s0, s1, row, column = torch.tensor([[0, 3, 3], [0, 0, 2**32 - 1], [4, 4, 5], [9, 70, 300]])
    mask = kept(torch.tensor([-1]), row, column, 0.5, s0, s1)
    for i in range(3):
        j = column[i].item()
        counter = (j // 128 * 16 + j % 16, row[i].item(), s0[i].item(), s1[i].item())
        word = philox_by_hand(counter, (0xFFFFFFFF,) * 2)[j // 16 % 4]
        assert mask[i].item() == ((word >> 16 if j % 128 >= 64 else word & 0xFFFF) >= 0x8000)


def test_the_mask_of_a_unit_does_not_depend_on_the_others() -> None:
    seed, some = torch.tensor([-3]), torch.tensor([0, 5, 64, 100, 128, 190])
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


def independence(a: torch.Tensor, b: torch.Tensor) -> float:
    """Chi-square of independence of two bool masks, a standard normal's square where they are independent."""
    a, b = a.double().flatten(), b.double().flatten()
    joint = ((a - a.mean()) * (b - b.mean())).mean() ** 2
    return (a.numel() * joint / (a.var(correction=0) * b.var(correction=0))).item()


def test_neighbours_are_independent() -> None:
    """In all directions in which elements share a call, a word, a counter but for one bit, or a stream."""
    column, row = torch.arange(1024)[None, :], torch.arange(300)[:, None]
    for p in (0.1, 0.5):
        mask = kept(torch.tensor([5]), row, column, p)
        halves = mask.view(300, 8, 2, 64)
        pairs = {
            "halves of a word": (halves[:, :, 0], halves[:, :, 1]),
            "words of a call": (halves[:, :, :, :-16], halves[:, :, :, 16:]),
            "counters": (mask[:, :-1], mask[:, 1:]),
            "groups": (mask[:, :-128], mask[:, 128:]),
            "rows": (mask[:-1], mask[1:]),
            "first streams": (mask, kept(torch.tensor([5]), row, column, p, torch.tensor([1]))),
            "second streams": (mask, kept(torch.tensor([5]), row, column, p, None, torch.tensor([1]))),
            "seeds": (mask, kept(torch.tensor([6]), row, column, p)),
        }
        for name, (a, b) in pairs.items():
            assert independence(a, b) < 20, f"{name}: {independence(a, b)}"  # of a square normal: 8e-6


def test_sixteen_bits_are_uniform() -> None:
    """Chi-square over 64 classes: thresholds at all multiples of 1/64."""
    column, row = torch.arange(1280)[None, :], torch.arange(200)[:, None]
    below = [(~kept(torch.tensor([3]), row, column, i / 64)).double().sum() for i in range(64)] + [column.numel() * 200]
    counts = torch.tensor(below).diff()
    expected = column.numel() * 200 / 64
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    assert 25 < chi_square < 125  # 63 degrees of freedom: 63 +- 11
