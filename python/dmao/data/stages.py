"""A preparation as named stages: what one has made is kept, so that an interrupted preparation goes on behind it."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dmao.files import write_atomically

_log = logging.getLogger(__name__)


class Stages:
    """The stages of one preparation, in ROOT/stages/NAME.json.gz.

    Args:
        root: folder of the corpus.
        decides: all that decides what the stages make; where it differs, they are done anew.
    """

    def __init__(self, root: Path, decides: Mapping[str, Any]):
        self.folder = root / "stages"
        self.key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()

    def run(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` returns (plain values), or what it has returned in an earlier call of the same preparation."""
        path = self.folder / f"{name}.json.gz"
        found = self._read(path)
        if found is not None:
            _log.info("stage %s: done before", name)
            return found
        _log.info("stage %s", name)
        value = json.dumps({"key": self.key, "value": make()}, ensure_ascii=False)
        write_atomically(path, gzip.compress(value.encode(), compresslevel=1, mtime=0))
        return json.loads(value)["value"]

    def forget(self) -> None:
        """The next call of each stage makes it anew: the source is about to be mended, or all is done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self, path: Path) -> Any:
        try:
            content = json.loads(gzip.decompress(path.read_bytes()))
        except (OSError, EOFError, ValueError, zlib.error, RecursionError):  # none yet, or damaged
            return None
        return content["value"] if isinstance(content, dict) and content.get("key") == self.key else None
