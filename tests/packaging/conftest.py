"""One sdist of the tree and one wheel of it, built where there is no compiler."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.packaging import contents


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return contents.make_sdist(tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="session")
def plain_wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = contents.unpack(sdist, tmp_path_factory.mktemp("source"))
    variables = {name: value for name, value in os.environ.items() if not name.startswith("DMAO_") and name != "CXX"}
    return contents.hook(
        contents.BUILD_WHEEL, source, tmp_path_factory.mktemp("plain"), **variables | {"PATH": "nowhere"}
    )
