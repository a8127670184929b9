"""Recorded speech: the Czech and Dutch dialogues of the game Fish Fillets NG, about 90 minutes each.

Debian packages carry the recordings (fillets-ng-data-cs, -nl) and their exact texts (fillets-ng-data). They are under
GPL-2 and therefore fetched when asked for, never shipped; nothing is installed and no root is needed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from dmao.data.acoustics import resample
from dmao.data.corpus import LEXICON, STAMP, Corpus, hash_of_split, installed_versions, preparing, replacing
from dmao.data.espeak import Espeak
from dmao.data.features import add_features, feature_version
from dmao.data.manifests import MonoCut, make_cut
from dmao.data.synthesis import encode_flac
from dmao.errors import UserError
from dmao.files import write_atomically
from dmao.progress import bar

_log = logging.getLogger(__name__)

CONVERSION = "1"  # raise it when the same packages begin to give another corpus
SPLITS = ("train", "dev", "test")
LANGUAGES = {"cs": "Czech", "nl": "Dutch"}
_GAME = Path("usr/share/games/fillets-ng")
_LINE = re.compile(
    r'dialogId\("(?P<id>[^"]+)",\s*"(?P<speaker>[^"]+)",\s*"(?:[^"\\]|\\.)*"\)\s*'
    r'dialogStr\("(?P<text>(?:[^"\\]|\\.)*)"\)'
)
_SECONDS = (0.6, 9.0)
_LETTERS_PER_SECOND = (4, 28)  # outside, text and recording do not match


@dataclass(frozen=True)
class Clip:
    """One recording with its text; `level` is the scene of the game that it belongs to."""

    level: str
    name: str
    path: Path
    text: str
    speaker: str

    @property
    def id(self) -> str:
        return f"{self.level}-{self.name}"

    @property
    def split(self) -> str:
        """Whole levels go to test, dev or train (1 : 1 : 8), so that no scene is in two splits."""
        digest = hashlib.md5(self.level.encode(), usedforsecurity=False).hexdigest()
        return {0: "test", 1: "dev"}.get(int(digest, 16) % 10, "train")


def prepare_recorded(language: str, root: str | Path, *, progress: bool = True) -> Corpus:
    """Fetch and convert the Czech ("cs") or Dutch ("nl") recordings into `root`, or find them there.

    Needs Debian or a relative with `apt-get` and `dpkg-deb`, the network, and about 300 MB while it runs. A second
    call does nothing; an interrupted one goes on where it was.

    Returns:
        The corpus (train, dev, test by scene; the actors are the same in all), with features.

    Raises:
        UserError: unknown language, no apt, package that cannot be fetched, folder that cannot be written.
    """
    if language not in LANGUAGES:
        raise UserError(f"language must be one of {', '.join(LANGUAGES)}, got {language!r}")
    root = Path(root)
    arguments = {"language": language}
    versions = {
        "conversion": CONVERSION,
        "features": feature_version(),
        **installed_versions("espeakng-loader", "numpy", "scipy"),
    }
    with preparing(root):
        name = f"recorded-{language}"
        if corpus := Corpus.find(root, name, arguments, versions):
            return corpus
        (root / STAMP).unlink(missing_ok=True)
        packages = root / f"debian-{language}"
        unpacked = fetch(("fillets-ng-data", f"fillets-ng-data-{language}"), packages, progress=progress)
        clips = list(find_clips(unpacked, language))
        if not clips:
            raise UserError(f"the packages in {unpacked} hold no {LANGUAGES[language]} recordings with texts")
        lexicon = pronounce(clips, language)
        write_atomically(root / LEXICON, json.dumps(lexicon, ensure_ascii=False, indent=0))
        spoken = [clip for clip in clips if all(word in lexicon for word in clip.text.split())]
        made = hashlib.sha256(json.dumps(versions, sort_keys=True).encode()).hexdigest()[:12]
        audio = Path("audio") / f"{language}-{made}"  # what decides the samples: others are never taken for them
        with replacing(root / audio):
            corpus = _convert_all(audio, spoken, Corpus(root, name, arguments, versions, {}, ""), progress)
            corpus.save()
        shutil.rmtree(packages)
        return corpus


def fetch(packages: tuple[str, ...], folder: Path, *, progress: bool = True) -> Path:
    """Download Debian packages and unpack them below `folder`; return the unpacked tree. Goes on where it was."""
    tree, complete = folder / "tree", folder / "complete"
    if complete.exists():
        return tree
    missing = [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]
    if missing:
        raise UserError(
            f"the recordings come from Debian packages ({', '.join(packages)}; GPL-2, not shipped with dmao) and "
            f"need {' and '.join(missing)}, not found on this machine"
        )
    folder.mkdir(parents=True, exist_ok=True)
    _log.info("fetching %s (GPL-2) from Debian", ", ".join(packages))
    for package in bar(packages, "packages", "package", shown=progress):
        _run(["apt-get", "download", package], folder, package)
        for archive in folder.glob(f"{package}_*.deb"):
            _run(["dpkg-deb", "-x", str(archive.resolve()), str(tree.resolve())], folder, package)
            archive.unlink()
    complete.touch()
    return tree


def _run(command: list[str], folder: Path, package: str) -> None:
    done = subprocess.run(
        command, check=False, cwd=folder, env=os.environ | {"LC_ALL": "C"}, capture_output=True, text=True
    )
    if done.returncode == 0:
        return
    if "Unable to locate package" in done.stderr or "no candidate" in done.stderr.lower():
        raise UserError(
            f"apt knows no package {package}: its list is empty or lacks it; run `apt-get update` once as root"
        )
    reason = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"status {done.returncode}"
    raise UserError(f"`{' '.join(command[:2])}` failed for {package}: {reason}")


def find_clips(tree: Path, language: str) -> Iterator[Clip]:
    """Match recordings with texts, in order of level and name; what cannot be read aloud letter by letter is left."""
    for script in sorted((tree / _GAME / "script").glob(f"*/dialogs_{language}.lua")):
        level = script.parent.name
        lines = {match["id"]: match for match in _LINE.finditer(script.read_text(encoding="utf-8"))}
        for path in sorted((tree / _GAME / "sound" / level / language).glob("*.ogg")):
            line = lines.get(path.stem)
            text = normalise(line["text"]) if line else None
            if line and text and _plausible(text, soundfile.info(path).duration):
                yield Clip(level, path.stem, path, text, line["speaker"].removeprefix("font_"))


def normalise(text: str) -> str | None:
    """Lower-case Latin letters (NFC) and single blanks; None where more would be heard: digits, symbols, Russian."""
    text = unicodedata.normalize("NFC", text.replace('\\"', '"').replace("\\n", " ")).lower()
    if re.search(r"[\d%$&+=]", text):
        return None
    text = re.sub(r"['’]", "", text)
    words = re.sub(r"[\W_]+", " ", text).split()
    latin = all("LATIN" in unicodedata.name(letter, "") for word in words for letter in word)
    return " ".join(words) if words and latin else None


def pronounce(clips: list[Clip], language: str) -> dict[str, list[str]]:
    """Pronounce the words of `clips`; words that the engine has no sound for are left out."""
    engine = Espeak()
    engine.set_voice(language)
    words = sorted({word for clip in clips for word in clip.text.split()})
    return {word: phones for word in words if (phones := engine.phones(word))}


def _plausible(text: str, seconds: float) -> bool:
    slow, fast = _LETTERS_PER_SECOND
    return _SECONDS[0] < seconds < _SECONDS[1] and slow < len(text) / seconds < fast


def _convert_all(audio: Path, clips: list[Clip], corpus: Corpus, progress: bool) -> Corpus:
    root = corpus.root
    cuts: dict[str, list[MonoCut]] = {split: [] for split in SPLITS}
    digests = {split: hashlib.sha256() for split in SPLITS}
    for clip in bar(clips, "recordings", "utt", shown=progress):
        file = audio / f"{clip.id}.flac"
        samples = _convert(clip.path, root / file)
        digests[clip.split].update(samples.astype("<i2").tobytes())
        cut = make_cut(
            clip.id,
            file,
            len(samples),
            text=clip.text,
            speaker=clip.speaker,
            language=corpus.arguments["language"],
        )
        cuts[clip.split].append(cut)
    splits = {}
    for split, group in cuts.items():
        content = digests[split].hexdigest()
        add_features(root, split, group, content, progress=progress)
        splits[split] = {
            "utterances": len(group),
            "seconds": round(sum(cut.duration for cut in group), 3),
            "sha256": hash_of_split(content, (cut.supervisions[0].text for cut in group)),
        }
    fingerprint = hashlib.sha256("".join(str(split["sha256"]) for split in splits.values()).encode()).hexdigest()
    return Corpus(root, corpus.name, corpus.arguments, corpus.versions, splits, fingerprint)


def _convert(source: Path, target: Path) -> np.ndarray:
    """Return `source` as int16 at 16 kHz, mono, and keep it as FLAC in `target`."""
    if target.exists():
        return soundfile.read(target, dtype="int16")[0]
    try:
        signal, sample_rate = soundfile.read(source, always_2d=True)
    except soundfile.SoundFileError as error:
        raise UserError(f"cannot read recording {source}: {error}") from error
    signal = resample(signal.mean(axis=1), sample_rate)
    samples = np.round(np.clip(signal, -1, 1) * 32767).astype(np.int16)
    write_atomically(target, encode_flac(samples))
    return samples
