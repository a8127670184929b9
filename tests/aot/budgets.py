"""What a compiled kernel may cost: budgets.json, one line per kernel, dtype and GPU, reviewed with the code.

registers, shared, per_matrix (instructions per matrix instruction in the hottest loop) are upper bounds, blocks (that
run at a time on one processor) is a lower one; matrix instructions are of these kinds; asynchronous says whether copies
must be. Nothing may spill or have a stack, unless the entry says how much and why. narrow, where it is given, bounds
the accesses to global memory of less than 16 bytes a thread.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from dmao_kernels.testing.sass import Code

FILE = Path(__file__).with_suffix(".json")
PEER = "peer: "
Budget = dict[str, Any]


def load(file: Path = FILE) -> dict[str, Budget]:
    """Budgets by key."""
    budgets: dict[str, Budget] = json.loads(file.read_text()) if file.exists() else {}
    return budgets


def key(arch: int | str, dtype: str, problem: str, kernel: str) -> str:
    return f"{problem} {dtype} {arch} {kernel}"


def violations(code: Code, budget: Budget) -> list[str]:
    """What exceeds the budget, in words."""
    most = {name: budget[name] for name in ("registers", "shared")}
    most |= {name: budget.get(name, 0) for name in ("stack", "local")}
    if "narrow" in budget:
        most["narrow"] = budget["narrow"]
    found = [f"{name} {getattr(code, name)} > {bound}" for name, bound in most.items() if getattr(code, name) > bound]
    if any(most[name] for name in ("stack", "local")) and not budget.get("why"):
        found.append('a stack needs a reason, "why"')
    if code.blocks is not None and code.blocks < budget["blocks"]:
        found.append(f"blocks {code.blocks} < {budget['blocks']}, for {code.limit}")
    if sorted(code.matrix) != budget["matrix"]:
        found.append(f"matrix instructions {sorted(code.matrix)}, not {budget['matrix']}")
    if budget["asynchronous"] and not code.asynchronous:
        found.append("no asynchronous copies")
    per_matrix = code.loop.per_matrix
    if per_matrix is not None and per_matrix > budget["per_matrix"]:
        found.append(f"{per_matrix:.1f} instructions per matrix instruction > {budget['per_matrix']}")
    return found


def check(codes: dict[str, Code], budgets: dict[str, Budget], name: str, command: str) -> None:
    """Every kernel of a problem, and no other one, is within its budget; name: `key` without the kernel."""
    allowed = {key.removeprefix(name): budget for key, budget in budgets.items() if key.startswith(name)}
    assert set(codes) == set(allowed), f"review budgets.json ({command} ARGS=--write-budgets)"
    found = {kernel: violations(code, allowed[kernel]) for kernel, code in codes.items()}
    assert not any(found.values()), found


def write(rows: list[dict[str, Any]], file: Path = FILE) -> None:
    """Replaces the budgets of the problems in these rows of the table by what they are, a little rounded up."""
    old = load(file)
    names = {(row["arch"], row["dtype"], row["problem"]) for row in rows}
    prefixes = tuple(key(*name, "") for name in names)
    budgets = {name: budget for name, budget in old.items() if not name.startswith(prefixes)}
    for row in rows:
        if not row["problem"].startswith(PEER):
            name = key(row["arch"], row["dtype"], row["problem"], row["kernel"])
            budgets[name] = _budget_of(row, old.get(name, {}))
    lines = [f"  {json.dumps(name)}: {json.dumps(budgets[name])}" for name in sorted(budgets)]
    file.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _budget_of(row: dict[str, Any], old: Budget) -> Budget:
    budget: Budget = {
        "registers": 8 * math.ceil(row["registers"] / 8),
        "shared": row["shared"],
        "blocks": row["blocks"],
    }
    budget |= {"matrix": sorted(row["matrix"]), "asynchronous": row["asynchronous"] > 0}
    if row["per_matrix"] is not None:
        budget["per_matrix"] = math.ceil(1.1 * row["per_matrix"])
    budget |= {name: row[name] for name in ("stack", "local", "narrow") if row[name]}
    spills = row["stack"] or row["local"]
    return budget | ({"why": old["why"]} if spills and "why" in old else {})
