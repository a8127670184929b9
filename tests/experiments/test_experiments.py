"""Tables of arms: configurations that load, runs that resume, results that add up."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from dmao.cli import main
from dmao.config import ConfigError, load_config
from dmao.errors import UserError
from dmao.evaluate import load_widths
from dmao.experiments import run as experiment
from dmao.experiments.redistribution import PUBLISHED, PUBLISHED_BRANCHES, redistribution_plot, relative_widths
from dmao.experiments.run import Plan, _lists_in_lines, paired_interval, run_arms, write_results
from dmao.experiments.tables import TABLES, chosen
from dmao.models import ConformerCTC
from dmao.random_ranking import RandomRanking
from dmao.recipes import configs
from dmao.recipes.embedded.demo import demo_config
from dmao.recognise import Search
from dmao.scoring import Normaliser
from dmao.step import build_model, make_controller, make_optimizer
from dmao.trainer import train
from scipy import stats

from dmao_kernels.structure import Elastic
from tests.trainer.tiny import SETTINGS, TinySource, tiny_config

SPLIT = "test"


def configure(changes):
    return load_config(None, [*SETTINGS, *changes])


@pytest.mark.parametrize("table", TABLES)
def test_arms_change_what_they_say(table, tmp_path):
    arms = chosen(table, ())
    assert next(iter(arms)) == "baseline"
    plan = Plan(tmp_path, tuple(arms))

    def configured(arm):
        return experiment._configured(plan, "arm", arm, 0, lambda changes: load_config(demo_config(), changes))

    configs = {name: configured(arm) for name, arm in arms.items() if arm.widths_of is None}
    assert configs["baseline"].grow_and_drop.schedule is None
    assert len({str(config.to_dict()) for config in configs.values()}) >= len(configs) - 1  # one may be the default
    for name, config in configs.items():
        if name != "baseline":
            assert config.grow_and_drop.schedule is not None


def test_events_in_equal_distances():
    for last, steps in ((0.4, [220, 440, 660, 880]), (800, [200, 400, 600, 800])):
        config = load_config(demo_config(), [f"grow_and_drop.schedule.start={last}"])
        schedule = experiment._with_events(config, 4).grow_and_drop.schedule
        assert list(schedule.steps(config.steps)) == steps
        assert schedule.fraction == config.grow_and_drop.schedule.fraction


def test_arms_are_known_by_name():
    assert list(chosen("main", ["random", "baseline"])) == ["baseline", "random"]
    with pytest.raises(ValueError, match="table main has no arm dmao; it has baseline, dmao_exact"):
        chosen("main", ["dmao"])


def test_ranking_by_lot_is_a_function_of_the_seed():
    plans = []
    for changes in ((), (), ("seed=1",)):
        config = tiny_config("grow_and_drop.ranking=random", *changes)
        model = build_model(tiny_config(), 7, 8)
        controller = make_controller(model, make_optimizer(model, config.optimizer), config)
        assert isinstance(controller, RandomRanking)
        scores = {name: [1.0] * count for name, count in controller.elastic.counts().items()}
        plans.append(controller._plan(scores))
    assert plans[0].sources == plans[1].sources != plans[2].sources
    assert plans[0].dropped > 0
    with pytest.raises(UserError, match=r"ranking: random needs storage: tight"):
        tiny_config("grow_and_drop.ranking=random", "grow_and_drop.storage=slots")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    plan = Plan(tmp_path_factory.mktemp("table"), tuple(TABLES["main"]), search=Search("greedy"))
    arms = chosen("main", ())
    run_arms(plan, arms, range(2), configure, lambda config: TinySource())
    return plan, arms


def test_results_of_all_arms(table):
    plan, arms = table
    found = json.loads((plan.folder / "results.json").read_text())
    assert list(found["arms"]) == list(arms)
    for name, arm in found["arms"].items():
        assert arm["seeds"] == [0, 1]
        assert all(len(arm[key]) == 2 and np.isfinite(arm[key]).all() for key in ("ce", "wer", "parameters"))
        assert (name == "baseline") == (name not in found["against"])
    other = found["against"]["dmao_exact"]
    pairs = zip(found["arms"]["dmao_exact"]["ce"], found["arms"]["baseline"]["ce"], strict=True)
    assert other["ce"]["difference"] == pytest.approx(np.mean([new - old for new, old in pairs]))
    assert other["wer"]["second"] == pytest.approx(np.mean(found["arms"]["dmao_exact"]["wer"]))
    lines = (plan.folder / "results.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {name}" for name in arms]
    for seed in range(2):
        widths = [load_widths(plan.run_dir(name, seed)) for name in ("dmao_exact", "scratch", "random", "baseline")]
        assert widths[0] == widths[1] != widths[2]
        assert widths[0] != widths[3]


class OneSplit(TinySource):
    def left_out(self, split):
        if split != SPLIT:
            raise UserError(f"no split '{split}'")
        return []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dev": "dve"}, "no split 'dve'"),
        ({"search": Search(lm="no.arpa")}, "no.arpa"),
    ],
)
def test_a_search_that_fails_is_told_before_a_training(changes, message, tmp_path):
    plan = Plan(tmp_path, tuple(TABLES["main"]), **changes)
    with pytest.raises(UserError, match=message):
        run_arms(plan, chosen("main", ("baseline",)), [0], configure, lambda config: OneSplit())
    assert not list(tmp_path.rglob("metrics.jsonl"))


def test_phonemes_are_told_before_a_training(tmp_path):
    labels = type(TinySource().labels)
    assert labels.kind != "phonemes"
    plan = Plan(tmp_path, tuple(TABLES["main"]), search=Search("prefix"))
    source = TinySource()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(labels, "kind", "phonemes")
        with pytest.raises(UserError, match="prefix search gives phonemes, not words"):
            run_arms(plan, chosen("main", ("baseline",)), [0], configure, lambda config: source)
    assert not list(tmp_path.rglob("metrics.jsonl"))


@pytest.mark.parametrize(
    ("changes", "names", "message"),
    [
        (["grow_and_drop.budget=0.9"], ("baseline", "dmao_paper"), "arm dmao_paper: .*: budget needs selection: exact"),
        (
            ["grow_and_drop.storage=slots"],
            ("baseline", "random"),
            "arm random: .*: ranking: random needs storage: tight",
        ),
        (["grow_and_drop.schedule=null"], (), "arm dmao_exact needs events, got grow_and_drop.schedule: null"),
        ([], ("baseline", "scratch"), "the widths of .*dmao_exact/seed-0 are needed"),
    ],
)
def test_an_arm_that_is_refused_is_told_before_a_training(changes, names, message, tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "train", lambda *_: pytest.fail("it was trained"))
    plan = Plan(tmp_path, tuple(TABLES["main"]))
    with pytest.raises(UserError, match=message):
        run_arms(plan, chosen("main", names), [0], lambda arm: configure((*changes, *arm)), lambda config: TinySource())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["steps=4"], "experiment: arm events_4: .*4 events do not fit between .*; to leave it out, name"),
        (
            ["grow_and_drop.schedule={earliest: 2, latest: 3}"],
            "experiment: arm events_1: .* a schedule with fixed steps",
        ),
        (["steps=many"], "^config: steps must be a whole number"),
    ],
)
def test_events_that_do_not_fit_name_their_arm(changes, message, tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "train", lambda *_: pytest.fail("it was trained"))
    changes = ["grow_and_drop.schedule={start: 0.5}", *changes]
    with pytest.raises(UserError, match=message):
        run_arms(
            Plan(tmp_path, tuple(TABLES["iterations"])),
            chosen("iterations", ()),
            [0],
            lambda arm: configure((*changes, *arm)),
        )


class Unspelled(TinySource):
    """None of what is decoded can be written in the labels."""

    def eval_batches(self, split):
        for batch in super().eval_batches(split):
            yield dataclasses.replace(
                batch, targets=batch.targets[:0], target_lengths=torch.zeros_like(batch.target_lengths)
            )


def test_a_split_that_the_labels_do_not_spell(tmp_path):
    """It has no cross-entropy, and word errors all the same; twice, as what is finished is read again."""
    plan = Plan(tmp_path, tuple(TABLES["main"]), search=Search("greedy"))
    for _ in range(2):
        run_arms(plan, chosen("main", ("baseline",)), [0], configure, lambda config: Unspelled())
        found = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)["arms"]["baseline"]
        assert found["ce"] == [None]
        assert np.isfinite(found["wer"]).all()
    assert "| nan |" in (tmp_path / "results.md").read_text()
    assert np.isnan(
        train(
            configure(["grow_and_drop.schedule=null", "eval_splits=[test]"]), plan.run_dir("baseline", 0), Unspelled()
        ).evaluations["test"]["ce"]
    )


def test_where_the_width_went(table):
    plan, _ = table
    found = json.loads((plan.folder / "results.json").read_text())["widths"]
    assert set(found["ffn1"]) == {"dmao_exact", "dmao_paper", "random"}  # the others are uniform, or another's widths
    exact, uniform = (load_widths(plan.run_dir(name, 1)) for name in ("dmao_exact", "baseline"))
    blocks = len(uniform) // len(found)
    expected = [exact[f"blocks.{block}.ffn1"] / uniform[f"blocks.{block}.ffn1"] for block in range(blocks)]
    assert found["ffn1"]["dmao_exact"][1] == expected
    drawn = (plan.folder / "widths.svg").read_text()
    for text in ("published", *found, *found["ffn1"], "width, relative to uniform"):
        assert f">{text}<" in drawn


def test_widths_are_of_the_same_uniform_model(table, tmp_path):
    """Half as many components of twice the width are no change; nothing is relative to a module without components."""
    plan, _ = table
    copy = Plan(tmp_path, plan.order, search=plan.search)
    for name in ("baseline", "dmao_exact", "random"):
        shutil.copytree(plan.run_dir(name, 0), copy.run_dir(name, 0))
    before = write_results(copy)["widths"]
    assert all(arms.keys() == {"dmao_exact", "random"} for arms in before.values())
    _change_outcome(copy, "random", lambda outcome: outcome["config"]["model"].update(components=2))
    after = write_results(copy)["widths"]
    assert after == {family: {"dmao_exact": arms["dmao_exact"]} for family, arms in before.items()}
    _change_outcome(copy, "baseline", lambda outcome: outcome["components"].update({"blocks.0.ffn1": 0}))
    assert write_results(copy)["widths"] == {}


def _change_outcome(plan, arm, change):
    path = plan.run_dir(arm, 0) / "outcome.json"
    outcome = json.loads(path.read_text())
    change(outcome)
    path.write_text(json.dumps(outcome))


def test_published_widths_are_of_our_modules():
    """Names of families as an encoder has them, and a number for each of the twelve blocks."""
    for block, published in (("conformer", PUBLISHED), ("e_branchformer", PUBLISHED_BRANCHES)):
        with torch.device("meta"):
            model = ConformerCTC(load_config(configs()[f"librispeech/{block}_256"]).model.conformer(outputs=79))
        curves = relative_widths({"arm": [dict.fromkeys(Elastic(model).counts(), 2)]}, Elastic(model).counts())
        assert published.keys() <= curves.keys()
        assert all(len(widths) == 12 for widths in published.values())
        assert "published" in redistribution_plot(curves)


def test_lists_in_lines():
    values = {"a": [1, 2.5], "b": {"c": [[1, 2], [3]], "d": []}, "e": ["x y", None]}
    text = _lists_in_lines(json.dumps(values, indent=1))
    assert json.loads(text) == values
    assert ' "a": [1, 2.5],' in text.splitlines()


def test_what_is_finished_is_not_repeated(table, tmp_path, monkeypatch):
    """Of a finished run its outcome is enough: another folder, another machine."""
    plan, arms = table
    copy = dataclasses.replace(plan, folder=tmp_path)
    for name in arms:
        for seed in range(2):
            copy.run_dir(name, seed).mkdir(parents=True)
            shutil.copy(plan.run_dir(name, seed) / "outcome.json", copy.run_dir(name, seed))
    monkeypatch.setattr(experiment, "train", None)
    for one in (plan, copy):
        before = (plan.folder / "results.json").read_bytes()
        run_arms(one, arms, range(2), configure)
        assert (one.folder / "results.json").read_bytes() == before
    with pytest.raises(UserError, match=r"baseline/seed-0 was trained with another config: steps is 30, there 24"):
        run_arms(copy, arms, [0], lambda changes: configure((*changes, "steps=30")))


def test_results_of_another_table_are_refused(table, monkeypatch):
    monkeypatch.setattr(experiment, "train", lambda *_: pytest.fail("it was trained"))
    plan, _ = table
    before = (plan.folder / "results.json").read_bytes()
    with pytest.raises(UserError, match="holds the results of another table, with the arm dmao_exact; expected one of"):
        run_arms(dataclasses.replace(plan, order=tuple(TABLES["metric"])), chosen("metric", ()), [0], configure)
    assert (plan.folder / "results.json").read_bytes() == before


def test_outcomes_of_another_split_are_refused(table):
    plan, arms = table
    with pytest.raises(UserError, match=r"baseline/seed-0/outcome.json is of the split test, expected dev"):
        run_arms(dataclasses.replace(plan, split="dev"), arms, range(2), configure, lambda config: TinySource())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search": Search("greedy", beam=7)}, "beam was 100, now 7"),
        ({"search": Search("greedy", lm="/else/4-gram.arpa")}, "lm was None, now 4-gram.arpa"),
        ({"dev": "dev"}, "dev was None, now dev"),
        ({"normaliser": Normaliser(drop=["uh"])}, "normalisation was none, now without uh"),
        ({"normaliser": Normaliser({("uh",): (("um",),)})}, r"normalisation was none, now 1 rules \("),
    ],
)
def test_outcomes_of_another_decoding_are_refused(table, changes, message, monkeypatch):
    """Before another arm is trained, which would be compared with them."""
    plan, arms = table
    monkeypatch.setattr(experiment, "train", lambda *_: pytest.fail("it was trained"))
    with pytest.raises(UserError, match=rf"baseline/seed-0/outcome.json was decoded otherwise: {message}"):
        run_arms(
            dataclasses.replace(plan, **changes), {"random": arms["random"]}, [7], configure, lambda _: TinySource()
        )


GOOD = {"split": "test", "ce": 1, "wer": 2.0, "parameters": 3, "components": {"blocks.0.a": 1}, "config": {}}


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "[" * 100_000,
        '{"split": "test"}',
        '{"split": 3}',
        *(
            json.dumps({**GOOD, **wrong})
            for wrong in (
                {"decoding": 5},
                {"components": {"blocks.0.a": "x"}},
                {"components": {"blocks.0.a": -1}},
                {"parameters": 10**400},
                {"config": {"model": {"width": "wide"}}},
            )
        ),
    ],
)
def test_outcomes_of_strangers_are_refused(tmp_path, content):
    plan = Plan(tmp_path, ("baseline",))
    plan.run_dir("baseline", 0).mkdir(parents=True)
    (plan.run_dir("baseline", 0) / "outcome.json").write_text(content)
    with pytest.raises(UserError, match=r"experiment: .*baseline/seed-0/outcome.json"):
        write_results(plan)


def test_an_outcome_that_names_no_steps(tmp_path):
    plan = Plan(tmp_path, ("baseline",))
    plan.run_dir("baseline", 0).mkdir(parents=True)
    (plan.run_dir("baseline", 0) / "outcome.json").write_text(json.dumps(GOOD))
    with pytest.raises(UserError, match=r"baseline/seed-0 was trained with another config"):
        run_arms(plan, chosen("main", ("baseline",)), [0], lambda changes: load_config(None, [*changes, "epochs=2"]))


def test_copies_that_were_set_aside_are_no_runs(table, tmp_path):
    plan, _ = table
    copy = Plan(tmp_path, plan.order, search=plan.search)
    for name in ("seed-0", "seed-0.bak", "seed-1-old", "seed-01"):
        shutil.copytree(plan.run_dir("baseline", 0), tmp_path / "baseline" / name)
    assert write_results(copy)["arms"]["baseline"]["seeds"] == [0]


def test_part_of_a_table(table, tmp_path):
    plan, arms = table
    part = Plan(tmp_path, plan.order, search=plan.search)
    with pytest.raises(UserError, match=r"the widths of .*dmao_exact/seed-0 are needed, and it is not finished"):
        run_arms(part, {"scratch": arms["scratch"]}, [0], configure, lambda config: TinySource())
    assert write_results(part)["arms"] == {}
    with pytest.raises(ConfigError, match=r"blocks\.0\.ffn1 must have 2 components in the uniform model .*, got 4"):
        run_arms(plan, {"scratch": arms["scratch"]}, [0], lambda changes: configure((*changes, "model.components=2")))


def test_several_processes_are_refused(table, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="takes one process"):
        run_arms(*table, [0], configure)


def test_interval_is_students():
    changes = [0.1, -0.2, -0.3, 0.0]
    found = paired_interval(changes)
    expected = stats.ttest_1samp(changes, 0).confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high))
    assert paired_interval([0.5]) == {"difference": 0.5, "low": None, "high": None}


def test_command(tmp_path):
    result = CliRunner().invoke(main, ["experiment", "none", "x", "--run-dir", str(tmp_path)])
    assert result.exit_code == 2
    assert "'none' is not one of 'main', 'metric'" in result.stderr
