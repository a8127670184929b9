"""What scoring and events add to the demo's training: `python -m benchmarks.training`.

Needs the demo's corpus (`dmao prepare embedded`). The measurement is that of `dmao bench`.
"""

from __future__ import annotations

from dmao.config import load_config
from dmao.overhead import measure_overhead
from dmao.recipes.embedded.demo import demo_config

from ._harness import parser, write_results


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--pairs", type=int, default=100, help="of steps, with and without scores")
    options.add_argument("--root", default="data/embedded", help="folder of the corpus")
    arguments = options.parse_args()
    config = load_config(demo_config(), [f"threads={arguments.threads}", f"data.root={arguments.root}"])
    costs = measure_overhead(config, pairs=arguments.pairs).to_dict()
    rows = [{"cost": name, **cost} for name, cost in costs.items()]
    for row in rows:
        print(f"{row['cost']:<12} {row['median']:9.3f}   95 % interval {row['low']:.3f} to {row['high']:.3f}")
    write_results(arguments.out, "training", rows)


if __name__ == "__main__":
    main()
