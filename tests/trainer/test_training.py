"""The training line on a tiny model: what is logged, what is skipped, what both arms share."""

from __future__ import annotations

import json

import pytest
import torch
from dmao import checkpoint
from dmao.config import ConfigError, load_config
from dmao.evaluate import evaluate, load_model
from dmao.metrics import read_json_lines
from dmao.models import ConformerCTC
from dmao.overhead import Median, measure_overhead, step_times
from dmao.step import TrainingStep, _cost_model, build_model, make_controller, make_optimizer, restore
from dmao.trainer import TrainingFailed, train

from dmao_kernels import compact
from dmao_kernels.structure import Costs, LatencyCost
from tests.trainer.tiny import BINS, WORDS, TinySource, losses, tiny_config


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    return train(tiny_config("eval_splits=[test]"), tmp_path_factory.mktemp("dmao"), TinySource())


@pytest.fixture(scope="module")
def uniform(tmp_path_factory):
    return train(tiny_config().baseline(), tmp_path_factory.mktemp("baseline"), TinySource())


def rows_of(result, kind):
    return [row for row in read_json_lines(result.run_dir / "metrics.jsonl") if row["kind"] == kind]


def test_both_arms_are_equal_until_the_first_event(grown, uniform):
    first = grown.events[0]["step"]
    with_events, without = losses(rows_of(grown, "train")), losses(rows_of(uniform, "train"))
    assert with_events[:first] == without[:first]
    assert with_events[first + 1 :] != without[first + 1 :]
    assert uniform.events == []
    assert set(uniform.component_counts.values()) == {4}


def test_what_a_run_writes(grown):
    config = load_config(grown.run_dir / "config.yaml")
    assert config == tiny_config("eval_splits=[test]")
    row = rows_of(grown, "train")[-1]
    assert row["step"] == 24
    assert row["lr"] == config.learning_rate.at(24, 24)
    assert {"loss", "grad_norm", "step_ms", "data_ms", "frames", "labels", "epoch", "skipped"} <= row.keys()
    assert [event["step"] for event in grown.events] == [9, 17]
    assert [row["step"] for row in read_json_lines(grown.run_dir / "scores.jsonl")] == [4, 8, 12, 16, 20, 24]
    assert [row["step"] for row in rows_of(grown, "health")] == [12, 16, 20, 24]
    assert len(checkpoint.list_checkpoints(grown.run_dir / "checkpoints")) == 2
    assert grown.checkpoint == checkpoint.list_checkpoints(grown.run_dir / "checkpoints")[0]


def test_events_keep_the_size_and_say_what_they_did(grown, uniform):
    for event in grown.events:
        assert json.loads(json.dumps(event)) == event
        assert event["counts_before"] != event["counts_after"]
        assert event["dropped"] > 0
        assert event["grown"] > 0
        assert len(event["digest"]) == 64
        assert uniform.parameters - 700 < event["parameters"] <= uniform.parameters  # a component: 268 to 612
        assert {name: len(scores) for name, scores in event["scores"].items()} == event["counts_before"]
    assert grown.component_counts == grown.events[-1]["counts_after"]
    assert grown.parameters == grown.events[-1]["parameters"]


def test_copies_part_from_their_sources(grown):
    first, last = rows_of(grown, "health")[0]["copy_cosine"], rows_of(grown, "health")[1]["copy_cosine"]
    name = next(iter(first))
    assert max(last[name]["input"]) < max(first[name]["input"]) < 1
    assert max(first[name]["output"]) < 0.9


def test_evaluation_of_the_run_and_of_its_checkpoint_agree(grown):
    logged = rows_of(grown, "eval")
    assert [(row["split"], row["step"]) for row in logged] == [("test", 24)]
    for path in (grown.run_dir, grown.checkpoint):
        result = evaluate(path, "test", TinySource()).to_dict()
        assert result == grown.evaluations["test"]
    assert result["utterances"] == 12
    assert result["words"] == 24
    assert 0 < result["ce"] < 10


def test_load_model_has_the_grown_widths(grown):
    model = load_model(grown.run_dir)
    assert not model.training
    assert sum(p.numel() for p in model.parameters()) != sum(p.numel() for p in _fresh_model().parameters())


