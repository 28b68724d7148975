"""A step that is replayed on a GPU computes what it computes without."""

from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from engine import KL_GRAM, build_rows, build_run, fit, gap, values

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


def test_a_recording_that_fails_leaves_the_stream_as_it_was(monkeypatch):
    """As in torch, whose recording ends on its own stream where its end fails."""
    streams = ["usual"]

    @contextmanager
    def record(graph, pool):
        streams.append("torch's own")
        yield
        raise RuntimeError

    monkeypatch.setattr(torch.cuda, "graph", record)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: streams[-1])
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    with pytest.raises(RuntimeError), step_module._recorded_as(None, None):
        pass
    assert streams[-1] == "usual"
