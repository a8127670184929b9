"""The demo end to end: what it writes, what it repeats and what not, how it stops."""

from __future__ import annotations

import functools
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser

import pytest
from click.testing import CliRunner
from dmao.checkpoint import list_checkpoints
from dmao.cli import main
from dmao.errors import UserError
from dmao.metrics import read_json_lines
from dmao.recipes.embedded import side_by_side
from dmao.recipes.embedded.progress import NewRows, TrainingBar
from dmao.recipes.embedded.summary import identical_steps, table

from tests.cli.conftest import CORPUS, EVENT_STEP, ROOT, processes

ARMS = side_by_side.ARMS
RESULTS = {"params", "ce", "wer", "cer", "step_ms"}


@pytest.fixture
def here(monkeypatch):
    """here(*arguments) runs `dmao` in this process."""
    from dmao.data import embedded
    from dmao.recipes.embedded import demo

    monkeypatch.setattr(embedded, "prepare_embedded", functools.partial(embedded.prepare_embedded, **CORPUS))
    monkeypatch.setattr(demo, "run_demo", functools.partial(demo.run_demo, pairs=3))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "python")]))
    return lambda *arguments: CliRunner().invoke(main, arguments)


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def trained(folder):
    """What training writes, with its times."""
    paths = [path for arm in ARMS for path in list_checkpoints(folder / arm / "checkpoints")]
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in paths}


def losses(folder, arm):
    return [row["loss"] for row in read_json_lines(folder / arm / "metrics.jsonl") if row["kind"] == "train"]


def test_summary_has_the_promised_keys(demo):
    summary = summary_of(demo[0])
    assert set(summary["baseline"]) >= RESULTS
    assert set(summary["dmao"]) >= RESULTS | {"events", "component_counts"}
    assert set(summary["overhead"]) >= {"scoring_pct", "events_pct"}
    assert all(isinstance(summary[arm][key], (int, float)) for arm in ARMS for key in RESULTS)
    assert [event["step"] for event in summary["dmao"]["events"]] == [EVENT_STEP]
    assert summary["dmao"]["params"] <= summary["baseline"]["params"]


def test_both_arms_are_the_same_up_to_the_event(demo):
    folder, _ = demo
    base, ours = (losses(folder, arm) for arm in ARMS)
    assert len(base) == len(ours) == 12
    assert base[:EVENT_STEP] == ours[:EVENT_STEP]
    assert base[EVENT_STEP] != ours[EVENT_STEP]
    assert summary_of(folder)["identical_steps"] == EVENT_STEP


