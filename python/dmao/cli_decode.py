"""The commands that turn a checkpoint into words and compare these: `dmao lm`, `prior`, `tune`, `decode`, `compare`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from dmao.cli_options import (
    CHECKPOINT,
    FILE,
    FOLDER,
    json_option,
    normaliser_options,
    root_option,
    search_options,
    split_option,
)
from dmao.console import print_json
from dmao.errors import UserError
from dmao.files import require_writable

if TYPE_CHECKING:
    from dmao.recognise import Recogniser, Search
    from dmao.scoring import Normaliser


@click.command(short_help="Estimate a word n-gram model from texts.")
@click.argument("texts", type=FILE, nargs=-1)
@click.option("--root", type=FOLDER, help="Folder of a prepared corpus: its transcripts, and its words.")
@split_option("train", "Split of that corpus.")
@click.option("--order", type=click.IntRange(2, 6), default=4, show_default=True, help="Longest n-gram.")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The ARPA file; packed as .gz."
)
@json_option
def lm(texts: tuple[Path, ...], root: Path | None, split: str, order: int, out: Path, as_json: bool) -> None:
    """Estimate a word n-gram model (Witten-Bell) from TEXTS, one sentence a line (marks <s> and </s> are passed over),
    and from a corpus.

    For some millions of words; larger models come from KenLM's lmplz or from the corpus's makers, in the same format.

    \b
    Example:
      dmao lm --root data/embedded --order 4 --out data/embedded/lm.arpa
    """
    from dmao.decode import write_arpa
    from dmao.progress import bar

    if not texts and root is None:
        raise click.UsageError("give TEXTS, or --root")
    require_writable(out)
    words: tuple[str, ...] = ()
    sentences = [line for path in texts for line in _lines(path)]
    if root is not None:
        from dmao.data.corpus import Corpus
        from dmao.data.loader import text_of

        corpus = Corpus.load(root)
        words = tuple(corpus.lexicon())
        sentences += [text_of(cut) for cut in corpus.cuts(split)]
    write_arpa(bar(sentences, "counting", "sentence"), out, order, words)
    if as_json:
        print_json({"lm": str(out), "order": order, "sentences": len(sentences)})
    else:
        click.echo(f"{out}: {order}-gram model of {len(sentences)} sentences")


@click.command(short_help="Estimate the labels' prior: the mean posterior over training data.")
@click.argument("checkpoint", type=CHECKPOINT)
@root_option
@click.option("--batches", type=click.IntRange(min=1), help="So many batches of the training data.  [default: all]")
@json_option
def prior(checkpoint: Path, root: Path | None, batches: int | None, as_json: bool) -> None:
    """Estimate the prior of the labels of CHECKPOINT, and keep it beside it, where decode and tune find it.

    They estimate it themselves, over all training data, where it is missing.

    \b
    Example:
      dmao prior runs/demo/dmao --batches 200
    """
    recogniser = _recogniser(checkpoint, root)
    found = recogniser.estimate_prior(batches)
    if as_json:
        print_json({"file": str(recogniser.prior_file), "prior": found.tolist()})
    else:
        click.echo(f"blank {found[0]:.3f}, {len(found)} labels; {recogniser.prior_file}")


@click.command(short_help="Tune LM scale, prior scale and word score on a split.")
@click.argument("checkpoint", type=CHECKPOINT)
@split_option("dev")
@root_option
@search_options(tuned=False)
@normaliser_options
@click.option("--utterances", type=click.IntRange(min=1), help="So many, spread over the split.  [default: all]")
@json_option
def tune(
    checkpoint: Path,
    split: str,
    root: Path | None,
    glm: Path | None,
    drop: tuple[str, ...],
    utterances: int | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Find the scales with the fewest word errors of CHECKPOINT on a split; `dmao decode` uses them from then on.

    \b
    Example:
      dmao tune runs/demo/dmao --split dev --lm data/embedded/lm.arpa
      dmao decode runs/demo/dmao --split test
    """
    from dmao.recognise import TUNED, Search
    from dmao.tune import tune as run

    recogniser = _recogniser(checkpoint, root)
    found = run(recogniser, split, chosen_search(Search(), given), normaliser_of(glm, drop), utterances)
    if as_json:
        print_json({"wer": found.count.percent, "trials": len(found.trials), **found.search.to_dict()})
    else:
        click.echo(f"{split}: WER {found.count}, best of {len(found.trials)} trials: {found.search}")
        click.echo(f"kept in {recogniser.folder / TUNED}")


