"""Which tiles a kernel takes: a curated table per operation, whose entries can be timed on request.

A table maps an architecture to kinds to configurations:

    {80: {"half": [{"ROWS": 128, "num_warps": 8, "num_stages": 3}, ...], "float32": [...]}, 90: {...}, "hip": {...}}

A device takes the largest entry that is not above its compute capability (80, 90, 100, 120, ...), an AMD one "hip",
the interpreter "interpreter" (small tiles: few elements are more than one). A kind is what `kind_of` says, or any name
that the operation gives. The first configuration of a kind is the one to take unless another was measured to be faster.
Tables and keys know nothing that changes from batch to batch.

DMAO_TRITON_AUTOTUNE says who chooses: "off" (the default) the table; "cache" what an earlier "full" measured; "full"
measures what is not known yet, once per key, and keeps it in a file under DMAO_CACHE_DIR (~/.cache/dmao_kernels).
"""

from __future__ import annotations

import functools
import json
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton

from dmao_kernels.dispatch import allows_tf32

Config = dict[str, int]
Table = dict[int | str, dict[str, list[Config]]]

MODES = ("off", "cache", "full")
_LOG = logging.getLogger("dmao_kernels")
_INTERPRETED_PROCESSORS = 4


@functools.cache
def _architecture(device: int | None) -> int | str:
    if triton.knobs.runtime.interpret:
        return "interpreter"
    if device is not None and torch.version.hip is None:
        major, minor = torch.cuda.get_device_capability(device)
        return 10 * major + minor
    target = triton.runtime.driver.active.get_current_target()  # a mock driver, or AMD
    return int(target.arch) if target.backend == "cuda" else str(target.arch)


def architecture(device: torch.device) -> int | str:
    """The compute capability, such as 90, of a device; "gfx942" and the like of AMD; "interpreter"."""
    if device.type == "cuda":
        return _architecture(torch.cuda.current_device() if device.index is None else device.index)
    return _architecture.__wrapped__(None)


@functools.cache
def _processors(device: int) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def processors(device: torch.device) -> int:
    """How many streaming multiprocessors (compute units) a device has."""
    if device.type == "cuda":
        return _processors(torch.cuda.current_device() if device.index is None else device.index)
    if triton.knobs.runtime.interpret:
        return _INTERPRETED_PROCESSORS
    driver = triton.runtime.driver.active
    return int(driver.utils.get_device_properties(driver.get_current_device())["multiprocessor_count"])


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up: triton.cdiv for hosts, to which that is slow."""
    return -(-a // b)


def power_of_2(n: int) -> int:
    """The least power of two that is at least n; like `cdiv`."""
    return 1 << max(n - 1, 0).bit_length()


def precision(dtype: torch.dtype) -> str:
    """`input_precision` of tl.dot: float32 is multiplied as such unless PyTorch is allowed to take TF32."""
    return "tf32" if dtype == torch.float32 and allows_tf32() else "ieee"


def kind_of(dtype: torch.dtype) -> str:
    """How a dtype is multiplied: "half" (bfloat16 and float16), "tf32" or "float32"."""
    if dtype != torch.float32:
        return "half"
    return "tf32" if precision(dtype) == "tf32" else "float32"


def options_of(config: Config) -> dict[str, int]:
    """Triton's own options in a configuration, by which kernels are launched."""
    return {"num_warps": config["num_warps"], "num_stages": config["num_stages"]}


def candidates(table: Table, kind: str, device: torch.device) -> list[Config]:
    """The configurations of a kind for a device, the one to take without measurements first.

    A kind of several words without an entry of its own is one of the words before the last.
    """
    arch = architecture(device)
    if arch not in table:
        arch = _nearest(arch, tuple(table))
    kinds = table[arch]
    return kinds[kind] if kind in kinds else kinds[kind.rpartition(" ")[0]]


