"""The `dmao` command: train, evaluate, inspect, and the demo that does all of it; the other commands are beside it."""

from __future__ import annotations

import os
from pathlib import Path

import click
from click.core import ParameterSource

from dmao import cli_decode, cli_experiment, cli_measure
from dmao.cli_completion import completion
from dmao.cli_options import (
    CHECKPOINT,
    CONFIG,
    NumberRange,
    json_option,
    root_option,
    run_dir_option,
    set_option,
    split_option,
)
from dmao.cli_prepare import prepare
from dmao.console import STATUSES, OneLineErrors, print_json, require_surroundings, show_log

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(cls=OneLineErrors, context_settings=CONTEXT, epilog=STATUSES)
@click.option("--traceback", is_flag=True, help="Show the full traceback of an error, too.")
@click.version_option(package_name="dmao-kernels", prog_name="dmao")
def main(traceback: bool) -> None:
    """Grow-and-drop training: make the width of a model trainable.

    Results go to stdout; messages and, on a terminal, progress bars go to stderr. With --json a command prints its
    result as JSON. `dmao completion` makes the shell complete commands, options and names of recipes.

    \b
    Examples:
      dmao demo
      dmao prepare librispeech --source LibriSpeech --dictionary librispeech-lexicon.txt
      dmao train librispeech/conformer_256 --run-dir runs/wide
      dmao evaluate runs/wide --split dev-clean --json
    """
    require_surroundings()
    show_log()


def _refuse_given(*names: str, why: str) -> None:
    context = click.get_current_context()
    options = {option.name: option.opts[0] for option in context.command.params}
    for name in names:
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise click.UsageError(f"{options[name]} {why}", context)


@main.command(short_help="Train from a YAML file; a second call resumes.")
@click.argument("config", type=CONFIG)
@run_dir_option("Folder of the run.")
@set_option()
@click.option("--baseline", is_flag=True, help="Train the uniform model: no events.")
@click.option("--widths-of", type=CHECKPOINT, help="Train from scratch at the widths of this run's model: no events.")
@click.option("--no-resume", is_flag=True, help="Refuse a folder that holds a training already.")
@json_option
def train(
    config: Path,
    run_dir: Path,
    overrides: tuple[str, ...],
    baseline: bool,
    widths_of: Path | None,
    no_resume: bool,
    as_json: bool,
) -> None:
    """Train as CONFIG (YAML) says. The same command resumes an interrupted run, bit for bit.

    CONFIG is a file, or the name of a recipe, as librispeech/conformer_256 (tedlium2, switchboard; e_branchformer;
    384, 512). Ctrl-C ends the step, saves the state and prints the command that goes on; a second Ctrl-C stops at
    once, and the training goes on from its last checkpoint.

    \b
    Examples:
      dmao train config.yaml --run-dir runs/wide --set model.width=144 --set steps=4000
      dmao train tedlium2/e_branchformer_384 --run-dir runs/ted
    """
    from dmao.config import load_config
    from dmao.trainer import train as run

    if baseline and widths_of is not None:
        raise click.UsageError("--baseline is the uniform model; --widths-of is another, without events as well")
    settings = load_config(config, overrides)
    if widths_of is not None:
        from dmao.evaluate import load_widths

        settings = settings.with_widths(load_widths(widths_of, settings.model))
    result = run(settings.baseline() if baseline else settings, run_dir, resume=not no_resume)
    if int(os.environ.get("RANK", "0")):  # under torchrun one process tells
        return
    if as_json:
        print_json({**vars(result), "run_dir": str(result.run_dir), "checkpoint": str(result.checkpoint)})
        return
    click.echo(f"{result.steps} steps, {result.parameters:,} parameters; checkpoint: {result.checkpoint}")
    for split, found in result.evaluations.items():
        click.echo(f"{split}: cross-entropy {found['ce']:.3f}, CER {found['cer']:.1f} %, WER {found['wer']:.1f} %")


@main.command(short_help="The whole line on an embedded corpus, in ten minutes.")
@run_dir_option("Folder of both runs, summary.json and report.html.", default=Path("runs/demo"), show_default=True)
@click.option(
    "--hours",
    type=NumberRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Hours of training speech.",
)
@set_option("Change one key of the demo's configuration")
@click.option("--fresh", is_flag=True, help="Train again from the start.")
@json_option
def demo(run_dir: Path, hours: float, overrides: tuple[str, ...], fresh: bool, as_json: bool) -> None:
    """Train baseline and grow-and-drop side by side on synthetic speech, compare them, write a report.

    Takes about ten minutes on two cores. What is finished is not repeated: interrupted, it resumes.

    \b
    Example, a quick look with little data and few steps:
      dmao demo --run-dir runs/quick --hours 0.1 --set steps=60 --set data.root=data/quick
    """
    from dmao.recipes.embedded.demo import run_demo
    from dmao.recipes.embedded.summary import table

    summary = run_demo(run_dir, overrides, hours, fresh)
    if as_json:
        print_json(summary)
        return
    click.echo(table(summary))
    click.echo(f"report: {run_dir / 'report.html'}   figures: {run_dir / 'summary.json'}")


@main.command(short_help="Decode a split with a checkpoint: cross-entropy, CER, WER.")
@click.argument("checkpoint", type=CHECKPOINT)
@split_option("test")
@root_option
@json_option
def evaluate(checkpoint: Path, split: str, root: Path | None, as_json: bool) -> None:
    """Decode a split with CHECKPOINT (a file or a run's folder): cross-entropy, CER, WER.

    \b
    Example:
      dmao evaluate runs/demo/dmao --split dev --json
    """
    from dmao.evaluate import evaluate as run

    result = run(checkpoint, split, root=None if root is None else str(root))
    print_json(result.to_dict()) if as_json else click.echo(str(result))


@main.command(short_help="What is elastic, what it costs, how wide it is now.")
@click.argument("model")
@set_option("Argument of the callable")
@click.option(
    "--example",
    "shapes",
    multiple=True,
    metavar="SHAPE",
    help="Run the model on inputs of these shapes (2,100,80; whole numbers: int:2,100; one option each) to discover "
    "elastic modules that no family knows.",
)
@click.option(
    "--components",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Components of modules that do not tell their own number.",
)
@json_option
def inspect(model: str, overrides: tuple[str, ...], shapes: tuple[str, ...], components: int, as_json: bool) -> None:
    """Show the elastic modules of MODEL: components, costs, share of the parameters.

    MODEL is a checkpoint (a file or a run's folder), whose events are shown as well; or package.module:callable, what
    makes a model of yours: then it is shown what is not elastic, too, and why.

    \b
    Examples:
      dmao inspect runs/demo/dmao
      dmao inspect torchvision.models:vit_b_16 --set num_classes=10
      dmao inspect my_package.models:build --set depth=4 --example 2,100,80
    """
    from dmao.inspect import describe, structure_of, structure_of_model

    if Path(model).exists() or ":" not in model:
        _refuse_given("overrides", "shapes", "components", why="is for package.module:callable, not for a checkpoint")
        if not Path(model).exists():
            raise click.UsageError(f"'{model}' does not exist, nor is it package.module:callable")
        found = structure_of(model)
    else:
        from dmao.factory import build_model, example_input

        made = build_model(model, overrides)
        found = structure_of_model(made, components, tuple(map(example_input, shapes)))
    print_json(found) if as_json else click.echo(describe(found))


for command in (prepare, *cli_decode.COMMANDS, cli_experiment.experiment, *cli_measure.COMMANDS, completion):
    main.add_command(command)


if __name__ == "__main__":
    main(prog_name="dmao")
