"""Files that appear whole or not at all, and JSON from them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

_PLAIN_NAME = re.compile(r"(?!\.+$)[\w.+-]+")
_LONGEST_NAME = 200  # bytes; a file system takes 255, and a suffix comes behind


def is_plain_name(name: str) -> bool:
    """Whether a name from a file, an utterance's or a split's, may become the name of a file: of that and no other."""
    return bool(_PLAIN_NAME.fullmatch(name)) and len(name.encode()) <= _LONGEST_NAME


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that readers and interrupted runs see the old one or the new one, never half of it.

    Several processes may write the same file: the last one's stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises OSError, and ValueError for what is not JSON or nested beyond all use."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deep") from None
