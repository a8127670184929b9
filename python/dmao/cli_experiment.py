"""The command `dmao experiment`: a table of arms, trained, decoded and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dmao.cli_decode import chosen_search, normaliser_of
from dmao.cli_options import (
    CONFIG,
    json_option,
    normaliser_options,
    run_dir_option,
    search_options,
    set_option,
    split_option,
)
from dmao.console import print_json
from dmao.experiments.tables import TABLES
from dmao.files import read_json


@click.command(short_help="Train, decode and compare the arms of a table, with several seeds.")
@click.argument("table", type=click.Choice(list(TABLES)), metavar="TABLE")
@click.argument("config", type=CONFIG)
@run_dir_option("Folder of all runs, results.json, results.md and widths.svg.")
@click.option("--seeds", type=click.IntRange(min=1), default=8, show_default=True, help="Seeds of every arm.")
@click.option(
    "--first-seed", type=click.IntRange(min=0), default=0, show_default=True, help="The others follow it one by one."
)
@click.option(
    "--arm",
    "names",
    multiple=True,
    metavar="ARM",
    help="This arm only; repeatable.  [default: all of the table]",
)
@set_option()
@split_option("test", "Split that is decoded and compared.")
@click.option(
    "--dev", metavar="SPLIT", help="Split on which the scales of each run are tuned.  [default: they are not]"
)
@search_options(tuned=False)
@normaliser_options
@json_option
def experiment(
    table: str,
    config: Path,
    run_dir: Path,
    seeds: int,
    first_seed: int,
    names: tuple[str, ...],
    overrides: tuple[str, ...],
    split: str,
    dev: str | None,
    glm: Path | None,
    drop: tuple[str, ...],
    as_json: bool,
    **given: Any,
) -> None:
    """Train every arm of TABLE with every seed as CONFIG says, decode it, and compare it with the first arm.

    TABLE is main, metric, scope, granularity, fraction, iterations, init or timing.

    The same command resumes; what is finished is not repeated. With --arm and --first-seed several machines share one
    folder; each run must be one machine's. RUN_DIR/results.md has means, and paired 95 % intervals of the differences:
    Student's t over seeds for the cross-entropy, bootstrap over seeds and utterances for the word error rate.

    \b
    Examples:
      dmao experiment main librispeech/conformer_256 --run-dir runs/table-1 --lm 4-gram.arpa --split test-other
      dmao experiment timing config.yaml --run-dir runs/timing --seeds 3 --set steps=4000
    """
    from dmao.config import load_config
    from dmao.experiments.run import Plan, run_arms
    from dmao.experiments.tables import chosen
    from dmao.recognise import Search
    from dmao.trainer import TrainingInterrupted

    try:
        arms = chosen(table, names)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    plan = Plan(run_dir, tuple(TABLES[table]), split, dev, chosen_search(Search(), given), normaliser_of(glm, drop))
    try:
        run_arms(
            plan,
            arms,
            range(first_seed, first_seed + seeds),
            lambda changes: load_config(config, (*overrides, *changes)),
        )
    except TrainingInterrupted as error:  # what goes on is this command, not that training
        raise TrainingInterrupted(f"experiment: {error.state}", error.signal) from error
    if as_json:
        print_json(read_json(run_dir / "results.json"))
    else:
        click.echo((run_dir / "results.md").read_text(encoding="utf-8"), nl=False)
