"""The embedded corpus: English word sequences spoken by eSpeak NG, the same bits on every machine.

A plan says who speaks what, and how; it is drawn from the seed alone. Shards of 64 utterances are spoken by fresh
processes (see `dmao.data.synthesis`), so that the number of jobs cannot matter and an interrupted run goes on.
The test split has voices and sentences that training never hears; the dev split has the voices of training.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import random
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

import dmao
from dmao.data.acoustics import SAMPLE_RATE
from dmao.data.corpus import LEXICON, STAMP, Corpus, installed_versions, preparing, usable_cores
from dmao.data.synthesis import INDEX, Utterance
from dmao.data.words import vocabulary
from dmao.errors import UserError
from dmao.files import read_json, write_atomically

if TYPE_CHECKING:
    from lhotse import MonoCut

_log = logging.getLogger(__name__)

GENERATION = "1"  # raise it when the same arguments begin to give other samples
SHARD_SIZE = 64
_SHARD_NAME = re.compile(r"(train|dev|test)-\d{4}-[0-9a-f]{12}")
ACCENTS = ("en-us", "en", "en-gb-scotland", "en-gb-x-rp", "en-029", "en-us-nyc", "en-gb-x-gbclan")
# Variants of the engine that sound like a person and do not draw noise from the clock.
_HELD_OUT = "Andy Denis Lee Reed anika belinda benjamin david f4 iven iven2 linda marcelo pedro steph2 victor"
_TRAINING = """
Alex Andrea Annie Diogo Gene Henrique Hugo Jacky Marco Mario Michael Mike Nguyen adam announcer antonio aunty boris ed
edward edward2 f1 grandma grandpa gustave ian iven3 iven4 john kaukovalta klatt klatt2 klatt3 klatt4 klatt5 klatt6
m1 m2 m3 m4 m5 m6 m7 m8 max michel miguel mike2 norbert pablo paul quincy rob robert shelby steph steph3 travis zac
"""
HELD_OUT_VOICES = tuple(_HELD_OUT.split())
TRAINING_VOICES = tuple(_TRAINING.split())
Shard = tuple[Path, list[Utterance]]


def prepare_embedded(
    root: str | Path,
    hours: float = 1.0,
    words: int = 150,
    *,
    seed: int = 0,
    dev_minutes: float = 4.0,
    test_minutes: float = 8.0,
    jobs: int | None = None,
    progress: bool = True,
) -> Corpus:
    """Make the embedded corpus in `root`, or find it there.

    The result depends on the arguments (`jobs` and `progress` apart) and on the versions of eSpeak NG, numpy and scipy
    only. A second call with the same arguments does nothing; an interrupted one goes on where it was; other arguments
    replace the corpus in `root`, so give every variant a folder of its own.

    Args:
        root: folder of the corpus, created if need be.
        hours: speech in the training split, about (within some per cent).
        words: size of the vocabulary, 20 .. len(WORDS); smaller vocabularies are subsets of larger ones.
        seed: decides sentences, voices, rooms and noise.
        dev_minutes: speech in the dev split (voices of training, unseen sentences).
        test_minutes: speech in the test split (held-out voices, unseen sentences).
        jobs: processes that speak at the same time; None takes all cores.
        progress: show a progress bar.

    Returns:
        The corpus, with features; `corpus.cuts("train")` reads it.

    Raises:
        UserError: bad argument, folder that cannot be written, full disk, missing or failing speech engine.
    """
    minutes = {"train": 60 * hours, "dev": dev_minutes, "test": test_minutes}
    for name, value in minutes.items():
        if not 0 < value < math.inf:
            raise UserError(f"the {name} split must last longer than 0 minutes and end, got {value}")
    if jobs is not None and jobs < 1:
        raise UserError(f"jobs must be at least 1, got {jobs}")
    from dmao.data.features import add_features, feature_version

    root = Path(root)
    arguments = {
        "hours": hours,
        "words": words,
        "seed": seed,
        "dev_minutes": dev_minutes,
        "test_minutes": test_minutes,
    }
    synthesis_versions = {"generation": GENERATION, **installed_versions("espeakng-loader", "numpy", "scipy")}
    versions = {**synthesis_versions, "features": feature_version()}
    splits = plan(vocabulary(words), minutes, seed)
    with preparing(root):
        if corpus := Corpus.find(root, "embedded", arguments, versions):
            return corpus
        (root / STAMP).unlink(missing_ok=True)
        shards = {split: _shards(root, split, utterances, synthesis_versions) for split, utterances in splits.items()}
        _speak([shard for group in shards.values() for shard in group], jobs or usable_cores(), progress)
        _remove_others(root / "audio", {folder for group in shards.values() for folder, _ in group})
        _pronounce(root, vocabulary(words))
        spoken = {split: [_read_index(folder) for folder, _ in group] for split, group in shards.items()}
        corpus = _describe(root, arguments, versions, spoken)
        for split, indices in spoken.items():
            cuts = _cuts(root, [folder for folder, _ in shards[split]], indices)
            add_features(root, split, cuts, corpus.splits[split]["sha256"], progress=progress)
        corpus.save()
        return corpus


def plan(words: Collection[str], minutes: dict[str, float], seed: int) -> dict[str, list[Utterance]]:
    """Decide every utterance of every split; no sentence occurs in two splits.

    dev and test come first and do not depend on the length of the training split.
    """
    taken: set[str] = set()
    splits = {}
    for split in ("dev", "test", "train"):
        voices = HELD_OUT_VOICES if split == "test" else TRAINING_VOICES
        rng = random.Random(f"{seed}/{split}")
        splits[split] = _plan_split(split, sorted(words), voices, 60 * minutes[split], taken, rng)
        taken |= {utterance.text for utterance in splits[split]}
    return {split: splits[split] for split in minutes}


def _plan_split(
    split: str, words: list[str], voices: tuple[str, ...], seconds: float, taken: set[str], rng: random.Random
) -> list[Utterance]:
    utterances: list[Utterance] = []
    while seconds > 0:
        text = " ".join(rng.choices(words, k=rng.randint(3, 8)))
        if text in taken:
            continue
        utterance = Utterance(
            id=f"{split}-{len(utterances):06d}",
            text=text,
            voice=rng.choice(voices),
            accent=rng.choice(ACCENTS),
            rate=rng.randint(110, 180),  # faster speech has more letters than output frames
            pitch=rng.randint(15, 85),
            pitch_range=rng.randint(25, 75),
            seed=rng.getrandbits(31),
        )
        utterances.append(utterance)
        seconds -= _expected_seconds(utterance)
    return utterances


def _expected_seconds(utterance: Utterance) -> float:
    """Length of the recording: a least-squares fit over this corpus (0.35 s a word at 175 words per minute)."""
    return 0.1 + 0.35 * 175 / utterance.rate * len(utterance.text.split())


def _shards(root: Path, split: str, utterances: list[Utterance], versions: dict[str, str]) -> list[Shard]:
    """Cut a split into shards, each in a folder whose name holds a hash of all that decides its content."""
    shards = []
    for start in range(0, len(utterances), SHARD_SIZE):
        block = utterances[start : start + SHARD_SIZE]
        content = json.dumps([versions, [asdict(utterance) for utterance in block]], sort_keys=True)
        key = hashlib.sha256(content.encode()).hexdigest()[:12]
        shards.append((root / "audio" / f"{split}-{start // SHARD_SIZE:04d}-{key}", block))
    return shards


def _speak(shards: list[Shard], jobs: int, progress: bool) -> None:
    """Have every shard that is not there yet spoken by a process of its own, `jobs` at a time."""
    missing = [shard for shard in shards if not shard[0].exists()]
    if not missing:
        return
    running: set[subprocess.Popen[str]] = set()
    bar = tqdm(
        total=sum(len(block) for _, block in missing), desc="speech", unit="utt", disable=None if progress else True
    )
    stopped = threading.Event()
    with bar, ThreadPoolExecutor(min(jobs, len(missing))) as pool:
        try:
            pending = {
                pool.submit(_speak_shard, folder, block, running, stopped): len(block) for folder, block in missing
            }
            for future in as_completed(pending):
                future.result()
                bar.update(pending[future])
        except BaseException:  # an error or Ctrl-C: leave no process behind
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                process.terminate()
            raise


def _speak_shard(
    folder: Path, block: list[Utterance], running: set[subprocess.Popen[str]], stopped: threading.Event
) -> None:
    specification = folder.with_name(folder.name + ".spec.json")
    write_atomically(specification, json.dumps([asdict(utterance) for utterance in block]))
    source = str(Path(dmao.__file__).parents[1])
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH")))),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "dmao.data.synthesis", str(specification), str(folder)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    running.add(process)
    if stopped.is_set():  # while it was being started
        process.terminate()
    _, errors = process.communicate()
    running.discard(process)
    if process.returncode != 0:
        reason = errors.strip().splitlines()[-1] if errors.strip() else f"exit status {process.returncode}"
        raise UserError(f"speech synthesis failed: {reason}")
    specification.unlink()


def _remove_others(audio: Path, wanted: set[Path]) -> None:
    """Delete shards of other arguments or versions, and leftovers of interrupted runs; nothing else."""
    others = [path for path in audio.iterdir() if path not in wanted and _SHARD_NAME.match(path.name)]
    if folders := [path for path in others if path.is_dir() and not path.name.endswith(".partial")]:
        _log.warning("%s: %d shards made with other arguments or versions are removed", audio, len(folders))
    for path in others:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _pronounce(root: Path, words: Iterable[str]) -> None:
    from dmao.data.espeak import lexicon

    write_atomically(root / LEXICON, json.dumps(lexicon(list(words)), ensure_ascii=False, indent=0))


def _read_index(folder: Path) -> list[dict]:
    try:
        return read_json(folder / INDEX)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {folder / INDEX}: {error}; delete that folder and prepare again") from error


def _describe(root: Path, arguments: dict, versions: dict[str, str], spoken: dict[str, list[list[dict]]]) -> Corpus:
    splits = {}
    for split, indices in spoken.items():
        entries = [entry for index in indices for entry in index]
        splits[split] = {
            "utterances": len(entries),
            "seconds": round(sum(entry["samples"] for entry in entries) / SAMPLE_RATE, 3),
            "sha256": hashlib.sha256("".join(entry["sha256"] for entry in entries).encode()).hexdigest(),
        }
    fingerprint = hashlib.sha256("".join(split["sha256"] for split in splits.values()).encode()).hexdigest()
    return Corpus(root, "embedded", arguments, versions, splits, fingerprint)


def _cuts(root: Path, folders: list[Path], indices: list[list[dict]]) -> list[MonoCut]:
    from dmao.data.manifests import make_cut

    return [
        make_cut(
            entry["id"],
            (folder / f"{entry['id']}.flac").relative_to(root),
            entry["samples"],
            text=entry["text"],
            speaker=entry["voice"],
            language="en",
            custom={key: entry[key] for key in ("accent", "rate", "pitch", "pitch_range")},
        )
        for folder, index in zip(folders, indices, strict=True)
        for entry in index
    ]
