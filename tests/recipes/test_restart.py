"""A preparation that is interrupted in any stage goes on behind the last full one and ends the same."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest
from dmao.data import features
from dmao.data.corpus import Corpus
from dmao.data.stages import Stages
from dmao.errors import UserError

from tests.recipes.conftest import NAMES, prepare

STAGES = ("manifests", "checks", "text", "lexicon", "features")


def contents(root):
    """All files that a preparation leaves, manifests unpacked (gzip writes the time)."""
    files = {path.relative_to(root): path for path in root.rglob("*") if path.is_file() and path.name != ".lock"}
    return {
        name: gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        for name, path in files.items()
    }


class Interrupted(Exception):
    pass


def watch(monkeypatch, stop_in=None):
    """The names of stages that are made; `stop_in` is interrupted when it has done its work, before it is kept."""
    made = []
    run = Stages.run

    def watched(self, name, make):
        def remember():
            made.append(name)
            value = make()
            if name == stop_in:
                raise Interrupted(name)
            return value

        return run(self, name, remember)

    monkeypatch.setattr(Stages, "run", watched)
    return made


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", NAMES)
def test_interrupted_in_a_stage(prepared, sources, tmp_path, monkeypatch, name, stage):
    with monkeypatch.context() as patch:
        watch(patch, stop_in=stage)
        with pytest.raises(Interrupted):
            prepare(name, sources(name), tmp_path)
    assert not (tmp_path / "corpus.json").exists()
    with monkeypatch.context() as patch:
        made = watch(patch)
        prepare(name, sources(name), tmp_path)
    assert tuple(made) == STAGES[STAGES.index(stage) :]
    assert contents(tmp_path) == contents(prepared(name).root)


def test_features_that_are_there_are_not_computed_again(sources, tmp_path, monkeypatch):
    compute, computed = features._write, []

    def write(path, *arguments):
        if len(computed) == 5:
            raise Interrupted
        computed.append(path)
        compute(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(features, "_write", write)
        with pytest.raises(Interrupted):
            prepare("librispeech", sources("librispeech"), tmp_path)
    again = []
    monkeypatch.setattr(features, "_write", lambda path, *rest: (again.append(path), compute(path, *rest)))
    prepare("librispeech", sources("librispeech"), tmp_path)
    assert len(again) == 12 - 5
    assert set(again).isdisjoint(computed)


@pytest.mark.parametrize(
    ("file", "old", "new", "changed"),
    [
        ("sw2005B-ms98-a-trans.text", b"<b_aside>", b"hello", {"train"}),
        ("hub5.english.stm", b" (wh-)", b" (who-)", {"hub5-00", "hub5-00-swbd", "hub5-00-callhome"}),  # reference alone
    ],
)
def test_other_texts_are_another_corpus_with_the_same_features(
    breakable, tmp_path, monkeypatch, file, old, new, changed
):
    source, prepare = breakable("switchboard")
    before = prepare()
    path = next(source.rglob(file))
    path.write_bytes(path.read_bytes().replace(old, new))
    (tmp_path / "root" / "corpus.json").unlink()
    monkeypatch.setattr(features, "_write", lambda path, *rest: pytest.fail(f"{path} is made again"))
    after = prepare()
    differ = {name for name in before.splits if before.splits[name]["sha256"] != after.splits[name]["sha256"]}
    assert differ == changed
    assert after.fingerprint != before.fingerprint


def test_audio_that_can_be_read_again_makes_another_corpus(breakable, tmp_path):
    source, prepare = breakable("librispeech")
    path = next(source.rglob("100-1-0001.flac"))
    whole = path.read_bytes()
    path.write_bytes(whole[:4000])
    before = prepare(on_problem="skip")
    path.write_bytes(whole)
    (tmp_path / "root" / "corpus.json").unlink()
    after = prepare(on_problem="skip")
    differ = {name for name in before.splits if before.splits[name] != after.splits[name]}
    assert {name for name in before.splits if before.splits[name]["sha256"] != after.splits[name]["sha256"]} == differ
    assert len(differ) == 1


def test_damaged_features_are_made_again_as_the_message_says(sources, tmp_path):
    cut = next(iter(prepare("librispeech", sources("librispeech"), tmp_path).cuts("train")))
    path = Path(cut.features.storage_path) / cut.features.storage_key
    np.save(path, np.full((cut.num_frames, 80), np.nan, np.float16))  # of the right shape: only reading finds it
    with pytest.raises(UserError, match=r"delete that file and ROOT/corpus\.json, then prepare again$"):
        features.load_features(cut)
    path.unlink()
    (tmp_path / "corpus.json").unlink()
    prepare("librispeech", sources("librispeech"), tmp_path)
    assert np.isfinite(features.load_features(cut)).all()


def test_a_corpus_without_its_features_is_made_again(sources, tmp_path):
    corpus = prepare("librispeech", sources("librispeech"), tmp_path)
    shutil.rmtree(tmp_path / "features")
    assert prepare("librispeech", sources("librispeech"), tmp_path) == corpus
    assert all(np.isfinite(features.load_features(cut)).all() for cut in corpus.cuts("train"))


def test_interrupted_before_the_stamp(prepared, sources, tmp_path, monkeypatch):
    def fail(self):
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(Corpus, "save", fail)
        with pytest.raises(Interrupted):
            prepare("tedlium2", sources("tedlium2"), tmp_path)
    made = watch(monkeypatch)
    assert prepare("tedlium2", sources("tedlium2"), tmp_path).splits == prepared("tedlium2").splits
    assert made == []


def test_other_arguments_begin_anew(sources, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        watch(patch, stop_in="features")
        with pytest.raises(Interrupted):
            prepare("tedlium2", sources("tedlium2"), tmp_path)
    made = watch(monkeypatch)
    prepare("tedlium2", sources("tedlium2"), tmp_path, on_problem="skip")
    assert tuple(made) == STAGES


def test_a_damaged_stage_is_made_again(sources, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        watch(patch, stop_in="features")
        with pytest.raises(Interrupted):
            prepare("tedlium2", sources("tedlium2"), tmp_path)
    damaged = tmp_path / "stages" / "text.json.gz"
    damaged.write_bytes(damaged.read_bytes()[:40])
    made = watch(monkeypatch)
    prepare("tedlium2", sources("tedlium2"), tmp_path)
    assert made == ["text", "features"]


def test_stages_are_kept_whole(tmp_path):
    stages = Stages(tmp_path, {"a": 1})
    assert stages.run("x", lambda: {"n": [1, "ř"]}) == {"n": [1, "ř"]}
    assert Stages(tmp_path, {"a": 1}).run("x", lambda: pytest.fail("made again")) == {"n": [1, "ř"]}
    assert Stages(tmp_path, {"a": 2}).run("x", lambda: 3) == 3
