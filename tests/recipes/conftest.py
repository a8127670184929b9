"""Each corpus once, as it would lie on disk, and a copy to break for whoever wants one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("espeakng_loader")

from dmao.data.corpus import Corpus
from dmao.recipes.librispeech.corpus import prepare_librispeech
from dmao.recipes.switchboard.corpus import prepare_switchboard
from dmao.recipes.tedlium2.corpus import prepare_tedlium2

from tests.recipes import corpora

NAMES = ("librispeech", "tedlium2", "switchboard")


def make(name: str, folder: Path) -> Path:
    """The corpus in its own format, in `folder`."""
    if name == "librispeech":
        corpora.librispeech(folder, {"train-clean-5": 8, "dev-clean-2": 4})
        corpora.lexicon(folder / "librispeech-lexicon.txt")
    elif name == "tedlium2":
        corpora.tedlium2(folder)
    else:
        corpora.switchboard(folder / "swb1")
        corpora.hub5(folder / "hub5e_00")
    return folder


def prepare(name: str, source: Path, root: Path, **options: Any) -> Corpus:
    """Prepares what `make` made."""
    options = {"jobs": 1, "progress": False, **options}
    if name == "librispeech":
        dictionary = source / "librispeech-lexicon.txt"
        return prepare_librispeech(source, root, hours="mini", dictionary=dictionary, **options)
    if name == "tedlium2":
        return prepare_tedlium2(source, root, **options)
    evaluations = {"hub5-00": [source / "hub5e_00"]}
    return prepare_switchboard([source / "swb1"], root, evaluations=evaluations, dev_utterances=4, **options)


@pytest.fixture(scope="session")
def sources(tmp_path_factory) -> Callable[[str], Path]:
    """sources(name): the corpus on disk; not to be changed."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = make(name, tmp_path_factory.mktemp(name) / "my corpora")
        return made[name]

    return get


@pytest.fixture(scope="session")
def prepared(sources, tmp_path_factory) -> Callable[[str], Corpus]:
    """prepared(name): the prepared corpus; not to be changed."""
    made: dict[str, Corpus] = {}

    def get(name: str) -> Corpus:
        if name not in made:
            made[name] = prepare(name, sources(name), tmp_path_factory.mktemp(f"prepared-{name}") / "root")
        return made[name]

    return get


@pytest.fixture
def breakable(sources, tmp_path) -> Callable[[str], tuple[Path, Callable[..., Corpus]]]:
    """breakable(name): a copy of the corpus, and what prepares it in tmp_path/root."""

    def get(name: str) -> tuple[Path, Callable[..., Corpus]]:
        source = Path(shutil.copytree(sources(name), tmp_path / "source"))
        return source, partial(prepare, name, source, tmp_path / "root")

    return get