@functools.cache
def _nearest(arch: int | str, entries: tuple[int | str, ...]) -> int | str:
    """Of the entries of a table the one for an architecture that has none of its own."""
    if isinstance(arch, int):
        return max((entry for entry in entries if isinstance(entry, int) and entry <= arch), default=80)
    return 80 if arch == "interpreter" else "hip"


def choose(
    op: str,
    table: Table,
    kind: str,
    device: torch.device,
    key: tuple[int | str, ...] = (),
    run: Callable[[Config], object] | None = None,
) -> Config:
    """The configuration for a launch of `op` on `device`.

    Args:
        op: name of the kernel, unique in the library.
        kind: which list of the table.
        key: what else the best configuration depends on, such as widths; never a sequence length.
        run: launches the kernel with a configuration, into the memory of the call at hand, for mode "full"; None where
            launching twice would not give the same.
    """
    choices = candidates(table, kind, device)
    mode = os.environ.get("DMAO_TRITON_AUTOTUNE") or "off"
    if mode not in MODES:
        raise ValueError(f"DMAO_TRITON_AUTOTUNE: must be one of {', '.join(MODES)}, got {mode!r}")
    if mode == "off" or len(choices) == 1:
        return choices[0]
    arch = architecture(device)
    name = " ".join(map(str, (op, kind, *key)))
    known = _measured(arch)
    if mode == "full" and name not in known and run is not None and arch != "interpreter":
        known[name] = _fastest(name, choices, run)
        _keep(arch, name, known[name])
    # What was measured by another version of the table counts no more.
    return known[name] if known.get(name) in choices else choices[0]


def choose_tiles(
    op: str,
    table: Table,
    dtype: torch.dtype,
    device: torch.device,
    shape: tuple[int, int],
    key: tuple[int | str, ...] = (),
    run: Callable[[Config], object] | None = None,
    end: str = "",
) -> Config:
    """`choose` for a result of `shape` cut into ROWS x COLUMNS: "... few" where that would not fill the chip.

    end: the kind's last word where it does.
    """
    kind = kind_of(dtype)
    many = f"{kind} {end}" if end else kind
    first = candidates(table, many, device)[0]
    tiles = cdiv(shape[0], first["ROWS"]) * cdiv(shape[1], first["COLUMNS"])
    return choose(op, table, many if tiles >= processors(device) else f"{kind} few", device, key, run)


def _file(arch: int | str) -> Path:
    directory = os.environ.get("DMAO_CACHE_DIR") or Path.home() / ".cache" / "dmao_kernels"
    return Path(directory) / f"triton-{triton.__version__}-{arch}.json"


def _read(arch: int | str) -> dict[str, Config]:
    try:
        known: dict[str, Config] = dict(json.loads(_file(arch).read_text()))
    except FileNotFoundError:
        known = {}
    except (OSError, ValueError, TypeError, RuntimeError) as error:  # RuntimeError: no home, or too deep
        _LOG.warning("what was measured is not read: %s", error)
        known = {}
    return known


@functools.cache
def _measured(arch: int | str) -> dict[str, Config]:
    return _read(arch)


def _keep(arch: int | str, name: str, config: Config) -> None:
    """Adds to the file, in one step: other processes, which may have added to it too, see the old or the new one."""
    path = _file(arch)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump({**_read(arch), name: config}, file, indent=1)
        os.replace(file.name, path)
    except OSError as error:
        _LOG.warning("%s is not written: %s", path, error)


def _fastest(name: str, choices: list[Config], run: Callable[[Config], Any]) -> Config:
    times = []
    for config in choices:
        try:
            times.append(triton.testing.do_bench(lambda config=config: run(config), warmup=5, rep=25))
        except triton.runtime.errors.OutOfResources:
            times.append(float("inf"))
    best = min(range(len(choices)), key=times.__getitem__)
    _LOG.info("%s: %s, %.3f ms of %s", name, choices[best], times[best], [round(time, 3) for time in times])
    return choices[best]
