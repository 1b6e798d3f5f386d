import dataclasses
from pathlib import Path
from typing import Any

import pytest
from runs import make_run

from factual_forgetting import files
from factual_forgetting.bundle.manifest import Bundle
from factual_forgetting.errors import UserError
from factual_forgetting.protocol import grid
from factual_forgetting.protocol.recipe import (
    Execution,
    Protocol,
    find_recipe,
    load_protocol,
    protocol_sha256,
    recipe_names,
)
from factual_forgetting.protocol.run import Run
from factual_forgetting.protocol.settings import SETTINGS, MethodSettings, SelfDistillation

# How a run is computed, not what: told in run.json, outside its identity.
OUTSIDE_IDENTITY = {"device_batch_size", "gradient_checkpointing", "report_to", "resume_every"}


def test_every_field_of_a_run_is_part_of_its_identity(bundle: Bundle, protocol: Protocol) -> None:
    run = make_run(bundle, protocol, "self_distillation")
    changed: dict[str, Any] = {
        "bundle": dataclasses.replace(bundle, manifest={**bundle.manifest, "sha256": "0" * 64}),
        "protocol": protocol.model_copy(update={"epochs": 41}),
        "method": "freeze_self_distillation",
        "settings": SelfDistillation(tau=2.0),
        "seed": 1,
        "foreign_base": {"pretrained": "other"},
    }
    for field in dataclasses.fields(Run):
        other = dataclasses.replace(run, **{field.name: changed[field.name]})
        assert other.identity() != run.identity(), field.name


def other_value(value: Any) -> Any:
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, str):
        return f"{value}x"
    if isinstance(value, dict):
        return {**value, "sft": ({},)}
    return (*value, value[0] if value else 1.0) if isinstance(value, tuple) else value + 1


def test_every_field_of_a_protocol_changes_its_hash(protocol: Protocol) -> None:
    for name in Protocol.model_fields:
        other = protocol.model_copy(update={name: other_value(getattr(protocol, name))})
        assert protocol_sha256(other) != protocol_sha256(protocol), name


@pytest.mark.parametrize("method", sorted(SETTINGS))
def test_every_setting_of_a_method_is_part_of_the_identity(
    bundle: Bundle, protocol: Protocol, method: str
) -> None:
    run = make_run(bundle, protocol, method)
    for name in type(run.settings).model_fields:
        value = other_value(getattr(run.settings, name))
        other = run.settings.model_copy(update={name: value})
        assert dataclasses.replace(run, settings=other).identity() != run.identity(), name


def test_what_only_computes_is_declared_outside() -> None:
    assert set(Execution.model_fields) == OUTSIDE_IDENTITY


def test_only_a_later_field_of_a_protocol_has_a_default_and_is_left_out_there() -> None:
    defaults = {n: f.default for n, f in Protocol.model_fields.items() if not f.is_required()}
    assert set(defaults) == {"teacher_precision", "curve_buffers", "kl_prompt", "settings"}
    paper = load_protocol("paper-v1")
    assert not set(defaults) & set(paper.model_dump(mode="json"))
    later = {"teacher_precision": "student", "curve_buffers": "loaded", "kl_prompt": "few_shot"}
    changed = paper.model_copy(update={**later, "settings": {"idk": ({"answer": "no"},)}})
    assert Protocol.model_validate(changed.model_dump(mode="json")) == changed


def test_published_recipes_never_change() -> None:
    """A change here is a new version of a recipe, under a new name."""
    assert {name: protocol_sha256(load_protocol(name))[:12] for name in recipe_names()} == {
        "almanac-v1": "a903d464a3a7",
        "almanac-v2": "2cc7a47ed3ea",
        "paper-v1": "056d33e7c8a9",
        "small-v1": "8778a8b8725e",
        "standard-v1": "6bced615f2ba",
        "standard-v2": "ab20cee6f836",
        "standard-v3": "db3c3a801828",
    }


def test_run_json_says_what_was_resolved(sft: Path) -> None:
    run = files.read_json(sft / "run.json")
    assert run["resolved"] == {
        "attention": "eager",
        "device": "cpu",
        "device_batch_size": None,
        "distributed": "NO",
        "dtype": {"compute": "fp32", "weights": "torch.float32"},
        "gradient_checkpointing": False,
        "report_to": "none",
        "world_size": 1,
    }
    assert {"torch", "transformers", "accelerate"} <= set(run["environment"]["packages"])
    assert run["track"] == "open"  # the test's protocol is none of the package


