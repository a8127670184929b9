"""From each corpus's own format to a word error rate: prepare, train, decode, score."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from click.testing import CliRunner
from dmao.cli import main
from dmao.config import load_config
from dmao.data.throughput import measure_loader
from dmao.errors import UserError
from dmao.evaluate import evaluate
from dmao.metrics import read_json_lines
from dmao.overhead import measure_overhead
from dmao.recipes import configs
from dmao.source import CorpusSource
from dmao.trainer import train

from tests.recipes import corpora
from tests.recipes.conftest import NAMES

# The recipes as they are, but for the size of everything.
SMALL = [
    "epochs=3",
    "threads=1",
    "data.batch_seconds=6",
    "data.workers=0",
    "model={width: 16, blocks: 2, head_dim: 4, kernel: 3, front_channels: [2, 4, 4, 2]}",
    "grow_and_drop.observe_every=1",
    "grow_and_drop.schedule={start: 0.5, events: 1, fraction: 0.4}",
    "log_every=1",
    "log_scores_every=2",
    "tensorboard=false",
]
EVALUATED = {"librispeech": ["dev-clean-2"], "tedlium2": ["dev", "test"], "switchboard": ["dev", "hub5-00-swbd"]}
WORDS = {"dev-clean-2": 4, "dev": 4, "test": 4, "hub5-00-swbd": 4}


def small(name, root, *overrides, block="conformer"):
    splits = f"eval_splits={EVALUATED[name]}".replace("'", "")
    path = configs()[f"{name}/{block}_256"]
    return load_config(path, [*SMALL, f"data.root={root}", splits, f"model.block={block}", *overrides])


def dmao(*arguments):
    """What the command prints."""
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize(("name", "block"), [(name, "conformer") for name in NAMES] + [("tedlium2", "e_branchformer")])
def test_train_decode_and_score(prepared, tmp_path, name, block):
    root = prepared(name).root
    config = small(name, root, block=block)
    result = train(config, tmp_path / "run")
    per_epoch = CorpusSource(config).batches_per_epoch()
    assert result.steps == 3 * per_epoch > 3
    rows = [row for row in read_json_lines(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "train"]
    assert len(rows) == result.steps
    assert all(row["loss"] is not None and row["unaligned"] == 0 for row in rows)
    assert len(result.events) == 1
    assert set(result.evaluations) == set(EVALUATED[name])
    for split, found in result.evaluations.items():
        assert (found["utterances"], found["left_out"]) == (WORDS[split], 0)
        assert found["words"] == sum(len(cut.supervisions[0].text.split()) for cut in prepared(name).cuts(split))
        assert evaluate(result.checkpoint, split).to_dict() == found


def test_on_the_command_line(sources, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = sources("switchboard")
    said = dmao(
        *("prepare", "switchboard", "--source", source / "swb1", "--hub5-00", source / "hub5e_00"),
        *("--dev-utterances", 4, "--jobs", 1),
    )
    assert said.startswith("switchboard: train 12 utterances")
    settings = [*SMALL, "epochs=1", "eval_splits=[hub5-00]"]
    changes = [part for setting in settings for part in ("--set", setting)]
    said = dmao("train", "switchboard/conformer_384", "--run-dir", "run", "--baseline", *changes)
    assert "hub5-00: cross-entropy" in said
    assert "8 utterances" in dmao("evaluate", "run", "--split", "hub5-00")
    assert "1 workers" not in dmao("bench-loader", "run/config.yaml", "--workers", 0, "--batches", 1)
    table = dmao("memory", "run/config.yaml", "--outputs", 30).splitlines()
    assert len(table) == 3
    assert "run/config" in table[2]


def test_decoding_with_language_model_prior_and_tuned_scales(prepared, tmp_path):
    root = prepared("switchboard").root
    run = tmp_path / "run"
    train(small("switchboard", root, "eval_splits=[]"), run)
    lm, glm = tmp_path / "lm.arpa", root / "scoring" / "hub5-00.glm"
    dmao("lm", "--root", root, "--order", 2, "--out", lm)
    dmao("tune", run, "--split", "dev", "--lm", lm, "--beam", 5)
    said = dmao("decode", run, "--split", "hub5-00", "--glm", glm, "--drop", "[noise]", "--drop", "[laughter]")
    assert "WER" in said
    folder = run / "decode" / "hub5-00"
    report = json.loads((folder / "report.json").read_text())
    words = sum(len(corpora.sentence(number).split()) for number in range(100, 108))
    # as sclite counts: an optional word is a word of the reference
    assert report["words"] == words + 16
    places = {tuple(line.split()[:2]) for line in (folder / "ref.stm").read_text().splitlines()}
    official = (root / "scoring" / "hub5-00.stm").read_text().splitlines()[1:]
    assert places == {tuple(line.split()[:2]) for line in official}


def test_a_reference_without_words_is_decoded_and_scored(breakable, tmp_path):
    source, prepare = breakable("switchboard")
    (stm,) = source.rglob("*.stm")
    *lines, last = stm.read_text().splitlines()
    stm.write_text("\n".join([*lines, f"{last[: last.index('(')]} (%hesitation)"]) + "\n")
    corpus = prepare()
    assert corpus.splits["hub5-00"]["utterances"] == 8
    assert list(corpus.cuts("hub5-00"))[-1].supervisions[0].text == ""
    run = tmp_path / "run"
    train(small("switchboard", corpus.root, "eval_splits=[hub5-00]", "epochs=1"), run)
    assert evaluate(run, "hub5-00").utterances == 8
    dmao("decode", run, "--split", "hub5-00", "--beam", 5)
    report = json.loads((run / "decode" / "hub5-00" / "report.json").read_text())
    assert len(report["utterances"]) == 8


def test_a_gpu_that_is_not_there(prepared, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(UserError, match="device is cuda, but PyTorch finds no GPU"):
        train(small("tedlium2", prepared("tedlium2").root, "device=cuda"), tmp_path)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu(prepared, tmp_path):
    config = small("tedlium2", prepared("tedlium2").root, "device=cuda", "precision=bf16")
    result = train(config, tmp_path)
    assert len(result.events) == 1
    assert set(result.evaluations) == {"dev", "test"}
    assert train(config, tmp_path).evaluations == result.evaluations


def test_problems_on_the_command_line(breakable, tmp_path):
    source, _ = breakable("tedlium2")
    next((source / "test" / "sph").iterdir()).unlink()
    (source / "test" / "stm" / "x.stm").write_text("DorA_2012 1 DorA_2012 0 end\n")
    arguments = ["prepare", "tedlium2", "--source", str(source), "--root", str(tmp_path / "root"), "--jobs", "1"]
    result = CliRunner().invoke(main, arguments, prog_name="dmao")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("dmao: error: 2 problems in the source: 1 bad line (")


def test_a_resumed_run_keeps_its_steps(prepared, tmp_path):
    root = prepared("tedlium2").root
    first = train(small("tedlium2", root), tmp_path)
    again = train(small("tedlium2", root, "data.workers=1"), tmp_path)
    assert (again.steps, again.evaluations) == (first.steps, first.evaluations)
    with pytest.raises(UserError, match="epochs is 4, there 3"):
        train(small("tedlium2", root, "epochs=4"), tmp_path)


def test_overhead_is_that_of_all_epochs(prepared):
    config = small("tedlium2", prepared("tedlium2").root)
    per_epoch = CorpusSource(config).batches_per_epoch()
    found = measure_overhead(config, pairs=1, events=1)
    expected = 100 * found.event_ms.median / (3 * per_epoch * found.step_ms.median)
    assert found.events_pct.median == pytest.approx(expected)


def test_splits_to_evaluate_are_missed_before_the_training(prepared, tmp_path):
    with pytest.raises(UserError, match="no split 'rt03s'; it has train, dev, hub5-00"):
        train(small("switchboard", prepared("switchboard").root, "eval_splits=[rt03s]"), tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_workers_read_the_same_batches(prepared):
    def batches(workers):
        config = small("librispeech", prepared("librispeech").root, f"data.workers={workers}")
        return list(CorpusSource(config).train_batches(epoch=1))

    alone, ahead = batches(0), batches(2)
    assert [batch.ids for batch in alone] == [batch.ids for batch in ahead]
    assert all((a.features == b.features).all() for a, b in zip(alone, ahead, strict=True))


def test_errors_of_workers_are_one_line(prepared, tmp_path):
    shutil.copytree(prepared("librispeech").root, tmp_path / "root")
    shutil.rmtree(next((tmp_path / "root" / "features").glob("train-*")))
    config = small("librispeech", tmp_path / "root", "data.workers=1")
    with pytest.raises(UserError, match=r"^cannot read features of utterance .*, then prepare again$"):
        list(CorpusSource(config).train_batches(epoch=0))


def test_throughput_counts_what_is_read(prepared):
    config = small("librispeech", prepared("librispeech").root, "data.batch_seconds=3")
    (found,) = measure_loader(config, [0], batches=100)
    plan = list(CorpusSource(config).train_batches(epoch=0))
    assert found.batches == len(plan) - 1
    assert found.utterances == sum(len(batch.ids) for batch in plan[1:])
    assert found.utterances_per_second == found.utterances / found.seconds
