"""Terms that cannot work are refused or reported before the first step."""

import pytest

from kdcache.errors import ParamsError
from kdcache.losses import LOSSES, Ramp, Term, check_terms
from kdcache.losses.terms import describe, is_zero, queue_length, value_at
from kdcache.params import build
from kdcache.students.arms import Arm

REFUSED = {
    "unknown": (
        {"inter_class": Term("kll")}, {},
        "arm.inter_class.name: it must be a loss of that family, got 'kll'. Did you mean kl?",
    ),
    "another family": (
        {"inter_class": Term("gram")}, {},
        "arm.inter_class.name: it must be a loss of that family, got 'gram'. Known: dist_inter, dkd, kl.",
    ),
    "no gradient on two classes, inter-class": (
        {"inter_class": Term("dist_inter")}, {"num_labels": 2},
        "arm.inter_class.name: it must have a gradient on the logits of two classes, got dist_inter, "
        "which has none. Use kl.",
    ),
    "no gradient on two classes, relation": (
        {"inter_instance": Term("pkt")}, {"num_labels": 2},
        "arm.inter_instance.name: it must have a gradient on the logits of two classes, got pkt, "
        "which has none. Use gram.",
    ),
    "only a relation": (
        {"inter_instance": Term("gram")}, {"ce_weight": 0.0},
        "arm: a term must tell the classes apart, got ce_weight 0 and no inter_class (relations and "
        "features do not say which class is which). Add inter_class: {name: kl}.",
    ),
    "a blind relation beside a term of no weight": (
        {"inter_class": Term("kl", weight=0.0), "inter_instance": Term("sp")}, {"ce_weight": Ramp(0.0, 0.0)},
        "arm: a term must tell the classes apart, got ce_weight 0 and no inter_class (relations and "
        "features do not say which class is which). Add inter_class: {name: kl}.",
    ),
    "a tiny batch": (
        {"inter_instance": Term("dist_intra")}, {"batch_size": 2},
        "arm.batch_size: it must be at least 3 for dist_intra, got 2. Raise it, or distill.batch_size.",
    ),
    "a scope of no known kind": (
        {"inter_instance": Term("gram", scope="queue")}, {},
        "arm.inter_instance.scope: it must be batch, all or queue:N, got 'queue'. Use batch.",
    ),
    "a scope that the loss cannot have": (
        {"inter_instance": Term("rkd_distance", scope="all")}, {},
        "arm.inter_instance.scope: it must be batch for rkd_distance, got 'all'. "
        "Wider scopes are for gram, gram_centred, sp, cka under inter_instance.",
    ),
    "a temperature that the loss has not": (
        {"inter_instance": Term("sp", temperature=2.0)}, {},
        "arm.inter_instance.temperature: it must be left out, since sp has none, got 2.",
    ),
    "a temperature that reaches zero": (
        {"inter_class": Term("kl", temperature=Ramp(4.0, 0.0))}, {},
        "arm.inter_class.temperature: it must be > 0 throughout, got 4 → 0.",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("terms", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_work_is_refused_at_start(terms, options, message):
    with pytest.raises(ParamsError) as caught:
        check_terms(terms, options.pop("ce_weight", 1.0), "arm", **{"num_labels": 3, **options})
    assert str(caught.value) == message


@pytest.mark.parametrize("name", list(LOSSES))
def test_every_loss_is_accepted_in_each_of_its_families(name):
    for family in LOSSES[name].families:
        assert check_terms({family: Term(name)}, 1.0, "arm", num_labels=3, batch_size=16) == []


def test_features_of_two_classes_are_not_refused():
    assert check_terms({"feature": Term("pkt")}, 1.0, "arm", num_labels=2) == []


def test_dist_intra_alone_tells_the_classes_apart():
    assert check_terms({"inter_instance": Term("dist_intra")}, 0.0, "arm", num_labels=3) == []


def test_what_works_otherwise_than_one_thinks_is_said():
    (slots,) = check_terms({"inter_instance": Term("cka")}, 1.0, "arm", num_labels=2, num_choices=2)
    assert slots == (
        "arm.inter_instance: cka sees in which slot a choice stands, which means nothing here. "
        "Prefer gram or sp."
    )
    assert check_terms({"inter_instance": Term("sp")}, 1.0, "arm", num_labels=2, num_choices=2) == []
    (same,) = check_terms({"inter_class": Term("dkd")}, 1.0, "arm", num_labels=2)
    assert same.startswith("arm.inter_class: with two classes dkd is kl of the labelled rows only.")


def test_a_ramp_moves_and_then_stays():
    ramp = Ramp(1.0, 3.0, 0.5)
    assert [value_at(ramp, p) for p in (0.0, 0.25, 0.5, 1.0)] == [1.0, 2.0, 3.0, 3.0]
    assert value_at(0.7, 0.3) == 0.7
    assert describe(ramp) == "1 → 3 over 0.5"
    assert is_zero(0.0)
    assert not is_zero(Ramp(0.0, 1.0))


def test_scopes_by_length():
    assert [queue_length(scope) for scope in ("batch", "queue:7", "all")] == [0, 7, None]


@pytest.mark.parametrize(
    ("values", "keys"),
    [
        ({"ce_weight": -1}, {"arm.ce_weight"}),
        ({"ce_weight": {"start": 0, "stop": 1}}, {"arm.ce_weight.stop", "arm.ce_weight.end"}),
    ],
)
def test_a_bad_ramp_is_one_line_per_key(values, keys):
    with pytest.raises(ParamsError) as caught:
        build(Arm, values, "arm")
    assert {line.split(": ")[0] for line in str(caught.value).splitlines()} == keys
