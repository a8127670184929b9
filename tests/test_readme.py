"""The documents keep their word: every Python block in them runs, every command they name explains itself."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SKIP = "<!-- no-run -->"
FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\s*$")
CODE = re.compile(r"```(?:sh|bash|console)\n(.*?)```|`([^`\n]+)`", flags=re.S)
LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")


def python_of(text: str) -> str:
    """The Python blocks of a document, every line at its place; `SKIP` above a block leaves it out."""
    script, inside, above = [], False, ""
    for line in text.splitlines():
        fence = FENCE.match(line)
        if fence and not inside:
            inside, runs = True, fence["language"] == "python" and above != SKIP
        elif fence:
            inside = False
        script.append(line if inside and runs and not fence else "")
        above = line.strip() or above
    return "\n".join(script) + "\n"


def commands_of(text: str) -> set[str]:
    """Subcommands of `dmao` that shell blocks and inline code name."""
    code = "\n".join(block or inline for block, inline in CODE.findall(text))
    return set(re.findall(r"^\s*dmao ([a-z][a-z-]*)", code, flags=re.M))


def _run(arguments: list[str], cwd: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'python'}"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=100
    )


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_python_blocks_run(document, tmp_path):
    script = python_of(document.read_text(encoding="utf-8"))
    if not script.strip():
        return
    path = tmp_path / f"{document.stem}.py"
    path.write_text(script, encoding="utf-8")
    (tmp_path / "docs").symlink_to(ROOT / "docs")  # as in a clone, where what is written stays away from it
    result = _run([str(path)], tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


def test_readme_has_python_blocks_and_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "GrowAndDrop(" in python_of(text)
    assert {"demo", "train", "evaluate", "inspect", "bench", "prepare"} <= commands_of(text)


@pytest.mark.skipif(importlib.util.find_spec("dmao.cli") is None, reason="dmao.cli is not there")
@pytest.mark.parametrize("command", sorted(set().union(*(commands_of(path.read_text()) for path in DOCUMENTS))))
def test_commands_explain_themselves(command, tmp_path):
    result = _run(["-c", "import sys; from dmao.cli import main; sys.exit(main())", command, "--help"], tmp_path)
    assert result.returncode == 0, result.stderr
    assert "usage" in result.stdout.lower()


@pytest.mark.parametrize("document", [*DOCUMENTS, ROOT / "CONTRIBUTING.md"], ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    targets = LINK.findall(document.read_text(encoding="utf-8"))
    missing = [target for target in targets if not (document.parent / target).exists()]
    assert missing == []


def test_blocks_keep_their_lines():
    skipped = f"{SKIP}\n\n```python\nbroken(\n```\n```sh\nls\n```\n"
    text = f"a\n```python\nx = 1\n```\n{skipped}```python\ny = x\n```\n"
    script = python_of(text).splitlines()
    assert script[2] == "x = 1"
    assert script[13] == "y = x"
    assert "".join(script) == "x = 1y = x"
