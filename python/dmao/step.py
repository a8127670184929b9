"""One training step: a function of the state, the batch and (seed, step), repeated to the bit on resume."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from dmao.checkpoint import used
from dmao.config import ConfigError, OptimizerConfig, TrainConfig
from dmao.controller import GrowAndDrop
from dmao.distributed import Team, wrap
from dmao.models import ConformerCTC, model_loss
from dmao.random_ranking import RandomRanking
from dmao.randomness import derive_seed, generator
from dmao.widths import set_widths
from dmao_kernels.structure import CostModel, Costs, Elastic, LatencyCost, MacCost, ParameterCost, ScoringAdamW

if TYPE_CHECKING:
    from dmao.data.loader import Batch

_MOST = 64  # times the parameters in a checkpoint: what its uniform model may have


@dataclass(frozen=True)
class StepResult:
    """What one step did.

    loss: per label.  labels: how many.  unaligned: utterances whose labels do not fit into their frames (left
        out). All of the whole batch, on every rank.
    problem: why the step changed nothing, or "".
    """

    loss: float
    grad_norm: float
    labels: int
    unaligned: int
    problem: str = ""


class TrainingStep:
    """Forward, loss, backward, optimizer. Call it with a batch and the number of the step (from 1).

    The optimizer clips the gradients and scores the components on its way. torch's global generator is seeded with
    (seed, step): dropout depends on nothing that came before. A step whose loss or gradient norm is not finite, or
    whose batch holds nothing to learn, leaves model, optimizer and scores untouched.
    """

    def __init__(
        self,
        model: ConformerCTC,
        optimizer: ScoringAdamW,
        config: TrainConfig,
        controller: GrowAndDrop | None,
        team: Team | None = None,
    ):
        self.model = model
        self.team = team or Team()
        self.rewrap()
        self.optimizer = optimizer
        self.config = config
        self.controller = controller
        self._options = {"intermediate": True} if model.config.intermediate else {}

    def rewrap(self) -> None:
        """To be called whenever the model's widths have changed."""
        self.forward = wrap(self.model)

    def __call__(self, batch: Batch, step: int) -> StepResult:
        seed = self.config.seed
        torch.manual_seed(derive_seed(seed, "step" if self.team.leads else f"step, rank {self.team.rank}", step))
        rate = self.config.learning_rate.at(step, self.config.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batch = replace(batch, features=batch.features.to(next(self.model.parameters()).device))
        if self.config.spec_augment is not None:
            masks = generator(seed, "spec_augment", step)
            augmented = self.config.spec_augment(batch.features, batch.feature_lengths, masks)
            batch = replace(batch, features=augmented)
        if not self.model.training:
            self.model.train()  # walks through all modules
        self.optimizer.zero_grad(set_to_none=True)
        return self._learn(*self.team.share(batch))

    def _learn(self, batch: Batch, weight: float) -> StepResult:
        """weight: of the batch's loss, see Team.share."""
        with autocast(self.config.precision, batch.features.device):
            outputs = self.forward(batch.features, batch.feature_lengths, **self._options)
        loss, own_labels, own_unaligned = model_loss(outputs, self.model.config, batch.targets, batch.target_lengths)
        counted = (weight * value for value in (loss.item() * own_labels, own_labels, own_unaligned))
        value, *counts = self.team.total(list(counted))
        labels, unaligned = (int(count) for count in counts)
        if labels == 0:
            return StepResult(value, 0.0, 0, unaligned, "no utterance has an alignment")
        value /= labels
        if not math.isfinite(value):
            return StepResult(value, math.nan, labels, unaligned, f"the loss is {value}")
        if self.team.size > 1:  # gradients are averaged over ranks
            loss = loss * (weight * own_labels * self.team.size / labels)
        penalty = self.config.grow_and_drop.gate_penalty
        if self.controller is not None and penalty:
            loss = loss + self.controller.penalty(penalty)
        loss.backward()
        grads = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = get_total_norm(grads)
        grad_norm = norm.item()
        if not math.isfinite(grad_norm):
            return StepResult(value, grad_norm, labels, unaligned, f"the gradient norm is {grad_norm}")
        clip = self.config.optimizer.clip
        self.optimizer.step(grad_factor=None if clip is None else (clip / (norm + 1e-6)).clamp(max=1.0))
        return StepResult(value, grad_norm, labels, unaligned)


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context of the forward pass on a device: matrix products in bfloat16 where `precision` is bf16."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> ScoringAdamW:
    """AdamW on all parameters, which scores in the same pass once a controller has taken it."""
    return ScoringAdamW(
        model.parameters(),
        lr=0.0,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
    )


def make_controller(
    model: ConformerCTC, optimizer: ScoringAdamW, config: TrainConfig, costs: Costs | None = None
) -> GrowAndDrop | None:
    """The controller that the config asks for; None for the uniform baseline.

    costs: what was measured when the training began, where it goes on. Raises ConfigError where the model cannot be
    trained so.
    """
    if config.grow_and_drop.schedule is None:
        return None
    try:
        return _controller(model, optimizer, config, costs or _cost_model(model, config))
    except ValueError as error:
        raise ConfigError(f"config: grow_and_drop: {error}") from error


def _controller(model: ConformerCTC, optimizer: ScoringAdamW, config: TrainConfig, cost: CostModel) -> GrowAndDrop:
    settings = config.grow_and_drop
    assert settings.schedule is not None
    kind = RandomRanking if settings.ranking == "random" else GrowAndDrop
    return kind(
        model,
        optimizer,
        settings.schedule,
        config.steps,
        metric=settings.metric,
        scope=settings.scope,
        beta=settings.beta,
        selection=settings.selection,
        cost=cost,
        budget=settings.budget,
        max_growth=settings.max_growth,
        max_width=settings.max_width,
        align=settings.align,
        split=settings.split,
        per_cost=settings.per_cost,
        keep_at_least=settings.keep_at_least,
        revive=settings.revive,
        seed=config.seed,
        observe_every=settings.observe_every,
        storage=settings.storage,
        headroom=settings.headroom,
    )


def _cost_model(model: ConformerCTC, config: TrainConfig) -> CostModel:
    cost = config.grow_and_drop.cost
    if cost.kind == "macs":
        return MacCost(max(1, cost.length // model.config.subsampling), cost.batch)
    if cost.kind == "latency":
        shape = (cost.batch, cost.length, model.config.inputs)
        features = torch.randn(shape, generator=generator(config.seed, "calibration"))
        features = features.to(next(model.parameters()).device)
        lengths = torch.full((cost.batch,), cost.length)

        def run(timed: nn.Module) -> None:
            with autocast(config.precision, features.device):
                log_probs, _ = timed(features, lengths)
            log_probs.sum().backward()

        return LatencyCost(run, reps=cost.reps)
    return ParameterCost()


def saved_costs(state: Mapping[str, Any] | None) -> Costs | None:
    """The costs in a checkpoint's state; None where it has no controller."""
    costs = state["controller"].get("costs") if state and state["controller"] else None
    return costs and Costs.from_dict(costs)


def build_model(config: TrainConfig, outputs: int, inputs: int = 80) -> ConformerCTC:
    """The uniform model, or one of `config.widths`, with its initial weights, a function of the seed."""
    torch.manual_seed(derive_seed(config.seed, "initial weights"))
    model = ConformerCTC(config.model.conformer(outputs, inputs))
    if config.widths:
        set_widths(model, dict(config.widths))
    return model


def restore(
    state: Mapping[str, Any],
) -> tuple[ConformerCTC, ScoringAdamW, GrowAndDrop | None, TrainConfig]:
    """Model, optimizer, controller and config as a checkpoint's state holds them."""
    with used(state):
        config = TrainConfig.from_dict(state["config"])
        outputs, inputs = len(state["labels"]["tokens"]), state["inputs"]
        _require_held(_planned_parameters(config, outputs, inputs), state)
        model = build_model(config, outputs, inputs)
        optimizer = make_optimizer(model, config.optimizer)
        controller = make_controller(model, optimizer, config, saved_costs(state))
        load_state(state, model, optimizer, controller)
        return model, optimizer, controller, config


def _planned_parameters(config: TrainConfig, outputs: int, inputs: int) -> int:
    """Parameters of the model that a config asks for, without making it."""
    with torch.device("meta"):
        elastic = Elastic(ConformerCTC(config.model.conformer(outputs, inputs)))
    uniform = elastic.counts()
    return max(elastic.live_parameters(counts) for counts in (uniform, uniform | dict(config.widths)))


def _require_held(parameters: int, state: Mapping[str, Any]) -> None:
    """Raises ValueError where a model has far more parameters than a checkpoint: a small file must not fill memory."""
    held = sum(tensor.numel() for tensor in state["model"].values())
    if parameters > _MOST * held:
        raise ValueError(f"it describes a model of {parameters:,} parameters and holds {held:,} numbers of it")


def elastic_of(model: ConformerCTC, controller: GrowAndDrop | None, config: TrainConfig) -> Elastic:
    """The elastic modules of a model in training, or as restored: the controller's, where there is one.

    Of a model that began at `config.widths` they are those of a twin: one in which a module has no components does not
    tell its standard widths any more.
    """
    if controller is not None:
        return controller.elastic
    return set_widths(ConformerCTC(model.config), dict(config.widths)) if config.widths else Elastic(model)


def load_state(
    state: Mapping[str, Any],
    model: ConformerCTC,
    optimizer: ScoringAdamW,
    controller: GrowAndDrop | None,
) -> None:
    """Loads a checkpoint's state into what was freshly built: the widths first, then what has them."""
    if controller is not None:
        modules = state["controller"]["structure"]["modules"]
        widths = {name: int(modules[name]["components"]) for name in controller.elastic.modules}
        _require_held(controller.elastic.live_parameters(widths), state)
        controller.load_state_dict(state["controller"])
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    for parameter, kept in optimizer.state.items():  # torch takes any shapes
        for name, value in kept.items():
            expected = () if name == "step" else tuple(parameter.shape)
            if not isinstance(value, Tensor) or not value.is_floating_point() or tuple(value.shape) != expected:
                found = list(value.shape) if isinstance(value, Tensor) else value
                raise ValueError(f"optimizer: {name} must be numbers {list(expected)}, got {found}")
