"""Kernels are found again without Triton's look at every argument, and only where Triton would find the same one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import triton.language as tl

from dmao_kernels.ops._triton.launch import Kernel, kernel
from dmao_kernels.testing.mock_driver import Launch, mock_gpu


@kernel(varying=["rows"])
def _scale(x, y, rows, stride, factor, WIDTH: tl.constexpr):
    at = tl.program_id(0) * stride + tl.arange(0, WIDTH)
    tl.store(y + at, tl.load(x + at, mask=at < rows * stride, other=0.0) * factor)


@pytest.fixture
def launches() -> Iterator[list[Launch]]:
    _scale._compiled.clear()
    with mock_gpu(90) as launches:
        yield launches


X = torch.empty(4096, dtype=torch.bfloat16)


def _launch(x: torch.Tensor = X, rows: int = 8, stride: int = 64, factor: float = 2.0, width: int = 64, **options: int):
    _scale[(4,)](x, X, rows, stride, factor, width, **options)


def test_a_kernel_is_found_again(launches: list[Launch], monkeypatch: pytest.MonkeyPatch) -> None:
    _launch()
    monkeypatch.setattr(_scale, "_jit", None)  # Triton is not asked again
    _launch()
    _launch(rows=9)
    _scale[(4, 2)](X, X, rows=8, stride=64, factor=2.0, WIDTH=64)
    assert [launch.grid for launch in launches] == [(4, 1, 1), (4, 1, 1), (4, 1, 1), (4, 2, 1)]
    assert len({launch.metadata.hash for launch in launches}) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"x": X[1:]},  # not aligned
        {"x": torch.empty(4096)},
        {"rows": 2**40},
        {"stride": 1},
        {"stride": 63},
        {"stride": 2**40},
        {"width": 32},
        {"num_warps": 8},
    ],
    ids=["alignment", "dtype", "64 bits", "one", "divisibility", "64 bits of a stride", "constant", "option"],
)
def test_what_triton_compiles_anew_is_not_mixed_up(launches: list[Launch], other: dict) -> None:
    _launch()
    _launch(**other)
    _launch()
    _launch(**other)
    first, second, third, fourth = (launch.metadata.hash for launch in launches)
    assert first == third != second == fourth


def test_other_numbers_share_a_kernel(launches: list[Launch]) -> None:
    for stride, factor in ((64, 2.0), (128, 3.0)):
        _launch(stride=stride, factor=factor)
    assert len({launch.metadata.hash for launch in launches}) == 1
    assert len(_scale._compiled) == 1


def test_every_gpu_has_its_own() -> None:
    hashes = []
    for arch in (90, 80, 90):
        with mock_gpu(arch) as launches:
            _launch()
        hashes.append(launches[0].metadata.hash)
    assert hashes[0] == hashes[2] != hashes[1]


def test_amd_has_kernels_of_its_own_for_tensors_beyond_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmao_kernels.ops._triton.launch._AMD", True)
    large = torch.empty(2**30, dtype=torch.bfloat16)  # of which no page is touched
    _scale._compiled.clear()
    with mock_gpu("gfx942") as launches:
        for x in (X, large, X, large[:4096]):
            _launch(x)
    first, second, third, fourth = (launch.metadata.hash for launch in launches)
    assert first == third != second == fourth


def test_what_is_remembered_has_a_bound(launches: list[Launch], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmao_kernels.ops._triton.launch._MOST", 2)
    for width in (64, 128, 256, 64):
        _launch(width=width)
    assert len(launches) == 4
    assert len(_scale._compiled) <= 2


def test_a_missing_argument_is_an_error(launches: list[Launch]) -> None:
    with pytest.raises(KeyError, match="WIDTH"):
        _scale[(4,)](X, X, 8, 64, 2.0)
    assert isinstance(_scale, Kernel)
