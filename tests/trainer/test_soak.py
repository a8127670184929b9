"""A long training takes no more memory, files or threads at its end than in its middle."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.trainer.soak import STEPS_PER_CHECKPOINT, STEPS_PER_EVALUATION

HERE = Path(__file__).parent
MEGABYTE = 1 << 20
KNOWN = 2500  # bytes that a step of this model loses: tests/ops/test_leaks.py

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


def growth(resident: np.ndarray) -> float:
    """Of the second half, by a straight line: single samples jump as the allocator likes."""
    half = resident[len(resident) // 2 :]
    return float(np.polyfit(np.arange(len(half)), half, 1)[0] * len(half))


def soaked(run_python, run_dir: Path, steps: int) -> np.ndarray:
    """Samples of a training; says what it was."""
    done = run_python(str(HERE / "soak.py"), str(run_dir), str(steps), OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    samples = np.array(found["samples"])
    middle = len(samples) // 2
    print(
        f"\n{found['steps']} steps, {found['events']} events, {steps // STEPS_PER_CHECKPOINT} checkpoints, "
        f"{steps // STEPS_PER_EVALUATION} evaluations; resident MiB: first {samples[0, 0] / MEGABYTE:.1f}, "
        f"middle {samples[middle, 0] / MEGABYTE:.1f}, last {samples[-1, 0] / MEGABYTE:.1f}, "
        f"growth of the second half {growth(samples[:, 0]) / MEGABYTE:+.2f}; "
        f"open files {samples[middle, 1]} to {samples[-1, 1]}, threads {samples[middle, 2]} to {samples[-1, 2]}"
    )
    assert found["events"] > 0
    return samples


def assert_flat(samples: np.ndarray, megabytes: float) -> None:
    """TensorBoard's thread opens its file for each write: samples may see one more."""
    third, fourth = np.array_split(samples, 4)[2:]
    assert (np.median(third[:, 1:], axis=0) == np.median(fourth[:, 1:], axis=0)).all()
    assert growth(samples[:, 0]) < megabytes * MEGABYTE


def test_growth_would_be_seen():
    noise = np.random.default_rng(0).normal(0, MEGABYTE, 400)
    flat = np.stack([noise + 4e8, np.full(400, 9), np.full(400, 3)], axis=1)
    assert_flat(flat, 4)
    for column, leak in enumerate((0.04 * MEGABYTE, 1, 1)):
        leaking = flat.copy()
        leaking[:, column] += leak * np.arange(400)
        with pytest.raises(AssertionError):
            assert_flat(leaking, 4)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_long_training_stays_as_it_is(run_python, tmp_path):
    steps = 4000
    assert_flat(soaked(run_python, tmp_path / "run", steps), 2 + KNOWN * steps / 2 / MEGABYTE)
