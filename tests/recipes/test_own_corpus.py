"""A corpus of one's own: what NIST's files call its recordings and speakers."""

from __future__ import annotations

import json
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
import soundfile
from dmao.config import DataConfig, TrainConfig
from dmao.data.corpus import LEXICON
from dmao.data.disk import DiskCorpus, prepare_from_disk
from dmao.data.features import load_features
from dmao.data.segments import Segment, recording_names
from dmao.errors import UserError
from dmao.scoring.files import write_stm
from dmao.source import CorpusSource

from tests.recipes import corpora


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    for place in ("ann k/001", "ben/001", "ben/002"):
        path = folder / f"{place}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, corpora.speech("hello", 16_000), 16_000)

    def read(findings):
        yield Segment("a", str(folder / "ann k" / "001.wav"), "hello", "ann k", "test", "table:1")
        yield Segment("b", str(folder / "ben" / "001.wav"), "hello", "ben", "test", "table:2")
        yield Segment("c", str(folder / "ben" / "002.wav"), "hello", "ben", "train", "table:3")

    return prepare_own(read, folder / "root")


def prepare_own(read, root, version="1", dictionary=None, on_problem="refuse"):
    source = DiskCorpus(
        name="own",
        version=version,
        sample_rate=16_000,
        arguments={},
        read=read,
        clean=lambda text, split: text,
        dictionary=dictionary,
        language="cs",
    )
    return prepare_from_disk(source, root, on_problem=on_problem, jobs=1, progress=False)


@pytest.mark.parametrize("rows", [("yes", "no"), ("yes",)], ids=["two files of one name", "one of them"])
def test_a_table_that_named_the_wrong_file(tmp_path, rows):
    for place in ("yes", "no"):
        (tmp_path / place).mkdir()
        soundfile.write(tmp_path / place / "001.wav", corpora.speech(place, 16_000)[:8000], 16_000)
    found = []
    for version, places in (("1", rows), ("2", [{"yes": "no", "no": "yes"}[place] for place in rows])):

        def read(findings, places=places):
            for number, place in enumerate(places):
                yield Segment(f"u{number}", str(tmp_path / place / "001.wav"), "hello", "ann", "train", "table")

        corpus = prepare_own(read, tmp_path / "root", version)
        found.append((corpus.fingerprint, [load_features(cut) for cut in corpus.cuts("train")]))
    (before, features), (after, mended) = found
    assert before != after
    assert not np.array_equal(features[0], mended[0])
    if len(rows) == 2:
        assert np.array_equal(features[0], mended[1])


@pytest.mark.parametrize("on_problem", ["refuse", "skip"])
def test_audio_that_is_not_finite_is_a_problem(tmp_path, on_problem):
    good = corpora.speech("hello", 16_000)
    for name, samples in (("good", good), ("bad", np.full_like(good, np.nan, dtype=np.float32))):
        soundfile.write(tmp_path / f"{name}.wav", samples, 16_000, "FLOAT")

    def read(findings):
        for name in ("good", "bad"):
            yield Segment(name, str(tmp_path / f"{name}.wav"), "hello", "ann", "train", "table")

    if on_problem == "refuse":
        with pytest.raises(UserError, match=r"1 unreadable audio \(bad: .*bad\.wav: it holds NaN or infinity"):
            prepare_own(read, tmp_path / "root")
    else:
        corpus = prepare_own(read, tmp_path / "root", on_problem="skip")
        assert [cut.id for cut in corpus.cuts("train")] == ["good"]
    (problem,) = map(json.loads, (tmp_path / "root" / "problems.jsonl").read_text().splitlines())
    assert (problem["kind"], problem["where"]) == ("unreadable audio", "bad")


def test_columns_of_the_references(corpus, tmp_path):
    source = CorpusSource(TrainConfig(data=DataConfig(root=str(corpus.root))))
    write_stm(tmp_path / "ref.stm", source.segments("test"), {"a": "hello", "b": "hello"})
    assert (tmp_path / "ref.stm").read_text() == (
        "ann_k/001.wav 1 ann_k 0.000 0.500 hello\nben/001.wav 1 ben 0.000 0.500 hello\n"
    )
    assert [segment.recording for segment in source.segments("train").values()] == ["002"]


def test_relative_audio_is_seen_from_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "audio").mkdir()
    soundfile.write(tmp_path / "audio" / "001.wav", corpora.speech("hello", 16_000), 16_000)
    monkeypatch.chdir(tmp_path)
    made = []
    for place in ("audio", str(tmp_path / "audio")):

        def read(findings, place=place):
            yield Segment("u", f"{place}/001.wav", "hello", "ann", "train", "table")

        corpus = prepare_own(read, tmp_path / f"root{len(made)}")
        (cut,) = corpus.cuts("train")
        made.append((corpus.fingerprint, cut.recording.sources[0].source))
    assert made[0] == made[1]
    assert made[0][1] == str(tmp_path / "audio" / "001.wav")


