"""docs/RESULTS.md says what the data beside it say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from dmao.experiments.run import paired_interval, results_table
from dmao.experiments.tables import TABLES

DOCS = Path(__file__).resolve().parents[2] / "docs"
RESULTS = sorted((DOCS / "results").glob("*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_the_page_has_the_table(path: Path) -> None:
    results, page = json.loads(path.read_text()), (DOCS / "RESULTS.md").read_text()
    assert results_table(results) in page
    assert f"results/{path.stem}.svg" in page
    assert (DOCS / "results" / f"{path.stem}.svg").exists()


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_all_arms_have_the_same_seeds(path: Path) -> None:
    results = json.loads(path.read_text())
    arms = results["arms"]
    assert list(arms) == list(TABLES["main"])
    assert all(arm["seeds"] == list(range(len(arm["ce"]))) and len(arm["wer"]) >= 8 for arm in arms.values())
    for name, found in results["against"].items():
        changes = np.subtract(arms[name]["ce"], arms[results["base"]]["ce"])
        assert found["ce"] == pytest.approx(paired_interval(changes))
        assert found["wer"]["difference"] == pytest.approx(
            np.mean(arms[name]["wer"]) - np.mean(arms["baseline"]["wer"])
        )
