"""Faults are planted where they should be, those that tests notice are told from the others, and the list is fresh."""

from importlib import import_module

from tests.mutants.__main__ import CORE, ROOT, TESTS, equivalents, mutants_of
from tests.mutants.operators import mutants

VICTIM = '''
MOST = 2


def clipped(x, least=0):
    """The larger of the two, at most MOST."""
    if x > MOST:
        return MOST
    return max(x, least)


def forgotten(x):
    return -x
'''

TESTS_OF_IT = """
from victim import clipped


def test_what_is_large():
    assert clipped(5) == 2


def test_what_is_small():
    assert clipped(1) == 1
    assert clipped(-1) == 0
"""

FAULTS = {
    "MOST = 2 -> MOST = 3": "killed",
    "MOST = 2 -> MOST = 1": "killed",
    "least=0 -> least=1": "killed",
    "x > MOST -> not x > MOST": "killed",
    "x > MOST -> x >= MOST": "survived",  # it makes no difference
    "return MOST -> return None": "killed",
    "return max(x, least) -> return None": "killed",
    "max(x, least) -> min(x, least)": "killed",
    "return -x -> return None": "survived",  # never called
    "-x -> x": "survived",
}


def test_faults_are_noticed_or_not(tmp_path, run_python):
    (tmp_path / "victim.py").write_text(VICTIM)
    (tmp_path / "test_victim.py").write_text(TESTS_OF_IT)
    code = f"""
import sys
from pathlib import Path
from tests.mutants.__main__ import check
folder = Path({str(tmp_path)!r})
sys.path.insert(0, str(folder))
for only in ("", "victim.py:8"):
    results = check(["victim"], [str(folder / "test_victim.py")], only, folder / "mutants.json", print)
    for r in results:
        print("=", r["before"], "->", r["after"], ":", r["status"])
"""
    result = run_python("-c", code)
    assert result.returncode == 0, result.stderr
    found = [line[2:].split(" : ") for line in result.stdout.splitlines() if line.startswith("= ")]
    assert dict(found) == FAULTS
    assert found[len(FAULTS) :] == [["return MOST -> return None", "killed"]]


def test_an_endless_loop_comes_to_an_end(run_python):
    code = """
import signal
from tests.mutants.__main__ import allow, forked

def endless():
    allow(0.1)
    while True:
        pass

assert forked(lambda: 3) == (3, None)
assert forked(endless) == (None, -signal.SIGXCPU)
"""
    result = run_python("-c", code)
    assert result.returncode == 0, result.stderr


def test_faults_have_places_and_names_of_their_own():
    found = mutants(VICTIM, "victim.py")
    assert [m.line for m in found] == [2, 2, 5, 7, 7, 8, 9, 9, 13, 13]
    twice = mutants("def f(a):\n    a.x()\n    a.x()\n", "f.py")
    assert [m.after for m in twice] == ["pass", "pass  # 2"]
    assert [list(m.lines) for m in twice] == [[2], [3]]


def test_what_is_said_to_be_equivalent_is_a_fault_of_today():
    today = {m.key for name in CORE for m in mutants_of(import_module(name))}
    assert set(equivalents()) <= today
    assert all(reason.strip() for reason in equivalents().values())
    assert all((ROOT / test).exists() for test in TESTS)
