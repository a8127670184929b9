import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from dmao.data import features
from dmao.data.features import add_features, load_features
from dmao.data.manifests import make_cut, read_manifest
from dmao.data.synthesis import encode_flac
from dmao.errors import UserError


def sine(root, name, samples=16000, frequency=440.0):
    audio = (8000 * np.sin(2 * np.pi * frequency * np.arange(samples) / 16000)).astype(np.int16)
    (root / f"{name}.flac").write_bytes(encode_flac(audio))
    return make_cut(name, features.Path(f"{name}.flac"), samples, text="x", speaker="s", language="en")


def prepared(root, cuts, content="c"):
    add_features(root, "train", cuts, content, progress=False)
    return list(read_manifest(root / "manifests" / "train.jsonl.gz", root))


def test_shape_bins_and_storage(tmp_path):
    low, high = prepared(tmp_path, [sine(tmp_path, "low", 16000, 200), sine(tmp_path, "high", 24007, 6000)])
    assert low.load_features().shape == (100, 80)
    assert high.load_features().shape == (high.num_frames, 80) == (150, 80)
    assert low.load_features().dtype == np.float16
    assert low.load_features().mean(0).argmax() < 20
    assert high.load_features().mean(0).argmax() > 60


def test_normalised_per_utterance(tmp_path):
    (cut,) = prepared(tmp_path, [sine(tmp_path, "a", 20000)])
    x = load_features(cut)
    assert x.dtype == np.float32
    assert np.abs(x.mean(0)).max() < 1e-3
    assert np.abs(x.std(0) - 1).max() < 1e-2


def test_silence_and_one_frame_stay_finite(tmp_path):
    silence = make_cut("s", features.Path("s.flac"), 1600, text="x", speaker="s", language="en")
    (tmp_path / "s.flac").write_bytes(encode_flac(np.zeros(1600, np.int16)))
    for cut in prepared(tmp_path, [silence, sine(tmp_path, "short", 170)]):
        assert np.isfinite(load_features(cut)).all()


def test_computed_once_and_only_what_is_missing(tmp_path, monkeypatch):
    cuts = [sine(tmp_path, name) for name in "abc"]
    first = prepared(tmp_path, cuts)
    files = [features.Path(cut.features.storage_path) / cut.features.storage_key for cut in first]
    files[1].write_bytes(files[1].read_bytes()[:100])  # damaged
    files[2].unlink()
    read, audio = [], features._audio
    monkeypatch.setattr(features, "_audio", lambda cut, root: read.append(cut.id) or audio(cut, root))
    again = prepared(tmp_path, cuts)
    assert read == ["b", "c"]
    assert all((load_features(a) == load_features(b)).all() for a, b in zip(again, first, strict=True))


def test_features_of_other_audio_are_not_taken(tmp_path, caplog):
    (before,) = prepared(tmp_path, [sine(tmp_path, "a", frequency=300)], "first")
    values = load_features(before)
    assert caplog.messages == []
    (after,) = prepared(tmp_path, [sine(tmp_path, "a", frequency=3000)], "second")
    assert not np.allclose(values, load_features(after))
    assert len(list((tmp_path / "features").iterdir())) == 1
    (said,) = caplog.messages
    assert said.startswith(before.features.storage_path)
    assert "other arguments or versions: it is removed" in said


def test_features_stay_until_others_are_complete(tmp_path):
    (before,) = prepared(tmp_path, [sine(tmp_path, "a", frequency=300)], "first")
    (tmp_path / "a.flac").unlink()
    with pytest.raises(UserError, match="no such file"):
        prepared(tmp_path, [before.drop_features()], "second")
    assert load_features(before).shape == (100, 80)


def test_threads_are_put_back(tmp_path):
    threads = torch.get_num_threads()
    with features.one_torch_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == threads


def test_missing_audio_is_named(tmp_path):
    cut = sine(tmp_path, "gone")
    (tmp_path / "gone.flac").unlink()
    with pytest.raises(UserError, match=r"audio of utterance gone \(.*gone.flac\): no such file"):
        prepared(tmp_path, [cut])


@pytest.mark.parametrize("keep", [0, 30, 0.5])
def test_truncated_audio_is_named(tmp_path, keep):
    cut = sine(tmp_path, "cut", 48000)
    path = tmp_path / "cut.flac"
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    with pytest.raises(UserError, match=r"cannot read audio of utterance cut \(.*cut.flac\): ."):
        prepared(tmp_path, [cut])
    assert not (tmp_path / "manifests").exists()


def test_audio_shorter_than_its_manifest(tmp_path):
    cut = sine(tmp_path, "a", 8000)
    longer = make_cut("a", features.Path("a.flac"), 16000, text="x", speaker="s", language="en")
    with pytest.raises(UserError, match=r"utterance a .*holds 8000 samples, its manifest says 16000"):
        prepared(tmp_path, [longer])
    assert len(prepared(tmp_path, [cut])) == 1


@pytest.mark.parametrize("sample", [np.nan, np.inf, 1e30])
def test_audio_that_is_not_finite_is_unreadable(tmp_path, sample):
    soundfile.write(tmp_path / "bad.wav", np.r_[np.zeros(8000), np.full(8000, sample)], 16000, "FLOAT")
    cuts = [sine(tmp_path, "good"), make_cut("bad", Path("bad.wav"), 16000, text="x", speaker="s", language="en")]
    with pytest.raises(UserError, match=r"audio of utterance bad \(.*bad.wav\): it holds NaN or infinity, or"):
        prepared(tmp_path, cuts)
    told = []
    kept = add_features(tmp_path, "train", cuts, "c", on_unreadable=lambda cut, why: told.append(why), progress=False)
    assert [cut.id for cut in kept] == ["good"]
    assert told == [f"{tmp_path / 'bad.wav'}: it holds NaN or infinity, or numbers too large for features"]


def test_features_that_are_not_finite_are_named(tmp_path):
    """Earlier versions made such of such audio."""
    (cut,) = prepared(tmp_path, [sine(tmp_path, "a")])
    np.save(Path(cut.features.storage_path) / cut.features.storage_key, np.full((100, 80), np.nan, np.float16))
    with pytest.raises(UserError, match=r"got NaN or infinity \(preparing again .*\); delete .*prepare again$"):
        load_features(cut)


def test_missing_features_are_named(tmp_path):
    (cut,) = prepared(tmp_path, [sine(tmp_path, "a")])
    shutil.rmtree(tmp_path / "features")
    with pytest.raises(UserError, match=r"features of utterance a \(.*a.npy\)"):
        load_features(cut)
