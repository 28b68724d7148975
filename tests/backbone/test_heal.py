"""Healing moves a cut towards the full model, on any BERT-like encoder; killed, it resumes to the bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from encoders import CPU, ENCODERS, build, params, read_texts, states_of
from transformers import AutoModel

from kdcache.backbone.cut import cut
from kdcache.backbone.heal import heal, shiftable_from
from kdcache.encoder.batching import Encoded
from kdcache.encoder.load import load_encoder
from kdcache.errors import ParamsError, TrainingDiverged

FIRST_POSITION = {
    "bert": 0, "roberta": 2, "electra": 0, "deberta-v2": None, "modernbert": None,
    "distilbert": 0, "mpnet": 2, "albert": 0,
}  # fmt: skip


def silent(_line: str) -> None:
    pass


@pytest.fixture
def encoded(tiny_model: Path) -> Encoded:
    return read_texts(tiny_model)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model of each architecture."""
    return {name: build(name, tmp_path_factory.mktemp(name) / "model") for name in ENCODERS}


@pytest.mark.parametrize("name", ENCODERS)
class TestArchitecture:
    @pytest.fixture
    def folder(self, name: str, folders: dict[str, Path]) -> Path:
        return folders[name]

    @pytest.fixture
    def texts(self, folder: Path) -> Encoded:
        return read_texts(folder)

    def test_healed_cut_loads_in_plain_transformers(self, folder, texts, tmp_path):
        full = load_encoder(folder)
        student = cut(full, (0, 1))
        before = {key: value.clone() for key, value in student.state_dict().items()}
        losses = heal(student, full, (0, 1), texts, params(epochs=4), CPU, report=silent)
        assert losses[-1] < losses[0]
        moved = {key for key, value in student.state_dict().items() if not torch.equal(value, before[key])}
        assert moved
        assert not any("embeddings" in key for key in moved)
        student.save_pretrained(str(tmp_path / "out"))
        again = AutoModel.from_pretrained(str(tmp_path / "out")).eval()
        assert torch.equal(states_of(again, texts), states_of(student, texts))

    def test_all_states_of_an_uncut_model_are_already_right(self, folder, texts):
        full = load_encoder(folder)
        settings = params(num_layers=4, states="all", epochs=1, lr=1e-30, position_shift=0)
        assert heal(cut(full, range(4)), full, range(4), texts, settings, CPU, report=silent) == [0.0]

    def test_positions_shift_where_there_is_a_table(self, folder, texts, name):
        full = load_encoder(folder)
        first = shiftable_from(full, params())
        assert first == FIRST_POSITION[name]
        if first is not None:  # the first position is the one the model itself starts at
            tokens = texts.batch(range(len(texts)))["input_ids"].shape[1]
            given = states_of(full, texts, position_ids=torch.arange(first, first + tokens)[None])
            assert torch.equal(given[:, 0], states_of(full, texts)[:, 0])
            with pytest.raises(
                ParamsError, match=rf"must be at most the model's {96 - first} positions, got"
            ):
                shiftable_from(full, params(max_length=89))


@pytest.mark.slow
def test_all_states_pull_each_kept_layer_to_its_counterpart(tmp_path):
    folder = build("bert", tmp_path / "model")
    texts = read_texts(folder)
    full, keep = load_encoder(folder), (1, 3)
    with torch.no_grad():
        wanted = full(**texts.batch(range(len(texts))), output_hidden_states=True).hidden_states[2]
    errors = {}
    for states in ("last", "all"):
        student = cut(full, keep)
        heal(student, full, keep, texts, params(epochs=6, states=states), CPU, report=silent)
        with torch.no_grad():
            got = student(**texts.batch(range(len(texts))), output_hidden_states=True).hidden_states[1]
        errors[states] = (got - wanted).square().mean().item()
    assert errors["all"] < 0.7 * errors["last"]


@pytest.mark.parametrize("stop", [3, 5, 10])
def test_killed_and_resumed_healing_equals_uninterrupted(tiny_model, encoded, tmp_path, monkeypatch, stop):
    """4 steps an epoch, 3 epochs, a checkpoint every second step; killed within epochs and just after one."""
    monkeypatch.setattr("kdcache.backbone.heal.HEALING_CHECKPOINT_STEPS", 2)
    full = load_encoder(tiny_model)
    whole = cut(full, (0,))
    losses = heal(whole, full, (0,), encoded, params(), CPU, report=silent)

    steps = 0
    step = torch.optim.AdamW.step

    def kill(self: Any, *args: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps > stop:
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", kill)
    with pytest.raises(KeyboardInterrupt):
        heal(cut(full, (0,)), full, (0,), encoded, params(), CPU, tmp_path, silent)
    steps = -1000
    resumed = cut(full, (0,))
    assert heal(resumed, full, (0,), encoded, params(), CPU, tmp_path, silent) == losses
    assert steps == -1000 + 12 - stop + stop % 2  # the work before the last checkpoint is not done again
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


@pytest.mark.slow
def test_healing_under_shifts_makes_the_cut_care_less_about_position(tiny_model, encoded):
    full = load_encoder(tiny_model)
    gaps = []
    for position_shift in (0, 8):
        student = cut(full, (0,))
        settings = params(epochs=12, position_shift=position_shift)
        heal(student, full, (0,), encoded, settings, CPU, report=silent)
        tokens = encoded.batch(range(len(encoded)))["input_ids"].shape[1]
        shifted = states_of(student, encoded, position_ids=torch.arange(4, 4 + tokens)[None])
        gaps.append((shifted - states_of(student, encoded))[:, 0].norm().item())
    assert gaps[1] < 0.8 * gaps[0]


def test_diverging_healing_stops(tiny_model, encoded):
    full = load_encoder(tiny_model)
    student = cut(full, (0,))
    student.encoder.layer[0].output.dense.weight.data.fill_(float("nan"))
    with pytest.raises(
        TrainingDiverged, match=r"must stay finite, got nan in epoch 1. Lower student_backbone.lr"
    ):
        heal(student, full, (0,), encoded, params(), CPU, report=silent)
