"""Every operation on random problems, against float64: a sample of them here, 2,000 an operation in `make test-all`.

A module beside this one that is named after an operation has `problem(draw)`. To see a single problem again:
`pytest tests/fuzz -k OP --fuzz-seed SEED`, with the seed that the failure names.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

import dmao_kernels
from tests.fuzz.problem import Draw, check

HERE = Path(__file__).parent
OPS = sorted(path.stem for path in HERE.glob("*.py") if not path.stem.startswith(("conftest", "problem", "test_")))
SAMPLE = 40
CHUNK, CHUNKS = 100, 20


def run(op: str, seeds: range) -> None:
    module = importlib.import_module(f"tests.fuzz.{op}")
    for seed in seeds:
        draw = Draw(seed)
        try:
            with dmao_kernels.use_backend("cpu"):
                check(draw, module.problem(draw))
        except Exception as error:
            raise AssertionError(f"{op}, seed {seed}: {error}") from error


pytestmark = pytest.mark.skipif(dmao_kernels.cpu_capability() is None, reason="no native library")


@pytest.mark.parametrize("op", OPS)
def test_sample(op: str, pytestconfig: pytest.Config) -> None:
    seed = pytestconfig.getoption("fuzz_seed", None)  # unknown where conftest.py beside is not loaded at the start
    run(op, range(SAMPLE) if seed is None else range(seed, seed + 1))


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(CHUNKS))
@pytest.mark.parametrize("op", OPS)
def test_many(op: str, chunk: int) -> None:
    run(op, range(chunk * CHUNK, (chunk + 1) * CHUNK))