def test_learns_to_read(tmp_path):
    config = tiny_config("steps=150", "checkpoint_every=150", "eval_splits=[train]", "spec_augment=null")
    result = train(config, tmp_path, TinySource())
    assert result.evaluations["train"]["wer"] < 30
    assert losses(rows_of(result, "train"))[-1][1] < 0.5 * losses(rows_of(result, "train"))[0][1]


def test_a_model_trained_in_slots_is_compacted(tmp_path):
    result = train(tiny_config("grow_and_drop.storage=slots"), tmp_path, TinySource())
    batch = next(TinySource().train_batches(0))
    model = load_model(tmp_path)
    with torch.no_grad():
        kept = restore(checkpoint.load(result.checkpoint))[0].eval()(batch.features, batch.feature_lengths)
        for plain in (model, compact(model)):
            log_probs, lengths = plain(batch.features, batch.feature_lengths)
            assert lengths.tolist() == kept[1].tolist()
            for ours, theirs, length in zip(log_probs, kept[0], lengths, strict=True):
                torch.testing.assert_close(ours[:length], theirs[:length])


@pytest.mark.parametrize(
    "overrides",
    [
        ["precision=bf16"],
        ["grow_and_drop.metric=gate", "grow_and_drop.gate_penalty=0.1"],
        ["grow_and_drop.selection=paper", "grow_and_drop.split=halves", "grow_and_drop.observe_every=3"],
        ["grow_and_drop.scope=component", "grow_and_drop.revive=true", "optimizer.clip=null"],
        ["grow_and_drop.cost={kind: macs, length: 80}", "grow_and_drop.budget=0.9", "grow_and_drop.max_growth=0.2"],
        [
            "grow_and_drop.schedule={earliest: 4, latest: 17, every: 3, threshold: 0.5, patience: 1, events: 2}",
            "grow_and_drop.max_width=1.5",
            "grow_and_drop.align=8",
        ],
        ["grow_and_drop.storage=slots", "grow_and_drop.headroom=1.5"],
    ],
)
def test_other_settings_train_and_resume(tmp_path, overrides):
    config = tiny_config("steps=19", *overrides)
    whole = train(config, tmp_path / "whole", TinySource())
    assert len(whole.events) == 2
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "parts", _SourceThatStops(13))
    train(config, tmp_path / "parts", TinySource())
    assert losses(list(read_json_lines(tmp_path / "parts" / "metrics.jsonl"))) == losses(rows_of(whole, "train"))
    batch = next(TinySource().train_batches(0))
    outputs = [load_model(tmp_path / run)(batch.features, batch.feature_lengths)[0] for run in ("whole", "parts")]
    assert torch.equal(*outputs)
    assert outputs[0].isfinite().all()


def test_a_calibration_is_made_once_and_saved(tmp_path, monkeypatch):
    calibrations = []

    def measure(self, elastic):
        calibrations.append(self.reps)
        own = {name: 1000 + 300 * i for i, name in enumerate(elastic.modules)}
        return Costs("ns", own, dict.fromkeys(own, 50 * len(calibrations)), 9999, measured=True)

    monkeypatch.setattr(LatencyCost, "measure", measure)
    config = tiny_config("steps=19", "grow_and_drop.cost={kind: latency, reps: 7}", "grow_and_drop.budget=0.8")
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path, _SourceThatStops(13))
    result = train(config, tmp_path, TinySource())
    assert calibrations == [7]
    assert [event["unit"] for event in result.events] == ["ns", "ns"]
    start = result.events[0]["cost_before"]
    assert all(event["cost"] <= int(0.8 * start) for event in result.events)
    assert restore(checkpoint.load_latest(tmp_path / "checkpoints")[1])[2].costs.fixed == 9999
    assert calibrations == [7]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("budget=10", "config: grow_and_drop: GrowAndDrop: budget must be at least"),
        ("align=64", "config: grow_and_drop: groups: blocks.0.conv: align=64 needs a multiple of 16 components"),
    ],
)
def test_what_the_model_does_not_allow_is_a_line_about_the_config(override, message):
    config = tiny_config(f"grow_and_drop.{override}")
    model = _fresh_model()
    with pytest.raises(ConfigError) as caught:
        make_controller(model, make_optimizer(model, config.optimizer), config)
    assert str(caught.value).startswith(message)


