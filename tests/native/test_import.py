"""What import does with, without and with the wrong native library; how backends are chosen."""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import dmao_kernels
from dmao_kernels import _library, dispatch

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]
PACKAGE = Path(dmao_kernels.__file__).parent
native = pytest.mark.skipif(dmao_kernels.cpu_capability() is None, reason="no native library")

SCORE = """
import torch, dmao_kernels as dk
ema = torch.zeros(2)
weights, grads, segments = [torch.ones(2, 3)], [torch.full((2, 3), 2.0)], torch.tensor([[0, 1, 2, 3, 0]])
arguments = (ema, weights, grads, segments, torch.full((2,), 1 / 3))
dk.importance_(*arguments, beta=0.5)
torch.compile(dk.importance_, fullgraph=True, backend="eager")(*arguments, beta=0.5)
print(dk.cpu_capability(), ema.tolist(), dk.can_run("importance_", ema))
"""


@native
def test_build_info() -> None:
    from dmao_kernels import _host

    info = _host.build_info()
    assert info["version"] == dmao_kernels.__version__
    assert info["compiler"]
    assert "-O3" in info["flags"]
    assert "fast-math" not in info["flags"]
    assert info["isas"][0] == "portable"
    assert info["torch_target"] == "0x020d000000000000"
    assert _host.cpu_capability() in info["isas"]


@native
def test_host_module_does_not_import_torch(run_python: RunPython) -> None:
    code = (
        "import sys, importlib.util as u; "
        f"spec = u.spec_from_file_location('_host', {next(PACKAGE.glob('_host.*.so')).as_posix()!r}); "
        "module = u.module_from_spec(spec); spec.loader.exec_module(module); "
        "print(module.cpu_capability(), 'torch' in sys.modules)"
    )
    run = run_python("-c", code, DMAO_CPU_CAPABILITY="portable")
    assert run.stdout.split() == ["portable", "False"], run.stderr


@native
@pytest.mark.parametrize("name", ["fast", "AVX2"])
def test_unknown_capability(name: str, run_python: RunPython) -> None:
    run = run_python("-c", "import dmao_kernels", DMAO_CPU_CAPABILITY=name)
    assert run.returncode != 0
    message = run.stderr.strip().splitlines()[-1]
    assert message.startswith("ImportError: DMAO_CPU_CAPABILITY: must be one of portable"), message
    assert message.endswith(f"got '{name}'")


@native
def test_every_capability_is_taken_or_refused(run_python: RunPython) -> None:
    from dmao_kernels import _host

    isas = _host.build_info()["isas"]
    best = run_python("-c", "import dmao_kernels; print(dmao_kernels.cpu_capability())").stdout.strip()
    for place, isa in enumerate(isas):
        run = run_python("-c", "import dmao_kernels; print(dmao_kernels.cpu_capability())", DMAO_CPU_CAPABILITY=isa)
        if place <= isas.index(best):
            assert run.stdout.strip() == isa, run.stderr
        else:
            message = f"this CPU does not support {isa}; the best it supports is {best}"
            assert run.stderr.strip().splitlines()[-1] == f"ImportError: DMAO_CPU_CAPABILITY: {message}"


def test_without_native_kernels_by_choice(run_python: RunPython) -> None:
    run = run_python("-c", SCORE, DMAO_NO_NATIVE="1")
    assert run.stdout.strip() == "None [1.5, 1.5] (False, 'DMAO_NO_NATIVE=1 is set')", run.stderr
    assert run.stderr.splitlines() == [
        "dmao_kernels: no native kernels, the reference backend is used: DMAO_NO_NATIVE=1 is set"
    ]


def test_without_native_library(tmp_path: Path, run_python: RunPython) -> None:
    shutil.copytree(PACKAGE, tmp_path / "dmao_kernels", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    script = tmp_path / "score.py"  # a script finds the packages beside it first
    script.write_text(SCORE)
    run = run_python(str(script))
    assert run.stdout.startswith("None [1.5, 1.5]"), run.stderr
    assert len(run.stderr.splitlines()) == 1
    assert "installed without native kernels" in run.stderr


@native
def test_library_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_library, "__version__", "0.0.1")
    with pytest.raises(ImportError, match=r"native library has version .*, the package 0\.0\.1; build it again"):
        _library.load_native()


@native
def test_library_that_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "_ops.so").write_bytes(b"not a library")
    monkeypatch.setattr(_library, "_DIRECTORY", tmp_path)
    with pytest.raises(ImportError, match=r"does not fit torch 2\..*build it again"):
        _library.load_native()


def test_torch_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.12.1+cpu")
    with pytest.raises(ImportError, match=r"native kernels need torch >= 2\.13, found 2\.12\.1"):
        _library.load_native()


def test_unknown_backend(run_python: RunPython) -> None:
    with pytest.raises(
        ValueError, match="use_backend: must be one of cpu, triton, cuda, cuda-emulated, reference, got 'gpu'"
    ):
        dmao_kernels.use_backend("gpu").__enter__()
    run = run_python("-c", "import dmao_kernels", DMAO_BACKEND="gpu", DMAO_NO_NATIVE="1")
    assert run.returncode != 0
    assert "DMAO_BACKEND: must be one of cpu, triton, cuda, cuda-emulated, reference, got 'gpu'" in run.stderr


def test_forced_backend_that_cannot_run(run_python: RunPython) -> None:
    run = run_python("-c", SCORE, DMAO_BACKEND="cpu", DMAO_NO_NATIVE="1")
    assert "RuntimeError: importance_: backend cpu was asked for, but DMAO_NO_NATIVE=1 is set" in run.stderr


@native
def test_can_run() -> None:
    x = torch.zeros(2)
    assert dmao_kernels.can_run("importance_", x, None, torch.zeros(1, dtype=torch.int64)) == (True, "")
    assert dmao_kernels.can_run("importance_", x.double()) == (
        False,
        "the native kernel does not support torch.float64",
    )
    assert dmao_kernels.can_run("importance_", x.to("meta")) == (
        False,
        "native kernels run on cpu, got a tensor on meta",
    )
    assert dmao_kernels.can_run("nothing", x) == (False, "nothing has no native kernel")
    assert dmao_kernels.can_run("nothing", x, backend="reference") == (True, "")
    with pytest.raises(ValueError, match=r"can_run: must be one of cpu, .*, reference, got 'gpu'"):
        dmao_kernels.can_run("importance_", x, backend="gpu")


def test_tf32_is_seen_whichever_switch_allows_it() -> None:
    switch = torch.backends.cuda.matmul
    before = switch.fp32_precision
    try:
        for allowed in (True, False):
            switch.allow_tf32 = allowed
            assert dispatch.allows_tf32() == allowed
        for precision in ("tf32", "ieee"):
            switch.fp32_precision = precision
            assert dispatch.allows_tf32() == (precision == "tf32")
    finally:
        switch.fp32_precision = before


def test_use_backend_nests_and_restores() -> None:
    before = dispatch.choose_backend("importance_")
    with dmao_kernels.use_backend("reference"):
        assert dispatch.choose_backend("importance_") == "reference"
        with pytest.raises(KeyError), dmao_kernels.use_backend("reference"):
            raise KeyError
        assert dispatch.choose_backend("importance_") == "reference"
    assert dispatch.choose_backend("importance_") == before


def test_choice_is_logged_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_LOGGED", set())
    with caplog.at_level(logging.INFO, "dmao_kernels"), dmao_kernels.use_backend("reference"):
        dispatch.choose_backend("importance_")
        dispatch.choose_backend("importance_")
    assert [record.getMessage() for record in caplog.records] == ["importance_: backend reference (forced)"]
