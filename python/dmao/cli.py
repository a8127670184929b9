"""The `dmao` command: prepare data, train, evaluate, inspect, measure, and the demo that does all of it."""

from __future__ import annotations

from pathlib import Path

import click
from click.core import ParameterSource

from dmao import cli_decode, cli_experiment
from dmao.console import ConfigFile, OneLineErrors, print_json, show_log
from dmao.prepare import prepare

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
CONFIG = ConfigFile()
FOLDER = click.Path(file_okay=False, path_type=Path)
CHECKPOINT = click.Path(exists=True, path_type=Path)
as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(cls=OneLineErrors, context_settings=CONTEXT)
@click.option("--traceback", is_flag=True, help="Show the full traceback of an error.")
@click.version_option(package_name="dmao-kernels", prog_name="dmao")
def main(traceback: bool) -> None:
    """Grow-and-drop training: make the width of a model trainable.

    Results go to stdout, messages to stderr. The exit status is 0, or 2 after an error, or 128 plus the number
    of the signal that stopped a training; 1 where the selftest finds something wrong.
    """
    show_log()


main.add_command(prepare)


def _refuse_given(*names: str, why: str) -> None:
    context = click.get_current_context()
    options = {option.name: option.opts[0] for option in context.command.params}
    for name in names:
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise click.UsageError(f"{options[name]} {why}", context)


@main.command(short_help="Train from a YAML file; a second call resumes.")
@click.argument("config", type=CONFIG)
@click.option("--run-dir", type=FOLDER, required=True, help="Folder of the run.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key of CONFIG; repeatable.")
@click.option("--baseline", is_flag=True, help="Train the uniform model: no events.")
@click.option("--widths-of", type=CHECKPOINT, help="Train from scratch at the widths of this run's model: no events.")
@click.option("--no-resume", is_flag=True, help="Refuse a folder that holds a training already.")
def train(
    config: Path,
    run_dir: Path,
    overrides: tuple[str, ...],
    baseline: bool,
    widths_of: Path | None,
    no_resume: bool,
) -> None:
    """Train as CONFIG (YAML) says. The same command resumes an interrupted run, bit for bit.

    CONFIG is a file, or the name of a recipe, as librispeech/conformer_256 (tedlium2, switchboard; e_branchformer;
    384, 512).

    \b
    Examples:
      dmao train config.yaml --run-dir runs/wide --set model.width=144 --set steps=4000
      dmao train tedlium2/e_branchformer_384 --run-dir runs/ted
    """
    from dmao.config import load_config
    from dmao.trainer import train as run

    settings = load_config(config, overrides)
    if widths_of is not None:
        from dmao.evaluate import load_widths

        settings = settings.with_widths(load_widths(widths_of))
    result = run(settings.baseline() if baseline else settings, run_dir, resume=not no_resume)
    click.echo(f"{result.steps} steps, {result.parameters:,} parameters; checkpoint: {result.checkpoint}")
    for split, found in result.evaluations.items():
        click.echo(f"{split}: cross-entropy {found['ce']:.3f}, CER {found['cer']:.1f} %, WER {found['wer']:.1f} %")


@main.command(short_help="The whole line on an embedded corpus, in ten minutes.")
@click.option(
    "--run-dir",
    type=FOLDER,
    default=Path("runs/demo"),
    show_default=True,
    help="Gets both runs, summary.json and report.html.",
)
@click.option(
    "--hours",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Hours of training speech.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change one key of the demo's configuration; repeatable.",
)
@click.option("--fresh", is_flag=True, help="Train again from the start.")
def demo(run_dir: Path, hours: float, overrides: tuple[str, ...], fresh: bool) -> None:
    """Train baseline and grow-and-drop side by side on synthetic speech, compare them, write a report.

    Takes about ten minutes on two cores. What is finished is not repeated: interrupted, it resumes.

    \b
    Example, a quick look with little data and few steps:
      dmao demo --run-dir runs/quick --hours 0.1 --set steps=60 --set data.root=data/quick
    """
    from dmao.recipes.embedded.demo import run_demo
    from dmao.recipes.embedded.summary import table

    summary = run_demo(run_dir, overrides, hours, fresh)
    click.echo(table(summary))
    click.echo(f"report: {run_dir / 'report.html'}   figures: {run_dir / 'summary.json'}")


@main.command(short_help="Decode a split with a checkpoint: cross-entropy, CER, WER.")
@click.argument("checkpoint", type=CHECKPOINT)
@click.option("--split", default="test", show_default=True, help="Split of the corpus.")
@click.option("--root", type=FOLDER, help="Folder of the corpus, where it has moved.")
@as_json_option
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
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Argument of the callable; repeatable.")
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
@as_json_option
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