def test_what_latency_is_timed_on():
    """The calibration's pass runs through every module, in the training's precision."""
    config = tiny_config("precision=bf16", "grow_and_drop.cost={kind: latency, length: 40, batch: 2}")
    model = _fresh_model()
    cost = _cost_model(model, config)
    cost.example(model)
    assert all(p.grad is not None for p in model.parameters())


def test_bf16_lowers_the_precision_of_the_step_and_not_of_the_weights():
    results, models = {}, {}
    batch = next(TinySource().train_batches(0))
    for precision in ("fp32", "bf16"):
        config = tiny_config(f"precision={precision}")
        models[precision] = model = _fresh_model()
        optimizer = make_optimizer(model, config.optimizer)
        results[precision] = TrainingStep(model, optimizer, config, make_controller(model, optimizer, config))(batch, 1)
    assert results["bf16"].problem == ""
    assert results["bf16"].loss != results["fp32"].loss
    assert results["bf16"].loss == pytest.approx(results["fp32"].loss, rel=0.02)
    for parameter in models["bf16"].parameters():
        assert parameter.dtype == parameter.grad.dtype == torch.float32


def test_a_run_writes_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = tiny_config("steps=4", "tensorboard=true", "eval_splits=[test]", "grow_and_drop.schedule={start: 2}")
    result = train(config, tmp_path, TinySource())
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    logged = [(event.step, event.value) for event in board.Scalars("train/loss")]
    assert logged == [(step, pytest.approx(loss)) for step, loss in losses(rows_of(result, "train"))]
    for name, count in result.component_counts.items():
        assert [(event.step, event.value) for event in board.Scalars(f"components/{name}")] == [(2, count)]
    assert board.Scalars("test/wer")[0].value == pytest.approx(result.evaluations["test"]["wer"])


class _SourceThatStops(TinySource):
    def __init__(self, batches: int):
        super().__init__()
        self.left = batches

    def _batch(self, split, indices):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super()._batch(split, indices)


def test_a_nan_utterance_is_skipped_and_poisons_nothing(tmp_path):
    result = train(tiny_config("max_skipped=3"), tmp_path, TinySource(poisoned=frozenset({"train-5"})))
    rows = rows_of(result, "train")
    bad = [row for row in rows if "problem" in row]
    assert [row["loss"] for row in bad] == [None] * len(bad)
    assert 3 < len(bad) == rows[-1]["skipped"] < 24
    assert all(row["loss"] is not None for row in rows if row not in bad)
    for row in read_json_lines(tmp_path / "scores.jsonl"):
        assert all(score is not None for scores in row["scores"].values() for score in scores)


def test_nan_gradients_change_nothing():
    config = tiny_config()
    model = _fresh_model()
    optimizer = make_optimizer(model, config.optimizer)
    controller = make_controller(model, optimizer, config)
    step = TrainingStep(model, optimizer, config, controller)
    batches = list(TinySource().train_batches(0))
    assert step(batches[0], 1).problem == ""
    weights = [p.detach().clone() for p in model.parameters()]
    scores = controller.scores.ema.clone()
    hook = model.output.weight.register_hook(lambda grad: grad * torch.nan)
    result = step(batches[1], 2)
    hook.remove()
    assert result.problem == "the gradient norm is nan"
    assert all(torch.equal(before, after) for before, after in zip(weights, model.parameters(), strict=True))
    assert torch.equal(scores, controller.scores.ema)
    assert step(batches[2], 3).problem == ""


def test_an_event_waits_for_a_usable_step(tmp_path):
    everything = frozenset(f"train-{index}" for index in range(12))
    config = tiny_config("max_skipped=20", "steps=6", "grow_and_drop.schedule={start: 2}")
    source = TinySource(poisoned=everything)
    healthy = TinySource()
    source.train_batches = lambda epoch, start=0: (source if not epoch else healthy)._batches(
        "train", [*range(12)], start
    )
    assert [event["step"] for event in train(config, tmp_path, source).events] == [5]


def test_gives_up_after_max_skipped(tmp_path):
    everything = frozenset(f"train-{index}" for index in range(12))
    with pytest.raises(TrainingFailed, match=r"3 steps in a row .*\(step 3\) because the loss is nan"):
        train(tiny_config("max_skipped=3"), tmp_path, TinySource(poisoned=everything))


