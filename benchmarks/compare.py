"""Two runs side by side: `python -m benchmarks.compare OLD.json NEW.json`.

Compared are ratios to peers that were measured within each run, which is why the runs may be of different days.
Listed are rows whose ratio has grown by more than the tolerance and by more than the spread of both runs explains,
rows whose gate turned red, new rows whose gate is red, and rows that are gone or lost their peer. Exit code: 1 if there
is any of these, else 0.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.report import Report

TOLERANCE = 0.07
Key = tuple[str, str]


def by_key(report: Report) -> dict[Key, Mapping[str, Any]]:
    return {(row["case"], row["peer"]): row for row in report.rows}


def regressions(old: Report, new: Report, tolerance: float = TOLERANCE) -> list[str]:
    """One line per regression. A quick run leaves out rows, so rows that it lacks are no regression."""
    before, after = by_key(old), by_key(new)
    lines = []
    for key, row in before.items():
        name = " / ".join(key)
        if key not in after:
            if new.conditions["run"] == "full":
                lines.append(f"{name}: no longer measured")
            continue
        found = after[key]
        if row["gate"] == "green" and found["gate"] != "green":
            lines.append(f"{name}: the gate is {found['gate']}")
        elif row["ratio"] is not None and found["ratio"] is None:
            lines.append(f"{name}: no longer measured" + (f" ({found['note']})" if found["note"] else ""))
        elif row["ratio"] is not None:
            allowed = 1 + max(tolerance, 2 * _spread(row), 2 * _spread(found))
            if found["ratio"] > allowed * row["ratio"]:
                lines.append(
                    f"{name}: {row['ratio']:.3f} -> {found['ratio']:.3f} (allowed {allowed * row['ratio']:.3f})"
                )
    new_and_red = (key for key, row in after.items() if key not in before and row["gate"] != "green")
    return lines + [f"{' / '.join(key)}: new, the gate is {after[key]['gate']}" for key in new_and_red]


def _spread(row: Mapping[str, Any]) -> float:
    return row["ours_spread"] + (row["peer_spread"] or 0.0)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument(
        "--tolerance", type=float, default=TOLERANCE, help="relative growth of a ratio that is let pass"
    )
    options = parser.parse_args(arguments)
    old, new = Report.read(options.old), Report.read(options.new)
    for name in ("machine", "capability"):
        if old.conditions[name] != new.conditions[name]:
            print(f"note: {name} differs: {old.conditions[name]} and {new.conditions[name]}")
    found = regressions(old, new, options.tolerance)
    common = by_key(old).keys() & by_key(new).keys()
    print("\n".join([*found, f"{len(found)} regressions; both runs have {len(common)} rows"]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
