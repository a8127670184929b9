"""The three formats, well-formed: what comes out of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile
from dmao.data.corpus import Corpus
from dmao.data.features import fbank_config, load_features
from dmao.errors import UserError

from tests.recipes import corpora
from tests.recipes.conftest import NAMES, prepare


def cuts(corpus, split):
    return list(corpus.cuts(split))


@pytest.mark.parametrize(
    ("name", "splits"),
    [
        ("librispeech", {"train": 8, "dev-clean-2": 4}),
        ("tedlium2", {"train": 8, "dev": 4, "test": 4}),
        ("switchboard", {"train": 12, "dev": 4, "hub5-00": 8, "hub5-00-swbd": 4, "hub5-00-callhome": 4}),
    ],
)
def test_splits(prepared, name, splits):
    corpus = prepared(name)
    assert {split: values["utterances"] for split, values in corpus.splits.items()} == splits
    for split, count in splits.items():
        assert len(cuts(corpus, split)) == count
    assert corpus == Corpus.load(corpus.root)
    assert corpus.problems == {}
    assert not (corpus.root / "problems.jsonl").exists()
    assert not (corpus.root / "stages").exists()


@pytest.mark.parametrize("name", NAMES)
def test_texts_are_words_of_the_lexicon(prepared, name):
    corpus = prepared(name)
    lexicon = corpus.lexicon()
    for split in corpus.splits:
        for cut in cuts(corpus, split):
            (supervision,) = cut.supervisions
            words = supervision.text.split()
            assert words
            assert set(words) <= lexicon.keys(), supervision.text
    assert {word: " ".join(lexicon[word][0]) for word in corpora.WORDS} == corpora.PHONES


def test_librispeech_texts(prepared):
    texts = [cut.supervisions[0].text for cut in cuts(prepared("librispeech"), "train")]
    assert texts == [corpora.sentence(n) for n in range(8)]


def test_marks_of_tedlium_go(prepared):
    corpus = prepared("tedlium2")
    found = [cut.supervisions[0] for cut in cuts(corpus, "dev")]
    assert [supervision.text for supervision in found] == [corpora.sentence(n) for n in range(8, 12)]
    assert corpus.left_out == {"not to be scored": 4}
    assert [cut.id.split("-")[0] for cut in cuts(corpus, "test")] == ["DorA_2012"] * 4


def test_marks_of_switchboard_go(prepared):
    corpus = prepared("switchboard")
    first = corpora.sentence(0), corpora.sentence(1), corpora.sentence(2), corpora.sentence(3)
    assert [cut.supervisions[0].text for cut in cuts(corpus, "dev")] == [first[0], f"t- {first[1]}", first[2], first[3]]
    train = [cut.supervisions[0].text for cut in cuts(corpus, "train")]
    assert train[0] == f"{corpora.sentence(4)} [noise]"
    assert train[2] == f"{corpora.sentence(6)} [vocalized-noise]"
    assert corpus.lexicon()["[noise]"] == [["[noise]"]]
    assert corpus.lexicon()["t-"] == [["T"]]
    assert corpus.left_out == {"silence": 4, "not to be scored": 4}


def test_references_of_hub5_are_kept_with_their_marks(prepared):
    found = [cut.supervisions[0] for cut in cuts(prepared("switchboard"), "hub5-00")]
    assert [supervision.text for supervision in found] == [corpora.sentence(n) for n in range(100, 108)]
    first, *rest = corpora.sentence(100).split()
    assert found[0].custom["reference"] == f"(%hesitation) {{{first} / {first}s}} {' '.join(rest)} (wh-)"


def test_each_side_of_a_call_is_a_speaker_and_a_channel(prepared):
    found = {(cut.channel, cut.supervisions[0].speaker) for cut in cuts(prepared("switchboard"), "train")}
    assert found == {(1, "sw02001-B"), (0, "sw02005-A"), (1, "sw02005-B")}


@pytest.mark.parametrize(("name", "rate"), [("librispeech", 16_000), ("tedlium2", 16_000), ("switchboard", 8_000)])
def test_audio_stays_where_it_is_and_cuts_hold_just_their_words(prepared, sources, name, rate):
    corpus = prepared(name)
    assert corpus.sample_rate == rate
    assert not list(corpus.root.rglob("*.flac")) + list(corpus.root.rglob("*.sph"))
    for cut in cuts(corpus, "train"):
        assert cut.sampling_rate == rate
        assert cut.recording.sources[0].source.startswith(str(sources(name)))
        samples, _ = soundfile.read(cut.recording.sources[0].source, always_2d=True)
        first = round(cut.start * rate)
        expected = samples[first : first + cut.num_samples, cut.channel]
        audio = cut.load_audio()[0]
        assert np.array_equal(audio, expected.astype(np.float32))
        assert np.abs(audio[: rate // 20]).max() > 0.1  # the first letter: neither pause nor another's words
        assert np.abs(audio[-rate // 20 :]).max() > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_features_are_those_of_the_segment(prepared, name):
    from lhotse import Fbank

    corpus = prepared(name)
    for cut in cuts(corpus, "train")[-3:]:
        expected = Fbank(fbank_config(corpus.sample_rate)).extract(cut.load_audio(), corpus.sample_rate)
        assert np.allclose(cut.load_features(), expected, atol=0.01)
        assert load_features(cut).shape == (round(100 * cut.duration), 80)


def test_telephone_features_end_below_nyquist():
    assert fbank_config(8_000).high_freq == 3_800
    assert fbank_config(16_000).high_freq == 7_600


def test_a_second_call_finds_its_work_done(prepared, sources):
    corpus = prepared("tedlium2")
    before = {
        path: path.stat().st_mtime_ns for path in corpus.root.rglob("*") if path.is_file() and path.name != ".lock"
    }
    assert prepare("tedlium2", sources("tedlium2"), corpus.root) == corpus
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_files_for_the_official_scoring(prepared, sources):
    scoring = prepared("tedlium2").root / "scoring"
    assert {path.name for path in scoring.iterdir()} == {"dev.stm", "test.stm"}
    assert "DorA_2012 1 DorA_2012 0.20" in (scoring / "test.stm").read_text()
    scoring = prepared("switchboard").root / "scoring"
    assert {path.name for path in scoring.iterdir()} == {"hub5-00.stm", "hub5-00.glm"}
    reference = sources("switchboard") / "hub5e_00" / "reference" / "hub5.english.stm"
    assert (scoring / "hub5-00.stm").read_bytes() == reference.read_bytes()


def test_references_of_rt03s_may_be_several_files(sources, tmp_path):
    from dmao.recipes.switchboard.corpus import prepare_switchboard

    folder = corpora.hub5(tmp_path / "cts", ("sw_45097", "fsh_60262"))
    whole = folder / "reference" / "hub5.english.stm"
    lines = whole.read_text().replace(" A ", " 1 ").replace(" B ", " 2 ").splitlines()
    whole.unlink()
    for name in ("fsh", "sw"):
        mine = [line for line in lines if line.startswith(name)]
        (folder / "reference" / f"{name}.stm").write_text("\n".join(mine))  # without an end of the last line
    corpus = prepare_switchboard(
        [sources("switchboard") / "swb1"],
        tmp_path / "root",
        evaluations={"rt03s": [folder]},
        dev_utterances=4,
        jobs=1,
        progress=False,
    )
    counts = {name: split["utterances"] for name, split in corpus.splits.items() if name.startswith("rt03s")}
    assert counts == {"rt03s": 8, "rt03s-fisher": 4, "rt03s-swbd": 4}
    assert sorted((tmp_path / "root" / "scoring" / "rt03s.stm").read_text().splitlines()) == sorted(lines[1:])


@pytest.mark.parametrize("name", ["hub5-00", "rt03s"])
def test_two_evaluations_below_one_folder_are_not_one(name, sources, tmp_path):
    from dmao.recipes.switchboard.corpus import prepare_switchboard

    corpora.hub5(tmp_path / "here" / "hub5e_00", ("sw_4390", "en_4156"))
    corpora.hub5(tmp_path / "here" / "rt03s", ("sw_45097", "fsh_60262"))
    with pytest.raises(UserError, match=rf"{name}: expected .*one.*hub5e_00.*stm, .*rt03s.*stm \(of 2 .stm and 4"):
        prepare_switchboard(
            [sources("switchboard") / "swb1"],
            tmp_path / "root",
            evaluations={name: [tmp_path / "here"]},
            dev_utterances=4,
            jobs=1,
            progress=False,
        )


def test_words_beyond_the_dictionary_are_guessed(sources, tmp_path):
    source = sources("librispeech")
    short = tmp_path / "short.txt"
    short.write_text("HELLO HH AH0 L OW1\n")
    from dmao.recipes.librispeech.corpus import prepare_librispeech

    corpus = prepare_librispeech(source, tmp_path / "root", hours="mini", dictionary=short, jobs=1, progress=False)
    lexicon = corpus.lexicon()
    assert lexicon["green"] == [["G", "R", "IY", "N"]]
    assert set(lexicon) == {word for n in range(8) for word in corpora.sentence(n).split()} | {"hello"}


def test_two_processes_make_the_same_features(sources, prepared, tmp_path):
    corpus = prepare("librispeech", sources("librispeech"), tmp_path / "root", jobs=2)
    for one, two in zip(cuts(prepared("librispeech"), "train"), cuts(corpus, "train"), strict=True):
        assert np.array_equal(one.load_features(), two.load_features())
    assert json.loads((corpus.root / "corpus.json").read_text())["fingerprint"] == prepared("librispeech").fingerprint
