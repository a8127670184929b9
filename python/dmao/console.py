"""How the `dmao` command talks: errors in one line, log messages on stderr, results on stdout.

The library itself only logs; nothing but the command line configures logging.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from dmao.errors import UserError
from dmao.metrics import finite


class OneLineErrors(click.Group):
    """A group whose failures are one line on stderr and an exit status, never a traceback.

    2: something that the user can mend.  128 + the number of the signal: stopped by it, as shells report it.
    """

    def invoke(self, ctx: click.Context) -> Any:
        if ctx.params.get("traceback"):
            return super().invoke(ctx)
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # the reader has gone (`| head`): click ends quietly
            raise
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else ctx.command_path
            message, status = f"{error.format_message()} (see: {command} --help)", 2
        except UserError as error:
            number = getattr(error, "signal", None)
            message, status = str(error), 2 if number is None else 128 + number
        except OSError as error:
            place = f"{error.filename}: " if error.filename is not None else ""
            message, status = f"{place}{error.strerror or error}", 2
        except ValueError as error:  # a contract of the library: where it was broken may matter
            message, status = f"{error} (where: dmao --traceback ...)", 2
        except KeyboardInterrupt:
            message, status = "interrupted; what is finished stays, the same command goes on from there", 130
        click.echo(f"dmao: error: {' '.join(message.split())}", err=True)
        sys.exit(status)


class ConfigFile(click.ParamType):
    """A YAML file, or the name of a configuration that comes with the package."""

    name = "config"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The file."""
        from dmao.recipes import configs

        known = configs()
        if Path(value).is_file() or str(value) not in known:
            return click.Path(exists=True, dir_okay=False, path_type=Path).convert(value, param, ctx)
        return known[str(value)]


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


def show_log() -> None:
    """Show what dmao reports (from INFO on) and what dmao_kernels warns of. A second call changes nothing."""
    logging.getLogger("dmao").setLevel(logging.INFO)
    for name in ("dmao", "dmao_kernels"):
        logger = logging.getLogger(name)
        if not any(isinstance(handler, _Stderr) for handler in logger.handlers):
            handler = _Stderr()
            handler.setFormatter(_Compact())
            logger.addHandler(handler)


def print_json(values: Mapping[str, Any]) -> None:
    """Print `values` as JSON; what is not finite becomes null."""
    click.echo(json.dumps(finite(values), indent=2, allow_nan=False))


@contextmanager
def stop_signals_raise() -> Iterator[list[int]]:
    """SIGTERM and SIGHUP raise KeyboardInterrupt like SIGINT, so that cleaning up happens; the list gets the number."""
    received: list[int] = []

    def stop(number: int, frame: object) -> None:
        received.append(number)
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
