"""Every malformed input is found, told in one summary, and refused or left out as asked."""

from __future__ import annotations

import json
import logging
import shutil

import pytest
import soundfile
from dmao.data.problems import Findings
from dmao.errors import UserError


def one(folder, pattern):
    return sorted(folder.rglob(pattern))[0]


def change_line(path, number, change):
    lines = path.read_bytes().splitlines(keepends=True)
    lines[number] = change(lines[number])
    path.write_bytes(b"".join(lines))


def rewrite(path, sample_rate, samples=None, channels=None):
    info, (data, _) = soundfile.info(path), soundfile.read(path, always_2d=True)
    soundfile.write(path, data[:samples, :channels], sample_rate, format=info.format, subtype=info.subtype)


def columns(line, **new):
    """A line of an .stm with other start or end."""
    fields = line.split(b" ")
    for place, name in ((3, "start"), (4, "end")):
        fields[place] = new.get(name, fields[place])
    return b" ".join(fields)


def make_folder(path):
    path.unlink()
    path.mkdir()


# corpus -> what is done to it: (the change, kind, what place or detail say, utterances that training loses)
FLAC, TRANSCRIPT, SPH, STM = "100-1-0001.flac", "100-1.trans.txt", "AnnA_2009.sph", "AnnA_2009.stm"
CALL, SIDE = "sw02005.sph", "sw2005A-ms98-a-trans.text"
CASES = {
    "librispeech": [
        (lambda s: one(s, FLAC).unlink(), "missing audio", FLAC, 1),
        (lambda s: one(s, FLAC).write_bytes(b""), "unreadable audio", FLAC, 1),
        (lambda s: make_folder(one(s, FLAC)), "unreadable audio", FLAC, 1),
        (lambda s: one(s, FLAC).write_bytes(one(s, FLAC).read_bytes()[:4000]), "unreadable audio", FLAC, 1),
        (lambda s: rewrite(one(s, FLAC), 16_000, samples=0), "unreadable audio", FLAC, 1),
        (lambda s: rewrite(one(s, FLAC), 22_050), "wrong sample rate", "expected 16000 Hz, got 22050 Hz", 1),
        (lambda s: change_line(one(s, TRANSCRIPT), 1, lambda _: b"100-1-0001\n"), "empty transcript", "100-1-0001", 1),
        (lambda s: change_line(one(s, TRANSCRIPT), 1, lambda x: x + x), "duplicate id", f"{TRANSCRIPT}:3", 0),
        (lambda s: change_line(one(s, TRANSCRIPT), 1, lambda _: b""), "missing transcript", FLAC, 1),
        (lambda s: change_line(one(s, TRANSCRIPT), 1, lambda x: b"\xff" + x), "not UTF-8", f"{TRANSCRIPT}:2", 1),
        (lambda s: change_line(one(s, TRANSCRIPT), 1, lambda x: x[:-1] + b" \xd0\x9b\n"), "no pronunciation", "л", 1),
        (lambda s: one(s, TRANSCRIPT).unlink(), "missing transcript", FLAC, 4),
        (lambda s: (s / "librispeech-lexicon.txt").unlink(), "missing file", "librispeech-lexicon.txt", 0),
        (lambda s: change_line(s / "librispeech-lexicon.txt", 0, lambda _: b"HELLO\n"), "bad line", "'HELLO'", 0),
    ],
    "tedlium2": [
        (lambda s: one(s, SPH).unlink(), "missing audio", SPH, 4),
        (lambda s: one(s, SPH).write_bytes(b"NIST_1A\n   1024\nbroken"), "unreadable audio", SPH, 4),
        (lambda s: one(s, SPH).write_bytes(b"NIST_1A\n   1024\nsample_coding -s26 pcm,embedded-shorten-v2.00"),
         "compressed sphere file", "sph2pipe", 4),
        (lambda s: rewrite(one(s, SPH), 16_000, samples=0), "empty audio", SPH, 4),
        (lambda s: rewrite(one(s, SPH), 8_000), "wrong sample rate", "expected 16000 Hz, got 8000 Hz", 4),
        (lambda s: rewrite(one(s, SPH), 16_000, samples=24_000), "outside of the audio", f"{STM}:6", 3),
        (lambda s: one(s, STM).unlink(), "missing transcript", SPH, 4),
        (lambda s: change_line(one(s, STM), 3, lambda x: columns(x, start=b"0.30")), "overlapping segments", STM, 1),
        (lambda s: change_line(one(s, STM), 2, lambda x: columns(x, end=b"0.20")), "no length", f"{STM}:3", 1),
        (lambda s: change_line(one(s, STM), 2, lambda x: columns(x, end=b"0.209")), "no length", "than a frame", 1),
        (lambda s: change_line(one(s, STM), 2, lambda x: columns(x, start=b"-1")), "outside of the audio", STM, 1),
        (lambda s: change_line(one(s, STM), 2, lambda x: columns(x, start=b"zero")), "bad line", "zero", 1),
        (lambda s: change_line(one(s, STM), 2, lambda x: columns(x, end=b"nan")), "bad line", "got 0.20 nan", 1),
        (lambda s: change_line(one(s, STM), 2, lambda x: b"AnnA_2009 1 words\n"), "bad line", "expected recording", 1),
        (lambda s: change_line(one(s, STM), 2, lambda x: x.replace(b"AnnA_2009 1", b"EvE 1")), "bad line", "EvE", 1),
        (lambda s: change_line(one(s, STM), 2, lambda x: b" ".join(x.split()[:6]) + b"\n"), "empty transcript", STM, 1),
        (lambda s: change_line(one(s, STM), 2, lambda x: x + b"\x80\n"), "not UTF-8", f"{STM}:4", 0),
        (lambda s: shutil.rmtree(s / "dev"), "missing part", "dev", 0),
    ],
    "switchboard": [
        (lambda s: one(s, CALL).unlink(), "missing audio", CALL, 8),
        (lambda s: rewrite(one(s, CALL), 8_000, channels=1), "missing channel", "channel 1", 4),
        (lambda s: rewrite(one(s, CALL), 16_000), "wrong sample rate", "expected 8000 Hz, got 16000 Hz", 8),
        (lambda s: one(s, SIDE).unlink(), "missing transcript", "channel A", 4),
        (lambda s: one(s, SIDE).rename(one(s, SIDE).with_name("sw2005C-ms98-a-trans.text")), "bad name", "sw2005C", 4),
        (lambda s: one(s, SIDE).rename(one(s, SIDE).with_name("-trans.text")), "bad name", "sw2001A-ms98", 4),
        (lambda s: change_line(one(s, SIDE), 1, lambda x: b"id 0 end hello\n"), "bad line", "expected id", 1),
        (lambda s: change_line(one(s, SIDE), 1, lambda x: x[: x.index(b"[")] + b"\n"), "empty transcript", SIDE, 1),
        (lambda s: change_line(one(s, SIDE), 2, lambda x: x.replace(b"-0003", b"-0002")), "duplicate id", "-0002", 1),
        (lambda s: change_line(one(s, SIDE), 2, lambda x: x.replace(b"-0003", b"-00/3")), "bad id", "-00/3", 1),
        (lambda s: one(s, "sw-ms98-dict.text").unlink(), "missing file", "no sw-ms98-dict.text below it", 0),
        (lambda s: one(s, "sw_4390.sph").unlink(), "missing audio", "sw_4390.sph", 0),
        (lambda s: change_line(one(s, "*.stm"), 2, lambda x: x.replace(b" A sw", b" C sw")), "bad line", "got C", 0),
    ],
}  # fmt: skip
FLAT = [(name, number) for name, cases in CASES.items() for number in range(len(cases))]


