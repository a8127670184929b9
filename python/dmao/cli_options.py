"""Types and options that several commands share: one name and one wording for one thing."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem
from click.types import FloatParamType


class Number(FloatParamType):
    """A float that is finite; click's own may be nan."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number."""
        found: float = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value} is not finite.", param, ctx)
        return found


class NumberRange(Number, click.FloatRange):
    """The same within a range; click's own takes nan, within any range."""


class _Folder(click.Path):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """An empty name, as of a variable that is not set, is not the working directory."""
        if value == "":
            self.fail("expected the name of a folder, got ''", param, ctx)
        return super().convert(value, param, ctx)


FOLDER = _Folder(file_okay=False, path_type=Path)
HERE = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
CHECKPOINT = click.Path(exists=True, path_type=Path)

Decorator = Callable[..., Any]


class ConfigFile(click.ParamType):
    """A YAML file, or the name of a configuration that comes with the package."""

    name = "config"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The file."""
        from dmao.recipes import configs

        known = configs()
        if Path(value).is_file():
            return Path(value)
        if str(value) in known:
            return known[str(value)]
        if Path(value).exists():
            raise click.BadParameter(f"'{value}' is {'a folder' if Path(value).is_dir() else 'no file'}", ctx, param)
        close = difflib.get_close_matches(str(value), known, n=1)
        hint = f"; did you mean '{close[0]}'?" if close else ", nor is it the name of a recipe"
        raise click.BadParameter(f"'{value}' does not exist{hint}", ctx, param)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Files, and the names that begin so."""
        from dmao.recipes import configs

        names = [CompletionItem(name) for name in configs() if name.startswith(incomplete)]
        return [CompletionItem(incomplete, type="file"), *names]


CONFIG = ConfigFile()


def together(*options: Decorator) -> Decorator:
    """Several options as one decorator, shown in this order."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def run_dir_option(holds: str, **more: Any) -> Decorator:
    """Where a command writes all that it makes."""
    return click.option("--run-dir", type=FOLDER, help=holds, **(more or {"required": True}))


def set_option(what: str = "Change one key of CONFIG") -> Decorator:
    """Changes of a configuration, one by one."""
    return click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help=f"{what}; repeatable.")


def split_option(default: str, what: str = "Split of the corpus.") -> Decorator:
    """Which part of a corpus."""
    return click.option("--split", default=default, show_default=True, metavar="SPLIT", help=what)


root_option = click.option("--root", type=FOLDER, help="Folder of the corpus, where it has moved, or of another one.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout, nothing else.")


def search_options(tuned: bool) -> Decorator:
    """How words are searched for. tuned: what `dmao tune` has found stands in for what is not given."""

    def default(value: object) -> str:
        return f"[default: {'the tuned one, else ' if tuned else ''}{value}]"

    return together(
        click.option("--lm", type=FILE, help=f"Word n-gram model (ARPA, also packed).  {default('none')}"),
        click.option("--beam", type=click.IntRange(min=1), help=f"Hypotheses kept per frame.  {default(100)}"),
        click.option("--lm-scale", type=NumberRange(min=0), help=f"Weight of the language model.  {default(0.9)}"),
        click.option("--prior-scale", type=NumberRange(min=0), help=f"Weight of the labels' prior.  {default(0.3)}"),
        click.option("--word-score", type=Number(), help=f"Added per word.  {default(0)}"),
    )


normaliser_options = together(
    click.option("--glm", type=FILE, help="Mapping of words (NIST's GLM) for references and hypotheses."),
    click.option("--drop", multiple=True, metavar="WORD", help="Word that does not count, as [noise]; repeatable."),
)