SCRIPT = """
import multiprocessing
import sys
from pathlib import Path
from dmao.data.disk import DiskCorpus, prepare_from_disk
from dmao.data.segments import Segment

def read(findings):
    yield Segment("u", str(Path("001.wav").resolve()), "hello", "ann", "train", "table")

corpus = DiskCorpus("own", "1", 16_000, {}, read, lambda text, split: text)
if __name__ == sys.argv[1] or sys.argv[1] == "anything":
    print(prepare_from_disk(corpus, "root", jobs=int(sys.argv[2]), progress=False))
if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(abs, [-1]))
"""


@pytest.mark.parametrize(("guard", "jobs"), [("__main__", "2"), ("anything", "2"), ("anything", "1")])
def test_a_script_prepares_with_several_jobs(tmp_path, guard, jobs):
    """Its processes import it; without the guard each waited for the folder that it holds. Others that do may find it
    finished.
    """
    soundfile.write(tmp_path / "001.wav", corpora.speech("hello", 16_000), 16_000)
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "script.py", guard, jobs]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    if guard == "__main__" or jobs == "1":
        assert ended.stdout.startswith("own: train 1 utterances"), ended.stderr
        assert ended.stdout.endswith("[1]\n")
        return
    assert "UserError: a script that prepares with several jobs must do so below" in ended.stderr
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("dmao.errors.UserError: features: a process that computes them has ended"), ended.stderr


def decomposed(text):
    return unicodedata.normalize("NFD", text)


def test_words_with_decomposed_accents_are_spelled(tmp_path):
    """An accent may be a code point of its own in what the corpus brings; labels have whole letters."""
    soundfile.write(tmp_path / "001.wav", corpora.speech("hello", 16_000), 16_000)
    (tmp_path / "words.txt").write_text(decomposed("loď L O\nřeč R E\n"), encoding="utf-8")

    def read(findings):
        reference = decomposed("(loď) řeč")
        yield Segment("a", str(tmp_path / "001.wav"), decomposed("loď"), "ann", "train", "t", reference=reference)

    corpus = prepare_own(read, tmp_path / "root", dictionary=tmp_path / "words.txt")
    (cut,) = corpus.cuts("train")
    assert (cut.supervisions[0].text, cut.supervisions[0].custom) == ("loď", {"reference": "(loď) řeč"})
    written = json.loads((corpus.root / LEXICON).read_text(encoding="utf-8"))
    assert written == {"loď": [["L", "O"]], "řeč": [["R", "E"]]}
    # earlier versions left them as they were
    (corpus.root / LEXICON).write_text(json.dumps({decomposed(word): written[word] for word in written}))
    for labels in ("characters", "phonemes"):
        source = CorpusSource(TrainConfig(data=DataConfig(root=str(corpus.root), labels=labels)))
        assert source.words == ("loď", "řeč")
        assert all(source.labels.spellings(word) for word in source.words)


def test_language(corpus):
    assert {cut.supervisions[0].language for cut in corpus.cuts("train")} == {"cs"}


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["/c/ann/1.wav", "/c/ben/2.wav"], ["1", "2"]),
        (["/c/ann/1.wav", "/c/ben/1.wav", "/c/2.wav"], ["ann/1.wav", "ben/1.wav", "2"]),
        (["/c/ann/x/1.wav", "/c/ben/x/1.wav"], ["ann/x/1.wav", "ben/x/1.wav"]),
        (["/c/1.wav", "/c/1.flac"], ["c/1.wav", "c/1.flac"]),
        (["1.wav", "/c/1.wav"], ["1.wav", "c/1.wav"]),
        (["/c/1.wav", "/c//1.wav", "/c/1.wav"], ["1", "1", "1"]),  # one file
        (["/c/my talk.wav"], ["my_talk"]),
        (["/c/my talk.wav", "/c/my_talk.wav", "/c/my_talk-2.wav"], ["my_talk", "my_talk-3", "my_talk-2"]),
        (["/c/ann k/1.wav", "/c/ann_k/1.wav"], ["ann_k/1.wav", "ann_k/1.wav-2"]),
    ],
)
def test_recordings_of_one_name_are_told_apart_by_their_folders(files, names):
    assert recording_names(files) == dict(zip(files, names, strict=True))
