import os

import pytest
import torch
from dmao import checkpoint
from dmao.checkpoint import CheckpointError
from dmao.errors import UserError


def _state(value: float):
    return {"model": {"w": torch.full((100,), value)}, "events": [{"step": 1, "copies": {"a": [(0, 1)]}}]}


def test_round_trip_and_plain_torch_load(tmp_path):
    path = checkpoint.save(tmp_path, 12, _state(1.5))
    for state in (checkpoint.load(path), torch.load(path, weights_only=True)):
        assert state["step"] == 12
        assert state["events"] == _state(0)["events"]
        assert torch.equal(state["model"]["w"], torch.full((100,), 1.5))


def test_keeps_the_last_two_and_no_leftovers(tmp_path):
    (tmp_path / "writing.partial").write_bytes(b"a write that was killed")
    paths = [checkpoint.save(tmp_path, step, _state(step)) for step in (1, 2, 3)]
    assert sorted(tmp_path.iterdir()) == paths[1:]
    assert checkpoint.list_checkpoints(tmp_path) == paths[:0:-1]


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "extend"])
def test_falls_back_to_the_one_before(tmp_path, damage, caplog):
    good = checkpoint.save(tmp_path, 1, _state(1))
    bad = checkpoint.save(tmp_path, 2, _state(2))
    _damage(bad, damage)
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(bad)
    path, state = checkpoint.load_latest(tmp_path)
    assert path == good
    assert state["step"] == 1
    assert len(caplog.records) == 1
    assert bad.name in caplog.text
    later = checkpoint.save(tmp_path, 2, _state(3))  # the resumed run gets there again: the damaged file goes
    assert checkpoint.list_checkpoints(tmp_path) == [later, good]


def test_what_a_kill_has_left_is_tidied(tmp_path):
    paths = [checkpoint.save(tmp_path, step, _state(step), keep=9) for step in (1, 2, 3, 4)]
    (tmp_path / "writing.partial").write_bytes(b"a write that was killed")
    _damage(paths[3], "flip")
    newest, _ = checkpoint.load_latest(tmp_path)
    checkpoint.tidy(tmp_path, newest)
    assert sorted(tmp_path.iterdir()) == paths[1:]  # a damaged one stays until it is written anew
    checkpoint.tidy(tmp_path / "nowhere", None)


def test_a_damaged_future_does_not_push_out_good_ones(tmp_path):
    good = checkpoint.save(tmp_path, 10, _state(1))
    _damage(checkpoint.save(tmp_path, 20, _state(2)), "flip")
    newer = checkpoint.save(tmp_path, 15, _state(3))
    assert checkpoint.list_checkpoints(tmp_path) == [newer, good]


def test_none_usable(tmp_path):
    assert checkpoint.load_latest(tmp_path) is None
    assert checkpoint.load_latest(tmp_path / "nowhere") is None
    for step in (1, 2):
        _damage(checkpoint.save(tmp_path, step, _state(step)), "truncate")
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints"):
        checkpoint.load_latest(tmp_path)


def test_files_that_are_no_checkpoint(tmp_path):
    (tmp_path / "renamed.pt").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.load(tmp_path / "renamed.pt")
    torch.save({"format": 99}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="must have format 1, got 99"):
        checkpoint.load(tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="no such file"):
        checkpoint.load(tmp_path / "missing.pt")


def test_runs_no_code_from_the_file(tmp_path):
    torch.save({"format": 1, "payload": _Evil(tmp_path / "ran")}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.load(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("numbers", [10, 1_000_000])
def test_a_full_disk_leaves_what_was_there(tmp_path, numbers):
    good = checkpoint.save(tmp_path, 1, _state(1))
    (tmp_path / "writing.partial").symlink_to("/dev/full")
    with pytest.raises(UserError, match=rf"cannot write {tmp_path}: No space left on device; make room, then"):
        checkpoint.save(tmp_path, 2, {"w": torch.zeros(numbers)})
    assert list(tmp_path.iterdir()) == [good]


class _Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def _damage(path, how):
    content = path.read_bytes()
    middle = len(content) // 2
    damaged = {
        "truncate": content[:middle],
        "flip": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "empty": b"",
        "extend": content + b"\0",
    }
    path.write_bytes(damaged[how])
