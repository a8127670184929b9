"""The whole line on audio files, some of them too short, or with labels that do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from dmao import checkpoint
from dmao.data.corpus import Corpus
from dmao.data.labels import Labels
from dmao.data.manifests import CutSet, Span, make_cut, write_manifest
from dmao.errors import UserError
from dmao.evaluate import evaluate, evaluate_model
from dmao.metrics import read_json_lines
from dmao.recognise import Recogniser
from dmao.source import CorpusSource
from dmao.step import build_model
from dmao.trainer import train

from tests.trainer.tiny import tiny_config
from tests.trainer.tones import TEXTS, make_tones


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Each split holds one hopeless utterance of either kind."""
    return make_tones(tmp_path_factory.mktemp("corpus"), {"train": list(TEXTS), "test": list(TEXTS), "none": ["short"]})


@pytest.mark.parametrize("labels", ["characters", "phonemes", "bpe"])
def test_train_and_evaluate(corpus, tmp_path, labels):
    config = tiny_config(
        f"data={{root: {corpus}, labels: {labels}, bpe_size: 5, batch_seconds: 2.0}}", "steps=18", "eval_splits=[test]"
    )
    result = train(config, tmp_path)
    rows = [row for row in read_json_lines(tmp_path / "metrics.jsonl") if row["kind"] == "train"]
    assert len(rows) == 18
    assert all(row["loss"] is not None and row["unaligned"] == 0 for row in rows)
    scored = result.evaluations["test"]
    assert (scored["utterances"], scored["left_out"], scored["words"]) == (5, 2, 15)
    assert (scored["wer_greedy"] is None) == (labels == "phonemes")
    assert evaluate(result.checkpoint, "test").to_dict() == scored


def test_words_of_what_is_left_out_count_as_deleted(corpus):
    config = tiny_config(f"data={{root: {corpus}, batch_seconds: 2.0}}")
    source, forgetful = CorpusSource(config), CorpusSource(config)
    forgetful.left_out = lambda split: []
    model = build_model(config, len(source.labels), source.inputs)
    whole, rest = (evaluate_model(model, data, "test") for data in (source, forgetful))
    assert whole.words - rest.words == whole.deletions - rest.deletions == 9
    assert (whole.insertions, whole.substitutions) == (rest.insertions, rest.substitutions)
    assert whole.wer > rest.wer or rest.wer >= 100


def test_words_that_the_labels_cannot_spell(corpus, caplog):
    """Such utterances are not trained on; they are decoded and scored all the same."""
    config = tiny_config(f"data={{root: {corpus}, labels: phonemes, batch_seconds: 2.0}}")
    source = CorpusSource(config, Labels.phonemes({"ab": ["a", "b"]}))
    ids = [id for batch in source.train_batches(0) for id in batch.ids]
    assert ids == ["train-b"]
    assert "train-a (utterance train-a: word 'ba' is not in the lexicon)" in caplog.text
    found = evaluate_model(build_model(config, len(source.labels), source.inputs), source, "test")
    assert (found.utterances, found.words, found.labels) == (5, 15, 2 * 2)
    assert np.isfinite(found.ce)


def test_order_of_batches_depends_on_seed_and_epoch_alone(corpus):
    config = tiny_config(f"data={{root: {corpus}, batch_seconds: 1.0}}")

    def order(source, epoch, start=0):
        return [batch.ids for batch in source.train_batches(epoch, start)]

    first, second = CorpusSource(config), CorpusSource(config)
    orders = [order(first, epoch) for epoch in range(6)]
    assert orders == [order(second, epoch) for epoch in range(6)]
    assert order(second, 3, start=1) == orders[3][1:]
    assert len({str(ids) for ids in orders}) > 1


