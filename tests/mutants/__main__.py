"""Plants faults in the code that plans and carries out events, one at a time, and looks which test notices.

`make mutants` runs it. One process imports everything and collects the tests; for every fault it forks, and the child
exchanges the code of the functions concerned, runs the tests that reach the line, the fastest first, and tells which
one failed. What was noticed once is not tried again until its file changes; survivors are.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import inspect
import json
import math
import multiprocessing
import os
import re
import resource
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

import pytest
import yaml

from tests.mutants.operators import Mutant, mutants

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "build" / "mutants.json"
EQUIVALENT = Path(__file__).with_name("equivalent.yaml")
STRUCTURE = "dmao_kernels.structure"
CORE = [f"{STRUCTURE}.{name}" for name in ("plan", "selection", "edit", "gather", "targets", "state")]
TESTS = [
    f"tests/structure/test_{name}.py"
    for name in ("plan", "plan_limits", "slot_plan", "edit", "gather", "function", "elastic", "multihead",
                 "optimizers", "slots", "slots_storage", "slots_device", "gates", "adamw", "scores", "shards")
]  # fmt: skip
BY_TIME = "tests/structure/test_plan.py::test_not_quadratic_in_the_number_of_components"  # may fail on a busy machine

Key = tuple[str, str, str, str]
Results = dict[Key, dict[str, Any]]


def mutants_of(module: ModuleType) -> list[Mutant]:
    path = str(module.__file__)
    return mutants(Path(path).read_text(encoding="utf-8"), os.path.relpath(path, ROOT))


def equivalents() -> dict[Key, str]:
    """Faults that no test can notice, by their keys, and why."""
    listed = yaml.safe_load(EQUIVALENT.read_text(encoding="utf-8")) or {}
    return {
        (file, each["where"], each["before"], each["after"]): each["because"]
        for file, entries in listed.items()
        for each in entries
    }


@dataclass
class Reached:
    """What one test needs, in seconds of processor time, and the (file, line)s that it reaches."""

    seconds: float
    lines: set[tuple[str, int]]


def forked(work: Callable[[], Any]) -> tuple[Any, int | None]:
    """What ``work`` returns in a process of its own; else how that ended."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(work()))
    process.start()
    sender.close()
    try:
        return receiver.recv(), None
    except EOFError:
        process.join()
        return None, process.exitcode
    finally:
        process.join()


