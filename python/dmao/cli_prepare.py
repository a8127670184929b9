"""`dmao prepare CORPUS`: one command for each corpus, with the options that it takes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dmao.cli_options import FILE, FOLDER, HERE, NumberRange, json_option
from dmao.console import print_json

if TYPE_CHECKING:
    from dmao.data.corpus import Corpus
    from dmao.data.problems import OnProblem


@click.group(short_help="Make the data of a recipe.", context_settings={"show_default": True})
def prepare() -> None:
    """Make the manifests, features and lexicon of a corpus; a second call finds its work done.

    embedded needs nothing, recorded-* need apt-get. The others read a corpus that lies on disk, in named stages: an
    interrupted preparation goes on behind the last one. What is wrong with the corpus is told in one summary before
    hours go into features. A corpus of your own: docs/RECIPES.md.

    \b
    Examples:
      dmao prepare embedded --hours 2 --root data/two-hours
      dmao prepare librispeech --source LibriSpeech --dictionary librispeech-lexicon.txt
    """


def _root(corpus: str) -> Any:
    return click.option("--root", type=FOLDER, default=Path("data") / corpus, help="Folder of the prepared corpus.")


def _jobs(what: str) -> Any:
    return click.option("--jobs", type=click.IntRange(min=1), help=f"Processes that {what}.  [default: all cores]")


def _dictionary(default: str) -> Any:
    text = f"Pronunciations: a word and its phones a line.  [default: {default}]"
    return click.option("--dictionary", type=FILE, help=text)


_on_problem = click.option(
    "--on-problem",
    type=click.Choice(["refuse", "skip"]),
    default="refuse",
    help="What becomes of utterances with something wrong; ROOT/problems.jsonl lists them.",
)


def _say(made: Corpus, as_json: bool) -> None:
    if as_json:
        print_json({**asdict(made), "root": str(made.root)})
    else:
        click.echo(f"{made}; manifests in {made.root / 'manifests'}")


@prepare.command(short_help="Synthetic English, generated here.")
@_root("embedded")
@click.option("--hours", type=NumberRange(min=0, min_open=True), default=1.0, help="Hours of training speech.")
@click.option("--words", type=click.IntRange(min=20), default=150, help="Size of the vocabulary.")
@_jobs("speak")
@json_option
def embedded(root: Path, hours: float, words: int, jobs: int | None, as_json: bool) -> None:
    """Make synthetic English with eSpeak NG: the same bits on every machine.

    \b
    Example:
      dmao prepare embedded --hours 2 --root data/two-hours
    """
    from dmao.data.embedded import prepare_embedded

    _say(prepare_embedded(root, hours=hours, words=words, jobs=jobs), as_json)


def _recorded(language: str, name: str) -> None:
    @prepare.command(f"recorded-{language}", short_help=f"Recorded {name}, 90 minutes, from Debian.")
    @_root(f"recorded-{language}")
    @json_option
    def command(root: Path, as_json: bool) -> None:
        from dmao.data.recorded import prepare_recorded

        _say(prepare_recorded(language, root), as_json)

    command.help = f"""Fetch recorded {name} with apt-get (GPL-2 data, no root needed).

\b
Example:
  dmao prepare recorded-{language}"""


_recorded("cs", "Czech")
_recorded("nl", "Dutch")


@prepare.command(short_help="LibriSpeech, 960 or 100 hours, or the small one.")
@click.option("--source", type=HERE, required=True, help="Folder that holds train-clean-100 and so on.")
@_root("librispeech")
@click.option("--hours", type=click.Choice(["960", "100", "mini"]), default="960", help="What to train on.")
@_dictionary("none: eSpeak NG guesses")
@_on_problem
@_jobs("compute features")
@json_option
def librispeech(
    source: Path,
    root: Path,
    hours: str,
    dictionary: Path | None,
    on_problem: OnProblem,
    jobs: int | None,
    as_json: bool,
) -> None:
    """Prepare LibriSpeech; splits: train, dev-clean, dev-other, test-clean, test-other (mini: train, dev-clean-2).

    \b
    Example:
      dmao prepare librispeech --source LibriSpeech --dictionary librispeech-lexicon.txt
    """
    from dmao.recipes.librispeech.corpus import prepare_librispeech

    made = prepare_librispeech(source, root, hours=hours, dictionary=dictionary, on_problem=on_problem, jobs=jobs)
    _say(made, as_json)


@prepare.command(short_help="TED-LIUM release 2.")
@click.option("--source", type=HERE, required=True, help="The folder TEDLIUM_release2.")
@_root("tedlium2")
@_dictionary("the corpus's own")
@_on_problem
@_jobs("compute features")
@json_option
def tedlium2(
    source: Path, root: Path, dictionary: Path | None, on_problem: OnProblem, jobs: int | None, as_json: bool
) -> None:
    """Prepare TED-LIUM release 2; splits: train, dev, test.

    \b
    Example:
      dmao prepare tedlium2 --source TEDLIUM_release2
    """
    from dmao.recipes.tedlium2.corpus import prepare_tedlium2

    _say(prepare_tedlium2(source, root, dictionary=dictionary, on_problem=on_problem, jobs=jobs), as_json)


@prepare.command(short_help="Switchboard, with Hub5'00, Hub5'01 and RT03S.")
@click.option(
    "--source",
    "sources",
    type=HERE,
    required=True,
    multiple=True,
    help="Folder of recordings or transcripts; repeatable.",
)
@click.option("--hub5-00", type=HERE, multiple=True, help="Folder of Hub5'00: recordings, references; repeatable.")
@click.option("--hub5-01", type=HERE, multiple=True, help="The same for Hub5'01.")
@click.option("--rt03s", type=HERE, multiple=True, help="The same for RT03S: its two folders english/cts.")
@click.option("--dev-utterances", type=click.IntRange(min=1), default=4000, help="The first so many are the dev split.")
@_root("switchboard")
@_dictionary("that of the transcripts")
@_on_problem
@_jobs("compute features")
@json_option
def switchboard(
    sources: tuple[Path, ...],
    hub5_00: tuple[Path, ...],
    hub5_01: tuple[Path, ...],
    rt03s: tuple[Path, ...],
    dev_utterances: int,
    root: Path,
    dictionary: Path | None,
    on_problem: OnProblem,
    jobs: int | None,
    as_json: bool,
) -> None:
    """Prepare Switchboard-1 at 8 kHz; splits: train, dev, and hub5-00, hub5-01, rt03s with their parts.

    \b
    Example:
      dmao prepare switchboard --source LDC97S62 --source swb_ms98_transcriptions
          --hub5-00 LDC2002S09 --hub5-00 LDC2002T43 --hub5-01 LDC2002S13
          --rt03s LDC2007S10/data/audio/eval03/english/cts
          --rt03s LDC2007S10/data/references/eval03/english/cts
          --rt03s LDC2007S10/data/trans_rules
    """
    from dmao.recipes.switchboard.corpus import prepare_switchboard

    made = prepare_switchboard(
        sources,
        root,
        evaluations={"hub5-00": hub5_00, "hub5-01": hub5_01, "rt03s": rt03s},
        dev_utterances=dev_utterances,
        dictionary=dictionary,
        on_problem=on_problem,
        jobs=jobs,
    )
    _say(made, as_json)
