import dataclasses

import pytest
from dmao.config import ConfigError, CostConfig, TrainConfig, _parse_yaml, load_config, save_config
from dmao.errors import UserError
from dmao.schedule import Schedule, WhenSettled


def test_every_key_goes_through_yaml_and_back(tmp_path):
    config = load_config(
        None,
        [
            "seed=7",
            "optimizer.clip=null",
            "spec_augment.frequency_masks=[2, 16]",
            "learning_rate={shape: piecewise, points: [[0, .01], [.5, 1], [1, 0]]}",
            "grow_and_drop.schedule={start: .2, end: .6, events: 3}",
            "grow_and_drop.cost={kind: macs, length: 800}",
            "grow_and_drop.budget=0.9",
            "grow_and_drop.max_width=1.5",
            "grow_and_drop.align=8",
            "eval_splits=[dev, test]",
        ],
    )
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    assert config.seed == 7
    assert config.optimizer.clip is None
    assert config.grow_and_drop.schedule == Schedule(start=0.2, end=0.6, events=3)
    settings = config.grow_and_drop
    assert (settings.cost, settings.budget) == (CostConfig("macs", length=800), 0.9)
    assert (settings.max_growth, settings.max_width, settings.align) == (None, 1.5, 8)
    assert config.learning_rate.points == ((0.0, 0.01), (0.5, 1.0), (1.0, 0.0))
    assert config.eval_splits == ("dev", "test")


def test_defaults_and_an_empty_file(tmp_path):
    (tmp_path / "empty.yaml").write_text("")
    assert load_config() == load_config(tmp_path / "empty.yaml") == TrainConfig()


def test_overrides_win_over_the_file(tmp_path):
    (tmp_path / "config.yaml").write_text("steps: 100\nmodel:\n  blocks: 2\n")
    config = load_config(tmp_path / "config.yaml", ["model.blocks=3", "model.width=48"])
    assert (config.steps, config.model.blocks, config.model.width) == (100, 3, 48)


def test_numbers_as_people_write_them():
    assert load_config(None, ["learning_rate.peak=3e-4"]).learning_rate.peak == 3e-4
    assert load_config(None, ["learning_rate.peak=1"]).learning_rate.peak == 1.0
    schedule = {"start": 500}
    assert TrainConfig.from_dict({"grow_and_drop": {"schedule": schedule}}).grow_and_drop.schedule.steps(2000) == (500,)


def test_a_budget_is_a_share_or_a_number():
    for text, budget in (("0.9", 0.9), ("1", 1), ("1.0", 1.0), ("null", None)):
        found = load_config(None, [f"grow_and_drop.budget={text}"]).grow_and_drop.budget
        assert (found, type(found)) == (budget, type(budget))


def test_the_keys_tell_the_kind_of_schedule(tmp_path):
    schedule = "grow_and_drop.schedule={earliest: .2, latest: .5, every: 10}"
    config = load_config(None, [schedule])
    assert config.grow_and_drop.schedule == WhenSettled(earliest=0.2, latest=0.5, every=10)
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


def test_more_than_the_first_step_is_scored_before_an_event():
    changes = ["grow_and_drop.schedule={start: 0.15}", "grow_and_drop.observe_every=540"]
    config = load_config(None, changes)
    config.grow_and_drop.require_events(3608)
    with pytest.raises(ConfigError, match=r"observe_every must be below 540, the step of the first event, got 540"):
        config.grow_and_drop.require_events(3600)
    config.baseline().grow_and_drop.require_events(3600)
    load_config(None, [*changes, "grow_and_drop.ranking=random"]).grow_and_drop.require_events(3600)
    load_config(None, ["grow_and_drop.schedule={start: 1}"]).grow_and_drop.require_events(3600)


def test_steps_of_events_may_be_counted_with_epochs():
    config = load_config(None, ["epochs=30", "grow_and_drop.schedule={start: 5000}"])  # `steps` is 2000 by default
    config.grow_and_drop.require_events(5001)
    with pytest.raises(ConfigError, match=r"grow_and_drop.schedule: Schedule: events must fall .* got \[5000\]"):
        config.grow_and_drop.require_events(5000)
    with pytest.raises(ConfigError, match=r"events must fall after step 1 to 1999 of 2000, got \[5000\]"):
        load_config(None, ["grow_and_drop.schedule={start: 5000}"])


def test_steps_that_would_have_no_effect(tmp_path):
    for changes in (["epochs=30", "steps=4"], ["steps=4", "epochs=30"]):
        with pytest.raises(ConfigError, match=r"epochs is 30 and decides how long .* or --set epochs=null"):
            load_config(None, changes)
    save_config(load_config(None, ["epochs=30"]), tmp_path / "config.yaml")  # a run's has both keys
    assert load_config(tmp_path / "config.yaml", ["log_every=2"]).epochs == 30
    assert load_config(tmp_path / "config.yaml", ["steps=4", "epochs=null"]).steps == 4


def test_a_file_whose_steps_would_have_no_effect_is_refused(tmp_path):
    (tmp_path / "base.yaml").write_text("epochs: 30")
    above = tmp_path / "above.yaml"
    above.write_text("base: base.yaml\nsteps: 4")
    with pytest.raises(ConfigError, match=r"above.yaml: epochs is 30 and decides .* add epochs: null"):
        load_config(above)
    assert load_config(above, ["epochs=null"]).steps == 4
    assert load_config(above, ["epochs=20"]).epochs == 20
    above.write_text("base: base.yaml\nsteps: 4\nepochs: null")
    assert load_config(above).steps == 4


