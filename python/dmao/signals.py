"""The signals that stop a command in order: Ctrl-C, a request to end, a terminal that was closed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


def stop_signals() -> list[signal.Signals]:
    """What stops a command in order; SIGHUP only where it is not ignored, as nohup has it."""
    hung_up = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
    return [signal.SIGINT, signal.SIGTERM, *hung_up]


@contextmanager
def stop_signals_raise() -> Iterator[list[int]]:
    """SIGTERM and SIGHUP raise KeyboardInterrupt like SIGINT, so that cleaning up happens; the list gets the number.

    Outside of the main thread, where there are no handlers, nothing changes.
    """
    received: list[int] = []

    def stop(number: int, frame: object) -> None:
        received.append(number)
        raise KeyboardInterrupt

    wanted = stop_signals() if threading.current_thread() is threading.main_thread() else ()
    previous = {number: signal.signal(number, stop) for number in wanted}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class NotedSignals:
    """While entered, SIGINT, SIGTERM and SIGHUP are noted in `received`; a second one acts as it did before."""

    def __init__(self) -> None:
        self.received = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> NotedSignals:
        try:
            for number in stop_signals():
                self._previous[number] = signal.signal(number, self._note)
        except ValueError:  # not the main thread: signals go to whoever owns it
            self._previous = {}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self.__exit__()
