"""What the frozen backbone makes of rows is computed once, where there is room for it."""

import math
import weakref
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine import build_rows, build_run, double, fit, gap, values

from kdcache import on_disk
from kdcache.students.frozen_inputs import FrozenInputs, room_for
from kdcache.students.prompted_backbone import Backbone
from kdcache.students.stack import stacked
from kdcache.students.step import Step
from kdcache.students.student import predict
from kdcache.students.training_rows import StudentRows


@pytest.fixture(scope="module")
def rows(tiny_model: Path) -> StudentRows:
    return build_rows(tiny_model, Backbone.load(tiny_model))


def test_what_lies_below_late_prompts_is_computed_once(tiny_model: Path, rows, monkeypatch):
    """Steps and looks at tune read what is kept, and come to what they come to where all is computed anew."""
    kept, anew = (
        build_run(
            tiny_model, backbone, rows, "late_prefix", epochs=2, select="tune",
            tune=replace(rows, inputs=FrozenInputs(backbone, rows.encoded)),
        )
        for backbone in (Backbone.load(tiny_model), Backbone.load(tiny_model))
    )  # fmt: skip
    passes: list[Any] = []
    trunk = Backbone.trunk
    monkeypatch.setattr(Backbone, "trunk", lambda *some: passes.append(some) or trunk(*some))
    with monkeypatch.context() as patched:
        patched.setattr("kdcache.students.frozen_inputs.room_for", lambda *_: False)
        fit(anew)
    assert len(passes) > 8  # each step, and each look
    passes.clear()
    fit(kept)
    assert len(passes) == 2  # of rows, of tune: here both are in one batch
    assert gap(values(kept), values(anew)) < 1e-6
    assert [e["tune_accuracy"] for e in kept.history] == [e["tune_accuracy"] for e in anew.history]
    wanted = predict(kept.student, rows.encoded)
    passes.clear()
    found = predict(kept.student, rows.encoded, 4, frozen=kept.rows.inputs)
    assert not passes
    assert np.abs(found - wanted).max() < 1e-5


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("students", [1, 2])
def test_the_first_layer_attends_to_the_text_once(tiny_model: Path, rows, pooling, students, monkeypatch):
    """Steps read what is kept, and students come to what they come to where all is computed anew."""
    kept, anew = (
        [double(tiny_model, rows, pooling, epochs=75, seed=seed) for seed in range(students)]
        for _ in range(2)
    )
    computed: list[Any] = []
    text = Backbone.text
    monkeypatch.setattr(Backbone, "text", lambda *some, **more: computed.append(some) or text(*some, **more))
    with monkeypatch.context() as patched:
        patched.setattr("kdcache.students.frozen_inputs.room_for", lambda *_: False)
        fit(*anew)
    computed.clear()
    fit(*kept)
    assert len(computed) == 1  # all rows are in one batch
    assert kept[0].step == 300
    assert gap(values(kept[0]), values(anew[0])) > 0  # they are not computed alike
    for one, other in zip(kept, anew, strict=True):
        assert gap(values(one), values(other)) < 1e-8


def test_what_prefixes_of_another_length_read_is_not_kept_beside(tiny_model: Path, rows):
    inputs = FrozenInputs(Backbone.load(tiny_model), rows.encoded)
    batch, some = rows.encoded.batch([2, 0]), torch.tensor([2, 0])
    first = inputs.with_text(batch, some, 4, shared=True)["text"].attention
    kept = weakref.ref(inputs._known["text", 4])
    other = inputs.with_text(batch, some, 5, shared=True)["text"].attention
    assert kept() is None
    assert (first.queries - other.queries).abs().max() > 1e-3  # of other positions
    assert torch.equal(inputs.with_text(batch, some, 4, shared=True)["text"].attention.queries, first.queries)


def test_files_are_read_by_a_few_sequences_at_a_time(tiny_model: Path, rows, tmp_path, monkeypatch):
    backbone, some = Backbone.load(tiny_model), torch.arange(8)
    batch = rows.encoded.batch(range(8))
    own = batch["attention_mask"].bool()  # padding has any values
    reads = []
    for folder in (None, tmp_path):
        if folder:
            monkeypatch.setattr(on_disk, "SMALL", 0)
            monkeypatch.setattr(on_disk, "PIECE_ROWS", 3)
        inputs = FrozenInputs(backbone, replace(rows.encoded, folder=folder))
        text = inputs.with_text(batch, some, 4, shared=True)["text"].attention
        reads.append([*text, inputs.with_trunk(batch, some, 1)["trunk"][own]])
    assert all(torch.equal(one, other) for one, other in zip(*reads, strict=True))
    released: list[bool] = []
    monkeypatch.setattr(on_disk, "release", lambda: released.append(True))
    inputs.with_text(batch, some, 4, shared=True)
    assert len(released) == 3


@pytest.mark.parametrize(
    ("changes", "known"),
    [
        ({}, 4),
        ({"method": "late_prefix"}, 0),
        ({"method": "deep_prompt"}, 0),
        ({"method": "head"}, 0),
        ({"dropout": 0.1}, 0),  # what drops out differs between steps
        ({"labelled": 4}, 0),  # of more rows than it trains on
        ({"few": True}, 0),  # some rows come up in no step
        ({"decoder": True}, 0),  # which would hide later tokens
        ({"longer": True}, 0),  # behind another number of virtual tokens, text has other positions
    ],
)
def test_the_text_is_attended_to_beforehand_where_that_is_exact_and_pays(tiny_model, rows, changes, known):
    backbone = Backbone.load(tiny_model, dropout=changes.get("dropout", 0.0))
    backbone.config.is_decoder = changes.get("decoder", False)
    some = rows.first(changes.get("labelled", len(rows)))
    run = build_run(tiny_model, backbone, some, changes.get("method", "prefix"), epochs=2)
    if changes.get("few"):
        run.steps = (len(rows) - 1) // run.spec.batch_size
    others = [build_run(tiny_model, backbone, rows, num_virtual_tokens=5)] if changes.get("longer") else []
    assert Step(stacked([run, *others])).prefix_tokens == known


def test_below_late_prompts_nothing_drops_out_wherever_the_states_come_from(tiny_model: Path, rows):
    backbone = Backbone.load(tiny_model, dropout=0.3)
    batch = rows.encoded.batch(range(4))
    backbone.train(True)
    assert torch.equal(backbone.trunk(batch, 1), backbone.trunk(batch, 1))
    assert backbone.encoder.training
    backbone.train(False)


def test_states_that_the_disk_has_no_room_for_are_not_kept_and_a_line_says_so(
    tiny_model: Path, rows, tmp_path, monkeypatch, capsys
):
    encoded = replace(rows.encoded, folder=tmp_path)
    free = namedtuple("usage", "free")
    found = [torch.zeros(2, 3, 16)]
    size = 16 * 4 * int(encoded.sequences.lengths.sum())
    monkeypatch.setattr("shutil.disk_usage", lambda folder: free(2 * size))
    assert not room_for(found, encoded, size)
    assert "on the disk" in capsys.readouterr().err
    monkeypatch.setattr("shutil.disk_usage", lambda folder: free(3 * size))
    assert room_for(found, encoded, size)
    assert not room_for(found, encoded, size - 1)
    assert not room_for([*found, *found], encoded, math.inf)
