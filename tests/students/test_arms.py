"""An arm is resolved from params.yaml once: every value concrete, contradictions refused."""

from dataclasses import fields
from typing import Any

import pytest
from conftest import ROOT

from kdcache.errors import ParamsError
from kdcache.losses import Ramp, Term
from kdcache.params import build, read_params
from kdcache.students.arms import Arm, ArmSpec, DistillParams, resolve_arm

KL = {"inter_class": {"name": "kl", "temperature": 2.0}}


def resolve(arm: dict[str, Any], **section: Any) -> ArmSpec:
    values = read_params(ROOT / "params.yaml")["distill"] | section | {"arms": {"a": arm}}
    return resolve_arm(build(DistillParams, values, "distill"), "a")


def test_an_arm_takes_the_sections_values_where_it_has_none_of_its_own():
    section = read_params(ROOT / "params.yaml")["distill"]
    own = {
        "method": "prompt", "lr": 0.5, "steps": 7, "batch_size": 3, "num_virtual_tokens": 2, "init": "words",
    }  # fmt: skip
    inherited, other = resolve({}), resolve(own)
    for key, value in own.items():
        assert getattr(inherited, key) == section[key]
        assert getattr(other, key) == value
    for spec in (inherited, other):
        assert spec.head_lr == section["head_lr"]
        none = [field.name for field in fields(spec) if getattr(spec, field.name) is None]
        assert none == ["epochs", "late_layers"]  # the latter is of late_prefix only


def test_layers_of_late_prompts_are_for_that_method_only():
    assert resolve({"method": "late_prefix", "late_layers": 2}).late_layers == 2
    with pytest.raises(ParamsError, match="late_prefix"):
        resolve({"method": "prefix", "late_layers": 2})


@pytest.mark.parametrize(
    ("arm", "section", "wanted"),
    [
        ({}, {"steps": 9, "epochs": None}, (9, None)),
        ({}, {"steps": None, "epochs": 4}, (None, 4)),
        ({"steps": 5}, {"steps": None, "epochs": 4}, (5, None)),
        ({"epochs": 5}, {"steps": 9, "epochs": None}, (None, 5)),
        ({"batch_size": 3}, {"steps": 9, "epochs": None}, (9, None)),
    ],
)
def test_a_schedule_is_the_arms_own_or_that_of_all(arm, section, wanted):
    spec = resolve(arm, **section)
    assert (spec.steps, spec.epochs) == wanted


@pytest.mark.parametrize(
    ("arm", "section", "message"),
    [
        ({}, {"steps": 9, "epochs": 4}, "distill: exactly one of steps and epochs must be set, got both."),
        ({}, {"steps": None, "epochs": None}, "distill: exactly one of .* must be set, got none."),
        ({"steps": 9, "epochs": 4}, {}, "distill.arms.a: at most one of steps and epochs must be set"),
        ({"probe_epochs": 4}, {}, "distill.arms.a.probe_epochs: the parameter is gone: .* solved"),
        ({}, {"probe_lr": 0.1}, "distill.probe_lr: the parameter is gone: .* solved"),
        (KL | {"method": "head"}, {}, "distill.arms.a: method head must have no loss but ce_weight"),
        (
            {"method": "head", "ce_weight": 0, "inter_class": {"name": "kl", "temperature": 2}}, {},
            "distill.arms.a: method head with ce_weight 0",
        ),
        (
            {"method": "head", "ce_weight": 0, "inter_class": {"name": "kl", "weight": 2}}, {},
            "distill.arms.a: method head with ce_weight 0",
        ),
        ({"targets": "shuffled_within_class"}, {}, "distill.arms.a.targets: with shuffled_within_class, "),
        ({"targets": "all_rows", "label_smoothing": 0.1}, {}, "distill.arms.a.targets: with all_rows, "),
        *(
            ({"method": "head", key: value}, {}, f"distill.arms.a.{key}: it must be left out of method head")
            for key, value in (("batch_size", 4), ("lr", 0.1), ("steps", 3), ("init", "words"))
        ),
        (
            {"targets": "shuffled_within_class", "inter_class": {"name": "kl", "weight": 0}}, {},
            "distill.arms.a.targets: with shuffled_within_class, ",
        ),
        ({"method": "full", "lr": 0.1, "init": "words"}, {}, "distill.arms.a.init: .* method full"),
        ({"method": "full"}, {}, "distill.arms.a.lr: method full must have a learning rate of its own"),
    ],
)  # fmt: skip
def test_contradictions_of_a_schedule_are_one_line(arm, section, message):
    with pytest.raises(ParamsError, match=message) as caught:
        resolve(arm, **section)
    assert len(str(caught.value).splitlines()) == 1


def test_a_control_may_learn_from_the_teacher_alone():
    kl = {"inter_class": {"name": "kl"}}
    assert resolve(kl | {"method": "head", "ce_weight": 0}).method == "head"


@pytest.mark.parametrize(
    ("arm", "section", "wanted"),
    [
        (KL, {}, True),
        ({}, {}, False),  # labels teach nothing there
        (KL | {"unlabelled": False}, {}, False),
        (KL, {"unlabelled": False}, False),
        (KL | {"targets": "shuffled_within_class"}, {}, False),
        (KL | {"targets": "member"}, {}, True),
    ],
)
def test_unlabelled_rows_teach_where_a_teachers_term_can(arm, section, wanted):
    assert resolve(arm, **section).unlabelled is wanted


def test_the_objective_reads_as_a_row_of_a_papers_table():
    arm = {
        "ce_weight": {"start": 0.0, "end": 1.0},
        "inter_class": {"name": "kl", "weight": {"start": 1, "end": 0}, "temperature": 2},
        "inter_instance": {"name": "gram", "scope": "queue:64"},
        "targets": "all_rows",
    }
    spec = resolve(arm)
    assert spec.terms == {
        "inter_class": Term("kl", Ramp(1.0, 0.0), 2.0), "inter_instance": Term("gram", scope="queue:64")
    }  # fmt: skip
    assert spec.describe() == (
        "0 → 1 · ce + 1 → 0 · kl (T = 2) + 1 · gram (T = 1, queue:64), targets of the teacher on all rows"
    )
    assert resolve({"label_smoothing": 0.1}).describe() == "1 · ce (smoothed by 0.1)"
    assert resolve(KL | {"unlabelled": False}).describe() == "1 · ce + 1 · kl (T = 2), labelled rows only"
    assert resolve(KL).as_settings()["inter_class"] == {
        "name": "kl", "weight": 1.0, "temperature": 2.0, "scope": "batch"
    }  # fmt: skip


def test_what_cannot_be_is_refused():
    with pytest.raises(ParamsError, match=r"arms\.a\.init: .* got 'donor'"):
        resolve({"init": "donor"})
    assert resolve({"init": "student:donor"}).init == "student:donor"
    with pytest.raises(ParamsError, match=r"arms\.a\.inter_class\.name: .*Did you mean kl\?"):
        resolve({"inter_class": {"name": "kll"}})
    params = build(DistillParams, read_params(ROOT / "params.yaml")["distill"], "distill")
    with pytest.raises(ParamsError, match=r"unknown arm 'kl-gram'\. Did you mean kl\+gram\?"):
        resolve_arm(params, "kl-gram")


def test_params_know_no_arm_key_that_a_spec_lacks():
    families = {"inter_class", "inter_instance", "feature"}
    assert {field.name for field in fields(Arm)} - families <= {field.name for field in fields(ArmSpec)}
