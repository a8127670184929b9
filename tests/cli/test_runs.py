"""train, inspect, evaluate and bench on a tiny corpus, as a user calls them."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import time

import pytest
import yaml
from click.testing import CliRunner
from dmao.checkpoint import list_checkpoints
from dmao.cli import main
from dmao.evaluate import load_model
from dmao.metrics import read_json_lines

from tests.cli.conftest import EVENT_STEP, SETTINGS


def run(*arguments):
    result = CliRunner().invoke(main, list(map(str, arguments)), prog_name="dmao")
    assert result.exit_code == 0, result.output
    return result


def settings(*more):
    return [part for setting in (*SETTINGS, *more) for part in ("--set", setting)]


def steps_of(folder):
    return [row["step"] for row in read_json_lines(folder / "metrics.jsonl") if row["kind"] == "train"]


def test_inspect(demo):
    folder, _ = demo
    found = json.loads(run("inspect", folder / "dmao", "--json").stdout)
    assert found["step"] == 12
    assert [event["step"] for event in found["events"]] == [EVENT_STEP]
    counts = {module["name"]: module["components"] for module in found["modules"]}
    assert counts == json.loads((folder / "summary.json").read_text())["dmao"]["component_counts"]
    assert found["adaptable"] == sum(module["parameters"] for module in found["modules"]) < found["parameters"]
    text = run("inspect", list_checkpoints(folder / "dmao" / "checkpoints")[0]).stdout
    assert len(text.splitlines()) == 2 + len(counts) + 1
    assert text.splitlines()[-1].startswith(f"event after step {EVENT_STEP}: ")


def test_inspect_counts_what_the_model_has(demo):
    """Of the uniform baseline nothing is switched off: the figure is the number of its parameters."""
    folder, _ = demo
    found = json.loads(run("inspect", folder / "baseline", "--json").stdout)
    assert found["parameters"] == sum(p.numel() for p in load_model(folder / "baseline").parameters())
    assert found["events"] == []


def test_evaluate_finds_what_training_found(demo, corpus):
    folder, _ = demo
    result = run("evaluate", folder / "dmao", "--json", "--root", corpus)
    assert result.stderr == ""  # no decoder talks in between
    expected = json.loads((folder / "summary.json").read_text())["dmao"]
    found = json.loads(result.stdout)
    assert {key: found[key] for key in ("ce", "wer", "cer")} == {key: expected[key] for key in ("ce", "wer", "cer")}
    assert "cross-entropy" in run("evaluate", folder / "dmao", "--split", "dev").stdout


def test_evaluate_names_the_splits_there_are(demo):
    result = CliRunner().invoke(main, ["evaluate", str(demo[0] / "dmao"), "--split", "tset"])
    assert result.exit_code == 2
    assert "no split 'tset'; it has train, dev, test" in result.stderr


def test_damaged_checkpoints(demo, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(demo[0] / "dmao", folder)
    newest, *others = list_checkpoints(folder / "checkpoints")
    newest.write_bytes(newest.read_bytes()[:-100])
    result = CliRunner().invoke(main, ["inspect", str(newest)])
    assert result.exit_code == 2
    assert "is damaged" in result.stderr
    fallback = run("inspect", folder, "--json")
    assert json.loads(fallback.stdout)["step"] == 8
    assert "(warning)" in fallback.stderr
    for path in others:
        path.write_bytes(b"")
    result = CliRunner().invoke(main, ["inspect", str(folder)])
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("dmao: error: checkpoint: ")


def test_bench_prints_json(corpus, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("threads: 1\n")
    arguments = ["bench", config, *settings(f"data.root={corpus}"), "--pairs", 3]
    costs = json.loads(run(*arguments, "--json").stdout)
    assert {"scoring_pct", "events_pct", "step_ms"} <= set(costs)
    assert all(cost["low"] <= cost["median"] <= cost["high"] for cost in costs.values())


def test_interrupted_training_goes_on_with_the_command_that_it_prints(dmao, corpus, monkeypatch):
    """Also from another folder name than most: with a blank."""
    config = dmao.cwd / "config.yaml"
    config.write_text(yaml.safe_dump({"threads": 1, "data": {"root": str(corpus)}}))
    folder = dmao.cwd / "my run"
    process = dmao.start(
        "train", config, "--run-dir", "my run", *settings("steps=100", "checkpoint_every=1000"), "--baseline"
    )
    while not (folder / "metrics.jsonl").exists() or len(steps_of(folder)) < 3:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 130
    (line,) = [line for line in errors.splitlines() if line.startswith("dmao: error: ")]
    stopped = int(re.search(r"stopped at step (\d+) of 100", line)[1])
    assert 3 <= stopped < 100
    program, *arguments = shlex.split(line.partition("continue with: ")[2])
    assert program == "dmao"
    monkeypatch.chdir(dmao.cwd)
    resumed = run(*arguments)
    assert f"resuming my run at step {stopped}" in resumed.stderr
    assert resumed.stdout.startswith("100 steps, ")
    assert steps_of(folder) == list(range(1, 101))
    assert run(*arguments).stdout == resumed.stdout  # finished: says so, trains nothing


def test_uniform_and_of_other_widths_at_once_is_refused(demo, tmp_path):
    run = str(demo[0] / "dmao")
    arguments = [f"{run}/config.yaml", "--run-dir", str(tmp_path / "run"), "--baseline", "--widths-of", run]
    result = CliRunner().invoke(main, ["train", *arguments])
    assert result.exit_code == 2
    assert "--baseline is the uniform model; --widths-of is another" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("more", [["--no-resume"], ["--set", "seed=1"]])
def test_a_folder_with_another_training_is_refused(demo, more):
    folder = demo[0] / "dmao"
    before = (folder / "metrics.jsonl").read_bytes(), (folder / "config.yaml").read_bytes()
    result = CliRunner().invoke(main, ["train", str(folder / "config.yaml"), "--run-dir", str(folder), *more])
    assert result.exit_code == 2
    assert "holds a training already" in result.stderr or "was trained with another config: seed" in result.stderr
    assert ((folder / "metrics.jsonl").read_bytes(), (folder / "config.yaml").read_bytes()) == before
