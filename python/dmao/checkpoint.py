"""Checkpoints that survive a kill at any moment.

A checkpoint is written beside its place, flushed, and moved there in one step, so a name that exists is a
complete file. The name carries the start of the file's SHA-256 (the convention of torch.hub):
step-00000400-1a2b3c4d5e6f7a8b.pt. Truncated or changed files are recognised by it before anything is
unpickled; in a file of another name, by the checksums of the archive. Loading is weights_only, and takes no more memory
than the file is long. Whoever uses a state does so under `used`: it may be of another version, or of an enemy.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmao.errors import UserError, first_line
from dmao.files import PARTIAL, remove_partial, writing
from dmao.parsing import ConfigError

FORMAT = 1
KEEP = 2
_LONGEST_REASON = 400
_NAME = re.compile(r"step-(\d{8})-([0-9a-f]{16})\.pt")
_log = logging.getLogger(__name__)


class CheckpointError(UserError, RuntimeError):
    """A checkpoint is missing, damaged, or of another format."""


def save(folder: str | Path, step: int, state: Mapping[str, Any], keep: int = KEEP) -> Path:
    """Writes `state` as the checkpoint of `step` and keeps the newest `keep` ones; returns its path.

    Raises UserError where it cannot be written; those that are there stay.
    """
    folder = Path(folder)
    temporary = folder / f"writing{PARTIAL}"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            _write(temporary, {"format": FORMAT, "step": step, **state})
            path = folder / f"step-{step:08d}-{_digest(temporary)}.pt"
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)  # on a full disk half a checkpoint takes the room of a whole one
        _sync_folder(folder)
        _remove_old(folder, path, step, keep)
    return path


def tidy(folder: Path, newest: Path | None, keep: int = KEEP) -> None:
    """Removes what a kill has left: half a checkpoint, and those that `newest`, a usable one, was to push out."""
    remove_partial(folder)
    with writing(folder):
        for path in _before(folder, _step_of(newest))[keep - 1 :] if newest else ():
            path.unlink()


def _write(path: Path, state: Mapping[str, Any]) -> None:
    with path.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # torch.save closes its archive behind an OSError as well, and that fails again
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        file.flush()
        os.fsync(file.fileno())


def _remove_old(folder: Path, newest: Path, step: int, keep: int) -> None:
    # What stands at this step or behind it is damaged: the run was resumed from before it.
    others = [path for path in list_checkpoints(folder) if path != newest]
    for path in set(others) - set(_before(folder, step)[: keep - 1]):
        path.unlink()


def _before(folder: Path, step: int) -> list[Path]:
    return [path for path in list_checkpoints(folder) if _step_of(path) < step]


def _step_of(path: Path) -> int:
    name = _NAME.fullmatch(path.name)
    assert name is not None
    return int(name[1])


def load(path: str | Path) -> dict[str, Any]:
    """The state in one file, and its "path". CheckpointError where it is missing, damaged or of another format."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint: no such file: {path}")
    name = _NAME.fullmatch(path.name)
    if name and _digest(path) != name[2]:
        raise CheckpointError(f"checkpoint: {path} is damaged: its content does not match the checksum in its name")
    try:
        _check_archive(path, checksums=not name)
        state = torch.load(path, map_location="cpu", weights_only=True)
        _check_tensors(state)
    except Exception as error:  # torch.load raises whatever zipfile, pickle or its reader raise
        raise CheckpointError(f"checkpoint: {path} cannot be read: {first_line(error)}") from error
    found = state.get("format") if isinstance(state, dict) else None
    if type(found) is not int or found != FORMAT:
        newer = ": a newer version of dmao wrote it" if isinstance(found, int) and found > FORMAT else ""
        raise CheckpointError(f"checkpoint: {path} must have format {FORMAT}, got {found!r}{newer}")
    return {**state, "path": str(path)}


@contextmanager
def used(state: Mapping[str, Any]) -> Iterator[None]:
    """What goes wrong with a state, of another version, model or person, is a CheckpointError that names the file."""
    try:
        yield
    except UserError as error:
        if not isinstance(error, ConfigError):
            raise
        raise CheckpointError(f"checkpoint: {_described(state)} does not fit: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:_LONGEST_REASON]}"
        raise CheckpointError(f"checkpoint: {_described(state)} does not fit: {reason}") from error


def _described(state: Mapping[str, Any]) -> str:
    by = ", ".join(f"{name} {state[name]}" for name in ("dmao", "torch") if isinstance(state.get(name), str))
    return f"{state.get('path', 'the state')}{f' (by {by})' if by else ''}"


def _check_archive(path: Path, checksums: bool) -> None:
    """Raises ValueError where reading takes more than the file's length, or a checksum is wrong."""
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise ValueError("its records must be stored uncompressed")
        if sum(record.file_size for record in records) > path.stat().st_size:
            raise ValueError("its records must not be larger than the file")
        if checksums and (damaged := archive.testzip()):
            raise ValueError(f"its record {damaged} is damaged")


def _check_tensors(state: Any) -> None:
    """Raises ValueError where a tensor is not one of numbers that are all there: a view can stand for any number."""
    left, seen = [state], set()
    while left:
        value = left.pop()
        if isinstance(value, Tensor):
            if value.layout is not torch.strided or value.device.type != "cpu":
                raise ValueError(f"its tensors must be dense and on the CPU, got {value.layout} on {value.device}")
            if value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise ValueError(f"a tensor of {list(value.shape)} must have as many numbers")
        elif isinstance(value, (Mapping, list, tuple)) and id(value) not in seen:
            seen.add(id(value))  # a reference may stand in many places
            left += value.values() if isinstance(value, Mapping) else value


def load_latest(folder: str | Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest usable checkpoint in `folder`; None where there is no checkpoint at all.

    A damaged file is passed over with one warning. Raises CheckpointError where every one is damaged.
    """
    paths = list_checkpoints(folder)
    for path in paths:
        try:
            return path, load(path)
        except CheckpointError as error:
            _log.warning("%s; trying the one before it", error)
    if paths:
        raise CheckpointError(f"checkpoint: none of the {len(paths)} checkpoints in {folder} is usable")
    return None


def list_checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoint files in `folder`, newest first."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if _NAME.fullmatch(path.name)), reverse=True)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
