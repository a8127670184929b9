"""Training from a configuration.

It can be killed at any moment and continues with the losses of an uninterrupted run, bit for bit.
"""

from __future__ import annotations

import logging
import math
import shlex
import signal
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

import dmao_kernels
from dmao import checkpoint
from dmao.config import ConfigError, TrainConfig, save_config
from dmao.distributed import Team, device_of, team
from dmao.errors import UserError
from dmao.evaluate import evaluate_model
from dmao.files import held, remove_partial
from dmao.metrics import Recorder, is_evaluation, read_json_lines
from dmao.parsing import from_mapping
from dmao.signals import NotedSignals
from dmao.source import CorpusSource, Source, fingerprint, require_same_rate, same_data, sample_rate, with_steps
from dmao.step import (
    StepResult,
    TrainingStep,
    build_model,
    elastic_of,
    load_state,
    make_controller,
    make_optimizer,
    saved_costs,
)
from dmao_kernels.structure import Elastic

if TYPE_CHECKING:
    from dmao.data.loader import Batch

_log = logging.getLogger(__name__)

# What may change when a run is resumed: none of it decides what is learned.
_FREE_KEYS = frozenset(
    [
        "max_skipped",
        "eval_splits",
        "eval_every",
        "checkpoint_every",
        "log_every",
        "log_scores_every",
        "tensorboard",
        "data.root",
        "data.workers",
    ]
)


class TrainingInterrupted(UserError):
    """A signal stopped the training; its state is saved.

    signal: its number.  state: where the training stands.  command: what to type to go on; None: what was typed.
    """

    def __init__(self, state: str, signal_number: int, command: str | None = None):
        super().__init__(state if command is None else f"{state}; continue with: {command}")
        self.signal = signal_number
        self.state = state
        self.command = command


class TrainingFailed(UserError):
    """Training cannot go on: nothing usable comes out of its steps."""


@dataclass(frozen=True)
class TrainResult:
    """A finished training.

    evaluations: split -> {"ce", "cer", "wer", ...}.  events: rows of events.jsonl.  parameters: in use at the
        end.
    """

    run_dir: Path
    checkpoint: Path
    steps: int
    parameters: int
    component_counts: dict[str, int]
    evaluations: dict[str, dict[str, Any]]
    events: list[dict[str, Any]]


def train(config: TrainConfig, run_dir: str | Path, data: Source | None = None, resume: bool = True) -> TrainResult:
    """Trains as `config` says and writes everything into `run_dir`:

        config.yaml  metrics.jsonl  events.jsonl  scores.jsonl  checkpoints/  tensorboard/

    data: a source of batches; None opens the corpus that the config names.
    resume: continue from the newest usable checkpoint in `run_dir`, to the bit; a finished run is returned as
        it is. False refuses a folder that holds checkpoints.

    Under torchrun the ranks share every batch; the first one writes. A checkpoint fits any number of ranks.

    Sets the number of threads and seeds torch's global generator. SIGINT, SIGTERM and SIGHUP finish the step, save,
    and raise TrainingInterrupted. Raises ConfigError where `run_dir` holds another training, UserError where another
    process trains in it now, CheckpointError where its checkpoints are all damaged, TrainingFailed after
    `max_skipped` steps in a row without a finite loss and gradient.
    """
    run_dir = Path(run_dir)
    there = checkpoint.list_checkpoints(run_dir / "checkpoints")
    if there and not resume:
        raise UserError(f"train: {run_dir} holds a training already; choose another folder, or resume it")
    found = checkpoint.load_latest(run_dir / "checkpoints")
    if found is not None:
        with checkpoint.used(found[1]):
            stored = TrainConfig.from_dict(found[1]["config"]).to_dict()
        config = check_same_training(config, stored, run_dir)
    torch.set_num_threads(config.threads)
    source = data or CorpusSource(config)
    if found is None:
        config = with_steps(config, source)
        config.grow_and_drop.require_events(config.steps)
    with team(device_of(config.device)) as mine, held(run_dir) if mine.leads else nullcontext():
        mine.wait()  # all have looked before the first one writes
        if mine.leads:
            if checkpoint.list_checkpoints(run_dir / "checkpoints") != there:
                raise UserError(f"train: another process has just trained in {run_dir}; type the same command again")
            remove_partial(run_dir)
            checkpoint.tidy(run_dir / "checkpoints", found[0] if found else None)
            save_config(config, run_dir / "config.yaml")
        training = _Training(config, run_dir, source, found[1] if found else None, mine)
        try:
            return training.run()
        finally:
            training.close()


def resume_command(run_dir: Path) -> str:
    """What to type so that a stopped training goes on."""
    folder = f"./{run_dir}" if str(run_dir).startswith("-") else str(run_dir)  # not an option
    return shlex.join(["dmao", "train", f"{folder}/config.yaml", "--run-dir", folder])


