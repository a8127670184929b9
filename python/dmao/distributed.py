"""One training on several processes: DistributedDataParallel under torchrun.

Every rank holds the whole model and learns from its share of each batch's utterances; the gradients are those of the
whole batch. Scores are averaged over the ranks at an event, and the plans that come out are compared, so that the ranks
cannot come to different widths.
"""

from __future__ import annotations

import gc
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dmao.errors import UserError
from dmao_kernels.structure import Elastic
from dmao_kernels.structure.places import uncompiled

if TYPE_CHECKING:
    from dmao.data.loader import Batch

# The others wait for the first rank while it decodes the evaluation splits. A rank that dies ends the job all the
# same: torchrun sees to that.
PATIENCE = timedelta(hours=6)
CPU = torch.device("cpu")


def device_of(wanted: str) -> torch.device:
    """The device that a config asks for: "cpu", "cuda" or "auto"; on several GPUs that of this process.

    Raises UserError where it is "cuda" and there is none.
    """
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError("device is cuda, but PyTorch finds no GPU; take cpu, or auto")
    own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    torch.cuda.set_device(own)
    return own


def several() -> bool:
    """Whether this process is one of several of torch.distributed."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside of a DistributedDataParallel, compiled or not; any other model itself."""
    wrapper = _wrapper(model)
    return uncompiled(model) if wrapper is None else wrapper.module


def refuse_wrapper(model: nn.Module | Elastic, what: str) -> None:
    """Raises ValueError where `model` is a DistributedDataParallel, as `what` changes parameters that it counts on."""
    if _wrapper(model) is not None:
        raise ValueError(
            f"GrowAndDrop: {what} changes parameters that DistributedDataParallel counts on: give the model itself, "
            "and wrap it afterwards"
        )


def retire_wrappers(elastic: Elastic) -> None:
    """Let every DistributedDataParallel that now wraps some of `elastic`'s modules refuse to compute with gradients.

    Called where their parameters were changed: it would look for gradients of the old shapes, or with
    find_unused_parameters average none at all, in silence. What gc.freeze() has hidden is not found.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    changed = {id(m.module) for m in elastic.modules.values()}
    for wrapper in _all_wrappers():
        if any(id(part) in changed for part in wrapper.modules()):
            wrapper.register_forward_pre_hook(_refuse)


def _all_wrappers() -> list[DistributedDataParallel]:
    """Those of this process, whoever made them, and when: a module does not know what wraps it.

    An instance refers to its class, so the garbage collector knows. A hook on the model instead would not be run where
    the model is compiled, and would be copied, exported and pickled with it.
    """
    kinds: list[type] = [DistributedDataParallel]
    for kind in kinds:
        kinds += type.__subclasses__(kind)
    found = [each for each in gc.get_referrers(*kinds) if type(each) in kinds]
    return [wrapper for wrapper in found if "module" in vars(wrapper).get("_modules", ())]  # else its making failed


def _refuse(wrapper: nn.Module, inputs: Any) -> None:
    if not torch.is_grad_enabled():  # it passes on to the model
        return
    raise RuntimeError(
        "GrowAndDrop: the model was edited, by an event, a loaded state, slots storage or gates, after "
        "DistributedDataParallel had wrapped it: go on with dmao.distributed.rewrap of the wrapper"
    )


def _wrapper(model: nn.Module | Elastic) -> DistributedDataParallel | None:
    inside = uncompiled(model) if isinstance(model, nn.Module) else None
    return inside if isinstance(inside, DistributedDataParallel) else None


def wrap(model: nn.Module) -> nn.Module:
    """`model` in a DistributedDataParallel where there are several processes, else the model itself.

    An event changes shapes that the wrapper counts on: call this again after each.
    """
    if not several():
        return model
    # Buffers are equal on all ranks. A module without components leaves its shared parameters without gradients.
    return _wrapped(model, broadcast_buffers=False, find_unused_parameters=_has_empty(model))


def rewrap(wrapped: nn.Module) -> nn.Module:
    """A new wrapper with the options of `wrapped`, which counts on the shapes from before an event.

    Parameters without gradients are looked for where a module has lost all its components. Communication hooks and
    mixed_precision are not carried over: a hook is to be registered again, and a compiled wrapper compiled. A model
    that is no DistributedDataParallel, as on a single process, is given back as it is.
    """
    if (old := _wrapper(wrapped)) is None:
        return wrapped
    return _wrapped(
        old.module,
        device_ids=old.device_ids,
        output_device=old.output_device,
        dim=old.dim,
        process_group=old.process_group,
        bucket_cap_mb=old.bucket_bytes_cap / 2**20,
        find_unused_parameters=old.find_unused_parameters or _has_empty(old.module),
        gradient_as_bucket_view=old.gradient_as_bucket_view,
        static_graph=old.static_graph,
        broadcast_buffers=old.broadcast_buffers,
    )


def _wrapped(model: nn.Module, **options: Any) -> DistributedDataParallel:
    with warnings.catch_warnings():
        # PyTorch 2.13 would rather have another argument, which still copies the first rank's buffers when it is made
        warnings.filterwarnings("ignore", ".*broadcast_buffers", FutureWarning)
        return DistributedDataParallel(model, **options)


def _has_empty(model: nn.Module) -> bool:
    return any(p.requires_grad and p.numel() == 0 for p in model.parameters())


def averaged(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mean of the ranks' scores, the same to the bit on all of them. One exchange of a number per component."""
    if not several():
        return dict(scores)
    total = torch.cat([values.double() for values in scores.values()])
    dist.all_reduce(total)
    mean = (total / dist.get_world_size()).float()
    return dict(zip(scores, mean.split([len(values) for values in scores.values()]), strict=True))


