"""The recordings themselves are GPL-2 and fetched from Debian; here a small tree of the same layout stands for them."""

import os

import numpy as np
import pytest
import soundfile
from dmao.data import features, recorded
from dmao.data.acoustics import resample
from dmao.data.corpus import Corpus
from dmao.data.labels import Labels
from dmao.data.loader import SpeechDataset, batches
from dmao.data.recorded import Clip, find_clips, normalise, prepare_recorded
from dmao.errors import UserError

LEVELS = {split: next(f"l{i}" for i in range(99) if Clip(f"l{i}", "", None, "", "").split == split)
          for split in ("train", "dev", "test")}  # fmt: skip
GAME = "usr/share/games/fillets-ng"


def tree(root):
    """One good line per level and split, and lines that must be left out; in both languages under the same names."""
    for seed, language in enumerate(recorded.LANGUAGES):
        for level in LEVELS.values():
            script = root / GAME / "script" / level / f"dialogs_{language}.lua"
            script.parent.mkdir(parents=True, exist_ok=True)
            script.write_text(
                'dialogId("good", "font_small", "What a \\"boat\\"?")\n'
                'dialogStr("Co je to za \\"divnou\\" loď?")\n\n'
                'dialogId("digits", "font_big", "737")\ndialogStr("Letadlo 737.")\n'
                'dialogId("long", "font_big", "x")\ndialogStr("Ano.")\n'
                'dialogId("silent", "font_big", "x")\ndialogStr("Tohle nikdo neřekl.")\n',
                encoding="utf-8",
            )
            sound = root / GAME / "sound" / level / language
            sound.mkdir(parents=True)
            for name, seconds in (("good", 2), ("digits", 2), ("long", 5), ("untold", 2)):
                noise = np.random.default_rng(seed).uniform(-0.3, 0.3, 22050 * seconds)
                soundfile.write(sound / f"{name}.ogg", noise, 22050, format="OGG", subtype="VORBIS")
    return root


def tool(folder, name, script):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """An apt-get that makes an empty archive and a dpkg-deb that unpacks the tree."""
    binaries = tmp_path / "bin"
    binaries.mkdir()
    source = tree(tmp_path / "source")
    tool(binaries, "apt-get", 'echo "$2" >> ../../calls; : > "$2_1.0_all.deb"')
    tool(binaries, "dpkg-deb", f'mkdir -p "$3" && cp -r "{source}/." "$3"')
    monkeypatch.setenv("PATH", f"{binaries}{os.pathsep}{os.environ['PATH']}")
    return binaries


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Co je to za divnou loď?", "co je to za divnou loď"),
        ('Řekl: \\"Ano\\"...\\n A dost!', "řekl ano a dost"),
        ("Zo’n 'n vis", "zon n vis"),
        ("C\u030cest", "čest"),
        ("Poseidon 737.", None),
        ("50 %", None),
        ("Привет", None),
        ("...", None),
    ],
)
def test_normalise(text, expected):
    assert normalise(text) == expected


def test_only_clips_with_a_plausible_text_are_taken(tmp_path):
    clips = list(find_clips(tree(tmp_path), "cs"))
    assert {clip.name for clip in clips} == {"good"}
    assert {clip.split for clip in clips} == {"train", "dev", "test"}
    assert clips[0].text == "co je to za divnou loď"
    assert clips[0].speaker == "small"


def test_prepare_end_to_end(tmp_path, tools):
    corpus = prepare_recorded("cs", tmp_path / "řeč", progress=False)
    assert {split: found["utterances"] for split, found in corpus.splits.items()} == dict.fromkeys(LEVELS, 1)
    assert (tmp_path / "calls").read_text().split() == ["fillets-ng-data", "fillets-ng-data-cs"]
    assert not list(corpus.root.glob("debian*"))
    for labels in (Labels.characters(["co je to za divnou loď"]), Labels.phonemes(corpus.lexicon())):
        batch = next(batches(SpeechDataset(corpus.cuts("test"), labels), seconds=10))
        assert batch.texts == ("co je to za divnou loď",)
        assert batch.feature_lengths.tolist() == [200]
    tool(tools, "apt-get", "exit 1")
    assert prepare_recorded("cs", tmp_path / "řeč", progress=False) == corpus


