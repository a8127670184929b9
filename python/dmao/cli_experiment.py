"""The command `dmao experiment`: a table of arms, trained, decoded and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from dmao.cli_decode import chosen_search, normaliser_of, normaliser_options, search_options
from dmao.console import ConfigFile
from dmao.experiments.tables import TABLES


@click.command(short_help="Train, decode and compare the arms of a table, with several seeds.")
@click.argument("table", type=click.Choice(list(TABLES)))
@click.argument("config", type=ConfigFile())
@click.option("--run-dir", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of all runs.")
@click.option("--seeds", type=click.IntRange(min=1), default=8, show_default=True, help="Seeds of every arm.")
@click.option("--first-seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--arm", "names", multiple=True, help="This arm only; repeatable.  [default: all of the table]")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key of CONFIG; repeatable.")
@click.option("--split", default="test", show_default=True, help="Split that is decoded and compared.")
@click.option("--dev", help="Split on which the scales of each run are tuned.  [default: they are not]")
@search_options
@normaliser_options
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
    **given: Any,
) -> None:
    """Train every arm of TABLE with every seed as CONFIG says, decode it, and compare it with the first arm.

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

    arms = chosen(table, names)
    plan = Plan(run_dir, tuple(TABLES[table]), split, dev, chosen_search(Search(), given), normaliser_of(glm, drop))
    run_arms(
        plan,
        arms,
        range(first_seed, first_seed + seeds),
        lambda changes: load_config(config, (*overrides, *changes)),
    )
    click.echo((run_dir / "results.md").read_text(), nl=False)
