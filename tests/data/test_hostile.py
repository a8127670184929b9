"""Corpora of strangers: nothing in them is run, fetched, or read from elsewhere, and no number in them is believed."""

from __future__ import annotations

import gzip
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from dmao.data.corpus import Corpus
from dmao.data.espeak import Espeak
from dmao.data.features import _describe, load_features
from dmao.data.labels import Labels
from dmao.data.loader import SpeechDataset, batches
from dmao.data.manifests import make_cut, read_manifest, write_manifest
from dmao.data.problems import Findings
from dmao.data.segments import check
from dmao.data.stages import Stages
from dmao.data.stm import read_stm
from dmao.errors import UserError
from dmao.files import is_plain_name
from dmao.recipes.librispeech.corpus import read_parts
from dmao.recipes.switchboard.text import clean_reference
from dmao.recipes.tedlium2.corpus import read_talks

FRAMES = np.random.default_rng(0).standard_normal((100, 80)).astype(np.float16)


@pytest.fixture
def manifest(tmp_path):
    """Writes a manifest of one cut, after `edit`, and reads it."""
    (tmp_path / "features").mkdir()
    np.save(tmp_path / "features/u.npy", FRAMES)
    cut = make_cut("u", tmp_path / "u.wav", 16_000, text="ab", speaker="s", language="en")
    cut = replace(cut, features=_describe(cut, Path("features/u.npy")))

    def read(edit=lambda cut: None):
        values = json.loads(json.dumps(cut.to_dict()))
        edit(values)
        (tmp_path / "m.jsonl.gz").write_bytes(gzip.compress((json.dumps(values) + "\n").encode()))
        return read_manifest(tmp_path / "m.jsonl.gz", tmp_path)

    return read


def test_our_own_manifest_is_read(manifest):
    batch = next(batches(SpeechDataset(manifest(), Labels.characters(["ab"])), seconds=20))
    assert batch.features.shape == (1, 100, 80)


def source(**new):
    return lambda cut: cut["recording"]["sources"][0].update(new)


def features(**new):
    return lambda cut: cut["features"].update(new)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (source(type="command", source="touch RAN"), "audio of utterance u must be of the type file, got 'command'"),
        (source(type="url", source="http://127.0.0.1:9/x"), "must be of the type file, got 'url'"),
        (
            features(storage_type="lilcom_url", storage_path="http://127.0.0.1:9"),
            "must be numpy_files, got 'lilcom_url'",
        ),
        (features(storage_type="kaldiio", storage_key="touch RAN |"), "must be numpy_files, got 'kaldiio'"),
        (features(storage_path="/dev", storage_key="zero"), "must lie below the manifest's corpus, got /dev/zero"),
        (features(storage_path="features/../.."), "must lie below the manifest's corpus"),
        (lambda cut: cut.update(duration=float("nan")), "utterance u must last"),
        (lambda cut: cut.update(duration=1e15), "utterance u must last"),
        (lambda cut: cut.update(id=["u"]), "expected a MonoCut with id and recording"),
        (lambda cut: cut.update(recording=None), "cannot read manifest"),
        (lambda cut: cut.update(type="os.system"), "cannot read manifest"),
        (lambda cut: cut.update(type="MixedCut", tracks=[]), "cannot read manifest"),
    ],
)
def test_manifests_of_strangers(manifest, tmp_path, monkeypatch, edit, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said) as caught:
        manifest(edit)
    assert "m.jsonl.gz" in str(caught.value)
    assert not (tmp_path / "RAN").exists()


def test_a_corpus_in_a_folder_that_is_a_command(manifest, tmp_path, monkeypatch):
    """lhotse runs what begins with "pipe:"; a configuration may name such a folder, and come with one."""
    manifest()
    monkeypatch.chdir(tmp_path)
    root = Path("pipe:touch RAN;")
    (root / "manifests").mkdir(parents=True)
    (tmp_path / "features").rename(root / "features")
    (tmp_path / "m.jsonl.gz").rename(root / "manifests/train.jsonl.gz")
    (root / "corpus.json").write_text(json.dumps(STAMP))
    cuts = Corpus.load(root).cuts("train")
    assert load_features(next(iter(cuts))).shape == (100, 80)
    write_manifest(root / "manifests/train.jsonl.gz", cuts)
    assert not list(tmp_path.rglob("RAN"))


def test_a_manifest_without_end_of_brackets(tmp_path):
    (tmp_path / "m.jsonl.gz").write_bytes(gzip.compress(b"[" * 100_000))
    with pytest.raises(UserError, match=r"cannot read manifest .*m.jsonl.gz"):
        read_manifest(tmp_path / "m.jsonl.gz", tmp_path)


def npy(content):
    buffer = io.BytesIO()
    np.save(buffer, content, allow_pickle=True)
    return buffer.getvalue()


def header(shape):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f2", "fortran_order": False, "shape": shape})
    return buffer.getvalue() + bytes(160)


@pytest.mark.parametrize(
    "content",
    [
        npy(np.array([{}], object)),  # a pickle
        header((10**12, 80)),
        header((-5, 80)),
        npy(FRAMES[:, :7]),
        npy(FRAMES[0]),
        npy(FRAMES[:0]),
        npy(FRAMES * np.float16(np.nan)),
    ],
)
def test_features_of_strangers(manifest, tmp_path, content):
    (tmp_path / "features/u.npy").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read features of utterance u .*u.npy"):
        load_features(next(iter(manifest())))


