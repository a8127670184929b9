"""From a checkpoint to scored words: times, kept priors, tuned scales."""

from __future__ import annotations

import dataclasses
import gzip
import json
import shutil

import numpy as np
import pytest
from dmao import checkpoint
from dmao.data.labels import BLANK, Labels
from dmao.decode import LexiconDecoder, Scales, write_arpa
from dmao.errors import UserError
from dmao.recognise import Heard, Recogniser, Search, decode
from dmao.scoring import ErrorCount, Normaliser
from dmao.trainer import train
from dmao.tune import _spread, descend, tune

from tests.trainer.tiny import WORDS, TinySource, tiny_config
from tests.trainer.tones import make_tones

LEXICON = {"cab": ["k", "æ", "b"], "a": ["ə"]}


@pytest.mark.parametrize("labels", [Labels.characters(["cab a"]), Labels.phonemes(LEXICON)], ids=["letters", "phones"])
def test_times_of_words(labels):
    cab, a = labels.spellings("cab")[0], labels.spellings("a")[0]
    between = [BLANK] if labels.boundary is None else [labels.boundary]
    path = [BLANK, BLANK, *[cab[0]] * 2, cab[1], *[cab[2]] * 2, *between, BLANK, *[a[0]] * 3, BLANK]
    frames = np.full((len(path), len(labels)), -20.0)
    frames[np.arange(len(path)), path] = -0.01
    (first, begin, end), second = LexiconDecoder(labels, ["cab", "a"]).decode_words(frames)
    assert (first, begin) == ("cab", 2)
    assert end in (7, 8)
    assert second[:2] == ("a", 9)
    assert second[2] in (12, 13)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    source = TinySource(utterances=24, labels=Labels.phonemes({word: list(word) for word in WORDS}))
    train(tiny_config("steps=60", "learning_rate.peak=2e-2").baseline(), folder, source)
    write_arpa([" ".join(WORDS), "ab ba ab", "dad bad"], folder / "lm.arpa", order=4)
    return Recogniser(folder, source)


def test_prior_is_estimated_once_and_kept(run):
    prior = run.prior()
    assert prior.shape == (len(run.source.labels),)
    assert prior.sum() == pytest.approx(1)
    path = run.checkpoint.with_suffix(".prior.json")
    kept = json.loads(path.read_text())
    assert kept["split"] == "train"
    assert kept["frames"] == sum(len(h.frames) for h in run.hear("train"))
    path.write_text(json.dumps({**kept, "prior": [1.0] * len(prior)}))
    assert (run.prior() == 1).all()
    path.unlink()
    np.testing.assert_array_equal(run.prior(), prior)


def test_prior_of_some_batches_is_not_of_the_shortest(run, monkeypatch):
    data = dataclasses.replace(run.config.data, shortest_first=2)
    monkeypatch.setattr(run, "config", dataclasses.replace(run.config, data=data))
    epochs, batches = [], run.source.train_batches
    monkeypatch.setattr(run.source, "train_batches", lambda epoch: (epochs.append(epoch), batches(epoch))[1])
    run.estimate_prior(1, keep=False)
    assert epochs == [2]


def test_the_prior_of_another_corpus_is_not_kept(tmp_path, caplog):
    """A corpus that has moved is known by what it holds; where a checkpoint is older than that, by its root."""
    own, other = (make_tones(tmp_path / name, {"train": names}) for name, names in (("own", "ab"), ("other", "ac")))
    moved = shutil.copytree(own, tmp_path / "moved")
    settings = ("steps=2", "eval_splits=[]", "grow_and_drop.schedule=null")
    made = train(tiny_config(f"data={{root: {own}, batch_seconds: 2.0}}", *settings), tmp_path / "run")
    state = checkpoint.load(made.checkpoint)
    del state["data"]
    older = checkpoint.save(tmp_path / "older" / "checkpoints", 2, state)
    for path, strange, known in ((made.checkpoint, other, moved), (older, moved, own)):
        caplog.clear()
        Recogniser(path, root=str(strange)).prior()
        assert f"{strange} may not be what the model was trained on" in caplog.text
        assert not path.with_suffix(".prior.json").exists()
        Recogniser(path, root=str(known)).prior()
        assert path.with_suffix(".prior.json").exists()


def test_decode_writes_a_report(run, tmp_path):
    report = decode(run, "test", Search(lm=str(run.folder / "lm.arpa")), out=tmp_path)
    assert {u.speaker for u in report.utterances} == {"speaker-0", "speaker-1"}
    assert report.total.reference == sum(1 + i % 3 for i in range(24))
    assert report.total.percent < 60  # it has learnt something
    assert (tmp_path / "ref.stm").read_text().startswith("tiny 1 speaker-0 0.000 9.000 ")
    assert "4-gram" not in report.title
    assert "lm.arpa, beam 100, LM scale 0.9, prior scale 0.3, word score 0" in report.title


def test_words_that_do_not_count_are_not_in_files_for_sclite(run, tmp_path):
    reports = {"all": decode(run, "test", Search(), out=tmp_path / "all")}
    heard = (tmp_path / "all" / "hyp.trn").read_text().split()
    noise = next(word for word in WORDS if word in heard)
    reports["some"] = decode(run, "test", Search(), Normaliser(drop=[noise]), tmp_path / "some")
    for name in ("hyp.trn", "hyp.ctm", "ref.trn", "ref.stm"):
        whole, rest = ((tmp_path / folder / name).read_text().split() for folder in reports)
        assert noise in whole
        assert noise not in rest
        assert {word for word in whole if word in WORDS} == {noise, *(word for word in rest if word in WORDS)}
    said = [
        sum(noise == pair.reference for u in report.utterances for pair in u.alignment.pairs)
        for report in reports.values()
    ]
    assert said[0] > said[1] == 0