@main.command(short_help="Measure the overhead of scoring and events.")
@click.argument("config", type=CONFIG, required=False)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key; repeatable.")
@click.option(
    "--pairs", type=click.IntRange(min=3), default=40, show_default=True, help="Pairs of steps, with and without."
)
@as_json_option
def bench(config: Path | None, overrides: tuple[str, ...], pairs: int, as_json: bool) -> None:
    """Measure what scoring and events add to the training that CONFIG (YAML) describes.

    Steps with and without scores alternate on the same batches in one process. CONFIG defaults to the demo's;
    its corpus must have been prepared. `make bench` runs the benchmarks of the operations as well.

    \b
    Example:
      dmao bench --set data.root=data/embedded --pairs 100
    """
    from dmao.config import load_config
    from dmao.overhead import measure_overhead
    from dmao.recipes.embedded.demo import demo_config

    costs = measure_overhead(load_config(config or demo_config(), overrides), pairs=pairs).to_dict()
    if as_json:
        print_json(costs)
        return
    for name, cost in costs.items():
        unit = "%" if name.endswith("pct") else "ms"
        click.echo(
            f"{name.rpartition('_')[0]:<8} {cost['median']:9.3f} {unit}   "
            f"95 % interval {cost['low']:.3f} to {cost['high']:.3f}"
        )


@main.command(short_help="Measure how fast batches are read.")
@click.argument("config", type=CONFIG)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key; repeatable.")
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    multiple=True,
    default=(0, 1, 2),
    show_default=True,
    help="Processes that read ahead; repeatable.",
)
@click.option("--batches", type=click.IntRange(min=1), default=200, show_default=True, help="Batches to read.")
@as_json_option
def bench_loader(
    config: Path, overrides: tuple[str, ...], workers: tuple[int, ...], batches: int, as_json: bool
) -> None:
    """Measure utterances per second and worker: whether a GPU would wait for its batches.

    \b
    Example:
      dmao bench-loader librispeech/conformer_512 --workers 1 --workers 4
    """
    from dmao.config import load_config
    from dmao.data.throughput import measure_loader

    found = measure_loader(load_config(config, overrides), workers, batches)
    if as_json:
        print_json({"loader": [{**vars(one), "utterances_per_second": one.utterances_per_second} for one in found]})
    else:
        click.echo("\n".join(map(str, found)))


@main.command(short_help="Memory that a training needs, computed.")
@click.argument("configs", type=CONFIG, nargs=-1, required=True, metavar="CONFIG...")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key; repeatable.")
@click.option("--outputs", type=click.IntRange(min=2), default=79, show_default=True, help="Labels, blank included.")
def memory(configs: tuple[Path, ...], overrides: tuple[str, ...], outputs: int) -> None:
    """Compute what parameters, gradients, AdamW and the saved activations of a batch take, for each CONFIG.

    The allocator's slack and the temporaries of single operations come on top.

    \b
    Example:
      dmao memory librispeech/conformer_256 librispeech/conformer_512 --set precision=bf16
    """
    from dmao.config import load_config
    from dmao.memory import expected_memory, table

    rows = []
    for config in configs:
        settings = load_config(config, overrides)
        found = expected_memory(settings.model.conformer(outputs), settings.precision)
        rows.append((f"{config.parent.name}/{config.stem}", found, settings.data.batch_seconds))
    click.echo(table(rows))


@main.command(short_help="What is installed, what runs here, and why the rest does not.")
@as_json_option
def info(as_json: bool) -> None:
    """Show versions, how the kernels were built, and which backend can run here (or why it cannot).

    \b
    Example:
      dmao info --json
    """
    from dmao_kernels.info import describe, text

    print_json(describe()) if as_json else click.echo(text())


@main.command(short_help="Are the kernels right here, and how fast?")
@click.option("--device", help="cpu or cuda.  [default: cuda where there is one]")
@click.option("--out", type=FOLDER, default="selftest", show_default=True, help="Folder of the report.")
@click.option("--quick", is_flag=True, help="Fewer dtypes, small sizes, no torch.compile.")
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(["numerics", "training", "speed"]),
    help="This part only; repeatable.  [default: all]",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0),
    default=180.0,
    show_default=True,
    help="After so many no new problem is begun.",
)
@click.option("--choose", is_flag=True, help="Keep which backend for this GPU was faster, for later runs.")
def selftest(device: str | None, out: Path, quick: bool, only: tuple[str, ...], seconds: float, choose: bool) -> None:
    """Check all operations against float64, train with an event, time everything beside its peers.

    Writes report.json and report.md. An operation that is wrong has no times, and the exit status is 1.

    \b
    Example:
      dmao selftest --device cuda --out selftest
    """
    from dmao_kernels.testing.selftest.run import PARTS, default_device
    from dmao_kernels.testing.selftest.run import selftest as run

    report = run(
        device or default_device(), out, quick=quick, only=only or PARTS, seconds=seconds, choose=choose, say=click.echo
    )
    if report.wrong:
        click.get_current_context().exit(1)


for command in (*cli_decode.COMMANDS, cli_experiment.experiment):
    main.add_command(command)


if __name__ == "__main__":
    main(prog_name="dmao")