@click.command(short_help="Decode a split with a language model; WER, and a report as sclite's.")
@click.argument("checkpoint", type=CHECKPOINT)
@split_option("test")
@root_option
@click.option(
    "--search",
    "kind",
    type=click.Choice(["lexicon", "prefix", "greedy"]),
    default="lexicon",
    show_default=True,
    help="Words of the vocabulary; the best labels, whatever words they make; the best label of each frame.",
)
@search_options(tuned=True)
@normaliser_options
@click.option("--out", type=FOLDER, help="Folder of the report.  [default: RUN/decode/SPLIT]")
@json_option
def decode(
    checkpoint: Path,
    split: str,
    root: Path | None,
    kind: Literal["lexicon", "prefix", "greedy"],
    glm: Path | None,
    drop: tuple[str, ...],
    out: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Decode a split with CHECKPOINT (a file or a run's folder), score it, and write the report.

    Scales, beam and language model are those that `dmao tune` found for this checkpoint, unless given here.

    \b
    Examples:
      dmao decode runs/librispeech --split test-other --lm 4-gram.arpa
      dmao decode runs/switchboard --split hub5-00 --glm hub5-00.glm --drop '[noise]' --drop '[laughter]'
    """
    from dmao.recognise import Search
    from dmao.recognise import decode as run

    _refuse_idle(kind, given)
    recogniser = _recogniser(checkpoint, root)
    start = (recogniser.tuned() if kind == "lexicon" else None) or Search()
    search = dataclasses.replace(chosen_search(start, given), kind=kind)
    report = run(recogniser, split, search, normaliser_of(glm, drop), out)
    folder = out or recogniser.folder / "decode" / split
    if as_json:
        print_json({**report.to_dict(), "search": search.to_dict(), "folder": str(folder)})
    else:
        click.echo(report.title)
        click.echo(report.table())
        click.echo(f"WER {report.total}; {folder / 'report.txt'}")


@click.command(short_help="Compare word error rates of runs: paired bootstrap over utterances and seeds.")
@click.argument("first", type=CHECKPOINT, nargs=-1, required=True, metavar="RUN...")
@click.option(
    "--with",
    "second",
    type=CHECKPOINT,
    multiple=True,
    required=True,
    metavar="RUN",
    help="Run to compare with the RUN in the same place; repeatable.",
)
@split_option("test", "Split that both were decoded on.")
@click.option(
    "--by",
    type=click.Choice(["utterance", "speaker"]),
    default="utterance",
    show_default=True,
    help="What is drawn: utterances, or speakers with all of theirs.",
)
@click.option(
    "--draws", type=click.IntRange(min=100), default=10_000, show_default=True, help="Draws of the bootstrap."
)
@json_option
def compare(
    first: tuple[Path, ...],
    second: tuple[Path, ...],
    split: str,
    by: Literal["utterance", "speaker"],
    draws: int,
    as_json: bool,
) -> None:
    """Compare RUNs (folders of runs, or report.json files) with those of --with, pair by pair: one seed each.

    \b
    Example, three seeds:
      dmao compare runs/base-0 runs/base-1 runs/base-2 --with runs/dmao-0 --with runs/dmao-1 --with runs/dmao-2
    """
    from dmao.scoring.compare import compare as run

    sides = [[p if p.is_file() else p / "decode" / split / "report.json" for p in side] for side in (first, second)]
    found = run(sides[0], sides[1], by, draws)
    print_json(found.to_dict()) if as_json else click.echo(str(found))


def _recogniser(checkpoint: Path, root: Path | None) -> Recogniser:
    from dmao.recognise import Recogniser

    return Recogniser(checkpoint, root=None if root is None else str(root))


def chosen_search(start: Search, given: dict[str, Any]) -> Search:
    """`start` with what was given on the command line."""
    names = {"lm_scale": "lm", "prior_scale": "prior", "word_score": "word"}
    scales = {names[key]: value for key, value in given.items() if key in names and value is not None}
    search = dataclasses.replace(start, scales=dataclasses.replace(start.scales, **scales))
    if given["lm"] is not None:
        search = dataclasses.replace(search, lm=str(given["lm"].resolve()))
    if given["lm_scale"] is not None and search.lm is None:
        raise click.UsageError("--lm-scale has no effect without --lm")
    return search if given["beam"] is None else dataclasses.replace(search, beam=given["beam"])


def _refuse_idle(kind: str, given: dict[str, Any]) -> None:
    """An option that the search has no use for would stand in the report as if it had been used."""
    from dmao.recognise import SEARCHES

    for name, value in given.items():
        if value is not None and name not in SEARCHES[kind]:
            raise click.UsageError(f"--{name.replace('_', '-')} has no effect on the {kind} search")


def normaliser_of(glm: Path | None, drop: tuple[str, ...]) -> Normaliser:
    from dmao.scoring import Normaliser, read_glm

    rules = ({}, {}) if glm is None else read_glm(glm)
    return Normaliser(*rules, frozenset(drop))


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from (line for line in file if line.strip())
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read {path}: it is not UTF-8 ({error.reason} at byte {error.start})") from error


COMMANDS = (lm, prior, tune, decode, compare)
