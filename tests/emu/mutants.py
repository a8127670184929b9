"""Planted faults: a piece of text of a kernel that is replaced by another, and what has to be noticed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.emu.build import Compiler, run


@dataclass(frozen=True)
class Mutant:
    correct: str  # is there once
    wrong: str
    message: str  # a part of what the program prints then
    build: str = "plain"


def each(mutants: dict[str, Mutant]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorates a test of one `mutant`; all but the first are slow, since each is compiled."""
    parameters = [
        pytest.param(mutant, id=name, marks=[pytest.mark.timeout(900), *([pytest.mark.slow] if place else [])])
        for place, (name, mutant) in enumerate(mutants.items())
    ]
    return pytest.mark.parametrize("mutant", parameters)


def check_noticed(compiler: Compiler, source: Path, mutant: Mutant) -> None:
    status, printed = run(compiler.mutant(source, mutant.build, mutant.correct, mutant.wrong), seed=1)
    assert status != 0
    assert mutant.message in printed, printed[:2000]
