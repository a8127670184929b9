"""The configuration of a training: a YAML file, every key optional and checked; key=value changes it."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from dmao.augment import SpecAugment
from dmao.errors import reason
from dmao.files import write_atomically
from dmao.models import ConformerConfig, ConformerShape
from dmao.parsing import ConfigError, from_mapping, set_path, to_mapping
from dmao.schedule import LearningRate, Schedule, WhenSettled
from dmao_kernels.structure import Caps, Metric, Scope, Selection, Split, Storage
from dmao_kernels.structure.latency import MIN_REPS

MOST_WORKERS, MOST_THREADS = 256, 1024
MOST_PIECES = 1 << 16
_BASE = re.compile(r"[^/\0][^\0]*\.ya?ml")

__all__ = [
    "ConfigError",
    "CostConfig",
    "DataConfig",
    "GrowAndDropConfig",
    "ModelConfig",
    "OptimizerConfig",
    "TrainConfig",
    "load_config",
    "save_config",
]


@dataclass(frozen=True)
class DataConfig:
    """Where the audio is and how it becomes batches.

    root: the folder of a prepared corpus (`dmao prepare`).
    train: the split to train on.
    labels: characters; phonemes, each with and without end of word; bpe, pieces that sentencepiece learns from `train`.
    bpe_size: number of pieces, blank included.
    g2p: with phonemes: the voice of eSpeak NG that pronounces words beyond the lexicon ("en-us"); null: utterances with
        such words are left out.
    batch_seconds: audio that a batch aims at, padding included; a longer utterance that comes last may overshoot.
    shortest_first: so many epochs go from short utterances to long ones, with which a CTC model learns sooner.
    workers: processes that read batches ahead for the training; 0: none, it reads them itself.
    """

    root: str = "data/embedded"
    train: str = "train"
    labels: Literal["characters", "phonemes", "bpe"] = "characters"
    bpe_size: int = 500
    g2p: str | None = None
    batch_seconds: float = 20.0
    shortest_first: int = 0
    workers: int = 0

    def __post_init__(self) -> None:
        _require(0 <= self.workers <= MOST_WORKERS, f"workers must lie between 0 and {MOST_WORKERS}", self.workers)
        _require(self.shortest_first >= 0, "shortest_first must not be negative", self.shortest_first)
        _require(self.batch_seconds > 0, "batch_seconds must be positive", self.batch_seconds)
        _require(2 <= self.bpe_size <= MOST_PIECES, f"bpe_size must lie between 2 and {MOST_PIECES}", self.bpe_size)
        _require(self.g2p is None or self.labels == "phonemes", "g2p needs labels: phonemes", self.labels)


@dataclass(frozen=True)
class ModelConfig(ConformerShape):
    """Shape of the uniform Conformer-CTC; by default a small one."""

    width: int = 96
    blocks: int = 8
    head_dim: int = 24

    def __post_init__(self) -> None:
        self.conformer(outputs=2)  # ConformerConfig checks the rest

    def conformer(self, outputs: int, inputs: int = 80) -> ConformerConfig:
        """The full shape, with the number of labels (blank included) and of features per frame."""
        shape = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return ConformerConfig(outputs=outputs, inputs=inputs, **shape)


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW. The published eps is 1e-16 and the published weight decay 1e-3, without clipping.

    clip: largest gradient norm; null does not clip.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-3
    clip: float | None = 5.0

    def __post_init__(self) -> None:
        _require(all(0 <= beta < 1 for beta in self.betas), "betas must lie in [0, 1)", self.betas)
        _require(0 < self.eps < math.inf, "eps must be positive", self.eps)
        _require(self.weight_decay >= 0, "weight_decay must not be negative", self.weight_decay)
        _require(self.clip is None or self.clip > 0, "clip must be positive or null", self.clip)


@dataclass(frozen=True)
class CostConfig:
    """What the budget counts.

    kind: parameters; macs, multiply-accumulates of the elastic modules; latency, the time of forward and backward pass
        on this device, calibrated before the first step.
    length, batch: of the features for which macs and latency count: frames, and utterances.
    reps: passes that are timed per width, for latency.
    """

    kind: Literal["parameters", "macs", "latency"] = "parameters"
    length: int = 1000
    batch: int = 4
    reps: int = 11

    def __post_init__(self) -> None:
        for name, least in (("length", 1), ("batch", 1), ("reps", MIN_REPS)):
            _require(getattr(self, name) >= least, f"{name} must be {least} or more", getattr(self, name))


@dataclass(frozen=True)
class GrowAndDropConfig:
    """What is scored, when the widths change and by how much; see `dmao.controller.GrowAndDrop`.

    schedule: null trains the uniform baseline; with `earliest` and `latest` (WhenSettled) an event waits until the
        ranking of the components has settled.
    budget: cost after an event: null: as at the start; 0.9: this share of it; a whole number: so much.
    max_growth, max_width, align: caps on growth per event and per module, and of what widths stay multiples.
    gate_penalty: with metric gate, weight of the gates' price in the loss (see GrowAndDrop.penalty).
    observe_every: score every n-th step.
    ranking: scores; random: by lot, to compare with (tight storage).
    storage: tight: the widths are those of the tensors; slots: all shapes stay, within `headroom` times the widths.
    """

    schedule: Schedule | WhenSettled | None = field(default_factory=lambda: Schedule(start=0.4))
    metric: Metric = "taylor"
    scope: Scope = "slice"
    beta: float = 0.99
    gate_penalty: float = 0.0
    selection: Selection = "exact"
    cost: CostConfig = field(default_factory=CostConfig)
    budget: int | float | None = None
    max_growth: float | None = None
    max_width: float | None = None
    align: int = 1
    split: Split = "asymmetric"
    per_cost: bool = False
    keep_at_least: int = 0
    revive: bool = False
    observe_every: int = 1
    ranking: Literal["scores", "random"] = "scores"
    storage: Storage = "tight"
    headroom: float = 2.0

    def __post_init__(self) -> None:
        _require(0 <= self.beta < 1, "beta must lie in [0, 1)", self.beta)
        _require(0 <= self.gate_penalty < math.inf, "gate_penalty must be finite and not negative", self.gate_penalty)
        _require(not self.gate_penalty or self.metric == "gate", "gate_penalty needs metric: gate", self.metric)
        for name, least in (("observe_every", 1), ("align", 1), ("keep_at_least", 0)):
            _require(getattr(self, name) >= least, f"{name} must be {least} or more", getattr(self, name))
        _require(self.budget is None or 0 < self.budget < math.inf, "budget must be positive or null", self.budget)
        exact = self.selection == "exact"
        _require(exact or self.budget is None, "budget needs selection: exact", self.selection)
        tight = self.storage == "tight"
        _require(tight or self.ranking == "scores", "ranking: random needs storage: tight", self.storage)
        Caps(self.max_growth, self.max_width)  # checks both

    def require_events(self, total_steps: int) -> None:
        """Raises ConfigError where an event does not fall within the training, or where only the first step is scored
        before one: untrained weights tell nothing, unless the ranking is by lot."""
        if self.schedule is None:
            return
        try:
            first = self.schedule.steps(total_steps)[0]
        except ValueError as error:
            raise ConfigError(f"config: grow_and_drop.schedule: {error}") from error
        _require(
            self.observe_every == 1 or self.ranking == "random" or self.observe_every < first,
            f"config: grow_and_drop.observe_every must be below {first}, the step of the first event",
            self.observe_every,
        )


@dataclass(frozen=True)
class TrainConfig:
    """One training. The result is a function of this and of the data, to the bit for the same machine and threads.

    steps: optimizer steps.
    epochs: passes over the training split instead: `steps` becomes so many times the batches of the first one.
    device: cpu; cuda; auto, which is cuda where there is a GPU. Of several processes each takes a GPU of its own.
    threads: threads of the CPU kernels.
    precision: fp32, or bf16 for the matrix products (autocast).
    max_skipped: steps in a row whose loss or gradient may be infinite or NaN (they are skipped) before
        training gives up.
    widths: pairs of an elastic module and its number of components from the beginning, in place of the uniform ones,
        as an earlier training has found them (`dmao train --widths-of`); needs grow_and_drop.schedule: null.
    eval_splits: decoded at the end and every `eval_every` steps (0: only at the end).
    checkpoint_every, log_every, log_scores_every: in steps.
    """

    seed: int = 0
    steps: int = 2000
    epochs: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    threads: int = 2
    precision: Literal["fp32", "bf16"] = "fp32"
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    spec_augment: SpecAugment | None = field(default_factory=SpecAugment)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    learning_rate: LearningRate = field(default_factory=LearningRate)
    grow_and_drop: GrowAndDropConfig = field(default_factory=GrowAndDropConfig)
    widths: tuple[tuple[str, int], ...] = ()
    max_skipped: int = 10
    eval_splits: tuple[str, ...] = ("test",)
    eval_every: int = 0
    checkpoint_every: int = 200
    log_every: int = 1
    log_scores_every: int = 20
    tensorboard: bool = True

    def __post_init__(self) -> None:
        for name in ("steps", "threads", "max_skipped", "checkpoint_every", "log_every", "log_scores_every"):
            _require(getattr(self, name) >= 1, f"{name} must be 1 or more", getattr(self, name))
        _require(self.epochs is None or self.epochs >= 1, "epochs must be 1 or more, or null", self.epochs)
        _require(self.threads <= MOST_THREADS, f"threads must be at most {MOST_THREADS}", self.threads)
        _require(self.seed >= 0, "seed must not be negative", self.seed)
        _require(self.eval_every >= 0, "eval_every must not be negative", self.eval_every)
        if self.grow_and_drop.schedule is not None:
            _require(not self.widths, "widths needs grow_and_drop.schedule: null", self.grow_and_drop.schedule)
            if self.epochs is None:  # else the steps are known with the data, see GrowAndDropConfig.require_events
                self.grow_and_drop.schedule.steps(self.steps)

    def baseline(self) -> TrainConfig:
        """The same training without events: the uniform model to compare with."""
        return dataclasses.replace(self, grow_and_drop=dataclasses.replace(self.grow_and_drop, schedule=None))

    def with_widths(self, widths: Mapping[str, int]) -> TrainConfig:
        """The same training from scratch at these widths, without events."""
        return dataclasses.replace(self.baseline(), widths=tuple(widths.items()))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for YAML and checkpoints."""
        return to_mapping(self)

    @classmethod
    def from_dict(cls, values: Any) -> TrainConfig:
        """The inverse of to_dict; keys left out keep their default. Raises ConfigError."""
        return from_mapping(cls, values)


