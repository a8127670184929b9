"""Checkpoints and configurations of strangers: refused in one line, and without filling the memory."""

from __future__ import annotations

import copy
import random
import zipfile
from typing import Any

import pytest
import torch
from dmao import checkpoint
from dmao.checkpoint import CheckpointError
from dmao.config import ConfigError, load_config
from dmao.errors import UserError
from dmao.evaluate import evaluate
from dmao.inspect import structure_of
from dmao.step import restore
from dmao.trainer import train

from tests.trainer.tiny import TinySource, tiny_config

WEIGHTS = torch.arange(3000.0)
REMOVED = object()
MODULE = "blocks.0.ffn1"


def saved(path, **state):
    torch.save({"format": checkpoint.FORMAT, "step": 1, **state}, path)
    return path.read_bytes()


def test_truncated_and_flipped_files_of_any_name(tmp_path):
    """A name tells no digest here: the archive's own checksums do."""
    whole, choice = saved(tmp_path / "whole.pt", w=WEIGHTS), random.Random(0)
    path = tmp_path / "renamed.pt"
    refused = 0
    for number in range(300):
        at = choice.randrange(len(whole))
        flipped = whole[:at] + bytes([whole[at] ^ 1 << choice.randrange(8)]) + whole[at + 1 :]
        path.write_bytes(flipped if number % 2 else whole[:at])
        try:
            assert torch.equal(checkpoint.load(path)["w"], WEIGHTS)  # what was hit carries no content
        except CheckpointError as error:
            refused += str(path) in str(error)
    assert refused > 250


def test_what_grows_when_it_is_read(tmp_path):
    saved(tmp_path / "good.pt", w=WEIGHTS)
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(tmp_path / "small.pt", "w") as small:
        for record in good.infolist():
            small.writestr(record.filename, good.read(record), zipfile.ZIP_DEFLATED)
    with pytest.raises(CheckpointError, match=r"small.pt cannot be read: its records must be stored uncompressed"):
        checkpoint.load(tmp_path / "small.pt")
    saved(tmp_path / "view.pt", w=torch.zeros(1).expand(10**12))
    with pytest.raises(CheckpointError, match=r"a tensor of \[1000000000000\] must have as many numbers"):
        checkpoint.load(tmp_path / "view.pt")
    torch.save({"format": 1}, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"legacy.pt cannot be read: File is not a zip file"):
        checkpoint.load(tmp_path / "legacy.pt")


def test_lists_without_end_or_number(tmp_path):
    many: list[Any] = ["x"]
    for _ in range(40):
        many = [many, many]  # 2^40 of them, to whoever would go through
    many.append(many)
    saved(tmp_path / "many.pt", many=many)
    assert checkpoint.load(tmp_path / "many.pt")["step"] == 1


def test_both_versions_are_named(tmp_path):
    for found, said in ((2, "got 2: a newer version of dmao wrote it"), (0, "got 0$"), (True, "got True$")):
        torch.save({"format": found}, tmp_path / "other.pt")
        with pytest.raises(CheckpointError, match=f"other.pt must have format 1, {said}"):
            checkpoint.load(tmp_path / "other.pt")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(
        tiny_config("steps=18", "grow_and_drop.schedule={start: 4, end: 12, events: 2, fraction: 0.4}"),
        folder,
        TinySource(),
    )
    return folder


@pytest.fixture(scope="module")
def good(run):
    return checkpoint.load_latest(run / "checkpoints")[1]


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """`value` with another one at `path`; nothing else is copied."""
    if not path:
        return new
    value = list(value) if isinstance(value, tuple) else copy.copy(value)
    if new is REMOVED and len(path) == 1:
        del value[path[0]]
    else:
        value[path[0]] = changed(value[path[0]], path[1:], new) if path[1:] else new
    return value


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """All places, but of what repeats the first ones only."""
    children = (
        value if isinstance(value, dict) else range(min(2, len(value))) if isinstance(value, (list, tuple)) else ()
    )
    return [path, *(p for child in list(children)[:8] for p in paths(value[child], (*path, child)))]


def test_wrong_states_are_one_line(good):
    """Whatever stands in the wrong place: a model comes of it, or an error that names the file."""
    values = [REMOVED, "text", None, -1, 10**30, [], {}, torch.zeros(1), float("nan")]
    random.seed(1)
    places = [path for path in paths({k: good[k] for k in good.keys() - {"format", "path"}}) if path]
    told = []
    for path in random.sample(places, 25):
        try:
            restore(changed(good, path, random.choice(values)))
        except UserError as error:
            told.append(str(error))
    assert len(told) > 8
    assert all(good["path"] in line and "\n" not in line for line in told), told


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("config", "model", "blocks"), 10**9, "blocks must be at most 1024"),
        (("config", "model", "expansion"), 60_000, "it describes a model of"),
        (("config", "stepz"), 5, "unknown key 'stepz'; did you mean 'steps'"),
        (("controller", "structure", "modules", MODULE, "components"), 10**8, "it describes a model of"),
        (("controller", "structure", "modules", MODULE, "components"), True, "components must be a count, got True"),
        (("controller", "structure", "version"), 2, "version must be 1, got 2"),
        (("controller", "scores", "version"), 3, "version must be 2, got 3"),
        (("controller", "copies"), {MODULE: [(0, 10**6)]}, f"copies of {MODULE} must be of its"),
        (("controller", "copies"), {MODULE: [(-1, 0)]}, f"copies of {MODULE} must be of its"),
        (("controller", "budget"), float("nan"), "budget must be a whole number from 1, got nan"),
        (("model", "another.weight"), torch.zeros(2), r"Unexpected key\(s\) in state_dict: \"another.weight\""),
        (("model", "output.weight"), REMOVED, r"Missing key\(s\) in state_dict: \"output.weight\""),
        (("labels",), REMOVED, "KeyError: 'labels'"),
        (("inputs",), 10**9, "inputs must be at most 65536"),
    ],
)
def test_states_that_are_not_of_this_model(good, path, value, said):
    with pytest.raises(CheckpointError, match=said) as caught:
        restore(changed(good, path, value))
    assert str(caught.value).startswith(f"checkpoint: {good['path']} (by dmao ")


