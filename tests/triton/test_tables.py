"""Tables and tiles that launches are told of, on the host."""

from __future__ import annotations

import pytest
import torch

from dmao_kernels.ops._triton import rows, tables


def test_an_upload_that_fails_leaves_no_old_table(monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded = tables.Uploaded(torch.int64, torch.device("cpu"))
    assert uploaded.tensor([1, 2]).tolist() == [1, 2]
    with monkeypatch.context() as patch:
        patch.setattr(tables, "upload", lambda values, device: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            uploaded.tensor([3, 4])
    assert uploaded.tensor([3, 4]).tolist() == [3, 4]


@pytest.mark.parametrize(("found", "lanes"), [(90, 32), ("gfx942", 64)])
@pytest.mark.parametrize("width", [64, 8192, 8193, 60_000])
def test_rows_take_no_more_threads_than_there_are(
    found: int | str, lanes: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "architecture", lambda device: found)
    for tile in (rows.NORM_TILE, rows.NORM_BACKWARD_TILE):
        height, columns, warps = rows.row_tile(width, tile, torch.device("cpu"))
        assert height * columns >= max(width, tile)
        assert 1 <= warps <= 1024 // lanes
