"""AdamW whose step takes the gradients into the scores on its way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from dmao_kernels.ops.adamw_importance import adamw_importance_
from dmao_kernels.structure.scores import Scores

_NOT_SUPPORTED = ("amsgrad", "capturable", "differentiable")
_ONLY_SCORED = dict.fromkeys(("step", "exp_avg", "exp_avg_sq"), torch.empty(0, device="cpu"))


class ScoringAdamW(torch.optim.AdamW):
    """torch.optim.AdamW, in one pass over memory for all parameters, which takes the gradients into ``scores`` as well.

    >>> optimizer = ScoringAdamW(model.parameters(), lr=1e-3)
    >>> optimizer.scores = Scores(Elastic(model))  # GrowAndDrop does this itself
    >>> loss.backward()
    >>> optimizer.step()  # in place of scores.update(); optimizer.step()

    The scores are those of ``scores.update()`` before the step, to the bit. State, ``param_groups`` and state dict are
    those of torch.optim.AdamW: each loads the other's, and ``apply_plan`` edits them. Without scores it is AdamW.

    Parameters are float32, bfloat16 or float16, contiguous, and so are their moments; gradients are dense. Of AdamW's
    options amsgrad, capturable and differentiable are not there; foreach and fused, which choose an implementation,
    have no meaning here and are passed over in loaded states. torch.amp.GradScaler works as with an optimizer that does
    not know of it: a step that it leaves out scores nothing; beside other optimizers, unscale all of them first.

    scores: taken from all gradients of its model; parameters that this optimizer does not update are scored, too.
    """

    scores: Scores | None

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        maximize: bool = False,
        scores: Scores | None = None,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, maximize=maximize)
        self.scores = scores

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "scores": self.scores}

    @overload
    def step(self, closure: None = None, *, grad_factor: Tensor | None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float], *, grad_factor: Tensor | None = None) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None, *, grad_factor: Tensor | None = None) -> float | None:
        """Updates all parameters that have a gradient, and the scores.

        closure: computes the loss anew and returns it.
        grad_factor: float32 [], by which the update multiplies every gradient, for example to clip their norm; the
            scores are those of the gradients as they are.

        Raises ValueError where a group asks for what is not supported, or a parameter or gradient is not as above.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        rows = {p: row for row, group in enumerate(self.param_groups) for p in group["params"] if p.grad is not None}
        if self.scores is not None and self.scores.partial:
            raise RuntimeError("ScoringAdamW: parameters are sharded: use torch.optim.AdamW, and score by observe()")
        scored, arguments = (self.scores.begin_update() if self.scores is not None else None) or ((), None)
        # What is scored comes first: segments count these tensors.
        params = list(dict.fromkeys((*scored, *rows)))
        if not params:
            return loss
        states = [self._state_of(p) if p in rows else _ONLY_SCORED for p in params]
        adamw_importance_(
            params,
            [_gradient(p) for p in params],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [state["step"] for state in states],
            torch.tensor([_numbers(group) for group in self.param_groups], dtype=torch.float64, device="cpu"),
            torch.tensor([rows.get(p, 0) for p in params], device="cpu"),
            **(arguments or _no_scores(params[0].device)),
            grad_factor=grad_factor,
        )
        return loss

    def _state_of(self, param: Tensor) -> dict[str, Tensor]:
        """Step and moments, as torch.optim.AdamW begins them: on a GPU as with fused=True, so that nobody waits."""
        state: dict[str, Tensor] = self.state[param]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=param.device)
            state["exp_avg"] = torch.zeros_like(param, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(param, memory_format=torch.preserve_format)
        return state


def _no_scores(device: torch.device) -> dict[str, Tensor]:
    nothing = torch.empty(0, device=device)
    segments = torch.empty(0, 5, dtype=torch.int64, device="cpu")
    return {"ema": nothing, "segments": segments, "inverse_count": nothing}


def _gradient(param: Tensor) -> Tensor:
    grad = param.grad
    if grad is None:
        return param.new_empty(0)
    if grad.is_sparse:
        raise ValueError("ScoringAdamW: gradients must be dense, got a sparse one; torch.optim.SparseAdam takes these")
    return grad


def _numbers(group: Mapping[str, Any]) -> tuple[float, ...]:
    """A group's row of adamw_importance_'s table."""
    for option in _NOT_SUPPORTED:
        if group[option]:
            raise ValueError(f"ScoringAdamW: {option} is not supported; torch.optim.AdamW has it")
    beta1, beta2 = group["betas"]
    numbers = (group["lr"], beta1, beta2, group["eps"], group["weight_decay"], group["maximize"])
    return tuple(float(number) for number in numbers)
