"""The `dmao` command: prepare data, train, evaluate, inspect, measure, and the demo that does all of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from dmao.errors import UserError

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class OneLineErrors(click.Group):
    """A group whose user-facing failures are one line on stderr and exit status 2, never a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (UserError, ValueError, OSError) as error:
            if ctx.params.get("traceback"):
                raise
            message = " ".join(str(error).split()) or type(error).__name__
            click.echo(f"dmao: error: {message}", err=True)
            sys.exit(2)


@click.group(cls=OneLineErrors, context_settings=CONTEXT)
@click.option("--traceback", is_flag=True, help="Show the full traceback of an error.")
@click.version_option(package_name="dmao-kernels", prog_name="dmao")
def main(traceback: bool) -> None:
    """Grow-and-drop training: make the width of a model trainable.

    \b
    dmao demo                              the whole line on an embedded corpus, in about ten minutes
    dmao prepare embedded                  make the data of a recipe
    dmao train CONFIG.yaml --run-dir DIR   train; a second call resumes
    dmao evaluate DIR --split test         cross-entropy, CER and WER of a checkpoint
    dmao inspect DIR                       what is elastic, what it costs, how wide it is now
    dmao bench DIR                         step time and the overhead of scoring and events
    """


@main.command()
@click.argument("corpus", type=click.Choice(["embedded", "recorded-cs", "recorded-nl"]))
@click.option("--root", type=click.Path(path_type=Path), help="Folder of the corpus.  [default: data/CORPUS]")
@click.option("--hours", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True,
              help="Hours of training speech (embedded only).")
@click.option("--words", type=click.IntRange(min=20), default=150, show_default=True,
              help="Size of the vocabulary (embedded only).")
@click.option("--jobs", type=click.IntRange(min=1), help="Parallel processes.  [default: all cores]")
def prepare(corpus: str, root: Path | None, hours: float, words: int, jobs: int | None) -> None:
    """Make the manifests of CORPUS; a second call finds its work done.

    embedded: synthetic English from espeak-ng, generated here. recorded-cs, recorded-nl: about 95 minutes
    of recorded Czech or Dutch each, fetched with apt-get (GPL-2 data, no root needed).

    \b
    Example:
      dmao prepare embedded --hours 2 --root data/two-hours
    """
    root = root or Path("data") / corpus
    if corpus == "embedded":
        from dmao.data.embedded import prepare_embedded

        prepare_embedded(root, hours=hours, words=words, jobs=jobs)
    else:
        from dmao.data.recorded import prepare_recorded

        prepare_recorded(corpus.removeprefix("recorded-"), root)
    click.echo(f"{corpus}: manifests in {root}")


@main.command()
@click.argument("config", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--run-dir", type=click.Path(path_type=Path), required=True, help="Folder of the run.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key of CONFIG; repeatable.")
@click.option("--baseline", is_flag=True, help="Train the uniform model: no events.")
@click.option("--fresh", is_flag=True, help="Start over instead of resuming from the newest checkpoint.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def train(
    config: Path, run_dir: Path, overrides: tuple[str, ...], baseline: bool, fresh: bool, quiet: bool
) -> None:
    """Train as CONFIG (YAML) says. The same command resumes an interrupted run, bit for bit.

    \b
    Example:
      dmao train config.yaml --run-dir runs/wide --set model.width=144 --set steps=4000
    """
    from dmao.config import load_config
    from dmao.trainer import train as run

    settings = load_config(config, overrides)
    run(settings.baseline() if baseline else settings, run_dir, resume=not fresh, progress=not quiet)
