"""Layers are compiled anew in every test: they share code, and with it torch.compile's limit of recompilations."""

import sys

import pytest
import torch


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> None:
    if "torch._dynamo" in sys.modules:  # takes seconds to import
        torch.compiler.reset()
