import json
import math

import pytest
from dmao.errors import UserError
from dmao.metrics import JsonLines, Recorder, is_evaluation, read_json_lines


def test_rows_behind_the_checkpoint_go_on_resume(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = JsonLines(path)
    for step in range(1, 6):
        file.write({"step": step})
    file.close()
    with path.open("a") as raw:
        raw.write('{"step": 6, "loss"')  # a kill in the middle of a row
    resumed = JsonLines(path, resume_step=3)
    resumed.write({"step": 4, "again": True})
    resumed.close()
    assert list(read_json_lines(path)) == [{"step": 1}, {"step": 2}, {"step": 3}, {"step": 4, "again": True}]


def test_a_fresh_run_starts_empty(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    JsonLines(tmp_path / "metrics.jsonl").close()
    assert list(read_json_lines(tmp_path / "metrics.jsonl")) == []
    assert list(read_json_lines(tmp_path / "missing.jsonl")) == []


def test_damaged_lines_are_passed_over(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n5\nnull\n{}\ngarbage\n{"step": 2}\n{"step": 3}\n{"st')
    JsonLines(path, resume_step=2).close()
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_nan_becomes_null(tmp_path):
    file = JsonLines(tmp_path / "metrics.jsonl")
    file.write({"step": 1, "loss": math.nan, "scores": {"a": [1.0, math.inf]}})
    file.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "step": 1,
        "loss": None,
        "scores": {"a": [1.0, None]},
    }


def test_tensorboard_gets_the_same_numbers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recorder = Recorder(tmp_path)
    for step in (1, 2, 3):
        recorder.train(step, loss=float(step))
    recorder.close()
    resumed = Recorder(tmp_path, resume_step=2)
    resumed.train(3, loss=30.0)
    resumed.evaluation(3, "test", wer=12.5)
    resumed.health(3, {"a": {"input": [0.5], "output": [1.0]}})
    resumed.close()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(e.step, e.value) for e in board.Scalars("train/loss")] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert board.Scalars("test/wer")[0].value == 12.5
    assert board.Scalars("structure/copy_cosine")[0].value == 0.75


def test_who_watches_sees_every_row_at_once(tmp_path):
    file = JsonLines(tmp_path / "metrics.jsonl")
    file.write({"step": 1})
    assert list(read_json_lines(tmp_path / "metrics.jsonl")) == [{"step": 1}]
    file.close()


def test_a_folder_that_is_moved_is_told(tmp_path):
    (tmp_path / "run").mkdir()
    file = JsonLines(tmp_path / "run" / "metrics.jsonl")
    file.write({"step": 1})
    file.flush()
    (tmp_path / "run").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"metrics\.jsonl is gone: the run's folder was moved or removed"):
        file.flush()
    assert [row["step"] for row in read_json_lines(tmp_path / "moved" / "metrics.jsonl")] == [1]


def test_what_an_evaluation_is():
    good = {"kind": "eval", "step": 1, "split": "dev", "ce": None, "cer": 1.0, "wer": 2}
    assert is_evaluation(good)
    for wrong in ({"kind": "train"}, {"split": ["dev"]}, {"ce": "abc"}, {"wer": None}):
        assert not is_evaluation(good | wrong)
