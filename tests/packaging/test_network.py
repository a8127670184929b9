"""Nothing is fetched when the packages are imported or used; two commands of `dmao prepare` alone fetch, and say so."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from dmao.cli import main

from tests.packaging import contents, offline
from tests.test_layering import imports

RunPython = Callable[..., "subprocess.CompletedProcess[str]"]
# What a library would need to speak to another machine.
SPEAKERS = {"aiohttp", "ftplib", "http", "httpx", "huggingface_hub", "requests", "smtplib", "socket", "urllib"}
LOADERS = re.compile(r"torch\.hub\.|load_state_dict_from_url|from_pretrained|download_and_|urlopen|urlretrieve")
OFFLINE = "import tests.packaging.offline; tests.packaging.offline.begin()\n"
USE = """
import importlib, pkgutil, sys
from pathlib import Path
import dmao, dmao_kernels

for package in (dmao, dmao_kernels):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        *_, parent, name = module.name.split(".")
        # Frameworks, tools for Triton's interpreter and compiler; libraries that are no modules.
        if parent not in ("integrations", "testing") and name not in ("__main__", "_ops", "_cuda"):
            importlib.import_module(module.name)

from dmao.cli import main
for arguments in (["--help"], ["info"]):
    main(arguments, standalone_mode=False)

from dmao.trainer import train
from tests.trainer.tiny import TinySource, tiny_config
train(tiny_config("eval_splits=[test]"), Path(sys.argv[1]), TinySource())
print("all done")
"""


def test_everything_is_used_offline(run_python: RunPython, tmp_path: Path) -> None:
    run = run_python("-c", OFFLINE + USE, str(tmp_path / "run"))
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.splitlines()[-1] == "all done"
    assert (tmp_path / "run/metrics.jsonl").exists()


@pytest.mark.parametrize(
    "code",
    [
        "import urllib.request; urllib.request.urlopen('https://example.org')",
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "import subprocess; subprocess.run(['curl', 'https://example.org'])",
        "import socket\ntry: socket.getaddrinfo('example.org', 443)\nexcept BaseException: pass",
    ],
)
def test_an_attempt_would_be_noticed(code: str, run_python: RunPython) -> None:
    assert run_python("-S", "-c", OFFLINE + code).returncode == offline.REFUSED


def test_sources_have_no_means_to_fetch() -> None:
    for name, path in contents.packaged().items():
        if path.suffix == ".py":
            text = path.read_text(encoding="utf-8")
            found = {module.split(".")[0] for module in imports(text, name)} & SPEAKERS
            assert not found, f"{name} imports {sorted(found)}"
            assert not LOADERS.search(text), name


def test_what_fetches_says_so() -> None:
    fetching = [name for name, path in contents.packaged().items() if '"apt-get", "download"' in path.read_text()]
    assert fetching == ["dmao/data/recorded.py"]
    for name in ("recorded-cs", "recorded-nl"):
        assert re.search(r"Fetch .* with apt-get", CliRunner().invoke(main, ["prepare", name, "--help"]).output)
