"""Log-mel features: 80 bins from 60 Hz to 95 % of the Nyquist frequency (7600 Hz at 16 kHz, 3800 Hz at 8 kHz), 25 ms
windows every 10 ms, computed once through lhotse and kept in fp16.

One .npy file per utterance (lhotse's storage "numpy_files"): of lhotse's storages it needs no further package and reads
about 20,000 times faster than real time. Files appear whole or not at all, so an interrupted run goes on.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from lhotse import Fbank, FbankConfig, Features
from lhotse.audio import info
from lhotse.features.io import NumpyFilesReader
from lhotse.utils import compute_num_frames

from dmao.data import FRAME_SHIFT
from dmao.data.corpus import installed_versions, replacing
from dmao.data.manifests import SAMPLE_RATE, CutSet, MonoCut, write_manifest
from dmao.errors import UserError, first_line
from dmao.files import write_atomically
from dmao.progress import bar

BINS = 80
_DEVIATION_FLOOR = 1e-5


def fbank_config(sample_rate: int = SAMPLE_RATE) -> FbankConfig:
    """The settings of the features at a sample rate."""
    return FbankConfig(
        sampling_rate=sample_rate,
        num_filters=BINS,
        low_freq=60.0,
        high_freq=0.475 * sample_rate,
        frame_shift=FRAME_SHIFT,
        dither=0.0,
    )


def feature_version(sample_rate: int = SAMPLE_RATE) -> str:
    """What decides the features of given audio: lhotse's version and a hash of the settings."""
    chosen = sorted(fbank_config(sample_rate).to_dict().items())
    settings = "fp16 " + " ".join(f"{key}={value}" for key, value in chosen)
    return f"lhotse {installed_versions('lhotse')['lhotse']} {hashlib.sha256(settings.encode()).hexdigest()[:8]}"


def add_features(
    root: Path,
    split: str,
    cuts: Sequence[MonoCut],
    content: str,
    *,
    jobs: int = 1,
    on_unreadable: Callable[[MonoCut, str], None] | None = None,
    progress: bool = True,
) -> list[MonoCut]:
    """Compute what features are missing and write the manifest of `split`.

    Args:
        root: folder of the corpus; the paths in `cuts` are relative to it, or absolute.
        split: name of the split.
        cuts: cuts with recordings, all of one sample rate.
        content: hash of the audio: features of other audio are never taken for these.
        jobs: processes that compute.
        on_unreadable: gets every cut whose audio is missing, cut off, unreadable or not finite, with its file and the
            reason; the manifest goes without them. None raises the first one.
        progress: show a progress bar.

    Returns:
        The cuts of the manifest, with features.

    Raises:
        UserError: if audio is missing, cut off, unreadable or not finite (names utterance and file), or a process ends.
    """
    sample_rate = cuts[0].sampling_rate if cuts else SAMPLE_RATE
    key = hashlib.sha256(f"{content} {feature_version(sample_rate)}".encode()).hexdigest()[:12]
    folder = Path("features") / f"{split}-{key}"
    described = []
    with replacing(root / folder):
        results = _compute_all(cuts, root, folder, jobs)
        done = bar(results, f"features {split}", "utt", len(cuts), shown=progress)
        for cut, unreadable in zip(cuts, done, strict=True):
            if not unreadable:
                described.append(replace(cut, features=_describe(cut, folder / f"{cut.id}.npy")))
                continue
            path = root / cut.recording.sources[0].source
            if on_unreadable is None:
                raise UserError(f"cannot read audio of utterance {cut.id} ({path}): {unreadable}")
            on_unreadable(cut, f"{path}: {unreadable}")
        write_manifest(root / "manifests" / f"{split}.jsonl.gz", CutSet.from_cuts(described))
    return described


