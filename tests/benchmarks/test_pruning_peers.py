"""The comparison with pruning libraries measures what it says, on a small model."""

import pytest
import torch

from benchmarks import pruning_peers as peers


@pytest.fixture
def small(monkeypatch):
    for name, value in {"WIDTH": 16, "HIDDEN": 64, "BLOCKS": 2, "ROWS": 32, "COMPONENTS": 16}.items():
        monkeypatch.setattr(peers, name, value)
    monkeypatch.setattr(peers, "BEFORE", 4)
    monkeypatch.setattr(peers, "AFTER", 2)


@pytest.mark.parametrize(
    ("method", "kept", "trains", "smaller"),
    [
        (peers.Ours, 1.0, True, True),
        (peers.OursAnew, 0.0, True, True),
        (peers.TorchPruning, 0.0, False, True),
        (peers.TorchPruningAnew, 0.0, True, True),
        (peers.TorchPrune, 1.0, True, False),
        (peers.RigL, 1.0, True, False),
    ],
    ids=lambda value: getattr(value, "name", None),
)
@pytest.mark.filterwarnings("ignore")
def test_what_is_measured(small, method, kept, trains, smaller):
    result = peers.measure(method)
    dense = sum(p.numel() for p in peers.new_training().model.parameters())
    assert result.moments == kept
    assert result.trains == trains
    assert (result.parameters < 0.7 * dense) == smaller
    assert all(torch.isfinite(torch.tensor(result.losses)))


def test_masks_leave_half_of_the_entries(small):
    result = peers.measure(peers.RigL)
    for block in result.training.model.blocks:
        for weight in (block.up.weight, block.down.weight):
            assert (weight != 0).float().mean().item() == pytest.approx(peers.SHARE, abs=0.02)


def test_the_page_names_every_method(small):
    results = [peers.measure(method) for method in (peers.Ours, peers.RigL)]
    page = peers.page(results, {"dense": 2.0, **{result.name: 1.0 for result in results}}, 1)
    assert all(f"| {result.name} |" in page for result in results)
    assert "(2.00 x)" in page


def test_the_page_is_written_where_it_is_asked_for(small, monkeypatch, tmp_path):
    committed = peers.TARGET.read_text(encoding="utf-8")
    monkeypatch.setattr(peers, "METHODS", (peers.Ours,))
    threads = torch.get_num_threads()
    peers.main(["--out", str(tmp_path / "page.md"), "--threads", str(threads), "--seconds", "0"])
    assert f"| {peers.Ours.name} |" in (tmp_path / "page.md").read_text(encoding="utf-8")
    assert peers.TARGET.read_text(encoding="utf-8") == committed