def test_a_run_of_a_stranger_goes_on_or_is_refused(run, good, tmp_path):
    """What `train`, `evaluate` and `inspect` make of the same states."""
    config = tiny_config("steps=18", "grow_and_drop.schedule={start: 4, end: 12, events: 2, fraction: 0.4}")
    for number, (path, value, said) in enumerate(
        [
            (("place", "step"), -3, "must not be negative"),
            (("place", "epoch"), "many", "place.epoch must be a whole number"),
            (("place",), None, "place must be a mapping"),
            (("config",), [], "the file must be a mapping"),
            (("optimizer",), {}, "KeyError: 'param_groups'"),
            (("controller", "events"), [{}], "KeyError: 'copies'"),
        ]
    ):
        folder = tmp_path / str(number)
        checkpoint.save(folder / "checkpoints", 18, changed(good, path, value))
        with pytest.raises(CheckpointError, match=said):
            train(config, folder, TinySource())
        if path[0] != "place":
            for use in (lambda run: evaluate(run, data=TinySource()), structure_of):
                with pytest.raises(CheckpointError, match=r"step-00000018-\w+.pt .*does not fit"):
                    use(folder)


LAUGHS = "&a [&b [&c [&d [&e [x,x,x,x,x,x,x,x],*e,*e,*e,*e,*e,*e,*e],*d,*d,*d,*d,*d,*d],*c,*c,*c,*c,*c,*c],*b,*b,*b,*b]"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("steps: !!python/object/apply:os.system [echo]", "could not determine a constructor for the tag"),
        (f"steps: {LAUGHS}", r"steps must be a whole number, got list \[\[\[\.\.\.\], "),
        ("steps: &a [*a]", "steps must be a whole number"),
        ("steps: " + "[" * 600, "is not YAML: maximum recursion depth"),
        ("steps: " + "9" * 5000, "is not YAML: Exceeds the limit"),
        ("steps: 0x" + "f" * 5000, "steps must lie between .*, got a number of 20000 bits"),
        ("steps: 2001-13-41", "is not YAML: month must be in"),
        ("learning_rate: {first: .nan}", "learning_rate.first must be finite, got nan"),
        ("learning_rate: {last: 'inf'}", "learning_rate.last must be finite, got inf"),
        ("learning_rate: {peak: 1" + "0" * 400 + "}", "learning_rate.peak must lie between"),
        ("learning_rate: {shape: piecewise, points: [[0, 1], [.nan, 1], [1, 1]]}", r"points\[1\]\[0\] must be finite"),
        ('data: {root: "a\\0b"}', "data.root must not hold the character NUL"),
        ("data: {workers: 100000}", "workers must lie between 0 and 256"),
        ("data: {labels: bpe, bpe_size: 1000000000000}", "bpe_size must lie between 2 and 65536"),
        ("threads: 1000000000", "threads must be at most 1024"),
        ("model: {width: 1000000, head_dim: 1}", "width must be at most 65536"),
        ("spec_augment: {time_masks: 1000000000}", "counts must be 0 to 1000"),
        ("grow_and_drop: {keep_at_least: -1}", "keep_at_least must be 0 or more"),
        ("grow_and_drop: {schedule: {start: .1, end: .5, events: 1000000000}}", "events must be at most 10000"),
        ("grow_and_drop: {schedule: {earliest: .1, latest: .5, events: 1000000000}}", "events must be at most 10000"),
        ("base: /etc/passwd", "base must be the relative path of a .yaml file, got '/etc/passwd'"),
        ("base: ../../../../etc/passwd", "base must be the relative path of a .yaml file"),
        ("base: [1]", "base must be the relative path of a .yaml file"),
        ("base: endless.yaml", "endless.yaml must be a file"),
    ],
)
def test_configurations_of_strangers_are_one_line(tmp_path, text, said):
    (tmp_path / "endless.yaml").symlink_to("/dev/zero")
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said) as caught:
        load_config(tmp_path / "config.yaml")
    assert len(str(caught.value)) < 1000
    assert "\n" not in str(caught.value)


def test_widths_without_end_are_refused(tmp_path):
    config = tiny_config("grow_and_drop.schedule=null", f"widths=[[{MODULE}, 1000000000000]]")
    with pytest.raises(ConfigError, match=f"{MODULE} must have 0 to 1048576 components, got 1000000000000"):
        train(config, tmp_path, TinySource())


def test_optimizer_state_of_other_shapes_never_reaches_a_kernel(good):
    state = copy.deepcopy(good["optimizer"])
    for values in state["state"].values():
        values["exp_avg"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=r"exp_avg"):
        restore({**good, "optimizer": state})
