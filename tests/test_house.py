"""House rules that a machine can see: lengths, whitespace, unfinished code, paths of one machine, format."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LONGEST = {".py": 400, ".cpp": 600, ".h": 600}
LONGEST_TEST = 500  # a test file is read case by case
TEXT = {".py", ".cpp", ".h", ".md", ".toml", ".txt", ".yaml", ".yml", ".cfg", ".in", ".css", ""}
MACHINE_PATH = re.compile(r"(?<![\w.:/$}>])/(?:work|root|home|Users|opt|mnt)/\w")
UNFINISHED = re.compile(r"\b(?:TODO|FIXME|XXX)\b(?!\([^)]+\):|: \S+ \S+)")


def _files() -> list[Path]:
    """Files of the repository: tracked, or new and not ignored; without git, all in the usual places."""
    command = ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, capture_output=True, check=True, text=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        folders = ("csrc", "dmao_kernels", "python", "tests", "benchmarks", "docs")
        listed = [str(path.relative_to(ROOT)) for name in folders for path in (ROOT / name).rglob("*")]
        listed = [name for name in listed if "__pycache__" not in name and ".egg-info" not in name]
    return sorted({ROOT / name for name in listed if name and (ROOT / name).is_file()})


FILES = _files()
TEXTS = {path: path.read_text(encoding="utf-8") for path in FILES if path.suffix in TEXT}


def _offences(pattern: re.Pattern, texts: dict[Path, str]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path, text in texts.items()
        for number, line in enumerate(text.splitlines(), start=1)
        if pattern.search(line)
    ]


def test_files_are_found():
    assert Path(__file__).resolve() in TEXTS


def test_files_stay_short():
    lengths = {path: len(text.splitlines()) for path, text in TEXTS.items() if path.suffix in LONGEST}
    tests = ROOT / "tests"
    long = [
        f"{path.relative_to(ROOT)}: {n}"
        for path, n in lengths.items()
        if n > (LONGEST_TEST if tests in path.parents else LONGEST[path.suffix])
    ]
    assert long == []


def test_text_is_clean():
    trailing = _offences(re.compile(r"[ \t]+$"), TEXTS)
    assert trailing == []
    assert [str(path) for path, text in TEXTS.items() if text and not text.endswith("\n")] == []
    assert [str(path) for path, text in TEXTS.items() if "\r" in text] == []


def test_no_paths_of_one_machine():
    others = {path: text for path, text in TEXTS.items() if path != Path(__file__).resolve()}
    assert _offences(MACHINE_PATH, others) == []


def test_nothing_is_left_unfinished():
    code = {path: text for path, text in TEXTS.items() if path.suffix in LONGEST and path != Path(__file__).resolve()}
    assert _offences(UNFINISHED, code) == []
    assert _offences(re.compile(r"raise NotImplementedError(\(\))?\s*$"), code) == []


def test_no_large_files():
    assert [str(path) for path in FILES if path.stat().st_size > 500_000] == []


def test_the_patterns_catch_what_they_should():
    assert MACHINE_PATH.search('open("/home/me/data")')
    assert not MACHINE_PATH.search("https://example.org/home/page and ../root/x")
    assert UNFINISHED.search("# TODO")
    assert not UNFINISHED.search("# TODO: until torch 2.14 exports it")


def _tool(name: str) -> Path:
    tool = Path(sys.executable).with_name(name)
    if not tool.exists():
        pytest.skip(f"{name} is not installed (extra [dev])")
    return tool


def _run(*command: object) -> None:
    result = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("arguments", [("check", "--no-cache"), ("format", "--no-cache", "--check")])
def test_python_is_linted_and_formatted(arguments):
    _run(_tool("ruff"), *arguments, *(path for path in FILES if path.suffix == ".py"))


def test_cpp_is_formatted():
    sources = [path for path in FILES if path.suffix in {".cpp", ".h", ".cu", ".cuh"}]
    if sources:
        _run(_tool("clang-format"), "--dry-run", "-Werror", *sources)
