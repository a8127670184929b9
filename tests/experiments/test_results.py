"""docs/RESULTS.md says what the data beside it say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from dmao.experiments.run import Plan, paired_interval, results_table, write_results
from dmao.experiments.tables import TABLES

DOCS = Path(__file__).resolve().parents[2] / "docs"
RESULTS = sorted((DOCS / "results").glob("*.json"))
OUTCOMES = sorted(path for path in (DOCS / "results").iterdir() if path.is_dir())


@pytest.mark.parametrize("folder", OUTCOMES, ids=lambda path: path.name)
def test_the_page_has_what_the_outcomes_give(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "runs")
    results = write_results(Plan(tmp_path / "runs", tuple(TABLES["main"])))
    assert results_table(results) in (DOCS / "RESULTS.md").read_text()


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
