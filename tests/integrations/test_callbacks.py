"""What the callbacks refuse before the first step, since it would fail, or be wrong, hours later."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from dmao.controller import GrowAndDrop
from dmao.integrations import common
from dmao.integrations.common import attach, observe
from dmao.schedule import Schedule

from dmao_kernels.nn import ConformerBlock
from dmao_kernels.structure import ScoringAdamW
from tests.integrations.test_examples import LIGHTNING, ROOT, TRANSFORMERS, example, same, seeded, without_dropout

SCHEDULE = Schedule(start=2, end=4, events=2)
DATA = torch.utils.data.DataLoader(torch.randn(8, 2, 8, 16), batch_size=None)


def block():
    return ConformerBlock(16, heads=4, head_dim=4)


def controlled(**options):
    model = block()
    return model, GrowAndDrop(model, None, Schedule(start=2), 4, **options)


def adamw(model, weight_decay=0.01):
    return torch.optim.AdamW(model.parameters(), weight_decay=weight_decay)


@pytest.fixture
def lightning():
    return pytest.importorskip("lightning", reason="lightning is not installed (make test-integrations)")


@pytest.fixture
def transformers():
    return pytest.importorskip("transformers", reason="transformers is not installed (make test-integrations)")


@pytest.fixture
def accelerate():
    return pytest.importorskip("accelerate", reason="accelerate is not installed (make test-integrations)")


def test_attaching_an_optimizer():
    model, controller = controlled()
    optimizer = ScoringAdamW(model.parameters())
    with pytest.raises(ValueError, match="one optimizer is expected, got 2"):
        attach(controller, [optimizer, optimizer], 0, 4)
    attach(controller, [optimizer], 0, 4)
    model(torch.randn(2, 7, 16)).square().sum().backward()
    observe(controller)  # the step does it
    assert controller.scores.calls == 0
    optimizer.step()
    assert controller.scores.calls == 1
    controller.adapt()
    assert all(s["exp_avg"].shape == p.shape for p, s in optimizer.state.items())


def test_an_optimizer_of_another_copy_of_the_model():
    _, controller = controlled()
    with pytest.raises(ValueError, match="is it of another copy of the model"):
        attach(controller, [adamw(block())], 0, 4)


def test_gates_do_not_decay():
    model, controller = controlled(metric="gate")
    gates = list(controller.gates.parameters())
    others = [p for name, p in model.named_parameters() if not name.endswith(".gate")]
    for optimizer in (adamw(model), torch.optim.SGD(others)):
        with pytest.raises(ValueError, match=r"'\.gate', in a group with weight_decay=0"):
            attach(controller, [optimizer], 0, 4)
    attach(controller, [torch.optim.AdamW([{"params": others}, {"params": gates, "weight_decay": 0.0}])], 0, 4)
    model, controller = controlled()
    attach(controller, [adamw(model)], 0, 4)


def test_steps_of_the_training():
    model, controller = controlled()
    optimizer = adamw(model)
    for last in (3, 4, -1, float("inf")):  # what frameworks say where they do not know
        attach(controller, [optimizer], 0, last)
    with pytest.raises(ValueError, match="total_steps must be at least 5, which the training has, got 4"):
        attach(controller, [optimizer], 0, 5)
    controller.due(1)
    for step, late in ((1, False), (1, True), (2, True)):
        attach(controller, [optimizer], step, 4, late=late)
    for step, late in ((0, True), (2, False), (3, True)):
        with pytest.raises(ValueError, match=f"begins at step {step}, but the callback is at step 1"):
            attach(controller, [optimizer], step, 4, late=late)


def test_several_processes(monkeypatch):
    (tight, of_tight), (slots, of_slots) = controlled(), controlled(storage="slots")
    attach(of_tight, [adamw(tight)], 0, 4)
    monkeypatch.setattr(common, "several", lambda: True)
    attach(of_slots, [adamw(slots)], 0, 4)
    with pytest.raises(ValueError, match="on several processes this callback needs storage='slots'"):
        attach(of_tight, [adamw(tight)], 0, 4)


def fitted(lightning, folder, **options):
    from dmao.integrations.lightning import GrowAndDropCallback

    task, adapt = example("with_lightning").Task(), GrowAndDropCallback(SCHEDULE, total_steps=6)
    trainer = lightning.Trainer(callbacks=[adapt], default_root_dir=folder, **LIGHTNING, **options)
    trainer.fit(task, DATA)
    return task, adapt, trainer


def test_lightning_callback_of_a_training_before(lightning, tmp_path):
    task, adapt, trainer = fitted(lightning, tmp_path, max_steps=5)
    assert len(adapt.controller.events) == 2
    trainer.fit_loop.epoch_loop.max_steps = 6
    trainer.fit(task, DATA)  # goes on
    assert adapt.controller.step == trainer.global_step == 6
    again = lightning.Trainer(callbacks=[adapt], default_root_dir=tmp_path, max_steps=5, **LIGHTNING)
    with pytest.raises(ValueError, match="begins at step 0, but the callback is at step 6"):
        again.fit(task, DATA)
    with pytest.raises(ValueError, match="this callback is of another module"):
        again.fit(type(task)(), DATA)


def test_lightning_longer_than_total_steps(lightning, tmp_path):
    with pytest.raises(ValueError, match="total_steps must be at least 8, which the training has, got 6"):
        fitted(lightning, tmp_path, max_epochs=1)


def in_float16(lightning, folder, optimizer, precision, scale=2.0**10):
    """The scores behind three steps."""
    from dmao.integrations.lightning import GrowAndDropCallback
    from lightning.pytorch.plugins.precision import MixedPrecision

    class Task(example("with_lightning").Task):
        def configure_optimizers(self):
            return optimizer(self.parameters())

    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    plugins = [MixedPrecision("16-mixed", "cpu", scaler)] if precision == "16-mixed" else []
    torch.manual_seed(0)
    task, adapt = Task(), GrowAndDropCallback(Schedule(start=4), total_steps=6, beta=0.5)
    options = {"default_root_dir": folder, "max_steps": 3, "plugins": plugins, **LIGHTNING}
    lightning.Trainer(callbacks=[adapt], **options).fit(task, DATA)
    return adapt.controller.scores.ema


def test_lightning_scores_unscaled_gradients(lightning, tmp_path):
    scores = [in_float16(lightning, tmp_path, torch.optim.AdamW, precision) for precision in ("32", "16-mixed")]
    torch.testing.assert_close(scores[1], scores[0], rtol=0.1, atol=1e-2 * float(scores[0].max()))
    with pytest.raises(ValueError, match="in 16-mixed the optimizer must not be fused"):
        in_float16(lightning, tmp_path, lambda parameters: torch.optim.AdamW(parameters, fused=True), "16-mixed")


def test_lightning_tests_weights_alone_after_fit(lightning, tmp_path):
    task, adapt, trainer = fitted(lightning, tmp_path, max_steps=5)
    task.test_step = task.training_step
    path = tmp_path / "weights.ckpt"
    trainer.save_checkpoint(path, weights_only=True)
    trained = {name: value.clone() for name, value in task.state_dict().items()}
    torch.nn.init.zeros_(next(task.parameters()))
    trainer.test(task, DATA, ckpt_path=path, verbose=False)
    assert all(torch.equal(value, trained[name]) for name, value in task.state_dict().items())
    assert adapt.controller.step == 5


def trainer_of(transformers, folder, evaluate=False, init=None, **settings):
    """A Trainer of 6 steps with a callback, and the callback."""
    from dmao.integrations.transformers import GrowAndDropCallback

    options = dict(TRANSFORMERS, max_steps=6, learning_rate=1e-2, per_device_train_batch_size=2)
    if evaluate:
        options |= {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 1, "save_steps": 1}
    module = example("with_transformers")
    model, settings = module.Model(), {"total_steps": 6, **settings}
    callback = GrowAndDropCallback(model, SCHEDULE, **settings)
    data = [{"x": x, "labels": x.roll(1, dims=0)} for x in torch.randn(12, 8, 16)]
    given = {"model_init": module.Model} if init else {"model": model}
    arguments = transformers.TrainingArguments(str(folder), **options)
    trainer = transformers.Trainer(args=arguments, train_dataset=data, eval_dataset=data, callbacks=[callback], **given)
    return trainer, callback


def test_transformers_refusals(transformers, tmp_path):
    for options, message in (
        ({"total_steps": 5}, "total_steps must be at least 6, which the training has, got 5"),
        ({"init": True}, "is it of another copy of the model"),
        ({"evaluate": True}, "load_best_model_at_end needs storage='slots'"),
    ):
        trainer, callback = trainer_of(transformers, tmp_path, **options)
        with pytest.raises(ValueError, match=message):
            trainer.train()
        assert callback.controller.scores.calls == 0


def test_transformers_unscale_where_they_clip(transformers, tmp_path):
    trainer, callback = trainer_of(transformers, tmp_path)
    trainer.args.fp16, trainer.args.max_grad_norm = True, 0.0
    with pytest.raises(ValueError, match=r"with fp16 max_grad_norm must be above 0, got 0\.0"):
        trainer.train()
    assert callback.controller.scores.calls == 0


def test_transformers_loads_the_best_of_other_slots(transformers, tmp_path):
    """The first checkpoint is the best, from before the events: its lists of live slots come with its weights."""
    trainer, callback = seeded(trainer_of, transformers, tmp_path, evaluate=True, storage="slots")
    before = callback.controller.elastic.counts()
    trainer.evaluate = worse_every_time(trainer)
    trainer.train()
    assert [event.step for event in callback.controller.events] == [2, 4]
    assert any(event.counts_after != before for event in callback.controller.events)
    assert callback.controller.elastic.counts() == before
    fresh, _ = trainer_of(transformers, tmp_path, storage="slots")
    weights = pytest.importorskip("safetensors.torch").load_file(tmp_path / "checkpoint-1" / "model.safetensors")
    fresh.model.load_state_dict(weights)
    assert same(trainer.model, fresh.model)


def worse_every_time(trainer):
    losses = iter(range(1, 100))

    def evaluate(*_, **__):
        metrics = {"eval_loss": float(next(losses))}
        trainer.control = trainer.callback_handler.on_evaluate(trainer.args, trainer.state, trainer.control, metrics)
        return metrics

    return evaluate


def test_all_ranks_ask_for_the_state(accelerate, transformers, tmp_path):
    """It sums up over them where parameters are sharded; the first one alone writes."""
    from dmao.integrations.accelerate import checkpoint_with
    from dmao.integrations.transformers import GrowAndDropCallback

    asked, hooks = [], []
    controller = SimpleNamespace(state_dict=lambda: asked.append(1) or {"step": 3})
    checkpoint_with(
        SimpleNamespace(
            is_main_process=False, register_save_state_pre_hook=hooks.append, register_load_state_pre_hook=id
        ),
        controller,
    )
    hooks[0]([], [], str(tmp_path))
    assert len(asked) == 1
    callback = object.__new__(GrowAndDropCallback)
    callback.controller = controller
    callback.on_save(SimpleNamespace(should_save=False, output_dir=tmp_path), SimpleNamespace(global_step=3), None)
    assert len(asked) == 2
    assert not list(tmp_path.iterdir())


def test_ranks_go_on_as_one_after_an_event(lightning, accelerate, tmp_path):
    """Slots storage keeps what DistributedDataParallel knows of; with accelerate a new wrapper does it."""
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*launch, "-m", "tests.integrations.several_ranks", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment | {"GLOO_SOCKET_IFNAME": "lo"},
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    for rank in range(2):
        for train in ("slots_with_lightning", "tight_with_accelerate"):
            assert f"rank {rank}: {train}: equal" in result.stdout
    assert (tmp_path / "grow_and_drop.pt").exists()


def averaged(lightning, folder, kind, storage="tight", behind=True, checkpoint=None, steps=16, last=None, **settings):
    """Trained in epochs of 4 steps, with events after 6 and 10, beside a callback that averages.

    Returns the module in the end, the controller and the average.  last: takes the module's state after the last step.
    """
    from dmao.integrations.lightning import GrowAndDropCallback
    from lightning.pytorch import callbacks

    class Task(example("with_lightning").Task):
        def training_step(self, x, index):
            # which batch comes after a resumption is the loader's affair
            seed = torch.Generator().manual_seed(self.global_step)
            return super().training_step(torch.randn(x.shape, generator=seed), index)

        def on_train_batch_end(self, *batch):
            if last is not None:
                last.update({name: value.clone() for name, value in self.state_dict().items()})

    average = {
        "ema": lambda: callbacks.EMAWeightAveraging(decay=0.5),
        "mean": lambda: callbacks.WeightAveraging(use_buffers=False),
        "swa": lambda: callbacks.StochasticWeightAveraging(1e-2, swa_epoch_start=1),
    }[kind]()
    schedule = Schedule(start=6, end=10, events=2, fraction=0.5)
    adapt = GrowAndDropCallback(schedule, 16, storage=storage, **settings)
    saver = callbacks.ModelCheckpoint(folder, "{step}", every_n_epochs=1, save_top_k=-1)
    pair = [adapt, average] if behind else [average, adapt]
    options = {"max_steps": steps, "callbacks": [*pair, saver], "default_root_dir": folder, **LIGHTNING}
    data = torch.utils.data.DataLoader(DATA.dataset[:4], batch_size=None)
    task = Task()
    lightning.Trainer(**options).fit(task, data, ckpt_path=checkpoint)
    return task, adapt.controller, getattr(average, "_average_model", None)


@pytest.mark.parametrize(
    ("kind", "storage", "behind"),
    [
        *(("ema", storage, behind) for storage in ("tight", "slots") for behind in (True, False)),
        ("mean", "slots", False),
        ("swa", "tight", True),
        ("swa", "slots", False),
    ],
)
def test_lightning_edits_averages_along(lightning, tmp_path, monkeypatch, kind, storage, behind):
    """An average that was not has another shape behind an event, or, in slots, components in other places."""
    without_dropout(monkeypatch)
    last = {}
    options = {"kind": kind, "storage": storage, "behind": behind}
    task, controller, average = seeded(averaged, lightning, tmp_path / "whole", last=last, **options)
    assert [event.step for event in controller.events] == [6, 10]
    assert same(task, getattr(average, "module", average))  # Lightning leaves it in the module
    averages = task.state_dict()
    assert all(value.shape == averages[name].shape for name, value in last.items())
    matrices = {name: value for name, value in last.items() if value.dim() == 2}
    assert all((value - averages[name]).norm() <= 0.5 * value.norm() for name, value in matrices.items())
    assert not any(torch.equal(value, averages[name]) for name, value in matrices.items() if value.any())

    seeded(averaged, lightning, tmp_path / "half", steps=12, **options)
    torch.manual_seed(1)
    checkpoint, whole = tmp_path / "half" / "step=12.ckpt", dict(last)
    resumed, _, _ = averaged(lightning, tmp_path, checkpoint=checkpoint, last=last, **options)
    assert all(torch.equal(value, whole[name]) for name, value in last.items())
    assert kind == "swa" or same(resumed, task)  # which Lightning averages a little differently after a resumption


def test_lightning_averages_on_another_device(lightning, tmp_path):
    from dmao.integrations.lightning import GrowAndDropCallback
    from lightning.pytorch import callbacks

    adapt = GrowAndDropCallback(Schedule(start=6, fraction=0.5), 16, storage="slots")
    average = callbacks.StochasticWeightAveraging(1e-2, swa_epoch_start=1, device="meta")
    trainer = lightning.Trainer(max_steps=16, callbacks=[adapt, average], default_root_dir=tmp_path, **LIGHTNING)
    with pytest.raises(
        ValueError, match="must keep its average on the model's device, cpu, got meta: give it device=None"
    ):
        trainer.fit(example("with_lightning").Task(), DATA)


def test_lightning_averages_that_cannot_be_found(lightning, tmp_path):
    from dmao.integrations.lightning import GrowAndDropCallback
    from lightning.pytorch import callbacks

    class Late(callbacks.EMAWeightAveraging):
        def setup(self, trainer, pl_module, stage):
            pass

    adapt = GrowAndDropCallback(SCHEDULE, total_steps=6)
    options = {"max_steps": 6, "callbacks": [Late(), adapt], "default_root_dir": tmp_path, **LIGHTNING}
    with pytest.raises(ValueError, match=r"the average of Late must be its _average_model .*, got None: leave"):
        lightning.Trainer(**options).fit(example("with_lightning").Task(), DATA)
    with pytest.raises(TypeError, match="companions must be of class Sequence, got a Linear"):
        GrowAndDropCallback(SCHEDULE, total_steps=6, companions=torch.nn.Linear(1, 1))
