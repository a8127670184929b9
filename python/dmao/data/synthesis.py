"""Worker of the embedded corpus: a fresh interpreter that speaks one shard of utterances and ends.

    python -m dmao.data.synthesis SPECIFICATION.json FOLDER

The engine keeps hidden state, so a shard is a fixed sequence of calls in a process of its own: its output depends on
nothing but its specification. The shard appears under its final name only when it is complete. Must not import torch.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile

from dmao.data.acoustics import SAMPLE_RATE, record
from dmao.data.espeak import Espeak
from dmao.errors import UserError

INDEX = "shard.json"


@dataclass(frozen=True)
class Utterance:
    """Everything that decides how one utterance sounds."""

    id: str
    text: str
    voice: str  # variant of the engine: one speaker
    accent: str
    rate: int  # words per minute
    pitch: int
    pitch_range: int
    seed: int


def speak(engine: Espeak, utterance: Utterance) -> np.ndarray:
    """Return the recording of one utterance: int16 at 16 kHz."""
    speech = engine.synthesize(
        utterance.text,
        f"{utterance.accent}+{utterance.voice}",
        rate=utterance.rate,
        pitch=utterance.pitch,
        pitch_range=utterance.pitch_range,
        seed=utterance.seed,
    )
    return record(speech, engine.sample_rate, np.random.default_rng(utterance.seed))


def encode_flac(samples: np.ndarray) -> bytes:
    """Encode int16 samples in memory, so that a full disk shows as OSError with its reason."""
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def write_shard(utterances: list[Utterance], folder: Path) -> None:
    """Write FLAC files and an index (utterance, sample count, sha256 of the PCM) to `folder`, all or nothing."""
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")  # a killed parent may have left a worker
    partial.mkdir(parents=True)
    engine = Espeak()
    index = []
    for utterance in utterances:
        samples = speak(engine, utterance)
        (partial / f"{utterance.id}.flac").write_bytes(encode_flac(samples))
        pcm = hashlib.sha256(samples.astype("<i2").tobytes()).hexdigest()
        index.append({**asdict(utterance), "samples": len(samples), "sha256": pcm})
    (partial / INDEX).write_text(json.dumps(index), encoding="utf-8")
    if folder.exists():
        shutil.rmtree(partial)
    else:
        partial.rename(folder)


def main(specification: str, folder: str) -> int:
    try:
        entries = json.loads(Path(specification).read_text(encoding="utf-8"))
        write_shard([Utterance(**entry) for entry in entries], Path(folder))
    except OSError as error:
        print(f"cannot write {folder}: {error.strerror or error}", file=sys.stderr)
        return 1
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
