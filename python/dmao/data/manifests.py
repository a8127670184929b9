"""lhotse manifests: made, written and read with errors that a user understands.

lhotse is the one reader of audio, features and manifests. libsndfile is chosen as its audio backend: the default one
wants external programs for some formats.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

os.environ.setdefault("LHOTSE_AUDIO_BACKEND", "LibsndfileBackend")

from lhotse import AudioSource, CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.features.io import NumpyFilesReader

from dmao.data import LONGEST
from dmao.data.acoustics import SAMPLE_RATE
from dmao.errors import UserError


@dataclass(frozen=True)
class Span:
    """Samples of one channel of a longer recording."""

    recording: str
    start: int
    recording_samples: int
    channel: int = 0
    channels: int = 1


def make_cut(
    id: str,
    path: Path,
    samples: int,
    *,
    text: str,
    speaker: str,
    language: str | None,
    custom: Mapping[str, Any] | None = None,
    sample_rate: int = SAMPLE_RATE,
    span: Span | None = None,
) -> MonoCut:
    """Describe `samples` samples as one cut with one supervision.

    path: of the file; it holds nothing else and one channel, unless `span` says which part of it is meant.
    """
    span = span or Span(id, 0, samples)
    source = AudioSource("file", list(range(span.channels)), path.as_posix())
    whole = span.recording_samples
    recording = Recording(span.recording, [source], sample_rate, whole, whole / sample_rate)
    duration = samples / sample_rate
    supervision = SupervisionSegment(
        id,
        span.recording,
        0.0,
        duration,
        span.channel,
        text=text,
        language=language,
        speaker=speaker,
        custom=dict(custom or {}),
    )
    return MonoCut(id, span.start / sample_rate, duration, span.channel, [supervision], recording=recording)


def read_manifest(path: Path, root: Path) -> CutSet:
    """Read a CutSet (jsonl.gz) eagerly and put `root` before its relative paths.

    Raises:
        UserError: if the file is missing, cut off, not a manifest, holds no cut, or one that is not as we write them.
    """
    root = root.absolute()
    try:
        cuts = list(CutSet.from_dicts(_rows(path)))
        for cut in cuts:
            _refuse_strange(cut)
    except FileNotFoundError:
        raise UserError(f"manifest {path} does not exist") from None
    except Exception as error:  # gzip, JSON and lhotse each raise their own
        raise UserError(f"cannot read manifest {path}: {type(error).__name__}: {error}") from error
    if not cuts:
        raise UserError(f"manifest {path} holds no utterance")
    cuts = [cut.with_recording_path_prefix(root) for cut in cuts]
    return CutSet.from_cuts(cut.with_features_path_prefix(root) if cut.has_features else cut for cut in cuts)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Not by lhotse, which reads texts in the encoding of the locale, and runs "pipe:..." in a shell."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def _refuse_strange(cut: Any) -> None:
    """Raises ValueError for a cut that `make_cut` and `add_features` would not make.

    lhotse reads more: it runs a recording's commands in a shell, fetches addresses, and follows paths anywhere.
    """
    if type(cut) is not MonoCut or not isinstance(cut.id, str) or cut.recording is None:
        raise ValueError(f"expected a MonoCut with id and recording, got {type(cut).__name__} {str(cut.id)[:100]!r}")
    for source in cut.recording.sources:
        if source.type != "file":
            raise ValueError(f"the audio of utterance {cut.id} must be of the type file, got {source.type!r}")
    if not (cut.start >= 0 and 0 < cut.duration <= LONGEST):
        raise ValueError(f"utterance {cut.id} must last up to {LONGEST:g} s, got {cut.duration} s from {cut.start} s")
    if (features := cut.features) is None:
        return
    if features.storage_type != NumpyFilesReader.name:
        raise ValueError(f"features of {cut.id} must be {NumpyFilesReader.name}, got {features.storage_type!r}")
    place = PurePosixPath(features.storage_path, features.storage_key)
    if place.is_absolute() or ".." in place.parts:
        raise ValueError(f"features of {cut.id} must lie below the manifest's corpus, got {place}")


def write_manifest(path: Path, cuts: CutSet) -> None:
    """Write a CutSet (jsonl.gz) all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name("partial-" + path.name)
    with gzip.open(partial, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in cuts.to_dicts())
    partial.replace(path)
