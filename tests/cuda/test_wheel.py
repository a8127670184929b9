"""The wheel: one for every Python, with all kernels; it works where it is installed, without a GPU or a compiler."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.cuda.wheel import wheel
from tests.emu.build import ROOT
from tests.packaging import contents

# Operators of dmao_cuda on fake tensors of a GPU, forward and backward, forced to the backend.
ON_FAKE_GPU = """
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
import dmao_kernels
with FakeTensorMode(), torch.device("cuda"), torch.no_grad(), dmao_kernels.use_backend("cuda"):
    x, w1, w2 = (torch.empty(shape, dtype=torch.bfloat16) for shape in ((70, 64), (128, 64), (64, 128)))
    y = dmao_kernels.component_ffn(x, w1, None, w2, None, components=4)
    assert (y.device.type, y.shape, y.dtype) == ("cuda", x.shape, x.dtype), y
    grads = torch.ops.dmao_cuda.masked_linear_backward(
        torch.empty(70, 128, dtype=torch.bfloat16), x, w1, None, None, None, None, 0,
        torch.empty(0, 128, dtype=torch.bfloat16), "none", True, True, True)
    assert [grad.shape for grad in grads] == [x.shape, w1.shape, (128,)]
print("fake tensors are right")
"""


def run(python: Path | str, *arguments: str, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DMAO_", "PYTHON"))}
    done = subprocess.run(
        [str(python), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**environment, **variables},
        cwd="/",  # not where the sources are
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_one_wheel_for_every_python() -> None:
    assert wheel().name.split("-")[2:4] == ["cp310", "abi3"]
    assert contents.libraries(wheel()) == {"_ops.so", "_cuda.so", "_host.abi3.so"}
    assert contents.in_wheel(wheel()) == contents.in_tree()


def test_the_library_asks_for_nothing_of_cuda(installed: Path) -> None:
    """Its runtime is inside: it loads beside a PyTorch for the CPU, and beside any version of CUDA."""
    listed = subprocess.run(
        ["readelf", "-d", str(installed / "dmao_kernels/_cuda.so")], capture_output=True, text=True, check=True
    ).stdout
    needed = {line.split("[")[1].rstrip("]") for line in listed.splitlines() if "(NEEDED)" in line}
    assert {"libtorch_cpu.so", "libc10.so"} <= needed
    assert not any(name.startswith(("libcu", "libtorch_cuda", "libc10_cuda")) for name in needed)


def test_it_loads_and_knows_itself(installed: Path) -> None:
    code = "import json, dmao_kernels.info as i; print(json.dumps(i.describe()))"
    found = json.loads(run(sys.executable, "-c", code, PYTHONPATH=str(installed)))
    assert found["backends"]["cuda"] == "there is no GPU" or found["gpus"]
    assert found["build"]["cuda_architectures"].split() == ["80", "86", "89", "90", "100", "120"]


def test_fake_tensors(installed: Path) -> None:
    assert "fake tensors are right" in run(sys.executable, "-c", ON_FAKE_GPU, PYTHONPATH=str(installed))


@pytest.mark.timeout(1200)
def test_a_new_environment(tmp_path: Path) -> None:
    """pip installs wheel and PyTorch for the CPU into an empty environment, where operations and `dmao info` work."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv/bin/python"
    constraints = ROOT / "requirements/constraints.txt"
    run(python, "-m", "pip", "install", "-q", "-c", str(constraints), str(wheel()), "click", "numpy", "pyyaml")
    code = (
        "import torch, dmao_kernels as d; x, w = torch.randn(5, 32), torch.randn(64, 32); "
        "torch.testing.assert_close(d.masked_linear(x, w), x @ w.T); print(d.__file__, d.cpu_capability())"
    )
    file, capability = run(python, "-c", code).split()
    assert str(tmp_path) in file
    assert capability != "None"
    assert "nvcc" in run(python.with_name("dmao"), "info")
