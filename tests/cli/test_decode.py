"""lm, prior, tune and decode as a user calls them, on the tiny demo."""

from __future__ import annotations

import json
import shutil

import pytest
from click.testing import CliRunner
from dmao.cli import main

from tests.cli.conftest import SETTINGS


def run(*arguments, status=0):
    result = CliRunner().invoke(main, list(map(str, arguments)), prog_name="dmao")
    assert result.exit_code == status, result.output
    return result


@pytest.fixture(scope="module")
def trained(demo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("decoded") / "run"
    shutil.copytree(demo[0] / "dmao", folder)
    return folder


@pytest.fixture(scope="module")
def arpa(corpus, tmp_path_factory):
    path = tmp_path_factory.mktemp("lm") / "lm.arpa"
    found = run("lm", "--root", corpus, "--out", path)
    assert found.stdout.startswith(f"{path}: 4-gram model of ")
    return path


def test_tune_on_dev_and_decode_test(trained, arpa):
    tuned = json.loads(run("tune", trained, "--lm", arpa, "--json").stdout)
    kept = json.loads((trained / "tuned.json").read_text())
    assert tuned["scales"] == kept["search"]["scales"]
    assert kept["wer"] == tuned["wer"] == min(trial["wer"] for trial in kept["trials"])
    assert tuned["trials"] > 5
    (prior,) = (trained / "checkpoints").glob("*.prior.json")
    assert sum(json.loads(prior.read_text())["prior"]) == pytest.approx(1)

    out = run("decode", trained).stdout
    folder = trained / "decode" / "test"
    assert json.loads((folder / "search.json").read_text()) == kept["search"] | {"normalisation": "none"}
    assert f"WER {json.loads((folder / 'report.json').read_text())['wer']:.2f} %" in out
    assert {path.name for path in folder.iterdir()} == {
        "report.txt", "report.json", "alignments.txt", "search.json", "ref.stm", "ref.trn", "hyp.trn", "hyp.ctm"
    }  # fmt: skip
    again = json.loads(run("decode", trained, "--split", "dev", "--json").stdout)
    assert again["wer"] == kept["wer"]


@pytest.mark.parametrize("kind", ["greedy", "prefix"])
def test_searches_without_a_lexicon(trained, tmp_path, kind):
    (tmp_path / "hyp.ctm").write_text("of an earlier lexicon search")
    found = json.loads(run("decode", trained, "--search", kind, "--out", tmp_path, "--json").stdout)
    assert found["search"]["kind"] == kind
    assert found["words"] > 0
    assert not (tmp_path / "hyp.ctm").exists()


@pytest.mark.parametrize(
    ("kind", "idle"),
    [("greedy", "--beam"), ("greedy", "--prior-scale"), ("prefix", "--lm-scale"), ("prefix", "--word-score")],
)
def test_options_without_effect_are_refused(trained, kind, idle):
    found = run("decode", trained, "--search", kind, idle, 1, status=2)
    assert f"{idle} has no effect on the {kind} search" in found.stderr


def test_tune_tells_only_the_scales_that_the_search_uses(trained, tmp_path):
    own = shutil.copytree(trained, tmp_path / "run")
    told = run("tune", own, "--utterances", 2).stdout
    assert "lexicon search, beam 100, prior scale" in told
    assert "LM scale" not in told


def test_a_scale_of_no_model_is_refused(trained):
    assert "--lm-scale has no effect without --lm" in run("tune", trained, "--lm-scale", 1, status=2).stderr


def test_prior_of_some_batches(trained):
    assert run("prior", trained, "--batches", 1).stdout.startswith("blank 0.")


def test_mistakes_are_one_line(trained, tmp_path):
    found = run("lm", "--out", tmp_path / "x", status=2)
    assert "give TEXTS, or --root" in found.stderr
    (tmp_path / "latin").write_bytes(b"caf\xe9\n")
    found = run("lm", tmp_path / "latin", "--out", tmp_path / "x", status=2)
    assert "is not UTF-8" in found.stderr
    (tmp_path / "bad.arpa").write_text("no model")
    found = run("decode", trained, "--lm", tmp_path / "bad.arpa", status=2)
    assert "cannot read language model" in found.stderr.splitlines()[-1]


def test_a_table_of_two_arms(corpus, tmp_path, arpa):
    config = tmp_path / "config.yaml"
    config.write_text("threads: 1\n")
    changes = [part for setting in (*SETTINGS, f"data.root={corpus}") for part in ("--set", setting)]
    arms = ["--arm", "baseline", "--arm", "dmao_exact", "--seeds", 1, "--lm", arpa]
    command = ["experiment", "main", config, "--run-dir", tmp_path / "table", *changes, *arms]
    out = run(*command).stdout
    assert [line.split(" | ")[:2] for line in out.splitlines()[2:]] == [["| baseline", "1"], ["| dmao_exact", "1"]]
    found = json.loads((tmp_path / "table" / "results.json").read_text())
    assert json.loads(run(*command, "--json").stdout) == found  # all is finished: told again
    assert found["search"]["lm"] == arpa.name
    report = tmp_path / "table" / "baseline" / "seed-0" / "decode" / "test" / "report.json"
    assert found["arms"]["baseline"]["wer"] == [json.loads(report.read_text())["wer"]]
