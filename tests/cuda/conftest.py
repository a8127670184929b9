"""The table that `make test-cuda-build` prints and keeps in build/cuda.md, and --write-budgets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dmao_kernels.testing.devices import cuda_on_host
from tests.aot.table import Table
from tests.cuda import wheel
from tests.emu.build import build_operations

BUDGETS = Path(__file__).with_name("budgets.json")
TABLE = Table("cuda", "Compiled CUDA C++ kernels", "make test-cuda-build", BUDGETS)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-budgets", action="store_true", help="replaces the budgets of what runs, for review")


def pytest_configure(config: pytest.Config) -> None:
    TABLE.begin(config)


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to import the wheel's packages from."""
    return wheel.unpacked(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def emulated_library() -> Path:
    """The same operations for the host, loaded."""
    library = build_operations()
    cuda_on_host(library)
    return library


@pytest.fixture
def record() -> Callable[..., None]:
    """record(arch, dtype, problem, codes) keeps rows of the table."""
    return TABLE.keep


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    TABLE.end(terminalreporter, config.getoption("--write-budgets"))
