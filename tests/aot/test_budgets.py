"""Every operation, compiled for GPUs that are not here, within its budgets."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
import torch

from dmao_kernels.testing import sass
from dmao_kernels.testing.gpus import GPUS
from dmao_kernels.testing.mock_driver import Launch, mock_gpu
from dmao_kernels.testing.sass import Code, Instruction, Loop
from tests.aot import budgets, peers
from tests.aot.problems import PROBLEMS

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}
# float16 compiles to what bfloat16 does but for the name of the format: one architecture shows it.
CASES = [(arch, dtype) for dtype in DTYPES for arch in GPUS if dtype != "float16" or arch == 90]
BUDGETS = budgets.load()


def compiled(launches: list[Launch]) -> dict[str, Code]:
    """The kernels that were launched, by name; variants of one are numbered in order."""
    names: dict[str, str] = {}
    codes: dict[str, Code] = {}
    for launch in launches:
        if launch.metadata.hash in names:
            continue
        variants = sum(name.partition("#")[0] == launch.name for name in names.values())
        names[launch.metadata.hash] = launch.name + (f"#{variants + 1}" if variants else "")
        codes[names[launch.metadata.hash]] = sass.read(launch)
    return codes


@pytest.mark.parametrize(("arch", "dtype"), CASES, ids=lambda value: str(value))
@pytest.mark.parametrize("problem", PROBLEMS)
def test_budget(problem, arch, dtype, record, request):
    with mock_gpu(arch) as launches:
        PROBLEMS[problem](DTYPES[dtype])
    assert launches, f"{problem} launched nothing"
    codes = compiled(launches)
    record(arch, dtype, problem, codes)
    if request.config.getoption("--write-budgets"):
        return
    budgets.check(codes, BUDGETS, budgets.key(arch, dtype, problem, ""), "make test-aot")


@pytest.mark.parametrize(("arch", "dtype"), [case for case in CASES if case[1] == "bfloat16"], ids=lambda v: str(v))
@pytest.mark.parametrize("peer", peers.PEERS)
def test_peer(peer, arch, dtype, record):
    """Peers have no budget: they stand beside ours in the table."""
    with mock_gpu(arch) as launches:
        peers.PEERS[peer](DTYPES[dtype])
    assert launches
    record(arch, dtype, budgets.PEER + peer, compiled(launches))


LOOP = Loop((Instruction("HGMMA.64x64x16"), *[Instruction("IADD3")] * 9))
CODE = Code(100, 0, 0, 1024, 4, 3, "registers", Counter(HGMMA=1), 8, 100, LOOP)
BUDGET = {
    "registers": 100,
    "shared": 1024,
    "blocks": 3,
    "matrix": ["HGMMA"],
    "asynchronous": True,
    "per_matrix": 10,
    "narrow": 0,
}


def test_a_kernel_within_its_budget():
    assert budgets.violations(CODE, BUDGET) == []
    assert budgets.violations(CODE, BUDGET | {"stack": 8, "local": 2, "why": "for a test"}) == []


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"registers": 99}, "registers 100 > 99"),
        ({"shared": 1023}, "shared 1024 > 1023"),
        ({"blocks": 4}, "blocks 3 < 4, for registers"),
        ({"matrix": ["HMMA"]}, "matrix instructions"),
        ({"matrix": []}, "matrix instructions"),
        ({"per_matrix": 9}, "10.0 instructions per matrix instruction > 9"),
        ({"stack": 8}, "needs a reason"),
    ],
)
def test_each_bound_holds(change, word):
    (found,) = budgets.violations(CODE, BUDGET | change)
    assert word in found


def test_reasons_are_those_of_spills():
    for name, budget in BUDGETS.items():
        assert bool(budget.get("stack") or budget.get("local")) == bool(budget.get("why")), name


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"stack": 8}, "stack 8 > 0"),
        ({"local": 1}, "local 1 > 0"),
        ({"asynchronous": 0}, "no asynchronous copies"),
        ({"narrow": 1}, "narrow 1 > 0"),
    ],
)
def test_spills_and_synchronous_copies_are_seen(change, word):
    (found,) = budgets.violations(dataclasses.replace(CODE, **change), BUDGET)
    assert word in found
