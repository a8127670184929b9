"""The site has every page and every public name; what documents say to type and to look at is there."""

import ast
import importlib
import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
import yaml
from dmao.cli import main
from dmao.cli_options import ConfigFile
from dmao.config import TrainConfig
from dmao.parsing import ConfigError

import dmao_kernels
from dmao_kernels import nn, structure

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
PAGES = [*DOCUMENTS, ROOT / "CHANGELOG.md", *sorted((DOCS / "api").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.S | re.M)
INLINE = re.compile(r"`([^`\n]+)`")
LANGUAGES = {"cpp", "python", "sh", "yaml"}
FOLDERS = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
WRITTEN = {"build", "data", "dist", "runs", "selftest", "site"}  # by commands
INVENTED = re.compile(r"(?<![a-z])foo(?![a-z])|/[A-Z]+$")  # an operation to be added; what stands for a name
PATH = re.compile(rf"(?:{'|'.join(sorted(FOLDERS - WRITTEN))})/[\w./-]*\w")


def blocks(text: str, language: str) -> list[str]:
    return [body for found, body in FENCE.findall(text) if found == language]


def inline(text: str) -> list[str]:
    return INLINE.findall(FENCE.sub("", text))


def shell_lines(text: str) -> list[list[str]]:
    """The words of every command in shell blocks, without comments."""
    lines = "".join(blocks(text, "sh")).replace("\\\n", " ").splitlines()
    return [words for line in lines if not line.startswith("#") and (words := shlex.split(line, comments=True))]


def arguments_of(words: list[str]) -> list[str] | None:
    """What `dmao` gets in a command line; None where it is not called."""
    for caller in (["dmao"], ["-m", "dmao.cli"]):
        for i in range(len(words)):
            if words[i : i + len(caller)] == caller and (i == 0 or caller != ["dmao"]):
                return words[i + len(caller) :]
    return None


class Stub(click.Command):
    """A command with the parameters of another one; files need not exist, and nothing is done."""

    def __init__(self, command: click.Command):
        made = [self._stubbed(parameter) for parameter in command.params]
        super().__init__(command.name, params=made)

    @staticmethod
    def _stubbed(parameter: click.Parameter) -> click.Parameter:
        kind = click.STRING if isinstance(parameter.type, (click.Path, ConfigFile)) else parameter.type
        if isinstance(parameter, click.Option):
            return click.Option(
                [*parameter.opts, parameter.name],
                type=None if parameter.is_flag else kind,
                is_flag=parameter.is_flag or None,  # with False a value may not begin with a minus sign
                multiple=parameter.multiple,
                required=parameter.required,
            )
        return click.Argument([parameter.name], type=kind, nargs=parameter.nargs, required=parameter.required)


def parse(words: list[str]) -> None:
    """Raises click.UsageError where the command line does not fit the command."""
    command: click.Command = main
    context = click.Context(main)
    while isinstance(command, click.Group):
        if not words:
            return
        found = command.get_command(context, words[0])
        if found is None:
            raise click.UsageError(f"there is no command {words[0]}")
        command, words = found, words[1:]
    Stub(command).make_context(command.name, list(words))


def options_of(words: list[str]) -> set[str]:
    """Of the command that begins a command line and of its groups."""
    command: click.Command = main
    found = {option for parameter in main.params for option in parameter.opts} | {"--help", "--version"}
    for word in words:
        if not isinstance(command, click.Group) or (inner := command.commands.get(word)) is None:
            break
        command = inner
    return found | {option for parameter in command.params for option in parameter.opts}


def flat_lists(text: str) -> list[str]:
    """Items that the site, unlike GitHub, shows as no list: nested by less than 4 blanks, right below a paragraph."""
    found, before = [], ""
    for line in FENCE.sub("\n", text).splitlines():
        item = re.match(r"( *)(?:[-*+]|\d+\.) ", line)
        if item and (0 < len(item[1]) < 4 or (not item[1] and before == "paragraph")):
            found.append(line)
        if item or not line.strip():
            before = "item" if item else ""
        elif before != "item":
            before = "paragraph"
    return found


def nav_pages(entry: object) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    values = entry.values() if isinstance(entry, dict) else entry
    return [page for value in values for page in nav_pages(value)]


@pytest.fixture(scope="module")
def site() -> dict:
    return yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def test_site_has_every_page(site):
    pages = nav_pages(site["nav"])
    assert len(pages) == len(set(pages))
    here = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    outside = {"README.md", "CONTRIBUTING.md", "CHANGELOG.md"}  # docs/extensions/pages.py brings them
    assert set(pages) == here | outside
    assert all((ROOT / name).exists() for name in outside)


def test_site_takes_nothing_from_elsewhere(site):
    assert site["theme"]["font"] is False
    assert site["strict"] is True
    assert "mermaid" not in (ROOT / "mkdocs.yml").read_text()
    assert [page.name for page in DOCUMENTS if blocks(page.read_text(), "mermaid")] == []  # fetched by the theme


@pytest.mark.parametrize("module", [dmao_kernels, nn, structure], ids=lambda module: module.__name__)
def test_api_pages_have_all_public_names(module):
    text = "\n".join(path.read_text(encoding="utf-8") for path in (DOCS / "api").glob("*.md"))
    shown = re.findall(r"^::: ([\w.]+)$", text, flags=re.M)
    assert len(shown) == len(set(shown))
    assert set(module.__all__) <= {name.rpartition(".")[2] for name in shown if name.startswith(module.__name__)}


def test_api_pages_name_what_is_there():
    for path in (DOCS / "api").glob("*.md"):
        for name in re.findall(
            r"^::: (dmao_kernels[\w.]+|dmao\.(?!integrations)[\w.]+)$", path.read_text(), flags=re.M
        ):
            module, _, leaf = name.rpartition(".")
            assert hasattr(importlib.import_module(module), leaf), name


def test_operations_are_described():
    text = (DOCS / "OPERATIONS.md").read_text(encoding="utf-8")
    headings = set(re.findall(r"\w+", " ".join(re.findall(r"^### (.*)$", text, flags=re.M))))
    assert set(dmao_kernels.ops.__all__) == headings


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_what_documents_say_to_type(document):
    text = document.read_text(encoding="utf-8")
    assert {language for language, _ in FENCE.findall(text)} <= LANGUAGES
    for words in shell_lines(text):
        if (arguments := arguments_of(words)) is not None:
            try:
                parse(arguments)
            except click.UsageError as error:
                pytest.fail(f"{shlex.join(words)}: {error.format_message()}")
    for code in inline(text):
        if code.startswith("dmao "):
            words = code.split()[1:]
            used = {word for word in words if word.startswith("--")}
            assert used <= options_of(words), code


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_what_documents_name_is_there(document):
    text = document.read_text(encoding="utf-8")
    code = [*inline(text), *(" ".join(words) for words in shell_lines(text))]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    made = {name for line in code for name in re.findall(r"^make (?:\w+=\S+ )*([a-z-]+)", line)}
    modules = {name for line in code for name in re.findall(r"python -m ([\w.]+)", line)}
    named = {path for line in code for path in re.findall(rf"(?<![\w./-]){PATH.pattern}", line)}
    assert made <= targets
    assert [name for name in modules if importlib.util.find_spec(name) is None] == []
    assert [path for path in named if not INVENTED.search(path) and not (ROOT / path).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_yaml_is_a_configuration(document):
    for block in blocks(document.read_text(encoding="utf-8"), "yaml"):
        TrainConfig.from_dict(yaml.safe_load(block))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_python_can_be_read(document):
    """Also what is not run: its syntax, and what it imports of ours."""
    for block in blocks(document.read_text(encoding="utf-8"), "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in ("dmao", "dmao_kernels"):
                module = importlib.import_module(str(node.module))
                assert [name.name for name in node.names if not hasattr(module, name.name)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_lists_are_lists_on_the_site(page):
    assert flat_lists(page.read_text(encoding="utf-8")) == []


def test_docstrings_become_markdown(monkeypatch):
    monkeypatch.setitem(sys.modules, "griffe", SimpleNamespace(Extension=object, Object=object))
    module = importlib.util.module_from_spec(
        spec := importlib.util.spec_from_file_location("docstrings", DOCS / "extensions/docstrings.py")
    )
    spec.loader.exec_module(module)
    text = "Sum, see docs/METHOD.md.\n\n    a + b\n\nArgs:\n    a, b: terms,\n        in order.\n    All known.\n"
    made = (
        "Sum, see [METHOD.md](../METHOD.md).\n\n    a + b\n\n\n**Arguments**\n\n\n\n"
        "- `a, b`: terms,\n    in order.\n\nAll known.\n"
    )
    assert module.to_markdown(text, set()) == made
    assert module.to_markdown("Adds.\n\na: this.\nc: that.", {"a"}) == "Adds.\n\n\n- `a`: this.\n\nc: that.\n"


def test_wrong_documents_would_be_noticed():
    for line in ("train config.yaml", "train c.yaml --run-dir r --nothing", "decode r --search best", "nothing"):
        with pytest.raises(click.UsageError):
            parse(line.split())
    parse(["train", "c.yaml", "--run-dir", "r", "--set", "seed=1", "--set", "steps=2", "--baseline"])
    assert arguments_of(["torchrun", "--nnodes", "2", "-m", "dmao.cli", "train", "c.yaml"]) == ["train", "c.yaml"]
    assert shell_lines("```sh\ndmao tune r \\\n    --split dev  # x\n```\n") == [
        ["dmao", "tune", "r", "--split", "dev"]
    ]
    assert "--split" in options_of(["tune"])
    assert "--baseline" not in options_of(["tune"])
    assert flat_lists("- a\n  - b\n    c\n\n1. d\n   1. e\n") == ["  - b", "   1. e"]
    assert flat_lists("text:\n- a\n") == ["- a"]
    assert flat_lists("text:\n\n- a\n  more\n- b\n    - c\n\n```sh\n  - d\n```\n") == []
    with pytest.raises(ConfigError):
        TrainConfig.from_dict(json.loads('{"grow_and_drop": {"nothing": 1}}'))