def test_interrupted_conversion_goes_on_without_fetching_again(tmp_path, tools, monkeypatch):
    convert, done = recorded._convert, []

    def fail_after_one(source, target):
        if done:
            raise KeyboardInterrupt
        done.append(target)
        return convert(source, target)

    monkeypatch.setattr(recorded, "_convert", fail_after_one)
    with pytest.raises(KeyboardInterrupt):
        prepare_recorded("cs", tmp_path / "root", progress=False)
    tool(tools, "apt-get", "exit 1")
    monkeypatch.setattr(recorded, "_convert", convert)
    before = done[0].stat().st_mtime_ns
    assert prepare_recorded("cs", tmp_path / "root", progress=False).splits["train"]["utterances"] == 1
    assert done[0].stat().st_mtime_ns == before


def test_the_other_language_in_the_same_folder(tmp_path, tools, monkeypatch):
    root = tmp_path / "root"
    with monkeypatch.context() as patch:
        patch.setattr(Corpus, "save", lambda self: 1 / 0)  # fetched and converted, but not complete
        with pytest.raises(ZeroDivisionError):
            prepare_recorded("cs", root, progress=False)
    (tmp_path / "calls").unlink()
    corpus = prepare_recorded("nl", root, progress=False)
    assert (tmp_path / "calls").read_text().split() == ["fillets-ng-data", "fillets-ng-data-nl"]
    alone = prepare_recorded("nl", tmp_path / "alone", progress=False)
    assert corpus.fingerprint == alone.fingerprint


def test_another_conversion_takes_no_audio_of_the_one_before(tmp_path, tools, monkeypatch):
    before = prepare_recorded("cs", tmp_path / "root", progress=False)
    monkeypatch.setattr(recorded, "CONVERSION", "other")
    monkeypatch.setattr(recorded, "resample", lambda signal, rate: resample(signal, rate) / 2)
    assert prepare_recorded("cs", tmp_path / "root", progress=False).fingerprint != before.fingerprint
    assert len(list((tmp_path / "root" / "audio").iterdir())) == 1


def test_other_texts_are_another_corpus(tmp_path, tools, monkeypatch):
    before = prepare_recorded("cs", tmp_path / "root", progress=False)
    (tmp_path / "root" / "corpus.json").unlink()
    monkeypatch.setattr(recorded, "normalise", lambda text: (plain := normalise(text)) and f"ano {plain}")
    monkeypatch.setattr(features, "_write", lambda path, *rest: pytest.fail(f"{path} is made again"))
    after = prepare_recorded("cs", tmp_path / "root", progress=False)
    assert all(after.splits[split]["sha256"] != before.splits[split]["sha256"] for split in LEVELS)


def test_unknown_language(tmp_path):
    with pytest.raises(UserError, match="language must be one of cs, nl, got 'xx'"):
        prepare_recorded("xx", tmp_path)


def test_no_apt(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"GPL-2, not shipped.* need apt-get and dpkg-deb, not found"):
        prepare_recorded("nl", tmp_path / "root", progress=False)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'E: Unable to locate package x' >&2; exit 100", "run `apt-get update` once as root"),
        (
            "echo 'E: Failed to fetch x' >&2; exit 100",
            "`apt-get download` failed for fillets-ng-data: E: Failed",
        ),
        ("exit 3", "failed for fillets-ng-data: status 3"),
    ],
)
def test_apt_fails(tmp_path, tools, script, message):
    tool(tools, "apt-get", script)
    with pytest.raises(UserError, match=message):
        prepare_recorded("cs", tmp_path / "root", progress=False)


def test_damaged_recording_is_named(tmp_path):
    (tmp_path / "a.ogg").write_bytes(b"OggS")
    with pytest.raises(UserError, match=r"cannot read recording .*a.ogg"):
        recorded._convert(tmp_path / "a.ogg", tmp_path / "a.flac")