def test_baseline_differs_in_the_schedule_alone():
    config = TrainConfig()
    restored = dataclasses.replace(
        config.baseline(),
        grow_and_drop=dataclasses.replace(config.baseline().grow_and_drop, schedule=Schedule(start=0.4)),
    )
    assert config.baseline().grow_and_drop.schedule is None
    assert restored == config
    assert load_config(None, ["grow_and_drop.schedule=null"]) == config.baseline()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("grow_and_drop.gate_penalty=0.5", "gate_penalty needs metric: gate, got 'taylor'"),
        ("grow_and_drop.gate_penalty=.inf", "grow_and_drop.gate_penalty must be finite, got inf"),
        ("optimizer.eps=.inf", "optimizer.eps must be finite, got inf"),
        ("stepz=3", "unknown key 'stepz'; did you mean 'steps'?"),
        ("model.hidden=3", "unknown key 'model.hidden'; known here: width, blocks"),
        ("steps=many", "steps must be a whole number, got str 'many'"),
        ("steps=1.5", "steps must be a whole number, got float 1.5"),
        ("steps=true", "steps must be a whole number, got bool True"),
        ("steps=0", "steps must be 1 or more, got 0"),
        ("tensorboard=1", "tensorboard must be true or false, got int 1"),
        ("learning_rate.peak=high", "learning_rate.peak must be a number, got str 'high'"),
        ("precision=fp16", "precision must be one of fp32, bf16, got str 'fp16'"),
        ("grow_and_drop.metric=luck", "grow_and_drop.metric must be one of taylor"),
        ("grow_and_drop.schedule={start: 2.5}", "grow_and_drop.schedule: Schedule: start"),
        (
            "grow_and_drop.schedule={start: soon}",
            "grow_and_drop.schedule.start must be a number or a whole number",
        ),
        ("grow_and_drop.schedule.start=5000", "events must fall after step 1 to 1999 of 2000"),
        ("grow_and_drop.schedule={earliest: .2}", "schedule needs the key 'latest'"),
        ("grow_and_drop.schedule={earliest: .2, latest: 2.5}", "schedule: WhenSettled: latest as a share"),
        ("grow_and_drop.schedule={earliest: .2, latest: 5000}", "events must fall after step 1 to 1999 of 2000"),
        ("grow_and_drop.schedule={strat: .2}", "unknown key 'grow_and_drop.schedule.strat'; did you mean 'start'?"),
        ("grow_and_drop.schedule={earliest: .2, last: 3}", "unknown key 'grow_and_drop.schedule.last'; did you mean"),
        ("grow_and_drop.cost.kind=joule", "grow_and_drop.cost.kind must be one of parameters, macs, latency, got"),
        ("grow_and_drop.cost.length=0", "grow_and_drop.cost: length must be 1 or more, got 0"),
        ("grow_and_drop.cost.reps=4", "grow_and_drop.cost: reps must be 5 or more, got 4"),
        ("grow_and_drop.budget=0", "grow_and_drop: budget must be positive or null, got 0"),
        ("grow_and_drop.budget=.nan", "grow_and_drop.budget must be finite, got nan"),
        ("grow_and_drop={selection: paper, budget: .9}", "budget needs selection: exact, got 'paper'"),
        ("grow_and_drop.max_growth=2", "grow_and_drop: max_growth must be in (0, 1], got 2.0"),
        ("grow_and_drop.max_width=.5", "grow_and_drop: max_width must be finite and 1 or more, got 0.5"),
        ("grow_and_drop.align=0", "grow_and_drop: align must be 1 or more, got 0"),
        ("optimizer.betas=[0.9]", "optimizer.betas must have 2 entries, got 1"),
        ("eval_splits=test", "eval_splits must be a list, got str 'test'"),
        ("model=3", "model must be a mapping of keys to values, got int 3"),
        ("steps.more=3", "steps must be a whole number"),
        ("model.width=97", "model: ConformerConfig: width"),
        ("optimizer.eps=0", "optimizer: eps must be positive, got 0.0"),
        ("steps", "an override must look like key=value"),
        ("steps=[", "is not YAML"),
    ],
)
def test_one_clear_line(override, message):
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, UserError)


def test_files_that_are_no_config(tmp_path):
    for name, text in {"list.yaml": "- 1\n", "broken.yaml": "a: [\n", "text.yaml": "hello"}.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(ConfigError, match=name):
            load_config(tmp_path / name)
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "missing.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps: 1\nseed: 2\nsteps: 3", "the key 'steps' stands twice"),
        ("learning_rate: {peak: 1.0, peak: 2.0}", "the key 'peak' stands twice"),
        ("'': 1\n'': 2", "the key '' stands twice"),
        ("!!map [a, b]", "is not YAML"),
    ],
)
def test_yaml_that_says_two_things(tmp_path, text, said):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_config(tmp_path / "c.yaml")


def test_yaml_that_merges():
    text = "b: &b {x: 1}\na:\n  mid: &m\n    <<: *b\n    x: 2\ntop:\n  <<: *m\n  y: 3\n"
    assert _parse_yaml(text, "here")["top"] == {"x": 2, "y": 3}
