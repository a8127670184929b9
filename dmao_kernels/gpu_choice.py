"""Which of two backends for GPUs runs an operation that both have: a table of what was measured.

The shipped table says what was measured by the authors, on the GPUs that docs/GPU.md names; "triton" runs whatever it
does not name. `dmao selftest --device cuda --choose` measures on the GPU at hand and writes a table that goes first,
into the file `path()`: {"sm_90": {"masked_linear": "cuda", ...}, ...}.
"""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

CHOICES = ("triton", "cuda")
_SHIPPED: dict[str, dict[str, str]] = {
    "sm_90": {"importance_": "cuda", "adamw_importance_": "cuda", "gather_components": "cuda"},  # an H200
}
_LOG = logging.getLogger("dmao_kernels")
_preferred: str | None = None


@contextmanager
def preferring(backend: str) -> Iterator[None]:
    """Takes this one of the two wherever it can run, whatever was measured."""
    global _preferred
    before, _preferred = _preferred, backend
    try:
        yield
    finally:
        _preferred = before


def path() -> Path:
    """The file of the table that was measured here."""
    return Path(os.environ.get("DMAO_CACHE_DIR") or Path.home() / ".cache" / "dmao_kernels") / "gpu_choice.json"


def architecture() -> str | None:
    """The current GPU's, such as "sm_90"; None without one, and for those of AMD."""
    if torch.version.hip is not None or not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return f"sm_{major}{minor}"


def fastest(op: str) -> str:
    """The backend that was measured to be the faster one on the current GPU."""
    if _preferred is not None:
        return _preferred
    name = architecture()
    if name is None:
        return "triton"
    return _measured().get(name, {}).get(op) or _SHIPPED.get(name, {}).get(op, "triton")


@functools.cache
def _measured() -> dict[str, dict[str, str]]:
    try:
        return _checked(_read())
    except (OSError, RuntimeError) as error:  # the latter: there is no home
        _LOG.warning("what was measured on this GPU is not read: %s", error)
        return {}


def _read() -> object:
    """What the file holds: {} where there is none; None where it is no JSON."""
    try:
        return json.loads(path().read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError):
        return None


def _checked(table: object) -> dict[str, dict[str, str]]:
    if isinstance(table, dict) and all(
        isinstance(row, dict) and all(choice in CHOICES for choice in row.values()) for row in table.values()
    ):
        return table
    raise ValueError(f'{path()}: must map "sm_NN" to operations to {" or ".join(CHOICES)}; delete it')


def write(choices: dict[str, str]) -> Path:
    """Keeps what was measured on the current GPU, {operation: backend}, for the processes to come.

    What was measured of other operations, or on other GPUs, stays.
    """
    name = architecture()
    if name is None:
        raise RuntimeError("gpu_choice: there is no GPU of NVIDIA here")
    path().parent.mkdir(parents=True, exist_ok=True)
    table = _checked(_read())
    draft = path().with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(table | {name: table.get(name, {}) | choices}, indent=2))
    draft.replace(path())
    return path()