def allow(seconds: float) -> None:
    """End this process after so much more processor time (not real time, of which a busy machine takes more)."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time() + seconds), hard))


def tracer(files: set[str], lines: set[tuple[str, int]]) -> Callable[[FrameType, str, Any], Any]:
    """What sys.settrace takes, to write down the lines of these files that run."""

    def local(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            lines.add((frame.f_code.co_filename, frame.f_lineno))
        return local

    return lambda frame, _event, _: local if frame.f_code.co_filename in files else None


def nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from nested(constant)


Functions = dict[tuple[str, int, str], list[FunctionType]]


def functions_of(files: set[str]) -> Functions:
    """Every function of these files that is alive, wherever it is held and whatever wraps it."""
    found: Functions = defaultdict(list)
    for each in gc.get_objects():
        if type(each) is FunctionType and each.__code__.co_filename in files:
            code = each.__code__
            found[code.co_filename, code.co_firstlineno, code.co_name].append(each)
    return found


def plant(mutant: Mutant, module: ModuleType, functions: Functions) -> None:
    """Let the functions of the module have the fault, also where they were imported by name."""
    code = mutant.code(str(module.__file__))
    for part in nested(code):
        for function in functions.get((part.co_filename, part.co_firstlineno, part.co_name), ()):
            function.__code__ = part
    if not mutant.site.inside:
        _plant_values(code, module)


def _plant_values(code: CodeType, module: ModuleType) -> None:
    """What runs at import alone: defaults of arguments and of fields, and constants."""
    new = dict(vars(module))
    exec(code, new)
    for name, old in list(vars(module).items()):
        if isinstance(old, type) and old.__module__ == module.__name__:
            for method, function in vars(old).items():
                if isinstance(function, FunctionType):
                    function.__defaults__ = vars(new[name])[method].__defaults__
        elif isinstance(old, FunctionType) and old.__module__ == module.__name__:
            function, other = inspect.unwrap(old), inspect.unwrap(new[name])
            function.__defaults__, function.__kwdefaults__ = other.__defaults__, other.__kwdefaults__
        elif isinstance(old, int | float | str | tuple | dict) and old != new[name]:
            for holder in list(sys.modules.values()):
                if vars(holder).get(name) is old:
                    setattr(holder, name, new[name])


@dataclass
class Check:
    """The plugin of pytest: instead of running the tests it tries the faults on them."""

    planted: Sequence[tuple[ModuleType, Mutant]]
    done: Results
    equivalent: Mapping[Key, str]
    keep: Callable[[Results], None]
    say: Callable[[str], None]
    failed: list[str] = field(default_factory=list)
    reached: dict[str, Reached] = field(default_factory=dict)
    results: Results = field(default_factory=dict)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        session.config.pluginmanager.unregister(name="terminalreporter")
        items = {item.nodeid: item for item in session.items}
        files = {str(module.__file__) for module, _ in self.planted}
        start = time.perf_counter()
        found, ended = forked(lambda: self._reach(list(items.values()), files))
        if found is None or found[0]:
            raise pytest.UsageError(f"the tests fail without a fault: {found[0] if found else ended}")
        self.reached = found[1]
        self.say(f"{len(items)} tests, {sum(r.seconds for r in self.reached.values()):.0f} s of processor time, "
                 f"{time.perf_counter() - start:.0f} s")  # fmt: skip
        functions = functions_of(files)
        for module, mutant in self.planted:
            self.results[mutant.key] = self._result(mutant, module, items, functions)
            self.keep(self.results)
        return True

    def _reach(self, items: list[pytest.Item], files: set[str]) -> tuple[list[str], dict[str, Reached]]:
        """Run all tests once: what fails, what each reaches and how long it takes."""
        reached = {}
        for item, after in zip(items, [*items[1:], None], strict=True):
            lines: set[tuple[str, int]] = set()
            start = time.process_time()
            sys.settrace(tracer(files, lines))
            try:
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
            finally:
                sys.settrace(None)
            reached[item.nodeid] = Reached(time.process_time() - start, lines)
        return self.failed, reached

    def _result(
        self, mutant: Mutant, module: ModuleType, items: dict[str, pytest.Item], functions: Functions
    ) -> dict[str, Any]:
        source = hashlib.sha256(Path(str(module.__file__)).read_bytes()).hexdigest()[:16]
        record = {"file": mutant.file, "line": mutant.line, "where": mutant.where, "operator": mutant.operator,
                  "before": mutant.before, "after": mutant.after, "source": source}  # fmt: skip
        if mutant.key in self.equivalent:
            return {**record, "status": "equivalent", "by": self.equivalent[mutant.key]}
        known = self.done.get(mutant.key)
        if known is not None and known["source"] == source and known["status"] in ("killed", "timeout"):
            return known
        start = time.perf_counter()
        status, by = self._try(mutant, module, items, functions)
        if status == "survived":
            self.say(f"survived: {mutant}" + (f"  ({by})" if by else ""))
        return {**record, "status": status, "by": by, "seconds": round(time.perf_counter() - start, 2)}

    def _try(
        self, mutant: Mutant, module: ModuleType, items: dict[str, pytest.Item], functions: Functions
    ) -> tuple[str, str]:
        path = str(module.__file__)
        lines = {(path, line) for line in mutant.lines}
        tests = [n for n, r in self.reached.items() if (lines & r.lines if mutant.site.inside else r.lines)]
        if not tests:
            return "survived", "no test reaches it"
        tests.sort(key=lambda name: self.reached[name].seconds)

        def work() -> str:
            plant(mutant, module, functions)
            for name, after in zip(tests, [*tests[1:], None], strict=True):
                item = items[name]
                allow(3 + 3 * self.reached[name].seconds)
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=after and items[after])
                if self.failed:
                    return self.failed[0]
            return ""

        noticed, ended = forked(work)
        if ended is not None:
            return ("timeout", "") if ended == -signal.SIGXCPU else ("killed", f"the process ended with {ended}")
        return ("killed", noticed) if noticed else ("survived", "")


def check(
    modules: Sequence[str], tests: Sequence[str], only: str, path: Path, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Try the faults of the modules on the tests, and keep what comes out at ``path``."""
    planted = [(module, m) for module in map(import_module, modules) for m in mutants_of(module)]
    today = {m.key for _, m in planted}
    old = json.loads(path.read_text()) if path.exists() else []
    done: Results = {k: r for r in old if (k := (r["file"], r["where"], r["before"], r["after"])) in today}

    def keep(results: Results) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(list({**done, **results}.values()), indent=1) + "\n")

    chosen = [(module, m) for module, m in planted if re.search(rf"{only}(?!\d)", f"{m.file}:{m.line}")]
    plugin = Check(chosen, done, equivalents(), keep, say)
    status = pytest.main(["-q", "-p", "no:cacheprovider", "--deselect", BY_TIME, *tests], plugins=[plugin])
    if status != pytest.ExitCode.OK:
        raise SystemExit(status)
    return list(plugin.results.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", default="", metavar="PLACE", help="faults at such a place: a pattern, e.g. edit.py:120"
    )
    parser.add_argument("tests", nargs="*", default=TESTS, help="fewer tests, while one closes a gap")
    arguments = parser.parse_args()
    import hypothesis

    # The same examples every time, and no search for a smaller one.
    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    hypothesis.settings.register_profile("mutants", derandomize=True, database=None, phases=phases)
    hypothesis.settings.load_profile("mutants")
    out = os.fdopen(os.dup(1), "w", buffering=1)  # pytest captures what is printed
    results = check(CORE, arguments.tests, arguments.only, RESULTS, lambda line: print(line, file=out))
    for file, statuses in sorted(_counted(results).items()):
        print(
            f"{file}: {sum(statuses.values())} mutants, " + ", ".join(f"{n} {s}" for s, n in sorted(statuses.items()))
        )
    return int(any(r["status"] == "survived" for r in results))


def _counted(results: list[dict[str, Any]]) -> dict[str, Counter[str]]:
    counted: dict[str, Counter[str]] = defaultdict(Counter)
    for result in results:
        counted[result["file"]][result["status"]] += 1
    return counted


if __name__ == "__main__":
    sys.exit(main())
