"""`dmao` as a user types it, again and again, each time in a forked child that may be killed at a chosen place.

Run as a program, this imports what a training needs, once, and then answers one order a line; Forked talks to it.
Python's profiler counts the calls inside of a place: they make a kill repeatable to the single call, of C as well.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Order:
    """What to run.

    place, entry, call: where it ends: within the n-th entry of one of places(), at so many calls; 1 is the first.
    signals: what it gets there, one after the other.  seconds: when it is killed, wherever it is.
    count: count the calls in all places.  file_bytes: the limit of every file that it writes.
    """

    arguments: tuple[str, ...]
    place: str | None = None
    entry: int = 1
    call: int = 1
    signals: tuple[int, ...] = (signal.SIGKILL,)
    seconds: float | None = None
    count: bool = False
    file_bytes: int | None = None


@dataclass(frozen=True)
class Ended:
    """How it ended.

    signal: what killed it, or 0.  status: its exit status.  calls: place -> how many of each entry, where counted.
    """

    signal: int
    status: int
    seconds: float
    said: str
    calls: dict[str, list[int]] = field(default_factory=dict)


class Forked:
    """Starts the program; calling it with an Order gives what came of it."""

    def __init__(self, folder: Path):
        self._calls = folder / "calls"
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        environment = {**os.environ, **dict.fromkeys(names, "1")}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "python")])
        self._process = subprocess.Popen(
            [sys.executable, __file__, self._calls],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, order: Order) -> Ended:
        self._calls.unlink(missing_ok=True)
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(asdict(order)) + "\n")
        stdin.flush()
        answer = json.loads(stdout.readline())
        calls = json.loads(self._calls.read_text()) if self._calls.exists() else {}
        return Ended(**answer, calls=calls)

    def close(self) -> None:
        self._process.communicate()


def places() -> dict[str, tuple[Any, str]]:
    """Names of functions that are not inside of each other, with their owners."""
    from dmao import checkpoint, trainer
    from dmao.controller import GrowAndDrop
    from dmao.metrics import Recorder
    from dmao.step import TrainingStep

    return {
        "resumption": (checkpoint, "load_latest"),
        "records": (Recorder, "__init__"),
        "step": (TrainingStep, "__call__"),
        "event": (GrowAndDrop, "adapt"),
        "checkpoint": (checkpoint, "_write"),
        "checksum": (checkpoint, "_digest"),  # the new checkpoint is complete, and has not its name yet
        "renamed": (checkpoint, "_sync_folder"),
        "removal": (checkpoint, "_remove_old"),
        "evaluation": (trainer, "evaluate_model"),
    }


def watch(owner: Any, name: str, order: Order, counted: list[int]) -> None:
    """Lets each entry of a function count its calls; the one in the order gets its signals."""
    inner, entries = getattr(owner, name), itertools.count(1)

    def watched(*args: Any, **kwargs: Any) -> Any:
        entry, seen = next(entries), 0

        def profile(frame: FrameType, event: str, argument: object) -> None:
            nonlocal seen
            seen += event in ("call", "c_call")
            if seen == order.call and entry == order.entry and not order.count:
                for number in order.signals:
                    os.kill(os.getpid(), number)

        sys.setprofile(profile)
        try:
            return inner(*args, **kwargs)
        finally:
            sys.setprofile(None)
            counted.append(seen)

    setattr(owner, name, watched)


def child(order: Order, calls: Path) -> int:
    """Runs the command; its exit status."""
    if order.file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order.file_bytes, resource.RLIM_INFINITY))
    counted: dict[str, list[int]] = {name: [] for name in places()}
    for name, (owner, function) in places().items():
        if order.count or name == order.place:
            watch(owner, function, order, counted[name])
    from dmao.cli import main

    try:
        main(list(order.arguments), prog_name="dmao")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else bool(end.code)
    if order.count:
        calls.write_text(json.dumps(counted))
    return status


def answer(order: Order, calls: Path) -> dict[str, Any]:
    started = time.perf_counter()
    reading, writing = os.pipe()  # which has no limit of its size, and holds what is said until it is read
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.dup2(writing, 1)
            os.dup2(writing, 2)
            os.close(writing)
            status = child(order, calls)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    timer = threading.Timer(order.seconds or 0, os.kill, (pid, signal.SIGKILL))
    if order.seconds is not None:
        timer.start()
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    timer.cancel()
    if order.seconds is not None:
        timer.join()
    seconds = time.perf_counter() - started
    return {"signal": max(-ended, 0), "status": max(ended, 0), "seconds": seconds, "said": said}


def serve() -> None:
    import dmao.cli
    import dmao.data.features
    import dmao.data.loader
    import dmao.decode
    import dmao.trainer  # noqa: F401

    for line in sys.stdin:
        fields = json.loads(line)
        order = Order(**{**fields, "arguments": tuple(fields["arguments"]), "signals": tuple(fields["signals"])})
        print(json.dumps(answer(order, Path(sys.argv[1]))), flush=True)


if __name__ == "__main__":
    serve()