def check_same_training(config: TrainConfig, stored: dict[str, Any], run_dir: Path) -> TrainConfig:
    """`config` with the number of steps that the run in `run_dir` has settled; `stored` is that run's.

    Raises ConfigError where they are of different trainings.
    """
    complete = TrainConfig.from_dict(stored)  # keys that are newer than the run have their defaults
    if config.epochs is not None:
        config = replace(config, steps=complete.steps)
    wanted, found = _flatten(config.to_dict()), _flatten(complete.to_dict())
    different = [key for key in sorted({*wanted, *found} - _FREE_KEYS) if wanted.get(key) != found.get(key)]
    if different and set(different) <= {"threads", "device"}:
        _log.warning("train: resuming with another %s: continues, but not to the bit", " and ".join(different))
    elif different:
        key = different[0]
        raise ConfigError(
            f"train: {run_dir} was trained with another config: {key} is {wanted.get(key)!r}, "
            f"there {found.get(key)!r}" + (f" (and {len(different) - 1} more keys)" if len(different) > 1 else "")
        )
    return config


def _flatten(values: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {path: values}
    return {k: v for name, item in values.items() for k, v in _flatten(item, f"{path}.{name}".lstrip(".")).items()}


@dataclass
class _Place:
    """Where a training stands: steps done, and the next batch."""

    step: int = 0
    epoch: int = 0
    position: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0

    def __post_init__(self) -> None:
        if min(vars(self).values()) < 0:
            raise ValueError(f"must not be negative, got {vars(self)}")


class _Training:
    """All that one run holds while it is running."""

    def __init__(self, config: TrainConfig, run_dir: Path, source: Source, state: dict[str, Any] | None, team: Team):
        self.config = config
        self.team = team
        self.run_dir = run_dir
        self.source = source
        for split in config.eval_splits if team.leads else ():
            source.left_out(split)  # opens it: what is missing is told before the training, not after it
        with checkpoint.used(state or {}):
            self.place = from_mapping(_Place, state["place"], "place") if state else _Place()
            costs = saved_costs(state)
        self.model = build_model(config, len(source.labels), source.inputs).to(device_of(config.device))
        self.optimizer = make_optimizer(self.model, config.optimizer)
        self.controller = make_controller(self.model, self.optimizer, config, costs)
        if state:
            self._restore(state)
        self.step = TrainingStep(self.model, self.optimizer, config, self.controller, team)
        self.recorder = Recorder(run_dir, self.place.step, config.tensorboard) if team.leads else None

    def run(self) -> TrainResult:
        with NotedSignals() as stop:
            self._evaluate(self._evaluations())  # the training may have been stopped in the evaluation of a step
            self._steps(stop)
        if self.recorder:
            self.recorder.flush()
        self.team.wait()
        return TrainResult(
            self.run_dir,
            checkpoint.list_checkpoints(self.run_dir / "checkpoints")[0],
            self.place.step,
            self._parameters(),
            self._structure().counts(),
            self._evaluations(),
            list(read_json_lines(self.run_dir / "events.jsonl")),
        )

    def close(self) -> None:
        if self.recorder:
            self.recorder.close()

    def _steps(self, stop: NotedSignals) -> None:
        config, place = self.config, self.place
        batches = self._batches()
        hidden = None if self.team.leads else True
        if self.team.leads and place.step < config.steps:
            device, size = next(self.model.parameters()).device, self._parameters()
            _log.info("train: %d steps on %s, %s parameters", config.steps - place.step, device, f"{size:,}")
        bar = tqdm(total=config.steps, initial=place.step, unit="step", disable=hidden, file=sys.stderr, leave=False)
        with bar:
            while place.step < config.steps:
                fetched = time.perf_counter()
                batch = next(batches)
                started = time.perf_counter()
                place.step += 1
                result = self.step(batch, place.step)
                self._count_skipped(result)
                timing = {
                    "step_ms": 1000 * (time.perf_counter() - started),
                    "data_ms": 1000 * (started - fetched),
                }
                self._record(batch, result, timing)
                if not result.problem:  # an event waits for a usable step: it needs scores
                    self._adapt()
                bar.update()
                bar.set_postfix(loss=f"{result.loss:.3f}", lr=f"{self._rate():.1e}", refresh=False)
                stopped = any(self.team.total([stop.received]))  # ranks may get the signal in different steps
                if stopped or place.step % config.checkpoint_every == 0 or place.step == config.steps:
                    self._save()
                if stopped and place.step < config.steps:
                    raise TrainingInterrupted(
                        f"train: stopped at step {place.step} of {config.steps}; the state is saved",
                        stop.received or signal.SIGTERM,
                        resume_command(self.run_dir),
                    )
                self._evaluate()

    def _batches(self) -> Iterator[Batch]:
        """Batches from the present place on, without end; `place` moves along."""
        while True:
            for batch in self.source.train_batches(self.place.epoch, self.place.position):
                self.place.position += 1
                yield batch
            if self.place.position == 0:
                raise TrainingFailed(f"train: the split '{self.config.data.train}' holds no utterance to train on")
            self.place.epoch, self.place.position = self.place.epoch + 1, 0

    def _count_skipped(self, result: StepResult) -> None:
        place = self.place
        if not result.problem:
            place.skipped_in_a_row = 0
            return
        place.skipped += 1
        place.skipped_in_a_row += 1
        _log.warning("train: step %d skipped: %s", place.step, result.problem)
        if place.skipped_in_a_row >= self.config.max_skipped:
            raise TrainingFailed(
                f"train: {place.skipped_in_a_row} steps in a row were skipped, the last one "
                f"(step {place.step}) because {result.problem}; lower learning_rate.peak or check the data"
            )

    def _record(self, batch: Batch, result: StepResult, timing: dict[str, float]) -> None:
        step, config = self.place.step, self.config
        if not self.recorder:
            return
        if step % config.log_every == 0 or step == config.steps or result.problem:
            self.recorder.train(
                step,
                epoch=self.place.epoch,
                loss=result.loss,
                lr=self._rate(),
                grad_norm=result.grad_norm,
                frames=int(batch.feature_lengths.sum()),
                utterances=len(batch.feature_lengths),
                labels=result.labels,
                unaligned=result.unaligned,
                skipped=self.place.skipped,
                **({"problem": result.problem} if result.problem else {}),
                **timing,
            )
        if self.controller is not None and step % config.log_scores_every == 0:
            scores = self.controller.scores.values()
            self.recorder.score_row(step, {name: values.tolist() for name, values in scores.items()})
            if self.controller.events:
                self.recorder.health(step, self.controller.health())

    def _adapt(self) -> None:
        if self.controller is not None and self.controller.due(self.place.step):
            event = self.controller.adapt()
            self.step.rewrap()
            if self.recorder:
                self.recorder.event(event.to_dict())
            _log.info("%s", event)

    def _evaluate(self, done: Collection[str] = ()) -> None:
        """Where it is due. done: splits that have their result of this step."""
        step, every = self.place.step, self.config.eval_every
        if step == 0 or (step != self.config.steps and (every == 0 or step % every)):
            return
        if self.recorder:
            self._evaluate_splits(self.recorder, done)
        self.team.wait()

    def _evaluate_splits(self, recorder: Recorder, done: Collection[str]) -> None:
        for split in self.config.eval_splits:
            if split not in done:
                result = evaluate_model(self.model, self.source, split, self.config.precision)
                recorder.evaluation(self.place.step, split, **result.to_dict())
                _log.info("step %d, %s: %s", self.place.step, split, result)

    def _save(self) -> None:
        """The checkpoint of this step, there for every rank."""
        if self.recorder:
            self.recorder.flush()
            checkpoint.save(self.run_dir / "checkpoints", self.place.step, self._state())
        self.team.wait()

    def _state(self) -> dict[str, Any]:
        return {
            "config": self.config.to_dict(),
            "labels": self.source.labels.state_dict(),
            "inputs": self.source.inputs,
            "data": fingerprint(self.source),
            "sample_rate": sample_rate(self.source),
            "place": vars(self.place),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "controller": self.controller.state_dict() if self.controller else None,
            "dmao": dmao_kernels.__version__,
            "torch": str(torch.__version__),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        if state.get("labels") != self.source.labels.state_dict():
            raise UserError(f"train: {self.run_dir} was trained with other labels than the data has now")
        require_same_rate(state, self.source)
        if same_data(state, self.source) is False:  # the place counts batches, which would be others
            raise UserError(
                f"train: {self.run_dir} was trained on another split '{self.config.data.train}' than "
                f"{self.config.data.root} holds now; prepare that one again, or choose another folder for the run"
            )
        with checkpoint.used(state):
            load_state(state, self.model, self.optimizer, self.controller)
        _log.info("train: resuming %s at step %d", self.run_dir, self.place.step)

    def _rate(self) -> float:
        return self.config.learning_rate.at(self.place.step, self.config.steps)

    def _structure(self) -> Elastic:
        return elastic_of(self.model, self.controller, self.config)

    def _parameters(self) -> int:
        return self._structure().live_parameters()

    def _evaluations(self) -> dict[str, dict[str, Any]]:
        """The recorded results of this step, by split. JSON has null for the cross-entropy of nothing, which is NaN."""
        rows = read_json_lines(self.run_dir / "metrics.jsonl")
        here = [row for row in rows if row["step"] == self.place.step and is_evaluation(row)]
        numbers = ({**row, "ce": math.nan if row.get("ce") is None else row["ce"]} for row in here)
        return {row["split"]: {k: v for k, v in row.items() if k not in ("kind", "split", "step")} for row in numbers}
