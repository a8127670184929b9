"""Log-mel features: 80 bins of 60 .. 7600 Hz, 25 ms windows every 10 ms, computed once through lhotse and kept in fp16.

One .npy file per utterance (lhotse's storage "numpy_files"): of lhotse's storages it needs no further package and reads
about 20,000 times faster than real time. Files appear whole or not at all, so an interrupted run goes on.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from lhotse import Fbank, FbankConfig, Features
from lhotse.audio import info
from lhotse.features.io import NumpyFilesReader
from lhotse.utils import compute_num_frames
from tqdm import tqdm

from dmao.data.corpus import installed_versions
from dmao.data.manifests import SAMPLE_RATE, CutSet, MonoCut, write_manifest
from dmao.errors import UserError, first_line
from dmao.files import write_atomically

BINS = 80
FRAME_SHIFT = 0.01
CONFIG = FbankConfig(
    sampling_rate=SAMPLE_RATE,
    num_filters=BINS,
    low_freq=60.0,
    high_freq=7600.0,
    frame_shift=FRAME_SHIFT,
    dither=0.0,
)
_SETTINGS = "fp16 " + " ".join(f"{key}={value}" for key, value in sorted(CONFIG.to_dict().items()))
FEATURE_VERSION = (
    f"lhotse {installed_versions('lhotse')['lhotse']} {hashlib.sha256(_SETTINGS.encode()).hexdigest()[:8]}"
)
_DEVIATION_FLOOR = 1e-5


def add_features(root: Path, split: str, cuts: Sequence[MonoCut], content: str, *, progress: bool = True) -> None:
    """Compute what features are missing and write the manifest of `split`.

    Args:
        root: folder of the corpus; the paths in `cuts` are relative to it.
        split: name of the split.
        cuts: cuts with recordings.
        content: hash of the audio: features of other audio are never taken for these.
        progress: show a progress bar.

    Raises:
        UserError: if audio is missing, cut off or unreadable (names utterance and file).
    """
    key = hashlib.sha256(f"{content} {FEATURE_VERSION}".encode()).hexdigest()[:12]
    folder = Path("features") / f"{split}-{key}"
    _remove_others(root / "features", split, keep=folder.name)
    extractor = Fbank(CONFIG)
    described = []
    with one_torch_thread():
        for cut in tqdm(cuts, desc=f"features {split}", unit="utt", disable=None if progress else True):
            file = folder / f"{cut.id}.npy"
            frames = compute_num_frames(cut.duration, FRAME_SHIFT, SAMPLE_RATE)
            if _frames_in(root / file) != frames:
                _write(root / file, extractor.extract(_audio(cut, root), SAMPLE_RATE), frames, cut.id)
            described.append(replace(cut, features=_describe(extractor, cut, file, frames)))
    write_manifest(root / "manifests" / f"{split}.jsonl.gz", CutSet.from_cuts(described))


def load_features(cut: MonoCut) -> np.ndarray:
    """Read the features of `cut`, each bin normalised to mean 0 and deviation 1 over the utterance: fp32 [T, 80].

    Raises:
        UserError: if the file is missing or damaged (names utterance and file).
    """
    try:
        features = cut.load_features().astype(np.float32)
    except Exception as error:  # numpy and the file system raise their own
        path = Path(cut.features.storage_path) / cut.features.storage_key
        raise UserError(f"cannot read features of utterance {cut.id} ({path}): {error}; prepare again") from error
    deviation = features.std(axis=0) + _DEVIATION_FLOOR
    return (features - features.mean(axis=0)) / deviation


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """Run the small transforms on one thread: several only wait for each other (8 times slower on 2 cores)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _audio(cut: MonoCut, root: Path) -> np.ndarray:
    path = root / cut.recording.sources[0].source
    try:
        found = info(path).frames  # lhotse pads a file that is too short without a word
        if found != cut.recording.num_samples:
            raise ValueError(f"it holds {found} samples, its manifest says {cut.recording.num_samples}")
        return cut.with_recording_path_prefix(root).load_audio()
    except Exception as error:  # lhotse, libsndfile and the file system raise their own
        reason = "no such file" if not path.exists() else first_line(error)
        raise UserError(f"cannot read audio of utterance {cut.id} ({path}): {reason}") from error


def _frames_in(path: Path) -> int | None:
    try:
        return np.load(path, mmap_mode="r").shape[0]
    except (OSError, ValueError, EOFError):
        return None


def _write(path: Path, features: np.ndarray, frames: int, id: str) -> None:
    if features.shape != (frames, BINS):
        raise UserError(f"utterance {id}: expected features of shape {(frames, BINS)}, got {features.shape}")
    buffer = io.BytesIO()
    np.save(buffer, features.astype(np.float16))
    write_atomically(path, buffer.getvalue())


def _describe(extractor: Fbank, cut: MonoCut, file: Path, frames: int) -> Features:
    return Features(
        type=extractor.name,
        num_frames=frames,
        num_features=BINS,
        frame_shift=FRAME_SHIFT,
        sampling_rate=SAMPLE_RATE,
        start=0.0,
        duration=cut.duration,
        storage_type=NumpyFilesReader.name,
        storage_path=file.parent.as_posix(),
        storage_key=file.name,
        recording_id=cut.recording_id,
        channels=0,
    )


def _remove_others(features: Path, split: str, keep: str) -> None:
    pattern = re.compile(rf"{split}-[0-9a-f]{{12}}")
    for folder in features.glob(f"{split}-*"):
        if folder.name != keep and pattern.fullmatch(folder.name):
            shutil.rmtree(folder)
