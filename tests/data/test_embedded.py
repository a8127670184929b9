import dataclasses
import errno
import hashlib
import json
import shutil
import subprocess
import sys

import pytest
import soundfile
from dmao.data import embedded, synthesis
from dmao.data.corpus import Corpus
from dmao.data.embedded import HELD_OUT_VOICES, TRAINING_VOICES, plan, prepare_embedded
from dmao.data.words import vocabulary
from dmao.errors import UserError

from tests.mounts import read_only


def sentences(corpus, split):
    return {cut.supervisions[0].text for cut in corpus.cuts(split)}


def voices(corpus, split):
    return {cut.supervisions[0].speaker for cut in corpus.cuts(split)}


def test_splits_share_neither_sentences_nor_held_out_voices(corpus):
    train, dev, test = (sentences(corpus, split) for split in ("train", "dev", "test"))
    assert train
    assert dev
    assert test
    assert not train & dev
    assert not train & test
    assert not dev & test
    assert voices(corpus, "test") <= set(HELD_OUT_VOICES)
    assert voices(corpus, "train") | voices(corpus, "dev") <= set(TRAINING_VOICES)


def test_a_sentence_drawn_for_dev_is_not_drawn_again_for_train():
    """With the smallest vocabulary and hours of speech, chance alone would repeat some."""
    splits = plan(vocabulary(20), {"train": 600.0, "dev": 60.0, "test": 60.0}, seed=0)
    texts = {split: {utterance.text for utterance in group} for split, group in splits.items()}
    assert not texts["dev"] & texts["test"]
    assert not (texts["dev"] | texts["test"]) & texts["train"]


def test_dev_and_test_do_not_depend_on_the_length_of_train():
    short, long = (plan(vocabulary(50), {"train": m, "dev": 1.0, "test": 1.0}, 0) for m in (1.0, 9.0))
    assert short["dev"] == long["dev"]
    assert short["test"] == long["test"]
    assert short["train"] == long["train"][: len(short["train"])]


def test_length_is_about_what_was_asked(corpus):
    assert corpus.splits["train"]["seconds"] == pytest.approx(180, rel=0.1)


def test_lexicon_covers_the_vocabulary(corpus):
    assert set(corpus.lexicon()) == set(vocabulary(40))


def test_bits_do_not_depend_on_the_number_of_jobs(corpus, arguments, tmp_path):
    other = prepare_embedded(tmp_path, jobs=1, **arguments)
    assert other.fingerprint == corpus.fingerprint
    for a, b in zip(corpus.cuts("train"), other.cuts("train"), strict=True):
        assert (a.load_audio() == b.load_audio()).all()
        assert (a.load_features() == b.load_features()).all()


def test_fingerprint_is_that_of_the_samples(small_corpus):
    digests = []
    for split, found in small_corpus.splits.items():
        samples = [
            soundfile.read(cut.recording.sources[0].source, dtype="int16")[0] for cut in small_corpus.cuts(split)
        ]
        pcm = "".join(hashlib.sha256(x.astype("<i2").tobytes()).hexdigest() for x in samples)
        assert found["sha256"] == hashlib.sha256(pcm.encode()).hexdigest()
        assert found["seconds"] == pytest.approx(sum(map(len, samples)) / 16000, abs=1e-3)
        digests.append(found["sha256"])
    assert small_corpus.fingerprint == hashlib.sha256("".join(digests).encode()).hexdigest()


def test_same_bits_as_everywhere(small_corpus):
    """The fingerprint as first made, for the versions that it was made with."""
    made_with = {"generation": "1", "espeakng-loader": "0.2.4", "numpy": "2.4.6", "scipy": "1.17.1"}
    if sys.platform != "linux" or any(small_corpus.versions[name] != made_with[name] for name in made_with):
        pytest.skip("made with other versions")
    assert small_corpus.fingerprint.startswith("a00f1569c707dfb2")


def test_two_workers_on_one_shard_do_not_disturb_each_other(tmp_path):
    utterance = synthesis.Utterance("x", "hello", "Andy", "en-us", 150, 50, 50, 1)
    shard = tmp_path / "shard"
    for _ in range(2):
        synthesis.write_shard([utterance], shard)
        assert sorted(path.name for path in shard.iterdir()) == ["shard.json", "x.flac"]
    assert list(tmp_path.iterdir()) == [shard]


def test_seed_decides_the_plan():
    minutes = {"train": 1.0, "dev": 1.0, "test": 1.0}
    first, same, other = (plan(vocabulary(50), minutes, seed) for seed in (1, 1, 2))
    assert first == same
    assert first["train"] != other["train"]


def test_stamp_holds_every_argument_that_matters(small_corpus, small_arguments):
    assert {**small_corpus.arguments, "progress": False} == small_arguments


def test_second_call_does_nothing(corpus, arguments, monkeypatch):
    for step in ("_speak", "_pronounce", "_describe"):
        monkeypatch.setattr(embedded, step, lambda *_, **__: pytest.fail("worked again"))
    assert prepare_embedded(corpus.root, **arguments) == corpus


