"""Sdist and wheel, installed: with and without a compiler, with and without Triton, under every Python that is here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import dmao_kernels
from tests.install.environments import Environment, without_compilers
from tests.packaging import contents

# Results and gradients of the backend that is chosen, beside those of the reference.
OPERATIONS = """
import torch
import dmao_kernels as d

def run(function, *tensors):
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    result = function(*leaves)
    result.square().sum().backward()
    return [result.detach(), *(leaf.grad for leaf in leaves)]

torch.manual_seed(0)
x, w1, w2 = torch.randn(7, 32), torch.randn(64, 32) / 6, torch.randn(32, 64) / 8
q = torch.randn(2, 9, 4, 8)
lengths = torch.tensor([9, 5], dtype=torch.int32)
problems = [
    (lambda x, w1, w2: d.component_ffn(x, w1, None, w2, None, components=4), x, w1, w2),
    (lambda x, w: d.masked_linear(x, w, activation="relu"), x, w1),
    (lambda q, k, v: d.block_attention(q, k, v, lengths=lengths), q, q + 1, q - 1),
]
for function, *tensors in problems:
    chosen = run(function, *tensors)
    with d.use_backend("reference"):
        torch.testing.assert_close(chosen, run(function, *tensors), rtol=1e-4, atol=1e-4)
print(d.__file__, d.cpu_capability())
"""
MODULES = """
import importlib, pkgutil, dmao, dmao_kernels
for package in (dmao, dmao_kernels):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        needs_more = ("dmao.integrations.", "dmao_kernels.testing.", "dmao_kernels.ops.")  # frameworks, tools, Triton
        if not module.name.startswith(needs_more) and not module.name.endswith(("__main__", "._ops", "._cuda")):
            importlib.import_module(module.name)
"""
UNTOLD = "no native kernels, the reference backend is used"


def use(environment: Environment, folder: Path) -> dict[str, Any]:
    """Operations, modules, the command and its self-test; what `dmao info` says."""
    file, capability = environment.run("python", "-c", OPERATIONS).stdout.split()
    assert str(environment.folder) in file
    environment.run("python", "-c", MODULES)
    assert environment.run("dmao", "--version").stdout == f"dmao, version {dmao_kernels.__version__}\n"
    assert environment.run("dmao", "--help").stdout.startswith("Usage: dmao")
    options = ("--device", "cpu", "--quick", "--only", "numerics", "--seconds", "20", "--out", folder)
    assert ", 0 wrong" in environment.run("dmao", "selftest", *options).stdout
    info = json.loads(environment.run("dmao", "info", "--json").stdout)
    assert str(info["cpu_capability"]) == capability
    assert info["versions"]["python"].startswith(environment.version)
    return info


def test_wheel_of_the_sdist(wheel: Path) -> None:
    assert wheel.name.split("-")[2:4] == ["cp310", "abi3"]
    assert contents.libraries(wheel) == {"_ops.so", "_host.abi3.so"}
    assert contents.in_wheel(wheel) == contents.in_tree()


@pytest.mark.parametrize("triton", [False, True], ids=["without Triton", "with Triton"])
def test_wheel(triton: bool, environment: Environment, wheel: Path, tmp_path: Path) -> None:
    environment.install(wheel)
    environment.with_triton(triton)
    info = use(environment, tmp_path)
    assert info["cpu_capability"] in info["build"]["isas"]
    assert info["backends"]["cpu"] == ""
    assert (info["versions"]["triton"] != "none") is triton
    assert ("Triton is not installed" in info["backends"]["triton"]) is not triton
    assert UNTOLD not in environment.run("python", "-c", "import dmao_kernels").stderr


def test_sdist_without_a_compiler(environment: Environment, sdist: Path, tmp_path: Path) -> None:
    """It installs, and says at every start what it lacks, and why."""
    environment.install(sdist, PATH=without_compilers())
    info = use(environment, tmp_path)
    assert info["cpu_capability"] is None
    assert "installed without native kernels (no C++ compiler at that time" in info["backends"]["cpu"]
    (told,) = environment.run("python", "-c", "import dmao_kernels").stderr.splitlines()
    assert UNTOLD in told


def test_without_the_extra(own_environment: Environment, wheel: Path) -> None:
    """The library needs PyTorch alone, whatever else is there."""
    own_environment.install(wheel)
    hidden = "import sys; sys.modules.update(dict.fromkeys(['numpy', 'click', 'yaml', 'scipy', 'triton']))\n"
    own_environment.run("python", "-c", hidden + OPERATIONS)
