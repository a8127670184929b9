"""One native build serves every Python: the operations know none, the host module only what all from 3.10 on have."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import dmao_kernels
from tests.packaging.interpreters import VERSIONS, interpreters

PACKAGE = Path(dmao_kernels.__file__).parent
OPS, HOST = PACKAGE / "_ops.so", PACKAGE / "_host.abi3.so"
# All of them are in the table of the stable ABI (https://docs.python.org/3.10/c-api/stable.html), since 3.2.
LIMITED = {
    "PyErr_SetString",
    "PyExc_RuntimeError",
    "PyModule_Create2",
    "PyUnicode_FromString",
    "PyUnicode_Split",
    "Py_BuildValue",
    "_Py_Dealloc",
}
# What `import dmao_kernels` does with the module, without PyTorch.
LOAD = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("_host", sys.argv[1])
host = importlib.util.module_from_spec(spec)
spec.loader.exec_module(host)
print(json.dumps([host.build_info(), host.cpu_capability()]))
"""

pytestmark = pytest.mark.skipif(not HOST.exists(), reason="no native library")


def python_symbols(library: Path) -> set[str]:
    listed = subprocess.run(["nm", "-D", "--undefined-only", str(library)], capture_output=True, text=True, check=True)
    return set(re.findall(r" U (_?Py\w+)", listed.stdout))


@pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm")
def test_symbols() -> None:
    assert python_symbols(OPS) == set()
    assert "PyModule_Create2" in python_symbols(HOST)
    assert python_symbols(HOST) <= LIMITED


@pytest.mark.parametrize("version", VERSIONS)
def test_host_module_loads(version: str) -> None:
    if version not in interpreters():
        pytest.skip(f"there is no Python {version} here")
    command = [str(interpreters()[version]), "-c", LOAD, str(HOST)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    info, capability = json.loads(done.stdout)
    assert info["version"] == dmao_kernels.__version__
    assert capability in info["isas"]
