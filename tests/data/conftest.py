"""One small embedded corpus for all tests of the data side: about four minutes of speech, spoken by two processes."""

import pytest

pytest.importorskip("espeakng_loader")

from dmao.data.embedded import prepare_embedded

ARGUMENTS = {
    "hours": 0.05,
    "words": 40,
    "seed": 7,
    "dev_minutes": 0.1,
    "test_minutes": 0.2,
    "progress": False,
}


@pytest.fixture(scope="session")
def arguments():
    return dict(ARGUMENTS)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Made in a folder with a blank and letters outside ASCII."""
    return prepare_embedded(tmp_path_factory.mktemp("corpus") / "řeč a ticho", jobs=2, **ARGUMENTS)


@pytest.fixture(scope="session")
def small_arguments():
    return ARGUMENTS | {"hours": 0.005, "test_minutes": 0.1}


@pytest.fixture(scope="session")
def small_corpus(tmp_path_factory, small_arguments):
    return prepare_embedded(tmp_path_factory.mktemp("small"), **small_arguments)