@pytest.mark.parametrize(
    ("name", "trials", "method"),
    [
        (name, trials, method)
        for name, trials in (("almanac-v2", 3), ("small-v1", 3), ("standard-v3", 9))
        for method in load_protocol(name).settings
    ],
)
def test_a_recipe_pins_every_setting_of_a_method(name: str, trials: int, method: str) -> None:
    recipe = load_protocol(name)
    for told, own in zip(recipe.settings[method], grid.pinned(recipe, method), strict=True):
        assert own.model_dump(mode="json") == told
        assert len(grid.trials(recipe, method)) == trials
        for trial in grid.trials(recipe, method):
            tried, settings = trial.apply(recipe, own)
            assert grid.track(tried, method, settings, None) == "closed"
    assert grid.pinned(load_protocol("almanac-v1"), method) == [SETTINGS[method]()]


def test_settings_as_a_person_writes_them_are_pinned() -> None:
    """0.3 times 100 is 30 however the processor rounds it."""
    standard = load_protocol("standard-v1")
    near = SelfDistillation(weight=0.2 * (1 + 1e-12))
    assert grid.track(standard, "self_distillation", near, None) == "closed"
    other = SelfDistillation(weight=0.2, tau=1.0)
    assert grid.track(standard, "self_distillation", other, None) == "open"
    faster = load_protocol("paper-v1")
    assert grid.track(faster, "self_distillation", SelfDistillation(weight=9.0), None) == "open"


@pytest.mark.parametrize("method", sorted(SETTINGS))
def test_every_method_has_the_same_number_of_trials(method: str) -> None:
    standard = load_protocol("standard-v1")
    tried = grid.trials(standard, method)
    assert len(tried) == len(set(tried)) == 9
    assert {trial.learning_rate for trial in tried} <= set(standard.learning_rates)
    if SETTINGS[method].strength:
        assert sorted({trial.strength for trial in tried}) == [0.2, 1.0, 5.0]
        assert sorted({trial.learning_rate for trial in tried}) == [5e-6, 5e-5, 5e-4]
    for trial in tried:
        recipe, settings = trial.apply(standard, SETTINGS[method]())
        assert grid.track(recipe, method, settings, None) == "closed"


def test_the_closed_track_is_a_recipe_throughout() -> None:
    paper, standard = load_protocol("paper-v1"), load_protocol("standard-v1")
    plain, distil = MethodSettings(), SelfDistillation
    assert grid.track(paper, "sft", plain, None) == "closed"
    assert grid.track(paper, "sft", plain, {"pretrained": "other"}) == "open"
    faster = paper.model_copy(update={"learning_rate": 1e-4})
    assert grid.track(faster, "sft", plain, None) == "open"
    other_rate = standard.model_copy(update={"learning_rate": standard.learning_rates[-1]})
    off_grid = standard.model_copy(update={"learning_rate": 3e-5})
    assert grid.track(off_grid, "sft", plain, None) == "open"
    assert grid.track(standard, "self_distillation", distil(weight=0.3), None) == "open"
    renamed = standard.model_copy(update={"name": "mine"})
    assert find_recipe(renamed.name, protocol_sha256(renamed)) is None
    assert find_recipe("standard-v1", protocol_sha256(other_rate)) == other_rate


def test_a_recipe_of_the_package_is_its_name_s_alone(tmp_path: Path) -> None:
    values = load_protocol("almanac-v1").model_dump(mode="json")
    files.write_json(tmp_path / "mine.yaml", values)
    assert load_protocol(str(tmp_path / "mine.yaml")) == load_protocol("almanac-v1")
    files.write_json(tmp_path / "mine.yaml", values | {"epochs": 8})
    with pytest.raises(UserError, match="isn't the almanac-v1 of this package"):
        load_protocol(str(tmp_path / "mine.yaml"))


def test_a_rate_outside_the_grid_is_refused(tmp_path: Path) -> None:
    values = load_protocol("standard-v1").model_dump(mode="json") | {"learning_rate": 3e-5}
    files.write_json(tmp_path / "mine.yaml", values)
    with pytest.raises(UserError, match="learning_rate is none of learning_rates"):
        load_protocol(str(tmp_path / "mine.yaml"))
