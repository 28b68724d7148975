"""What the frozen backbone makes of rows is computed once, where there is room for it."""

from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine import build_rows, build_run, fit, gap, values

from kdcache.students.frozen_inputs import FrozenInputs, trunk_fits
from kdcache.students.prompted_backbone import Backbone
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
        patched.setattr("kdcache.students.frozen_inputs.trunk_fits", lambda *_: False)
        fit(anew)
    assert len(passes) > 8  # each step, and each look
    passes.clear()
    fit(kept)
    assert len(passes) == 2  # of rows, of tune: here both are in one batch
    assert gap(values(kept), values(anew)) < 1e-6
    assert [e["tune_accuracy"] for e in kept.history] == [e["tune_accuracy"] for e in anew.history]
    wanted = predict(kept.student, rows.encoded)[0]
    passes.clear()
    found = predict(kept.student, rows.encoded, 4, frozen=kept.rows.inputs)[0]
    assert not passes
    assert np.abs(found - wanted).max() < 1e-5


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
    monkeypatch.setattr("shutil.disk_usage", lambda folder: free(100))
    assert not trunk_fits(rows.inputs.backbone, encoded)
    assert "on the disk" in capsys.readouterr().err
    monkeypatch.setattr("shutil.disk_usage", lambda folder: free(10**12))
    assert trunk_fits(rows.inputs.backbone, encoded)