@pytest.mark.parametrize(
    ("search", "said"),
    [
        (Search("greedy"), "greedy search"),
        (Search("prefix", beam=7), "prefix search, beam 7, prior scale 0.3"),
        (Search(), "lexicon search, beam 100, prior scale 0.3, word score 0"),
    ],
)
def test_a_report_names_what_its_search_used(tmp_path, search, said):
    source = TinySource(utterances=3)
    train(tiny_config("steps=2", "grow_and_drop.schedule=null"), tmp_path, source)
    assert decode(Recogniser(tmp_path, source), "test", search).title.endswith(f".pt, test: {said}")


@pytest.mark.parametrize("work", [decode, tune])
def test_a_missing_split_is_told_before_a_prior_is_estimated(run, monkeypatch, work):
    def missing(split):
        raise UserError(f"no split {split}")

    monkeypatch.setattr(run.source, "left_out", missing)
    monkeypatch.setattr(run.source, "segments", missing)
    monkeypatch.setattr(run, "prior", lambda: pytest.fail("it was estimated"))
    with pytest.raises(UserError, match="no split tset"):
        work(run, "tset", Search())


def test_phonemes_alone_are_no_words(run, tmp_path):
    for kind in ("greedy", "prefix"):
        with pytest.raises(UserError, match=f"{kind} search gives phonemes, not words"):
            decode(run, "test", Search(kind), out=tmp_path)
        with pytest.raises(UserError, match="has no scales"):
            tune(run, "test", Search(kind))


def test_tuned_scales_belong_to_a_checkpoint(run):
    assert run.tuned() is None
    found = tune(run, "dev", Search(), utterances=10)
    kept = json.loads((run.folder / "tuned.json").read_text())
    assert (kept["utterances"], kept["split"]) == (10, "dev")
    assert run.tuned() == found.search
    assert found.count.errors == min(trial.count.errors for trial in found.trials)
    assert all(trial.scales.lm == Scales().lm for trial in found.trials)  # without a model it has nothing to scale
    whole = tune(run, "dev", Search())
    assert decode(run, "dev", whole.search).total.errors == whole.count.errors
    (run.folder / "tuned.json").write_text(json.dumps({**kept, "checkpoint": "another"}))
    assert run.tuned() is None


def test_what_is_not_tuned_on_leaves_the_memory():
    batch = np.zeros((10, 5, 3), np.float32)
    taken = list(_spread((Heard(str(i), "", frames[:4]) for i, frames in enumerate(batch)), 10, 3))
    assert [one.id for one in taken] == ["0", "3", "6"]
    assert not any(np.shares_memory(one.frames, batch) for one in taken)


def test_tuning_scores_against_the_marked_reference(run, monkeypatch):
    """A reference that allows anything at all leaves no errors but insertions."""
    segments = run.source.segments("dev")
    free = {id: dataclasses.replace(s, reference=f"{{ {' / '.join(WORDS)} / @ }}") for id, s in segments.items()}
    monkeypatch.setattr(run.source, "segments", lambda split: free)
    found = tune(run, "dev", Search(), utterances=6)
    assert found.count.substitutions == found.count.deletions == 0


def test_descent_finds_the_lowest_point():
    def bowl(s):
        return ErrorCount(
            substitutions=round(100 * ((s.lm - 1.6) ** 2 + (s.prior - 0.1) ** 2 + 0.1 * (s.word + 1) ** 2))
        )

    trials = descend(Scales(), bowl)
    best = min(trials, key=lambda trial: trial.count.errors)
    assert abs(best.scales.lm - 1.6) <= 0.1
    assert abs(best.scales.prior - 0.1) <= 0.1
    assert abs(best.scales.word + 1) <= 0.5
    assert len({trial.scales for trial in trials}) == len(trials) < 80
    assert all(trial.scales.lm >= 0 and trial.scales.prior >= 0 for trial in trials)


@pytest.mark.parametrize(
    "content", ["{", "[]", "[" * 100_000, '{"prior": "x"}', '{"checkpoint": "x", "search": {"beam": 0}}']
)
def test_what_strangers_left_beside_a_checkpoint(run, content):
    prior, tuned = run.checkpoint.with_suffix(".prior.json"), run.folder / "tuned.json"
    before = {path: path.read_bytes() for path in (prior, tuned) if path.exists()}
    try:
        for path, read in ((prior, run.prior), (tuned, run.tuned)):
            path.write_text(content)
            with pytest.raises(UserError, match=f"cannot read .*{path.name}: .*; delete it, or make it anew"):
                read()
    finally:
        for path in (prior, tuned):
            path.unlink()
        for path, kept in before.items():
            path.write_bytes(kept)


def test_references_are_looked_at_before_the_search(tmp_path, monkeypatch):
    corpus = make_tones(tmp_path / "corpus", {"train": ["a", "b"], "test": ["a"]})
    done = train(tiny_config(f"data.root={corpus}", "steps=18"), tmp_path / "run")
    manifest = corpus / "manifests" / "test.jsonl.gz"
    manifest.write_bytes(gzip.compress(gzip.decompress(manifest.read_bytes()).replace(b'"ab ba"', b'"{ ab"')))
    recogniser = Recogniser(done.checkpoint)
    monkeypatch.setattr(recogniser, "hear", lambda split: pytest.fail("the search has begun"))
    for search in (decode, tune):
        args = ("test", Search())
        with pytest.raises(UserError, match=r"^utterance test-a: score: the braces of '{ ab' do not pair$"):
            search(recogniser, *args)
