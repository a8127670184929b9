"""The sdist, the wheel that pip makes of it, and the environments."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.install.environments import COMPILERS, KEPT, Environment
from tests.packaging import contents
from tests.packaging.interpreters import VERSIONS, interpreters

OWN = f"{sys.version_info.major}.{sys.version_info.minor}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.timeout(3600))  # downloads, and a build


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return contents.make_sdist(tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="session")
def own_environment() -> Environment:
    """Of the Python of .venv."""
    environment = Environment(OWN)
    environment.make()
    return environment


@pytest.fixture(scope="session")
def wheel(sdist: Path, own_environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `pip install` of the sdist makes it, isolated; objects are kept for the next time."""
    if not any(map(shutil.which, COMPILERS)):
        pytest.skip("needs a compiler")
    source = KEPT / "source" / sdist.name.removesuffix(".tar.gz")
    for path in source.glob("*"):
        if path.name != "build":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    contents.unpack(sdist, source.parent)
    out = tmp_path_factory.mktemp("wheel")
    own_environment.pip("wheel", "-q", "--no-deps", "-w", out, source)
    (made,) = out.iterdir()
    return made


@pytest.fixture(scope="session", params=VERSIONS)
def environment(request: pytest.FixtureRequest) -> Environment:
    if request.param not in interpreters():
        pytest.skip(f"there is no Python {request.param} here")
    environment = Environment(request.param)
    environment.make()
    return environment
