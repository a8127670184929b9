"""The commands that measure: `dmao bench`, `bench-loader`, `memory`, `info`, `selftest`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from dmao.cli_options import CONFIG, FOLDER, NumberRange, json_option, set_option
from dmao.console import print_json
from dmao.errors import UserError
from dmao.files import require_writable


@click.command(short_help="Measure the overhead of scoring and events.")
@click.argument("config", type=CONFIG, required=False)
@set_option()
@click.option(
    "--pairs", type=click.IntRange(min=3), default=40, show_default=True, help="Pairs of steps, with and without."
)
@json_option
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


@click.command("bench-loader", short_help="Measure how fast batches are read.")
@click.argument("config", type=CONFIG)
@set_option()
@click.option(
    "--workers",
    type=click.IntRange(min=0),
    multiple=True,
    default=(0, 1, 2),
    show_default=True,
    help="Processes that read ahead; repeatable.",
)
@click.option("--batches", type=click.IntRange(min=1), default=200, show_default=True, help="Batches to read.")
@json_option
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


@click.command(short_help="Memory that a training needs, computed.")
@click.argument("configs", type=CONFIG, nargs=-1, required=True, metavar="CONFIG...")
@set_option("Change one key of each CONFIG")
@click.option("--outputs", type=click.IntRange(min=2), default=79, show_default=True, help="Labels, blank included.")
@json_option
def memory(configs: tuple[Path, ...], overrides: tuple[str, ...], outputs: int, as_json: bool) -> None:
    """Compute what parameters, gradients, AdamW and the saved activations of a batch take, for each CONFIG.

    The allocator's slack and the temporaries of single operations come on top.

    \b
    Example:
      dmao memory librispeech/conformer_256 librispeech/conformer_512 --set precision=bf16
    """
    from dmao.config import load_config
    from dmao.memory import expected_memory, table
    from dmao.progress import bar

    short = [f"{config.parent.name}/{config.stem}".lstrip("/") for config in configs]
    names = [str(c) if short.count(name) > 1 else name for name, c in zip(short, configs, strict=True)]
    settings = {name: load_config(config, overrides) for name, config in zip(names, configs, strict=True)}
    rows = []
    for name, one in bar(settings.items(), "models", "model"):
        found = expected_memory(one.model.conformer(outputs), one.precision)
        rows.append((name, found, one.data.batch_seconds))
    if as_json:
        print_json({name: {**vars(found), "total": found.total(seconds)} for name, found, seconds in rows})
    else:
        click.echo(table(rows))


@click.command(short_help="What is installed, what runs here, and why the rest does not.")
@json_option
def info(as_json: bool) -> None:
    """Show versions, how the kernels were built, and which backend can run here (or why it cannot).

    \b
    Example:
      dmao info --json
    """
    from dmao_kernels.info import describe, text

    print_json(describe()) if as_json else click.echo(text())


@click.command(short_help="Are the kernels right here, and how fast?")
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
    type=NumberRange(min=0),
    default=180.0,
    show_default=True,
    help="After so many no new problem is begun.",
)
@click.option("--choose", is_flag=True, help="Keep which backend for this GPU was faster, for later runs.")
@json_option
def selftest(
    device: str | None, out: Path, quick: bool, only: tuple[str, ...], seconds: float, choose: bool, as_json: bool
) -> None:
    """Check all operations against float64, train with an event, time everything beside its peers.

    Writes report.json and report.md. An operation that is wrong has no times, and the exit status is 1.

    \b
    Example:
      dmao selftest --device cuda --out selftest
    """
    from dmao.progress import bar
    from dmao_kernels.testing.selftest.run import PARTS, default_device
    from dmao_kernels.testing.selftest.run import selftest as run

    device = device or default_device()
    if device.partition(":")[0] not in ("cpu", "cuda"):
        raise click.BadParameter(f"'{device}' is neither cpu nor cuda.", param_hint="'--device'")
    if device.startswith("cuda") and default_device() != "cuda":
        raise UserError("selftest: device is cuda, but PyTorch finds no GPU")
    require_writable(out / "report.json")
    report = run(
        device,
        out,
        quick=quick,
        only=only or PARTS,
        seconds=seconds,
        choose=choose,
        say=lambda line: click.echo(line, err=as_json),
        watch=lambda checks: bar(checks, "checks", "check"),
    )
    if as_json:
        print_json(asdict(report))
    if report.wrong:
        click.get_current_context().exit(1)


COMMANDS = (bench, bench_loader, memory, info, selftest)