def rows(root):
    return [json.loads(line) for line in (root / "problems.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("name", "number"), FLAT)
def test_refused_with_one_summary_or_left_out(breakable, prepared, tmp_path, caplog, name, number):
    change, kind, said, lost = CASES[name][number]
    source, prepare = breakable(name)
    change(source)
    root = tmp_path / "root"
    with pytest.raises(UserError) as refused:
        prepare()
    assert "\n" not in str(refused.value)
    assert kind in str(refused.value)
    assert "problems.jsonl; mend the source, or let --on-problem skip leave them out" in str(refused.value)
    found = [row for row in rows(root) if row["kind"] == kind]
    assert any(said in row["where"] + row["detail"] for row in found), rows(root)
    assert not (root / "corpus.json").exists()

    with caplog.at_level(logging.WARNING):
        corpus = prepare(on_problem="skip")
    assert corpus.problems[kind] == len(found)
    assert kind in caplog.text
    assert [row["kind"] for row in rows(root)].count(kind) == len(found)
    whole = prepared(name).splits["train"]["utterances"]
    assert len(list(corpus.cuts("train"))) == corpus.splits["train"]["utterances"] == whole - lost


def test_nothing_else_is_called_a_problem(breakable):
    """Each change above is found as what it is; here is what remains after it is mended."""
    source, prepare = breakable("tedlium2")
    kept = one(source, STM).read_bytes()
    one(source, STM).write_bytes(kept + b"\x80\n")
    with pytest.raises(UserError, match="1 problems"):
        prepare()
    one(source, STM).write_bytes(kept)
    corpus = prepare()
    assert corpus.problems == {}
    assert not (corpus.root / "problems.jsonl").exists()


def test_all_kinds_are_in_one_summary(breakable, tmp_path):
    source, prepare = breakable("tedlium2")
    change_line(one(source, STM), 2, lambda x: x + b"\xff\n")
    one(source, "BoB_2010.sph").unlink()
    change_line(source / "TEDLIUM.152k.dic", 0, lambda x: b"hello\n")
    with pytest.raises(UserError) as refused:
        prepare()
    message = str(refused.value)
    assert message.startswith("3 problems in the source: ")
    assert all(kind in message for kind in ("1 not UTF-8", "1 missing audio", "1 bad line"))
    assert len(rows(tmp_path / "root")) == 3


def test_rounding_is_no_problem(breakable):
    """Times have two decimals: a segment may begin or end a hundredth beside the audio and its neighbours."""
    source, prepare = breakable("tedlium2")
    path = one(source, STM)
    info = soundfile.info(one(source, SPH))
    change_line(path, 5, lambda x: columns(x, end=f"{info.frames / 16_000 + 0.01:.2f}".encode()))
    before = float(path.read_text().splitlines()[2].split()[4])
    change_line(path, 3, lambda x: columns(x, start=f"{before - 0.01:.2f}".encode()))
    corpus = prepare()
    last = [cut for cut in corpus.cuts("train") if cut.recording_id == "AnnA_2009"][-1]
    assert round(last.end * 16_000) == info.frames


@pytest.mark.parametrize("name", CASES)
def test_a_folder_that_holds_nothing(tmp_path, name):
    from tests.recipes.conftest import prepare

    (tmp_path / "hub5e_00").mkdir()
    (tmp_path / "swb1").mkdir()
    with pytest.raises(UserError, match=r"missing part|expected one \.stm"):
        prepare(name, tmp_path, tmp_path / "root")


def test_nothing_left_of_a_split(breakable):
    source, prepare = breakable("tedlium2")
    recording = one(source / "dev", "*.sph")
    kept = recording.read_bytes()
    recording.unlink()
    with pytest.raises(UserError, match="tedlium2: no utterance of the split dev can be used"):
        prepare(on_problem="skip")
    recording.write_bytes(kept)
    assert prepare(on_problem="skip").splits["dev"]["utterances"] == 4


def test_references_must_be_one_file(breakable):
    source, prepare = breakable("switchboard")
    stm = one(source, "*.stm")
    shutil.copy(stm, stm.with_name("again.stm"))
    with pytest.raises(UserError, match=r"hub5-00: expected one \.stm .* got .*again\.stm, .*hub5\.english\.stm"):
        prepare()


def test_segments_without_words_are_counted(breakable):
    source, prepare = breakable("tedlium2")
    change_line(one(source, STM), 2, lambda x: b" ".join(x.split()[:6]) + b" <unk> {NOISE}\n")
    corpus = prepare()
    assert corpus.left_out == {"not to be scored": 4, "no word in the transcript": 1}
    assert corpus.splits["train"]["utterances"] == 7


def test_unreadable_file_is_not_missing(tmp_path):
    findings = Findings()
    assert list(findings.lines(tmp_path)) == []
    assert findings.counts() == {"unreadable file": 1}
