from __future__ import annotations

import pytest

from tests.emu.build import Compiler


@pytest.fixture(scope="session")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Compiler:
    return Compiler(lambda: tmp_path_factory.mktemp("emu"))
