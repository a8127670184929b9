"""Run by test_resume.py in a process of its own: trains, is killed (SIGKILL) at chosen moments, and goes on.

    python kill_and_resume.py RUN_DIR MOMENT ...

Every MOMENT is one attempt, a forked child that kills itself there (or is killed after so many seconds); a
last attempt runs to the end. Forking spares each attempt the import of torch.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from dmao import checkpoint
from dmao.controller import Event, GrowAndDrop
from dmao.trainer import train

from tests.trainer.tiny import TinySource, tiny_config


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def after_event() -> None:
    adapt = GrowAndDrop.adapt

    def adapt_and_die(self: GrowAndDrop) -> Event:
        adapt(self)
        die()
        raise AssertionError

    GrowAndDrop.adapt = adapt_and_die  # type: ignore[method-assign]


def while_writing() -> None:
    """Dies at the second checkpoint, with half of it on the disk."""
    save, calls = torch.save, [0]

    def save_half(state: object, file: object) -> None:
        save(state, file)
        calls[0] += 1
        if calls[0] == 2:
            file.truncate(file.tell() // 2)  # type: ignore[attr-defined]
            die()

    torch.save = save_half


def before_rename() -> None:
    checkpoint.os = _OsThatDies()  # type: ignore[assignment]


def after_rename() -> None:
    checkpoint._remove_old = die


class _OsThatDies:
    replace = staticmethod(die)

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)


MOMENTS: dict[str, Callable[[], None]] = {
    "after_event": after_event,
    "while_writing": while_writing,
    "before_rename": before_rename,
    "after_rename": after_rename,
}


def attempt(run_dir: Path, moment: str | None) -> int:
    """Trains in a child; the signal that ended it, 0 if it came to the end."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if moment in MOMENTS:
                MOMENTS[moment]()
            train(tiny_config(), run_dir, TinySource())
            status = 0
        finally:
            os._exit(status)
    if moment is not None and moment not in MOMENTS:
        time.sleep(float(moment))
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        sys.exit(f"attempt {moment}: failed with {os.WEXITSTATUS(status)}")
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def main() -> None:
    run_dir = Path(sys.argv[1])
    for moment in sys.argv[2:]:
        ended = attempt(run_dir, moment)
        steps = [path.name[5:13] for path in checkpoint.list_checkpoints(run_dir / "checkpoints")]
        print(f"{moment}: signal {ended}, checkpoints {steps}")
    assert attempt(run_dir, None) == 0


if __name__ == "__main__":
    main()
