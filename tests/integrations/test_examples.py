"""The examples run, adapt, and go on from the checkpoints of their framework as if nothing had happened."""

import importlib.util
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
LIGHTNING = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
TRANSFORMERS = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "save_strategy": "steps"}


def example(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def seeded(function, *arguments, **options):
    torch.manual_seed(0)
    return function(*arguments, **options)


def same(ours, theirs):
    ours, theirs = ours.state_dict(), theirs.state_dict()
    assert ours.keys() == theirs.keys()
    return all(torch.equal(value, theirs[name]) for name, value in ours.items())


def without_dropout(monkeypatch):
    """So that a resumed run has nothing to draw: what a framework does with generators is its own affair."""
    from dmao_kernels.nn import ConformerBlock

    create = ConformerBlock.__init__
    monkeypatch.setattr(ConformerBlock, "__init__", lambda self, *a, **k: create(self, *a, **k, dropout=0.0))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_short(path):
    lines = [line for line in path.read_text().splitlines() if line.strip()]
    assert len(lines) <= 31


def test_plain_loop(tmp_path, monkeypatch, capsys):
    without_dropout(monkeypatch)
    main = example("plain_loop").main
    whole = seeded(main, tmp_path / "whole.pt")
    printed = capsys.readouterr().out
    assert printed.count("event") == 2
    seeded(main, tmp_path / "half.pt", steps=20)
    torch.manual_seed(1)
    assert same(main(tmp_path / "half.pt"), whole)
    assert capsys.readouterr().out.count("event") == 2


def test_lightning(tmp_path, monkeypatch):
    pytest.importorskip("lightning", reason="lightning is not installed (make test-integrations)")
    without_dropout(monkeypatch)
    module = example("with_lightning")
    main, step = module.main, module.Task.training_step

    def batch_of_the_step(task, x, index):
        """Which batch comes after a resumption is the loader's affair."""
        return step(task, torch.randn(x.shape, generator=torch.Generator().manual_seed(task.global_step)), index)

    module.Task.training_step = batch_of_the_step
    whole, controller = seeded(main, tmp_path / "whole", **LIGHTNING)
    assert [event.step for event in controller.events] == [12, 28]
    seeded(main, tmp_path / "half", steps=20, **LIGHTNING)
    torch.manual_seed(1)
    (checkpoint,) = (tmp_path / "half" / "checkpoints").glob("*.ckpt")  # what Lightning itself saves after an epoch
    resumed, controller = main(tmp_path / "resumed", checkpoint, **LIGHTNING)
    assert [event.step for event in controller.events] == [12, 28]
    assert same(resumed, whole)


def test_lightning_tests_what_was_trained(tmp_path):
    lightning = pytest.importorskip("lightning", reason="lightning is not installed (make test-integrations)")
    from dmao.integrations.lightning import GrowAndDropCallback
    from dmao.schedule import Schedule

    module = example("with_lightning")
    module.Task.test_step = module.Task.training_step
    trained, controller = module.main(tmp_path, **LIGHTNING)
    assert controller.events
    (checkpoint,) = (tmp_path / "checkpoints").glob("*.ckpt")
    task, data = module.Task(), torch.utils.data.DataLoader(torch.randn(2, 2, 8, 16), batch_size=None)
    adapt = GrowAndDropCallback(Schedule(start=0.3, end=0.7, events=2), total_steps=40)
    trainer = lightning.Trainer(callbacks=[adapt], default_root_dir=tmp_path, **LIGHTNING)
    trainer.test(task, data, ckpt_path=checkpoint, verbose=False)
    assert same(task.model, trained)
    adapt = GrowAndDropCallback(Schedule(start=0.3), total_steps=40)
    trainer = lightning.Trainer(callbacks=[adapt], default_root_dir=tmp_path, **LIGHTNING)
    trainer.test(task, data, ckpt_path=checkpoint, verbose=False)  # which has these widths already
    assert same(task.model, trained)
    assert adapt.controller is None


def test_lightning_tests_what_needs_no_widths(tmp_path):
    """A module as it is, here in slots storage, and a checkpoint of uniform widths."""
    lightning = pytest.importorskip("lightning", reason="lightning is not installed (make test-integrations)")
    from dmao.integrations.lightning import GrowAndDropCallback
    from dmao.schedule import Schedule

    from dmao_kernels.structure import Elastic

    module = example("with_lightning")
    module.Task.test_step = module.Task.training_step
    data = torch.utils.data.DataLoader(torch.randn(2, 2, 8, 16), batch_size=None)
    uniform, checkpoint = module.Task(), tmp_path / "uniform.ckpt"
    trainer = lightning.Trainer(max_steps=1, default_root_dir=tmp_path, **LIGHTNING)
    trainer.fit(uniform, data)
    trainer.save_checkpoint(checkpoint)
    for task, path in ((module.Task(), checkpoint), (module.Task(), None)):
        if path is None:
            Elastic(task, storage="slots")
        adapt = GrowAndDropCallback(Schedule(start=0.3), total_steps=40)
        trainer = lightning.Trainer(callbacks=[adapt], default_root_dir=tmp_path, **LIGHTNING)
        trainer.test(task, data, ckpt_path=path, verbose=False)
        assert path is None or same(task.model, uniform.model)


def test_lightning_checkpoint_without_the_callback(tmp_path):
    lightning = pytest.importorskip("lightning", reason="lightning is not installed (make test-integrations)")
    module = example("with_lightning")
    trainer = lightning.Trainer(max_steps=1, default_root_dir=tmp_path, **LIGHTNING)
    trainer.fit(module.Task(), torch.utils.data.DataLoader(torch.randn(2, 2, 8, 16), batch_size=None))
    trainer.save_checkpoint(tmp_path / "without.ckpt")
    with pytest.raises(ValueError, match="saved without this callback"):
        module.main(tmp_path, tmp_path / "without.ckpt", **LIGHTNING)


def test_transformers(tmp_path, monkeypatch):
    pytest.importorskip("transformers", reason="transformers is not installed (make test-integrations)")
    without_dropout(monkeypatch)
    module = example("with_transformers")
    whole, controller = seeded(module.main, str(tmp_path / "whole"), **TRANSFORMERS)
    assert [event.step for event in controller.events] == [12, 28]
    schedule = {"lr_scheduler_type": "constant"}  # the default one depends on the number of steps
    whole, _ = seeded(module.main, str(tmp_path / "whole"), **TRANSFORMERS, **schedule)
    seeded(module.main, str(tmp_path / "half"), steps=20, **TRANSFORMERS, **schedule)
    torch.manual_seed(1)
    checkpoint = str(tmp_path / "half" / "checkpoint-20")
    resumed, controller = module.main(str(tmp_path / "half"), checkpoint, **TRANSFORMERS, **schedule)
    assert [event.step for event in controller.events] == [12, 28]
    assert same(resumed, whole)


def test_transformers_wants_to_know_what_it_resumes(tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed (make test-integrations)")
    from dmao.integrations.transformers import GrowAndDropCallback

    module = example("with_transformers")
    seeded(module.main, str(tmp_path), steps=5, **TRANSFORMERS)
    create = GrowAndDropCallback.__init__

    def forgets(self, *arguments, resume, **options):
        create(self, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GrowAndDropCallback, "__init__", forgets)
        with pytest.raises(ValueError, match="begins at step 5, but the callback is at step 0"):
            module.main(str(tmp_path), str(tmp_path / "checkpoint-5"), **TRANSFORMERS)


def test_accelerate(tmp_path, monkeypatch):
    pytest.importorskip("accelerate", reason="accelerate is not installed (make test-integrations)")
    without_dropout(monkeypatch)
    main = example("with_accelerate").main
    whole, controller = seeded(main, str(tmp_path / "whole"))
    assert [event.step for event in controller.events] == [12, 28]
    seeded(main, str(tmp_path / "half"), steps=range(1, 21))
    torch.manual_seed(1)
    resumed, controller = main(str(tmp_path / "half"), str(tmp_path / "half"), steps=range(21, 41))
    assert [event.step for event in controller.events] == [12, 28]
    assert same(resumed, whole)
