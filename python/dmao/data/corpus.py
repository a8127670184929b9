"""What a prepared corpus looks like on disk, whoever made it.

ROOT/corpus.json                 the stamp: how it was made, what it holds; written last
ROOT/lexicon.json                word -> phones, or a list of such: the words that decoding may choose from
ROOT/manifests/SPLIT.jsonl.gz    lhotse CutSets; paths inside are relative to ROOT, so a corpus can be moved
ROOT/audio/...  ROOT/features/...

A corpus that lies on disk already keeps its audio where it is: the paths of its recordings are absolute.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmao.data.labels import nfc
from dmao.errors import UserError, reason
from dmao.files import cannot_write, is_plain_name, read_json, write_atomically

if TYPE_CHECKING:
    from lhotse import CutSet

    from dmao.data.labels import Entry

_log = logging.getLogger(__name__)

STAMP = "corpus.json"
LEXICON = "lexicon.json"


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus.

    splits: name, as "train" or "dev-other" -> {"utterances", "seconds", "sha256"}.
    fingerprint: sha256 over all splits: over the PCM of their utterances where the audio was made from the texts, over
        audio (the PCM, or what is cut from where) and texts otherwise.
    sample_rate: of the audio, in Hz.
    problems: kind -> how many were found in the source, and left out.
    left_out: why -> how many segments hold nothing to learn: silence, noise, what is not to be scored.
    """

    root: Path
    name: str
    arguments: Mapping[str, Any]
    versions: Mapping[str, str]
    splits: Mapping[str, Mapping[str, Any]]
    fingerprint: str
    sample_rate: int = 16_000
    problems: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for kind in ("arguments", "versions", "splits"):
            if not isinstance(getattr(self, kind), Mapping):
                raise ValueError(f"{kind} must be a mapping, got {type(getattr(self, kind)).__name__}")
        if bad := [name for name in self.splits if not is_plain_name(name)]:
            raise ValueError(f"a split must have a plain name, got {bad[0]!r}")

    @classmethod
    def load(cls, root: str | Path) -> Corpus:
        """Read the stamp in `root`. UserError where there is none or where it is damaged."""
        path = Path(root) / STAMP
        try:
            return cls(root=Path(root), **read_json(path))
        except FileNotFoundError:
            seen = "" if Path(root).is_absolute() else f", seen from {Path.cwd()}"
            raise UserError(
                f"no prepared corpus in {root} (no {STAMP}{seen}): run `dmao prepare` first, or give another root"
            ) from None
        except OSError as error:
            raise UserError(f"cannot read {path}: {reason(error)}") from error
        except (ValueError, TypeError) as error:
            raise UserError(f"cannot read {path}: {error}; delete it and run `dmao prepare` again") from error

    @classmethod
    def find(cls, root: Path, name: str, arguments: Mapping[str, Any], versions: Mapping[str, str]) -> Corpus | None:
        """Return the corpus in `root` if it is complete and was made in just this way, else None."""
        if not (root / STAMP).exists():
            return None
        corpus = cls.load(root)
        same = (corpus.name, dict(corpus.arguments), dict(corpus.versions)) == (
            name,
            dict(arguments),
            dict(versions),
        )
        parts = (root / "features", *map(corpus.manifest, corpus.splits))
        return corpus if same and all(part.exists() for part in parts) else None

    def save(self) -> None:
        """Write the stamp: from now on the corpus is complete."""
        fields = asdict(self)
        del fields["root"]
        write_atomically(self.root / STAMP, json.dumps(fields, indent=1, ensure_ascii=False) + "\n")

    def manifest(self, split: str) -> Path:
        """Where the manifest of `split` is."""
        return self.root / "manifests" / f"{split}.jsonl.gz"

    def cuts(self, split: str) -> CutSet:
        """Read the cuts of `split`, their paths made absolute. UserError for an unknown split or a bad manifest."""
        if split not in self.splits:
            raise UserError(f"corpus {self.name} has no split {split!r}; it has {', '.join(self.splits)}")
        from dmao.data.manifests import read_manifest

        return read_manifest(self.manifest(split), self.root)

    def lexicon(self) -> dict[str, Entry]:
        """Read the vocabulary with its pronunciations: word (NFC) -> phones, or a list of such."""
        path = self.root / LEXICON
        try:
            lexicon = read_json(path)
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read the lexicon {path}: {reason(error)}") from error
        if not isinstance(lexicon, dict):
            raise UserError(f"cannot read the lexicon {path}: expected words and phones, got {type(lexicon).__name__}")
        return {nfc(word): entry for word, entry in lexicon.items()}  # earlier versions wrote words as they found them

    def __str__(self) -> str:
        parts = [f"{s} {v['utterances']} utterances, {v['seconds'] / 60:.1f} min" for s, v in self.splits.items()]
        return f"{self.name}: {'; '.join(parts)}"


def hash_of_split(audio: str, texts: Iterable[object]) -> str:
    """Of the hash of its audio and of what is said there; features depend on the former alone.

    texts: plain values, one an utterance.
    """
    return hashlib.sha256(json.dumps([audio, *texts]).encode()).hexdigest()


def installed_versions(*packages: str) -> dict[str, str]:
    """Return package -> version. UserError names a package that is not installed."""
    try:
        return {package: version(package) for package in packages}
    except PackageNotFoundError as error:
        raise UserError(f"this needs the package {error.name}: pip install {error.name}") from error


@contextlib.contextmanager
def preparing(root: Path) -> Iterator[None]:
    """Create `root`, keep other preparations of it out, and turn OSError (disk full, no permission) into UserError."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root):
            yield
    except OSError as error:
        raise cannot_write(error.filename or root, error) from error


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[None]:
    """While `folder`, NAME-KEY with a key of 12 hexadecimal digits, is filled: those of other keys go when it is full.

    Until then they serve whoever goes back to the arguments that made them.
    """
    name = folder.name.rpartition("-")[0]
    pattern = re.compile(rf"{re.escape(name)}-[0-9a-f]{{12}}")
    others = [path for path in folder.parent.glob("*") if path != folder and pattern.fullmatch(path.name)]
    for path in others:
        _log.warning("%s was made with other arguments or versions: it is removed when its successor is there", path)
    yield
    for path in others:
        shutil.rmtree(path)


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    if (root / STAMP).exists() and not os.access(root, os.W_OK):  # a finished corpus is found here all the same
        yield
        return
    with open(root / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