STAMP = {"name": "x", "arguments": {}, "versions": {}, "splits": {"train": {}}, "fingerprint": ""}


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        "9" * 5000,
        json.dumps({**STAMP, "splits": {"../../etc": {}}}),
        json.dumps({**STAMP, "splits": None}),
        json.dumps({**STAMP, "splits": ["train"]}),
        json.dumps({**STAMP, "root": "/"}),
    ],
)
def test_stamps_of_strangers(tmp_path, content):
    (tmp_path / "corpus.json").write_text(content)
    with pytest.raises(UserError, match=r"cannot read .*corpus.json"):
        Corpus.load(tmp_path)


def test_a_damaged_stage_is_made_anew(tmp_path):
    stages = Stages(tmp_path, {"seed": 1})
    assert stages.run("text", lambda: list(range(100))) == list(range(100))
    path = tmp_path / "stages/text.json.gz"
    whole = path.read_bytes()
    for at in range(10, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        assert stages.run("text", lambda: ["anew"]) == ["anew"]
        path.write_bytes(gzip.compress(b"[" * 100_000))
        assert stages.run("text", lambda: ["anew"]) == ["anew"]


@pytest.mark.parametrize("content", ["[" * 100_000, '["a"]', '"ab"', "\x00"])
def test_lexica_of_strangers(tmp_path, content):
    (tmp_path / "corpus.json").write_text(json.dumps(STAMP))
    (tmp_path / "lexicon.json").write_text(content)
    with pytest.raises(UserError, match=r"cannot read the lexicon .*lexicon.json"):
        Corpus.load(tmp_path).lexicon()


@pytest.mark.parametrize("entry", [5, None, "AB", [5], ["A", ["B"]], [["A", 5]], {"A": 1}, [], [[]]])
def test_pronunciations_of_strangers(entry):
    with pytest.raises(UserError, match="lexicon: "):
        Labels.phonemes({"word": entry})


@pytest.mark.parametrize(
    "state",
    [
        {"kind": "characters", "tokens": ["<blank>", "|", 3]},
        {"kind": "characters", "tokens": 5},
        {"kind": "phonemes", "tokens": ["<blank>"], "lexicon": {"a": 3}, "g2p": None},
        {"kind": "bpe", "model": 5},
        {"kind": "bpe", "model": "AAAA"},
        {"kind": ["bpe"]},
    ],
)
def test_labels_of_strangers(state):
    with pytest.raises(UserError):
        Labels.from_state_dict(state)


@pytest.mark.parametrize("voice", ["../../en", "/etc/passwd", "en-us+../../x", "en\0us", "x" * 10_000, "a/" * 20_000])
def test_voices_of_strangers(voice):
    with pytest.raises(UserError, match="has no voice"):
        Espeak().set_voice(voice)


def test_plain_names():
    names = ["100-1-0001", "sw2001A-ms98", "řeč", "a.b", "..", ".", "", "../x", "/x", "a b", "a\n", "a\0", "ř" * 101]
    assert [name for name in names if is_plain_name(name)] == ["100-1-0001", "sw2001A-ms98", "řeč", "a.b"]


@pytest.mark.parametrize("id", ["../../x", "/etc/passwd", "..", "a" * 5000])
def test_ids_that_would_be_other_files(tmp_path, id):
    folder = tmp_path / "part/1"
    folder.mkdir(parents=True)
    soundfile.write(folder / "1-1.flac", np.zeros(1600), 16_000)
    (folder / "1.trans.txt").write_text(f"{id} HELLO\n1-1 HELLO\n")
    findings = Findings()
    segments = list(read_parts(tmp_path, {"part": "train"}, findings))
    assert [found.segment.id for found in check(segments, 16_000, findings, progress=False)] == ["1-1"]
    assert [problem.kind for problem in findings.problems] == ["bad id"]
    assert len(str(findings.problems[0])) < 300


@pytest.mark.parametrize(
    "line", ["t 1 s 1e307 1e308 a", "t 1 s 0 1e9 a", "t 1 s 0 1 a\0b", "t 1 s 0 1 " + "a" * 10_000]
)
def test_lines_of_strangers(tmp_path, line):
    (tmp_path / "train/stm").mkdir(parents=True)
    (tmp_path / "train/stm/t.stm").write_text(line + "\nt 1 s 0 1 good\n")
    findings = Findings()
    assert [segment.text for segment in read_talks(tmp_path, findings)] == ["good"]
    assert "bad line" in findings.counts()
    assert [kept.text for kept in read_stm(tmp_path / "train/stm/t.stm", Findings())] == ["good"]


def test_braces_and_blanks_take_no_time():
    assert clean_reference("{ a b / c } d") == "a b d"
    assert clean_reference("{" + " " * 9_000) == "{"  # minutes, where each blank may belong to three parts


def claimed(path, change):
    soundfile.write(path, np.zeros(1600, np.int16), 16_000)
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)


def test_audio_that_claims_to_be_longer_than_any_memory(tmp_path):
    """2^36 samples: either libsndfile sees through it, or what is read is not what the header says."""

    def longer(content):
        content[21] |= 0x0F  # FLAC's STREAMINFO: 36 bits of samples
        content[22:26] = b"\xff" * 4

    path = tmp_path / "part/1/1-1.flac"
    path.parent.mkdir(parents=True)
    claimed(path, longer)
    (path.parent / "1.trans.txt").write_text("1-1 HELLO\n")
    findings = Findings()
    found = check(list(read_parts(tmp_path, {"part": "train"}, findings)), 16_000, findings, progress=False)
    assert [problem.kind for problem in findings.problems] == ["unreadable audio"]
    assert found == []
