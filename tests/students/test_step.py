"""A step that is replayed on a GPU computes what it computes without."""

from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from engine import KL_GRAM, build_rows, build_run, fit, gap, values

from kdcache.encoder.batching import Padded
from kdcache.losses import Term
from kdcache.losses.terms import Ramp
from kdcache.students import step as step_module
from kdcache.students.prompted_backbone import Backbone
from kdcache.students.stack import stacked

ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@ON_GPU
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_replayed_steps_give_the_bits_of_computed_ones(tiny_model: Path, dtype, monkeypatch):
    backbone = Backbone.load(tiny_model, dtype=dtype).to(torch.device("cuda"))
    rows = build_rows(tiny_model, backbone)
    found = []
    for seen_before in (2, 10**9):
        monkeypatch.setattr(step_module, "SEEN_BEFORE", seen_before)
        runs = [build_run(tiny_model, backbone, rows, terms=KL_GRAM, seed=k, epochs=10) for k in range(3)]
        fit(*runs)
        found.append(runs)
    for replayed, computed in zip(*found, strict=True):
        assert gap(values(replayed), values(computed)) == 0
        assert replayed.history == computed.history


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"terms": KL_GRAM}, True),
        ({"terms": {"inter_class": Term("kl", Ramp(0.0, 1.0))}}, False),
        ({"terms": {"inter_class": Term("dkd")}}, False),
        ({"terms": {"inter_instance": Term("rkd_angle")}}, False),
        ({"terms": {"inter_instance": Term("gram", scope="all")}}, False),
        ({"method": "full"}, False),
    ],
    ids=["kl+gram", "a ramp", "dkd", "blocks", "a memory", "a reference"],
)
def test_only_steps_that_do_the_same_each_time_are_replayed(tiny_model: Path, changes, same):
    """A ramp's weight, a loss that looks at values and a memory that grows would be the recorded ones."""
    backbone = Backbone.load(tiny_model)
    (stack,) = stacked([build_run(tiny_model, backbone, build_rows(tiny_model, backbone), **changes)])
    assert stack.replayable == same


def test_where_a_recording_fails_steps_are_computed_and_this_is_said(tiny_model: Path, monkeypatch, capsys):
    """torch then leaves its own stream current."""
    backbone = Backbone.load(tiny_model)
    rows = build_rows(tiny_model, backbone)
    runs = [build_run(tiny_model, backbone, rows, epochs=3) for _ in range(2)]
    streams, recordings = ["usual"], []

    @contextmanager
    def record(graph, pool):
        streams.append("torch's own")
        recordings.append(graph)
        raise RuntimeError("operation failed due to a previous error during capture")
        yield

    monkeypatch.setattr(step_module.Step, "records", True)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", record)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: streams[-1])
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    steps = [step_module.Step(stacked([run])) for run in runs]
    for step in steps:
        step.padded = Padded.of(rows.encoded)
    steps[0].replays = True
    while not runs[0].finished:
        for step in steps:
            step.take()
    assert len(recordings) == 1
    assert streams[-1] == "usual"
    assert not step_module.Step.records
    assert gap(*map(values, runs)) < 1e-6
    assert "RuntimeError" in capsys.readouterr().err
