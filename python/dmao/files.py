"""Files that appear whole or not at all, what is said where they cannot be written, and JSON from them."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dmao.errors import UserError, reason

_log = logging.getLogger(__name__)

_PLAIN_NAME = re.compile(r"(?!\.+$)[\w.+-]+")
_LONGEST_NAME = 200  # bytes; a file system takes 255, and a suffix comes behind


def is_plain_name(name: str) -> bool:
    """Whether a name from a file, an utterance's or a split's, may become the name of a file: of that and no other."""
    return bool(_PLAIN_NAME.fullmatch(name)) and len(name.encode()) <= _LONGEST_NAME


PARTIAL = ".partial"  # ends the names of files that are not complete yet
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the system says against writing `path` into a UserError that tells the way out."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path | str, error: OSError) -> UserError:
    """What to tell about `path` and what the system said."""
    way_out = "make room" if error.errno in _NO_ROOM else "mend that or choose another place"
    return UserError(f"cannot write {path}: {reason(error)}; {way_out}, then type the same command again")


def require_writable(path: Path) -> None:
    """Raises UserError where the file `path` could not be written now: to be asked before the work, not after it."""
    with writing(path):
        target = _target(path)
        folder = next(folder for folder in target.parents if folder.exists())
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))  # a full disk still makes files, as long as they are empty


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that readers and interrupted runs see the old one or the new one, never half of it.

    Several processes may write the same file: the last one's stays. Raises UserError where it cannot be written.
    """
    with writing(path):
        target = _target(path)
        partial = target.with_name(f"{target.name}.{secrets.token_hex(8)}{PARTIAL}")  # machines may share a folder
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(content.encode() if isinstance(content, str) else content)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)


def _target(path: Path) -> Path:
    """Behind all links, which stay. Raises UserError for a device or a pipe: a file in its place would be its end."""
    target = Path(os.path.realpath(path))
    if target.exists() and not (target.is_file() or target.is_dir()):
        raise UserError(f"cannot write {path}: it is a device or a pipe, and not a file; choose another place")
    return target


def remove_partial(folder: Path) -> None:
    """Removes what a killed process has left half-written in `folder`, where nobody else writes."""
    for path in folder.glob(f"*{PARTIAL}"):
        with writing(path):
            path.unlink(missing_ok=True)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keeps `folder`, which is made where it is missing, from other processes that ask for it likewise.

    The lock is the system's: it ends with this process, however that ends, and processes forked from it have none, nor
    does it part threads of one. Raises UserError where another process holds it. Where the file system knows no locks,
    a warning says so.
    """
    with writing(folder / ".lock"):
        path = _target(folder / ".lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise UserError(f"another process writes into {folder}: wait for it, or choose another folder") from None
        except OSError as error:
            _log.warning("%s cannot be locked (%s): start no second process that writes into it", folder, reason(error))
        yield


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises OSError, and ValueError for what is not JSON or nested beyond all use."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deep") from None
