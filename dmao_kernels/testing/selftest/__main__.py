"""`python -m dmao_kernels.testing.selftest`: exit status 1 where something is wrong."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dmao_kernels.testing.selftest.run import PARTS, default_device, selftest


def main() -> int:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="selftest", description="Are the kernels right here, and how fast?")
    parser.add_argument("--device", default=default_device(), help="cpu or cuda")
    parser.add_argument("--out", type=Path, default=Path("selftest"), help="folder of the report")
    parser.add_argument("--quick", action="store_true", help="fewer dtypes, small sizes, no torch.compile")
    parser.add_argument("--only", action="append", choices=PARTS, help="parts to run; all by default")
    parser.add_argument("--seconds", type=float, default=180.0, help="after which no new problem is begun")
    parser.add_argument("--choose", action="store_true", help="keep which backend for this GPU was faster")
    options = vars(parser.parse_args())
    options["only"] = tuple(options["only"] or PARTS)
    report = selftest(options.pop("device"), options.pop("out"), **options)
    return 1 if report.wrong else 0


sys.exit(main())