def first_ranks(value: dict[str, Any]) -> dict[str, Any]:
    """The first rank's value, on all of them: of what is measured, and so differs a little."""
    if not several():
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def require_same(what: str, digest: str) -> None:
    """Raises RuntimeError, on every rank, unless all ranks hold the same digest."""
    if not several():
        return
    found: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(found, digest)
    if different := [rank for rank, other in enumerate(found) if other != found[0]]:
        raise RuntimeError(
            f"{what} differs between ranks: rank 0 has {found[0][:12]}, rank {different[0]} has "
            f"{found[different[0]][:12]}; do all ranks have the same model, settings and seed?"
        )


@dataclass(frozen=True)
class Team:
    """The processes of one training. Of a single one, everything here changes nothing."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the rank that writes records and checkpoints."""
        return self.rank == 0

    def share(self, batch: Batch) -> tuple[Batch, float]:
        """This rank's utterances of a batch, and their weight: 0 where it has none and gets one of another's."""
        if self.size == 1:
            return batch, 1.0
        mine = list(range(self.rank, len(batch.ids), self.size))
        return (_part(batch, mine), 1.0) if mine else (_part(batch, [0]), 0.0)

    def total(self, values: Sequence[float]) -> list[float]:
        """The sums over all ranks."""
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(sums)
        return [float(value) for value in sums]

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def team(device: torch.device = CPU) -> Iterator[Team]:
    """The processes that torchrun started (it says so in the environment), or that have found each other already.

    device: of the model; tensors on GPUs are exchanged through NCCL.
    """
    started = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized()
    if started:
        backend = "gloo" if device.type == "cpu" else f"cpu:gloo,{device.type}:nccl"
        dist.init_process_group(backend, timeout=PATIENCE)
    mine = Team(dist.get_rank(), dist.get_world_size()) if several() else Team()
    if not mine.leads:
        logging.getLogger("dmao").setLevel(logging.ERROR)
    try:
        yield mine
    finally:
        if started:
            dist.destroy_process_group()


def _part(batch: Batch, utterances: list[int]) -> Batch:
    lengths = batch.feature_lengths[utterances]
    targets = batch.targets.split(batch.target_lengths.tolist())
    return replace(
        batch,
        features=batch.features[utterances, : int(lengths.max())],
        feature_lengths=lengths,
        targets=torch.cat([targets[i] for i in utterances]),
        target_lengths=batch.target_lengths[utterances],
        ids=tuple(batch.ids[i] for i in utterances),
        texts=tuple(batch.texts[i] for i in utterances),
    )
