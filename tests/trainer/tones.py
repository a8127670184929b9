"""A prepared corpus of a few tones: enough for a training that takes seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile
from dmao.data.corpus import LEXICON, Corpus
from dmao.data.features import add_features
from dmao.data.manifests import MonoCut, make_cut
from dmao.files import write_atomically

TEXTS = {"a": "ab ba", "b": "ab", "c": "ba ab ba", "short": "ab", "crowded": "ab ba ab ba ab ba ab ba"}
SECONDS = {"a": 1.0, "b": 0.7, "c": 1.2, "short": 0.02, "crowded": 0.3}


def make_tones(root: Path, splits: Mapping[str, Sequence[str]]) -> Path:
    """Audio, manifests and features in `root`; splits: which of TEXTS each has."""
    for split, names in splits.items():
        cuts = [_speak(root, f"{split}-{name}", TEXTS[name], SECONDS[name]) for name in names]
        add_features(root, split, cuts, content=split, progress=False)
    write_atomically(root / LEXICON, '{"ab": ["a", "b"], "ba": ["b", "a"]}')
    described = {split: {"utterances": 0, "seconds": 0.0, "sha256": " ".join(names)} for split, names in splits.items()}
    Corpus(root, "tones", {}, {}, described, "").save()
    return root


def _speak(root: Path, name: str, text: str, seconds: float) -> MonoCut:
    samples = int(16000 * seconds)
    wave = 0.3 * np.sin(np.arange(samples) * 0.1) + 0.01 * np.random.default_rng(0).standard_normal(samples)
    path = Path("audio") / f"{name}.flac"
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(root / path, wave, 16000)
    return make_cut(name, path, samples, text=text, speaker="tone", language="en")
