"""How the `dmao` command talks and ends: errors in one line, log messages on stderr, results on stdout, exit statuses.

The library itself only logs; nothing but the command line configures logging.
"""

from __future__ import annotations

import io
import json
import logging
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from dmao.errors import UserError, first_line, missing_package, reason
from dmao.metrics import finite
from dmao.signals import stop_signals_raise

STATUSES = """
\b
Exit status:
  0    done
  1    a defect of dmao (with its traceback), a selftest that failed, or output that nobody reads
  2    wrong usage or input, or what else you can mend: the last line on stderr says what
  130  interrupted (Ctrl-C): what is finished stays, the last line on stderr says how to go on
  143  terminated, in the same way; 129: the terminal was closed
"""

_OURS = ("dmao", "dmao_kernels")
_TYPED = "dmao.typed"
_NO_MEMORY = "DefaultCPUAllocator: can't allocate memory"
_ANEW = {"--fresh", "--no-resume"}  # with one of these a command would not go on


class OneLineErrors(click.Group):
    """A group whose failures are one line on stderr and an exit status (STATUSES), never a traceback.

    Each of its commands may be stopped by a signal: what it holds open is closed, and the line tells how to go on.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_TYPED] = tuple(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        with stop_signals_raise() as received:
            try:
                return super().invoke(ctx)
            except BaseException as error:
                told = _told(error, ctx, received)
                if told is None:
                    raise
                if ctx.params.get("traceback"):
                    traceback.print_exc()
        message, status = told
        click.echo(f"dmao: error: {' '.join(map(str.strip, message.splitlines()))}", err=True)
        sys.exit(status)


def _told(error: BaseException, ctx: click.Context, received: list[int]) -> tuple[str, int] | None:
    """The line and the exit status of a failure; None: whoever called may see to it."""
    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx else ctx.command_path
        return f"{error.format_message()} (see: {command} --help)", 2
    if isinstance(error, UserError):
        number = getattr(error, "signal", None)
        if number is None:
            return str(error), 2
        more = "" if getattr(error, "command", None) else f"; continue with: {_typed(ctx)}"
        return f"{error}{more}", 128 + number
    if isinstance(error, ModuleNotFoundError) and (told := missing_package(error)):
        return told, 2
    if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):  # click ends quietly under `| head`
        place = f"{error.filename}: " if error.filename is not None else ""
        return f"{place}{reason(error)}", 2
    if isinstance(error, ValueError):  # a contract of the library: where it was broken may matter
        return f"{error} (where: dmao --traceback ...)", 2
    # PyTorch's, which may not even be imported, has a type for GPUs and a text for the CPU.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or _NO_MEMORY in str(error):
        hint = "lower data.batch_seconds; `dmao memory` computes what a training takes"
        return f"{first_line(error)} ({hint})", 2
    if isinstance(error, KeyboardInterrupt):
        number = received[-1] if received else signal.SIGINT
        return f"interrupted; what is finished stays, continue with: {_typed(ctx)}", 128 + number
    return None


def _typed(ctx: click.Context) -> str:
    """What was typed, as far as it makes a stopped command go on."""
    return shlex.join(["dmao", *(part for part in ctx.meta[_TYPED] if part not in _ANEW)])


class _Stderr(logging.Handler):
    """Writes to what sys.stderr is at the moment, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except Exception:
            self.handleError(record)


class _Compact(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:
        text = super().formatMessage(record)
        return text if record.levelno <= logging.INFO else f"{text} ({record.levelname.lower()})"


def require_surroundings() -> None:
    """What imports, progress bars and results take for granted of a process.

    Raises UserError where there is no working directory or home; the libraries end in other words, or none.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise UserError(f"the working directory cannot be used: {reason(error)}; change to another one") from error
    try:
        Path.home()
    except RuntimeError as error:
        raise UserError("there is no home directory: set HOME") from error
    if sys.stderr is None:  # closed by whoever started this
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name that cannot be printed spoils no finished work


def show_log() -> None:
    """Show what dmao reports (from INFO on) and what dmao_kernels warns of. A second call changes nothing."""
    root = logging.getLogger()
    if not root.handlers:  # else the first warning of another library makes one, which would say ours once more
        others = _Stderr(logging.WARNING)
        others.addFilter(lambda record: record.name.partition(".")[0] not in _OURS)
        root.addHandler(others)
    logging.getLogger("dmao").setLevel(logging.INFO)
    for name in _OURS:
        logger = logging.getLogger(name)
        if not any(isinstance(handler, _Stderr) for handler in logger.handlers):
            handler = _Stderr()
            handler.setFormatter(_Compact())
            logger.addHandler(handler)


def print_json(values: Mapping[str, Any]) -> None:
    """Print `values` as JSON; what is not finite becomes null."""
    click.echo(json.dumps(finite(values), indent=2, allow_nan=False))