def load_config(path: str | Path | None = None, overrides: Iterable[str] = ()) -> TrainConfig:
    """The configuration in a YAML file (None: the defaults), changed by "key=value", e.g.
    "learning_rate.peak=2e-3". A file with `base: OTHER.yaml` changes what that one, beside it, says.

    Raises ConfigError with one line that names the key, what it takes and what was found; also where a change of
    `steps` would have no effect, as `epochs` decides.
    """
    changed: list[str] = []  # where steps stand above epochs
    values, overrides = _read_yaml(Path(path), changed) if path is not None else {}, tuple(overrides)
    config = TrainConfig.from_dict(apply_overrides(values, overrides))
    keys = {_key(override) for override in overrides}
    if "epochs" in keys:
        changed.clear()
    if "steps" in keys:
        changed.append("")
    if config.epochs is not None and changed:
        raise ConfigError(
            f"config: {changed[-1]}epochs is {config.epochs} and decides how long it trains, so steps would have no "
            "effect; for steps add epochs: null to the file, or --set epochs=null"
        )
    return config


def _key(override: str) -> str:
    return override.partition("=")[0].strip()


def apply_overrides(values: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Sets "key=value" after "key=value" in `values`; a value is YAML. Raises ConfigError."""
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key.strip():
            raise ConfigError(f"config: an override must look like key=value, got '{override}'")
        set_path(values, key.strip(), _parse_yaml(text, f"override '{override}'"))
    return values


def save_config(config: TrainConfig, path: str | Path) -> None:
    """Writes every key of `config` as YAML; load_config reads it back."""
    write_atomically(Path(path), yaml.safe_dump(config.to_dict(), sort_keys=False))


def _read_yaml(path: Path, changed: list[str], above: tuple[Path, ...] = ()) -> dict[str, Any]:
    if path.exists() and not path.is_file():  # a device or a pipe has no end
        raise ConfigError(f"config: {path} must be a file")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config: cannot read {path}: {reason(error)}") from error
    values = _parse_yaml(text, str(path))
    if values is not None and not isinstance(values, dict):
        raise ConfigError(f"config: {path} must hold keys and values, got {type(values).__name__}")
    values = values or {}
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str) or not _BASE.fullmatch(base):
        raise ConfigError(f"config: {path}: base must be the relative path of a .yaml file, got {base!r}")
    above = (*above, path.resolve())
    if (path.parent / base).resolve() in above:
        raise ConfigError(f"config: {path} is its own base")
    below = _read_yaml(path.parent / base, changed, above)
    if "epochs" in values:
        changed.clear()
    elif "steps" in values and below.get("epochs") is not None:
        changed.append(f"{path}: ")
    return _merge(below, values)


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes`; mappings in both are merged in the same way."""
    both = {key: value for key, value in base.items() if isinstance(value, dict) and isinstance(changes.get(key), dict)}
    return base | changes | {key: _merge(value, changes[key]) for key, value in both.items()}


class _Loader(yaml.SafeLoader):
    """The safe one, which refuses a key that stands twice: of two values one would have no effect."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """The node as it is written; merges (`<<`) come later."""
        node = super().compose_mapping_node(anchor)
        keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for tag, key in keys:
            if keys.count((tag, key)) > 1 and not tag.endswith(":merge"):
                raise yaml.YAMLError(f"the key {key!r} stands twice{node.start_mark}")
        return node


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date, a number, a nesting beyond Python's
        raise ConfigError(f"config: {where} is not YAML: {' '.join(str(error).split())}") from error


def _require(ok: bool, message: str, found: Any) -> None:
    if not ok:
        raise ConfigError(f"{message}, got {found!r}")