@pytest.mark.parametrize(("channels", "names"), [(1, "1"), (2, "AB"), (3, "123")])
def test_channels_of_a_recording(tmp_path, channels, names):
    corpus = Corpus(tmp_path, "array", {}, {}, {"test": {}}, "")
    place = Path("audio.wav")
    cuts = [
        make_cut(name, place, 16000, text="ab", speaker="s", language="en", span=Span("r", 0, 16000, channel, channels))
        for channel, name in enumerate(names)
    ]
    write_manifest(corpus.manifest("test"), CutSet.from_cuts(cuts))
    (tmp_path / "lexicon.json").write_text('{"ab": ["a", "b"]}')
    corpus.save()
    found = CorpusSource(tiny_config(f"data.root={tmp_path}")).segments("test")
    assert {id: segment.channel for id, segment in found.items()} == {name: name for name in names}


def test_a_corpus_that_cannot_be_used(corpus, tmp_path):
    with pytest.raises(UserError, match="run `dmao prepare` first"):
        train(tiny_config(f"data.root={tmp_path}"), tmp_path / "run")
    with pytest.raises(UserError, match="no split 'dev'"):
        train(tiny_config(f"data={{root: {corpus}, train: dev}}"), tmp_path / "run")
    with pytest.raises(UserError, match="none of 1 utterances can be used"):
        train(tiny_config(f"data={{root: {corpus}, train: none}}"), tmp_path / "run")


def test_a_training_does_not_go_on_with_another_corpus(tmp_path):
    """Its batches are not those that were counted. Other splits may come; a checkpoint from before names no data."""
    corpora = {
        "first": {"train": ["a", "b"]},
        "more": {"train": ["a", "b"], "dev": ["c"]},
        "other": {"train": ["a", "c"]},
    }
    first, more, other = (
        tiny_config(f"data.root={make_tones(tmp_path / name, splits)}", "steps=18") for name, splits in corpora.items()
    )
    run_dir, old = tmp_path / "run", tmp_path / "old"
    done = train(first, run_dir)
    assert train(more, run_dir).steps == 18
    with pytest.raises(UserError, match=rf"{run_dir} was trained on another split 'train' than .*other holds now"):
        train(other, run_dir)
    state = checkpoint.load(done.checkpoint)
    del state["data"]
    checkpoint.save(old / "checkpoints", 18, state)
    assert train(other, old).steps == 18


def test_a_corpus_of_another_sample_rate_is_refused(tmp_path):
    """Its features are of other frequencies. A checkpoint from before does not tell its rate."""
    here, other = (make_tones(tmp_path / name, {"train": ["a", "b"], "test": ["a"]}) for name in ("here", "other"))
    stamp = json.loads((other / "corpus.json").read_text())
    (other / "corpus.json").write_text(json.dumps({**stamp, "sample_rate": 8000}))
    done = train(tiny_config(f"data.root={here}", "steps=18"), tmp_path / "run")
    said = "was trained on audio of 16000 Hz, got a corpus of 8000 Hz"
    assert evaluate(done.checkpoint, "test", root=str(here)).words == 2
    with pytest.raises(UserError, match=said):
        evaluate(done.checkpoint, "test", root=str(other))
    with pytest.raises(UserError, match=said):
        Recogniser(done.checkpoint, root=str(other))
    with pytest.raises(UserError, match=said):
        train(tiny_config(f"data.root={other}", "steps=18"), tmp_path / "run")
    state = checkpoint.load(done.checkpoint)
    del state["sample_rate"]
    old = checkpoint.save(tmp_path / "old" / "checkpoints", 18, state)
    assert evaluate(old, "test", root=str(other)).words == 2


def test_the_first_epochs_may_begin_with_short_utterances(corpus):
    config = tiny_config(f"data={{root: {corpus}, batch_seconds: 1.0, shortest_first: 2}}")
    source = CorpusSource(config)
    lengths = [[int(batch.feature_lengths.max()) for batch in source.train_batches(epoch)] for epoch in range(12)]
    assert all(epoch == sorted(epoch) for epoch in lengths[:2])
    assert any(epoch != sorted(epoch) for epoch in lengths[2:])