def test_steps_are_counted_by_their_number(tmp_path):
    rows = {"a": [(2, 1.0), (4, 0.5), (6, 0.4)], "b": [(2, 1.0), (4, 0.5), (6, 0.3)]}
    for arm, values in rows.items():
        (tmp_path / arm).mkdir()
        lines = [json.dumps({"kind": "train", "step": step, "loss": loss}) for step, loss in values]
        (tmp_path / arm / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert identical_steps({arm: tmp_path / arm for arm in rows}) == 4


def test_the_table_is_printed_and_nothing_else(demo):
    folder, finished = demo
    assert finished.stdout == f"{table(summary_of(folder))}\nreport: {folder / 'report.html'}   " + (
        f"figures: {folder / 'summary.json'}\n"
    )
    assert len(finished.stderr.splitlines()) == 3  # corpus, training, measuring; no bars off a terminal


def test_report_is_one_page(demo):
    links = []

    class Links(HTMLParser):
        def handle_starttag(self, tag, attrs):
            links.extend(v for k, v in attrs if k in ("src", "href") and v and not v.startswith(("data:", "#")))

    page = (demo[0] / "report.html").read_text()
    Links().feed(page)
    assert page.count("<svg") >= 4
    assert [link for link in links if not link.startswith("https://")] == []


def test_logs_tell_of_events_and_evaluations(demo):
    log = (demo[0] / "dmao" / "train.log").read_text()
    assert f"event 1 after step {EVENT_STEP}" in log
    assert "step 12, test: cross-entropy" in log
    assert "event" not in (demo[0] / "baseline" / "train.log").read_text()


def test_a_second_call_trains_nothing_and_reports_again(demo, here, tmp_path, demo_arguments):
    folder = tmp_path / "run"
    shutil.copytree(demo[0], folder)
    before = trained(folder)
    (folder / "summary.json").unlink()
    (folder / "report.html").unlink()
    result = here(*demo_arguments(folder), "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == summary_of(folder)
    assert trained(folder) == before
    old, new = summary_of(demo[0]), summary_of(folder)
    for arm in ARMS:
        assert {k: new[arm][k] for k in ("params", "ce", "wer", "cer")} == {
            k: old[arm][k] for k in ("params", "ce", "wer", "cer")
        }
    assert (folder / "report.html").exists()


def test_fresh_interrupted_and_resumed(demo, dmao, demo_arguments):
    """--fresh begins again; Ctrl-C stops both arms with their states saved; the same command finishes."""
    folder = dmao.cwd / "run"
    shutil.copytree(demo[0], folder)
    arguments = demo_arguments(folder, "steps=120", "checkpoint_every=1000")
    process = dmao.start(*arguments, "--fresh")
    while not all(len(losses(folder, arm)) > 14 for arm in ARMS):  # 12 are of the training that --fresh discards
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1].startswith("dmao: error: demo: interrupted; the same command resumes")
    assert shlex.split(errors.partition("continue with: ")[2]) == ["dmao", *arguments]  # without --fresh
    assert str(folder) not in processes()
    done = [len(losses(folder, arm)) for arm in ARMS]
    for arm, steps in zip(ARMS, done, strict=True):
        (path,) = list_checkpoints(folder / arm / "checkpoints")
        assert path.name.startswith(f"step-{steps:08d}-")
        assert 14 < steps <= 120
        if steps < 120:
            last_message = (folder / arm / "train.log").read_text().splitlines()[-1]
            assert last_message.endswith(f"--run-dir {folder / arm}")
    assert min(done) < 120
    dmao(*arguments)
    assert [len(losses(folder, arm)) for arm in ARMS] == [120, 120]
    assert summary_of(folder)["identical_steps"] == EVENT_STEP


def test_a_run_with_other_overrides_is_refused(demo, here, tmp_path, demo_arguments):
    folder = tmp_path / "run"
    shutil.copytree(demo[0], folder)
    before = trained(folder)
    result = here(*demo_arguments(folder, "seed=1"))
    assert result.exit_code == 2
    last = result.stderr.splitlines()[-1]
    assert last.startswith("dmao: error: demo: training of ")
    assert "was trained with another config: seed is 1, there 0" in last
    assert last.endswith("train.log)")
    assert "Traceback" not in result.stderr
    assert trained(folder) == before


def test_a_run_on_another_corpus_is_refused(demo, here, tmp_path, demo_arguments):
    folder = tmp_path / "run"
    shutil.copytree(demo[0], folder)
    (folder / "corpus").write_text("another\n")
    result = here(*demo_arguments(folder))
    assert result.exit_code == 2
    assert "was trained on another corpus" in result.stderr.splitlines()[-1]


def test_two_demos_do_not_share_a_folder(tmp_path):
    with (
        side_by_side.locked(tmp_path),
        pytest.raises(UserError, match="another demo is at work"),
        side_by_side.locked(tmp_path),
    ):
        pass
    with side_by_side.locked(tmp_path):
        pass


class Scripts:
    """Stands in for the two trainings: shell scripts."""

    def __init__(self, monkeypatch, tmp_path, **scripts):
        monkeypatch.setattr(side_by_side, "_start", self.start)
        self.folder, self.scripts = tmp_path, scripts

    def start(self, folder, config, overrides, lock):
        log = self.folder / f"{folder.name}.log"
        log.write_text("of an earlier start\n")
        with log.open("ab") as file:
            process = subprocess.Popen(["sh", "-c", self.scripts[folder.name]], stderr=file)
        return side_by_side._Arm(folder.name, process, log, len("of an earlier start\n"))

    def run(self):
        side_by_side.train_side_by_side(self.folder, self.folder / "c.yaml", [], 5, lock=0)


def test_the_failed_arm_is_named_and_not_the_one_stopped_for_it(monkeypatch, tmp_path):
    scripts = Scripts(
        monkeypatch, tmp_path, baseline="exec sleep 60", dmao="sleep 0.1; echo 'dmao: error: disk full' >&2; exit 2"
    )
    with pytest.raises(
        UserError, match=r"^demo: training of dmao failed \(exit status 2\): disk full \(log: .*dmao.log"
    ):
        scripts.run()


def test_a_killed_arm_is_not_explained_by_an_earlier_message(monkeypatch, tmp_path):
    scripts = Scripts(monkeypatch, tmp_path, baseline="kill -9 $$", dmao="exec sleep 60")
    with pytest.raises(UserError, match=r"baseline failed \(killed by SIGKILL\): no message"):
        scripts.run()


def test_sigterm_stops_the_arms_too(monkeypatch, tmp_path):
    kill = f"kill -TERM {os.getpid()}; exec sleep 60"
    scripts = Scripts(monkeypatch, tmp_path, baseline="exec sleep 60", dmao=kill)
    with pytest.raises(UserError, match="interrupted") as caught:
        scripts.run()
    assert caught.value.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def write(path, *rows, mode="w"):
    with path.open(mode) as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def train_row(step):
    return {"kind": "train", "step": step, "loss": 1 / step, "lr": 1e-3}


def test_new_rows_come_once_and_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = NewRows(path, since=time.time() - 60)
    assert list(rows.read()) == []
    write(path, train_row(1), train_row(2))
    with path.open("a") as file:
        file.write('{"kind": "tr')
    assert [row["step"] for row in rows.read()] == [1, 2]
    assert list(rows.read()) == []
    with path.open("a") as file:
        file.write('ain", "step": 3}\n')
    assert [row["step"] for row in rows.read()] == [3]


def test_rows_of_an_earlier_start_are_not_shown(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, train_row(9))
    os.utime(path, (0, 0))
    rows = NewRows(path, since=time.time() - 60)
    assert list(rows.read()) == []
    fresh = path.with_suffix(".tmp")
    write(fresh, train_row(4))
    fresh.replace(path)
    assert [row["step"] for row in rows.read()] == [4]


def test_the_clock_of_a_file_system_may_be_behind(tmp_path):
    path, since = tmp_path / "metrics.jsonl", time.time()
    write(path, train_row(4))
    os.utime(path, (since - 0.01, since - 0.01))
    assert [row["step"] for row in NewRows(path, since).read()] == [4]


@pytest.mark.parametrize("terminal", [True, False])
def test_bar(tmp_path, monkeypatch, capsys, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    bar = TrainingBar("dmao", tmp_path, steps=12, position=0)
    write(tmp_path / "metrics.jsonl", train_row(6))  # resumed
    bar.update()
    evaluation = {"kind": "eval", "split": "dev", "step": 12, "wer": 34.5}
    write(tmp_path / "metrics.jsonl", train_row(12), evaluation, mode="a")
    bar.update()
    bar.close()
    shown = capsys.readouterr().err
    if terminal:
        assert "6/12" in shown
        assert "12/12" in shown.split("\r")[-1]
        assert "dev WER=34.5%" in shown.split("\r")[-1]
    else:
        assert shown == ""
