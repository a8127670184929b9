"""The table that `make test-aot` prints and keeps in build/aot.md, and --write-budgets.

Triton compiles where nothing interprets: not in a process with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # what 3.9 does, and warns of; 3.10 asks for a choice

from tests.aot import budgets
from tests.aot.table import Table

TABLE = Table("aot", "Compiled Triton kernels", "make test-aot", budgets.FILE)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-budgets", action="store_true", help="replaces the budgets of what runs, for review")


def pytest_configure(config: pytest.Config) -> None:
    TABLE.begin(config)


@pytest.fixture
def record():
    """record(arch, dtype, problem, codes) keeps rows of the table."""
    return TABLE.keep


@pytest.fixture
def record_peer():
    """record_peer(arch, problem, kernel, peer, tile, ours, theirs, why) keeps a row of the table of equal tiles."""
    return TABLE.keep_peer


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    TABLE.end(terminalreporter, config.getoption("--write-budgets"))
