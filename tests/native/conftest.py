"""The probe that a test module names in PROBE, for each instruction set of this machine."""

from __future__ import annotations

import ctypes

import pytest

from tests.native.probe import CAPABILITIES, build_probe


@pytest.fixture(scope="module", params=CAPABILITIES)
def probe(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = build_probe(request.module.PROBE, request.param, tmp_path_factory.mktemp("probe"))
    if library is None:
        pytest.skip(f"needs a compiler, the native library and {request.param}")
    return library