def test_a_source_without_batches(tmp_path):
    with pytest.raises(TrainingFailed, match="the split 'train' holds no utterance"):
        train(tiny_config(), tmp_path, TinySource(utterances=0))


def test_labels_that_do_not_fit_are_counted_and_harmless(tmp_path):
    result = train(tiny_config("steps=18"), tmp_path, _SourceWithLongLabels())
    rows = rows_of(result, "train")
    assert sum(row["unaligned"] for row in rows) > 0
    assert all(row["loss"] < 10 for row in rows)


class _SourceWithLongLabels(TinySource):
    def _utterance(self, split, index):
        features, text = super()._utterance(split, index)
        return (features[:8], text) if index == 4 else (features, text)


def test_overhead_is_measured():
    overhead = measure_overhead(tiny_config(), TinySource(), pairs=6, events=2)
    assert overhead.scoring_pct.low <= overhead.scoring_pct.median <= overhead.scoring_pct.high
    assert -100 < overhead.optimizer_pct.low <= overhead.optimizer_pct.median <= overhead.optimizer_pct.high < 100
    assert overhead.total_pct.median == overhead.optimizer_pct.median + overhead.events_pct.median
    expected = 100 * 2 * overhead.event_ms.median / (24 * overhead.step_ms.median)
    assert overhead.events_pct.median == pytest.approx(expected)
    assert json.loads(json.dumps(overhead.to_dict()))["events_pct"]["median"] == overhead.events_pct.median


def test_overhead_sees_slow_scores(monkeypatch):
    from dmao import overhead

    from dmao_kernels.structure import Scores

    clock = iter(range(1000))
    monkeypatch.setattr(overhead.time, "perf_counter", lambda: next(clock))
    begin = Scores.begin_update

    def slow(scores):
        for _ in range(3):
            next(clock)
        return begin(scores)

    monkeypatch.setattr(Scores, "begin_update", slow)
    measured = overhead.measure_overhead(tiny_config(), TinySource(), pairs=6, events=2)
    # every look at the clock takes one second: a step without scores 3 s, since its optimizer looks twice
    assert measured.scoring_pct.median == pytest.approx(100)
    assert measured.optimizer_pct.median == pytest.approx(100)
    every_fourth = tiny_config("grow_and_drop.observe_every=4")
    measured = overhead.measure_overhead(every_fourth, TinySource(), pairs=6, events=2)
    assert measured.scoring_pct.median == pytest.approx(25)
    assert measured.optimizer_pct.median == pytest.approx(25)


def test_where_it_trains_is_told_once(tmp_path, caplog):
    config = tiny_config("steps=2", "grow_and_drop.schedule=null")
    with caplog.at_level("INFO", logger="dmao"):
        for _ in range(2):  # the second one finds it finished
            found = train(config, tmp_path, TinySource())
    said = [record.getMessage() for record in caplog.records if " steps on " in record.getMessage()]
    assert said == [f"train: 2 steps on cpu, {found.parameters:,} parameters"]


def test_an_event_without_scores_is_told_before_the_training(tmp_path):
    with pytest.raises(ConfigError, match=r"observe_every must be below 9, the step of the first event, got 20"):
        train(tiny_config("grow_and_drop.observe_every=20"), tmp_path, TinySource())
    assert list(tmp_path.iterdir()) == []


def test_step_times_of_two_arms(grown, uniform):
    before = sorted(path.name for path in grown.run_dir.rglob("*"))
    times = step_times({"baseline": uniform.run_dir, "dmao": grown.run_dir}, TinySource(), pairs=4)
    assert times.keys() == {"baseline", "dmao"}
    assert all(0 < time.low <= time.median <= time.high for time in times.values())
    assert before == sorted(path.name for path in grown.run_dir.rglob("*"))


def test_median_and_its_interval():
    assert Median.of([3.0]) == Median(3.0, 3.0, 3.0)
    assert Median.of([1.0, 2.0, 3.0]) == Median(2.0, 1.0, 3.0)
    interval = Median.of([float(i) for i in range(101)])
    assert interval == Median(50.0, 40.0, 60.0)


def _fresh_model() -> ConformerCTC:
    return build_model(tiny_config(), 2 + len(set("".join(WORDS))), BINS)