def test_a_finished_corpus_is_found_where_nothing_can_be_written(small_corpus, small_arguments, tmp_path):
    root = shutil.copytree(small_corpus.root, tmp_path / "root")
    (root / ".lock").unlink()
    with read_only(root):
        found = prepare_embedded(root, **small_arguments)
        assert found.splits == small_corpus.splits
        with pytest.raises(UserError, match=r"cannot write .*corpus\.json: "):
            prepare_embedded(root, **{**small_arguments, "seed": 12345})
    (root / "corpus.json").unlink()
    with read_only(root), pytest.raises(UserError, match=r"cannot write .*\.lock: "):
        prepare_embedded(root, **small_arguments)


def test_interrupted_run_goes_on(small_corpus, small_arguments, tmp_path, monkeypatch):
    """The second shard fails: the first stays, and the next call speaks the others only."""
    speak, spoken = embedded._speak_shard, []

    def fail_after_one(folder, *rest):
        if len(spoken) == 1:
            raise KeyboardInterrupt
        spoken.append(folder)
        speak(folder, *rest)

    monkeypatch.setattr(embedded, "_speak_shard", fail_after_one)
    with pytest.raises(KeyboardInterrupt):
        prepare_embedded(tmp_path, jobs=1, **small_arguments)
    assert [path for path in (tmp_path / "audio").iterdir() if path.is_dir()] == spoken
    with pytest.raises(UserError, match="no prepared corpus"):
        Corpus.load(tmp_path)
    leftover = spoken[0].with_name("train-0000-0123456789ab.partial")
    leftover.mkdir()

    monkeypatch.setattr(embedded, "_speak_shard", lambda folder, *rest: (spoken.append(folder), speak(folder, *rest)))
    assert prepare_embedded(tmp_path, jobs=1, **small_arguments).fingerprint == small_corpus.fingerprint
    assert len(spoken) == len(set(spoken))
    assert not leftover.exists()


def test_other_arguments_replace_the_corpus_and_nothing_else(small_corpus, small_arguments, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(small_corpus.root, root)
    mine = root / "audio" / "train-of-thought.flac"
    mine.write_text("mine")
    shards = {path.name for path in (root / "audio").iterdir() if path.is_dir()}
    after = prepare_embedded(root, **small_arguments | {"hours": 0.01})
    assert after.splits["test"] == small_corpus.splits["test"]
    assert after.splits["train"]["utterances"] > small_corpus.splits["train"]["utterances"]
    kept = shards & {path.name for path in (root / "audio").iterdir()}
    assert {name.split("-")[0] for name in kept} == {"dev", "test"}
    assert mine.read_text() == "mine"
    assert len(list((root / "features").iterdir())) == 3


def test_corpus_can_be_moved(small_corpus, tmp_path):
    shutil.copytree(small_corpus.root, tmp_path / "there")
    cut = next(iter(Corpus.load(tmp_path / "there").cuts("dev")))
    assert cut.recording.sources[0].source.startswith(str(tmp_path))
    assert cut.load_audio().shape == (1, cut.num_samples)
    assert cut.features.storage_path.startswith(str(tmp_path))
    assert cut.load_features().shape == (cut.num_frames, 80)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"hours": 0}, "train split must last longer than 0"),
        ({"hours": float("inf")}, "train split must last longer than 0"),
        ({"hours": float("nan")}, "train split must last longer than 0"),
        ({"test_minutes": -1}, "test split must last longer than 0"),
        ({"words": 3}, "words must lie between"),
        ({"jobs": 0}, "jobs must be at least 1"),
    ],
)
def test_bad_arguments(arguments, tmp_path, wrong, message):
    with pytest.raises(UserError, match=message):
        prepare_embedded(tmp_path, **arguments | wrong)


def test_folder_that_cannot_be_made(arguments, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file"):
        prepare_embedded(tmp_path / "file" / "corpus", **arguments)


def test_full_disk_is_one_line(corpus, tmp_path, monkeypatch, capsys):
    index = next(corpus.root.glob("audio/dev-*/shard.json"))
    fields = {field.name for field in dataclasses.fields(synthesis.Utterance)}
    specification = tmp_path / "spec.json"
    entries = [{k: v for k, v in entry.items() if k in fields} for entry in json.loads(index.read_text())]
    specification.write_text(json.dumps(entries))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    assert synthesis.main(str(specification), str(tmp_path / "shard")) == 1
    assert capsys.readouterr().err == f"cannot write {tmp_path / 'shard'}: No space left on device\n"
    assert not (tmp_path / "shard").exists()


def test_failure_of_a_worker_is_reported(tmp_path):
    bad = synthesis.Utterance("x", "hello", "nobody", "en-us", 150, 50, 50, 1)
    with pytest.raises(UserError, match=r"speech synthesis failed: eSpeak NG has no voice 'en-us\+nobody'"):
        embedded._speak([(tmp_path / "train-0000-0123456789ab", [bad])], 1, False)


def test_damaged_index_is_named(corpus, tmp_path):
    (tmp_path / "shard.json").write_text("{")
    with pytest.raises(UserError, match=r"cannot read .*shard.json"):
        embedded._read_index(tmp_path)


def test_audio_is_16_khz_mono_flac(corpus):
    path = next(corpus.root.glob("audio/test-*/*.flac"))
    info = soundfile.info(path)
    assert (info.format, info.subtype, info.samplerate, info.channels) == ("FLAC", "PCM_16", 16000, 1)


def test_worker_does_not_load_torch():
    code = "import sys, dmao.data.synthesis; sys.exit('torch' in sys.modules)"
    path = str(embedded.Path(embedded.dmao.__file__).parents[1])
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": path}, check=False).returncode == 0
