"""The self-test from beginning to end."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from dmao_kernels import gpu_choice
from dmao_kernels.dispatch import supported, why_not
from dmao_kernels.testing.selftest import speed
from dmao_kernels.testing.selftest.numerics import Check, checks
from dmao_kernels.testing.selftest.problems import Draw, first_line
from dmao_kernels.testing.selftest.report import Report, Time, machine
from dmao_kernels.testing.selftest.timing import Limits, Timer
from dmao_kernels.testing.selftest.training import trainings

PARTS = ("numerics", "training", "speed")
TIMED = (torch.bfloat16, torch.float32)

Say = Callable[[str], None]
Watch = Callable[[Iterable[Check]], Iterable[Check]]


def selftest(
    device: str,
    out: Path,
    *,
    quick: bool = False,
    only: tuple[str, ...] = PARTS,
    seconds: float = 180.0,
    choose: bool = False,
    say: Say = print,
    watch: Watch = iter,
) -> Report:
    """Runs the parts in `only` and writes the report into `out`, anew after every part.

    Nothing is timed that was not found right before: "speed" asks for "numerics".

    quick: fewer dtypes, small sizes, no torch.compile.  seconds: after which no new problem is begun.  choose: keeps,
    for the processes to come, which of two backends for this GPU was faster (dmao_kernels.gpu_choice).  watch: sees the
    checks as they are done, for a progress bar.
    """
    end = time.monotonic() + seconds
    report = Report(machine(device))
    with _exact_float32():
        if "numerics" in only or "speed" in only:
            _check(report, device, TIMED, end, say, watch)
            report.write(out)
        if "training" in only:
            report.trainings += trainings(device)
            report.write(out)
            for run in report.trainings:
                say(f"training in {run.storage} storage: {run.problem or 'right'}")
        if "speed" in only:
            _time(report, device, quick, end, say)
            report.write(out)
            if choose and (choices := _faster(report.times)):
                say(f"choices: {gpu_choice.write(choices)}")
        if "numerics" in only and torch.device(device).type == "cuda" and not quick:
            _check(report, device, (torch.float16,), end, say, watch)
            report.write(out)
    if report.missing:
        say(report.not_run)
    say(f"report: {out / 'report.md'}")
    return report


def _check(report: Report, device: str, dtypes: tuple[torch.dtype, ...], end: float, say: Say, watch: Watch) -> None:
    for check in watch(checks(device, dtypes)):
        report.checks.append(check)
        if check.problem:
            say(f"wrong: {check.op} ({check.name}, {check.dtype}, {check.backend}): {check.problem}")
        if time.monotonic() > end:
            report.missing.append(f"checks after {check.op} {check.dtype}")
            break
    say(f"{len(report.checks)} checks, {len(report.wrong)} wrong")


def default_device() -> str:
    """A GPU where PyTorch has one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def _time(report: Report, device: str, quick: bool, end: float, say: Say) -> None:
    on_gpu = torch.device(device).type == "cuda"
    timer = Timer(device, rounds=30 if on_gpu else 5, seconds=1.0 if on_gpu else 0.4)
    sizes = (speed.SMALL if quick else speed.FULL) if on_gpu else (speed.TINY if quick else speed.SMALL)
    dtypes = TIMED if on_gpu else (torch.float32,)  # compilers are slow: they take part in the first
    edge, megabytes = (8192, 2048) if on_gpu else (512, 128)
    limits = Limits(device, timer, dtypes, edge // 2 if quick else edge, megabytes // 4 if quick else megabytes)
    report.limits = {"bytes per second": limits.bandwidth}
    report.limits |= {f"{_label(dtype)} flops per second": peak for dtype, peak in limits.peak.items()}
    wrong = {check.op for check in report.checks if check.problem}
    right = {(check.op, check.dtype) for check in report.checks if check.op not in wrong}
    for dtype in dtypes:
        for make in speed.MAKERS:
            if time.monotonic() > end:
                report.missing.append(f"{make.__name__.strip('_')} {_label(dtype)}")
                continue
            try:
                for race in make(Draw(device, dtype), sizes, on_gpu and not quick and dtype == dtypes[0]):
                    report.times.append(_raced(race, dtype, timer, limits, (race.op, _label(dtype)) in right))
                    say(report.times[-1].line())
            except Exception as error:  # of an operation that cannot even be prepared: the report tells
                report.times.append(Time(make.__name__.strip("_"), "", _label(dtype), problem=first_line(error)))


def _both(race: speed.Race) -> dict[str, Callable[[], object]]:
    """Ours in each of two backends for GPUs, where both can run."""
    if "cuda" not in supported().get(race.op, {}) or why_not("cuda") or why_not("triton"):
        return {}

    def preferring(backend: str) -> Callable[[], object]:
        def call() -> object:
            with gpu_choice.preferring(backend):
                return race.calls[speed.OURS]()

        return call

    return {backend: preferring(backend) for backend in gpu_choice.CHOICES}


def _faster(times: list[Time]) -> dict[str, str]:
    """Of every operation that both backends ran: the one that took less, by the geometric mean over its problems."""
    logs: dict[str, list[float]] = {}
    for time_ in times:
        taken = time_.microseconds
        if all(backend in taken for backend in gpu_choice.CHOICES):
            logs.setdefault(time_.op, []).append(math.log(taken["cuda"] / taken["triton"]))
    return {op: "cuda" if sum(values) < 0 else "triton" for op, values in logs.items()}


def _raced(race: speed.Race, dtype: torch.dtype, timer: Timer, limits: Limits, right: bool) -> Time:
    if not right:
        return Time(race.op, race.name, _label(dtype), problem="not timed: it is wrong, or was not checked")
    calls, absent = {}, {}
    for name, call in (dict(race.calls) | (_both(race) if timer.on_gpu else {})).items():
        try:
            call()
        except Exception as error:  # of a peer that this version or machine does not have
            if name == speed.OURS:
                raise
            absent[name] = first_line(error)
        else:
            calls[name] = call
    taken = timer.medians(calls)
    share = limits.floor(dtype, race.flops, race.bytes) / taken[speed.OURS]
    host = {name: timer.host(call) for name, call in calls.items()} if timer.on_gpu else {}
    return Time(race.op, race.name, _label(dtype), taken, host, absent, share)


def _label(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@contextmanager
def _exact_float32() -> Iterator[None]:
    """cuDNN's convolutions, which ours are compared with, compute float32 as such and not in TensorFloat-32."""
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before, convolutions.fp32_precision = convolutions.fp32_precision, "ieee"
    try:
        yield
    finally:
        convolutions.fp32_precision = before
