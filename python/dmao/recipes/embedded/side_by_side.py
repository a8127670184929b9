"""Both arms of the demo as processes of their own: start, watch, stop in order, say what went wrong."""

from __future__ import annotations

import fcntl
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dmao.errors import UserError
from dmao.files import writing
from dmao.recipes.embedded.progress import TrainingBar
from dmao.signals import stop_signals_raise

ARMS = ("baseline", "dmao")
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class _Arm:
    """A running training; its messages begin at byte `start` of `log`."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    start: int

    def complain(self) -> UserError:
        code = self.process.returncode
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        with self.log.open("rb") as file:
            file.seek(self.start)
            lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
        reason = lines[-1].removeprefix("dmao: error: ") if lines else "no message"
        return UserError(f"demo: training of {self.name} failed ({how}): {reason} (log: {self.log})")


def train_side_by_side(run_dir: Path, config: Path, overrides: Sequence[str], steps: int, lock: int) -> None:
    """Train every arm in ``run_dir``/ARM and show how far they are.

    SIGINT, SIGTERM and SIGHUP stop both with their state saved, and so does a failure of either. The arms inherit
    the file descriptor ``lock`` (see ``locked``): one that outlives a killed demo keeps the folder locked.

    Raises:
        UserError: a training failed; the message has its reason.
        TrainingInterrupted: a signal stopped them.
    """
    from dmao.trainer import TrainingInterrupted

    with stop_signals_raise() as received:
        bars = [TrainingBar(name, run_dir / name, steps, position) for position, name in enumerate(ARMS)]
        arms: list[_Arm] = []
        try:
            for name in ARMS:
                arms.append(_start(run_dir / name, config, overrides, lock))
            failed = _watch(arms, bars)
        except KeyboardInterrupt:
            raise TrainingInterrupted(
                f"demo: interrupted; the same command resumes from the checkpoints in {run_dir}", received[-1]
            ) from None
        finally:
            _stop(arms)
            for bar in bars:
                bar.update()
                bar.close()
    if failed is not None:
        raise failed.complain()


def _watch(arms: Sequence[_Arm], bars: Sequence[TrainingBar]) -> _Arm | None:
    """Wait until all arms are done, or return the first one that fails."""
    while True:
        running = [arm for arm in arms if arm.process.poll() is None]
        for bar in bars:
            bar.update()
        failed = next((arm for arm in arms if arm.process.returncode), None)
        if failed is not None or not running:
            return failed
        time.sleep(POLL_SECONDS)


def _stop(arms: Sequence[_Arm]) -> None:
    for arm in arms:
        if arm.process.poll() is None:
            arm.process.send_signal(signal.SIGTERM)  # the trainer finishes its step and writes a checkpoint
    for arm in arms:
        arm.process.wait()


def _start(folder: Path, config: Path, overrides: Sequence[str], lock: int) -> _Arm:
    command = [sys.executable, "-m", "dmao.cli", "train", str(config), "--run-dir", str(folder)]
    command += [argument for override in overrides for argument in ("--set", override)]
    command += ["--baseline"] if folder.name == "baseline" else []
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "train.log"
    with log.open("ab") as file:
        start = file.tell()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,  # Ctrl-C reaches the demo alone, which then stops both arms in order
            pass_fds=(lock,),
        )
    return _Arm(folder.name, process, log, start)


@contextmanager
def locked(run_dir: Path) -> Iterator[int]:
    """Keep other demos out of ``run_dir``; yields the descriptor that holds the lock. UserError if one is in it."""
    with writing(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
        file = (run_dir / ".lock").open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"demo: another demo is at work in {run_dir}; wait for it, or stop it") from None
        yield file.fileno()