def _compute_all(cuts: Sequence[MonoCut], root: Path, folder: Path, jobs: int) -> Iterator[str]:
    """For every cut in order "", or why its audio cannot be read."""
    work = (cuts, itertools.repeat(root), itertools.repeat(folder))
    if jobs == 1:
        with one_torch_thread():
            yield from map(_compute, *work)
        return
    context = multiprocessing.get_context("forkserver")  # a fork of a process with threads may hang
    with ProcessPoolExecutor(jobs, context, initializer=_begin_worker) as pool:
        try:
            yield from pool.map(_compute, *work, chunksize=32)
        except BrokenProcessPool as error:
            raise UserError(
                "features: a process that computes them has ended, for want of memory, or because a script prepares "
                'without `if __name__ == "__main__":`; jobs=1 needs no other process'
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _begin_worker() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends its workers


def _compute(cut: MonoCut, root: Path, folder: Path) -> str:
    path = root / folder / f"{cut.id}.npy"
    if _frames_in(path) == _frames_of(cut):
        return ""
    try:
        audio = _audio(cut, root)
    except UserError as error:
        return str(error)
    features = _extractor(cut.sampling_rate).extract(audio, cut.sampling_rate)
    if not np.isfinite(features).all():
        return "it holds NaN or infinity, or numbers too large for features"
    _write(path, features, _frames_of(cut), cut.id)
    return ""


def load_features(cut: MonoCut) -> np.ndarray:
    """Read the features of `cut`, each bin normalised to mean 0 and deviation 1 over the utterance: fp32 [T, 80].

    Raises:
        UserError: if the file is missing or damaged (names utterance and file).
    """
    try:
        features = cut.load_features().astype(np.float32)
        if features.ndim != 2 or features.shape[1] != BINS or not len(features):
            raise ValueError(f"expected numbers [frames, {BINS}], got {list(features.shape)}")
        if not np.isfinite(features).all():
            raise ValueError("expected finite numbers, got NaN or infinity (preparing again names such audio)")
    except Exception as error:  # numpy and the file system raise their own
        path = Path(cut.features.storage_path) / cut.features.storage_key
        reason = first_line(error)
        way_out = "delete that file and ROOT/corpus.json, then prepare again"
        raise UserError(f"cannot read features of utterance {cut.id} ({path}): {reason}; {way_out}") from error
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


@cache
def _extractor(sample_rate: int) -> Fbank:
    return Fbank(fbank_config(sample_rate))


def _audio(cut: MonoCut, root: Path) -> np.ndarray:
    path = root / cut.recording.sources[0].source
    try:
        found = info(path).frames  # lhotse pads a file that is too short without a word
        if found != cut.recording.num_samples:
            raise ValueError(f"it holds {found} samples, its manifest says {cut.recording.num_samples}")
        return cut.with_recording_path_prefix(root).load_audio()
    except Exception as error:  # lhotse, libsndfile and the file system raise their own
        raise UserError("no such file" if not path.exists() else first_line(error)) from error


def _frames_of(cut: MonoCut) -> int:
    return compute_num_frames(cut.duration, FRAME_SHIFT, cut.sampling_rate)


def _frames_in(path: Path) -> int | None:
    try:
        return np.load(path, mmap_mode="r").shape[0]
    except (OSError, ValueError, EOFError, OverflowError):
        return None


def _write(path: Path, features: np.ndarray, frames: int, id: str) -> None:
    if features.shape != (frames, BINS):
        raise UserError(f"utterance {id}: expected features of shape {(frames, BINS)}, got {features.shape}")
    buffer = io.BytesIO()
    np.save(buffer, features.astype(np.float16))
    write_atomically(path, buffer.getvalue())


def _describe(cut: MonoCut, file: Path) -> Features:
    return Features(
        type=Fbank.name,
        num_frames=_frames_of(cut),
        num_features=BINS,
        frame_shift=FRAME_SHIFT,
        sampling_rate=cut.sampling_rate,
        start=cut.start,
        duration=cut.duration,
        storage_type=NumpyFilesReader.name,
        storage_path=file.parent.as_posix(),
        storage_key=file.name,
        recording_id=cut.recording_id,
        channels=cut.channel,
    )
