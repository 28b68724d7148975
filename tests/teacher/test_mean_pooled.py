"""Mean-pooled teachers: what their folder holds, what resumes, and what is refused as another teacher."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from conftest import ROOT, build_tiny_model, fails, run
from peft import PeftModel
from safetensors.torch import load_file, save_file
from save_every import save_every
from test_fine_tune import LABELS, LORA, PARAMS, PREFIX, TEXTS, rows_of
from transformers import AutoModel

from kdcache.cache.manifest import read_manifest
from kdcache.digests import seal
from kdcache.encoder.adapters import adapter_of, load_trained, save_trained
from kdcache.encoder.batching import encode
from kdcache.encoder.forward import extract
from kdcache.encoder.load import load_encoder, load_tokenizer
from kdcache.encoder.mean_pooled import MeanPooledClassifier
from kdcache.encoder.pooling import read_pooling, write_pooling
from kdcache.teacher import checkpoints
from kdcache.teacher.fine_tune import fine_tune

CPU = torch.device("cpu")
TEACHER = Path("models/teacher/cb")
OTHER_KINDS = ("roberta", "electra", "deberta-v2", "modernbert", "mpnet", "distilbert", "albert")


def build(folder: Path, kind: str = "bert") -> Path:
    """A random encoder that says it is read by the mean."""
    build_tiny_model(folder, architecture=kind)
    write_pooling(folder, "mean", 16)
    return folder


def teach(folder: Path, params, scratch: Path) -> MeanPooledClassifier:
    model, _ = fine_tune(folder, rows_of(folder), LABELS, list(range(len(TEXTS))), 3, params, scratch)
    assert isinstance(model, MeanPooledClassifier)
    return model


@pytest.mark.parametrize(
    ("params", "kind"),
    [
        *((params, "bert") for params in (PARAMS, LORA, PREFIX)),
        *(pytest.param(p, kind, marks=pytest.mark.slow) for p in (PARAMS, LORA) for kind in OTHER_KINDS),
        *(pytest.param(PREFIX, kind, marks=pytest.mark.slow) for kind in ("roberta", "electra")),
    ],
)  # fmt: skip
def test_its_folder_is_read_by_plain_transformers_and_peft(tmp_path, params, kind, monkeypatch):
    base, out = build(tmp_path / "base", kind), tmp_path / "out"
    monkeypatch.chdir(tmp_path)
    model = teach(base, params, tmp_path / "scratch")
    rows = rows_of(base)
    logits, features = extract(model, rows, 3, 8, CPU)
    save_trained(model, out, "base")
    assert np.abs(extract(load_trained(out, 3, "mean"), rows, 3, 8, CPU)[0] - logits).max() < 1e-6

    batch, head = rows.batch(range(len(rows))), load_file(out / "head.safetensors")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    plain = AutoModel.from_pretrained(base if params.method == "prefix" else out)
    if params.method == "prefix":
        plain = PeftModel.from_pretrained(plain, out)
    with torch.no_grad():
        states = plain.eval()(input_ids=ids, attention_mask=mask).last_hidden_state
    mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    assert (mean - torch.from_numpy(features)).abs().max() < 1e-5  # the cache's features are this state
    assert (mean @ head["weight"].T + head["bias"] - torch.from_numpy(logits)).abs().max() < 1e-5
    assert read_pooling(out) == "mean"


@pytest.mark.parametrize("params", [PARAMS, PREFIX, LORA], ids=["full", "prefix", "lora"])
def test_a_method_trains_what_it_says(tmp_path, params):
    base = build(tmp_path / "base")
    model = teach(base, params, tmp_path / "scratch")
    before = load_encoder(base).state_dict()
    adapter = adapter_of(model)
    inner = adapter.get_base_model() if adapter else model.encoder
    same = {name for name, value in inner.state_dict().items() if torch.equal(value, before[name])}
    linear = {f"{n}.weight" for n, m in inner.named_modules() if isinstance(m, torch.nn.Linear)}
    unused = {name for name in before if "word_embeddings" in name or "position_embeddings" in name}
    everything = set(inner.state_dict())
    wanted = {"full": everything - unused, "prefix": set(), "lora": linear}[params.method]
    assert everything - same - unused == wanted


@pytest.mark.parametrize(
    "params",
    [
        pytest.param(PARAMS, id="full", marks=pytest.mark.slow),
        pytest.param(PREFIX, id="prefix", marks=pytest.mark.slow),
        pytest.param(LORA, id="lora"),  # weights of the encoder in an adapter, and a head
    ],
)
def test_an_interrupted_one_goes_on_and_equals_an_uninterrupted_one(tmp_path, monkeypatch, params):
    save_every(2, checkpoints, monkeypatch.setattr)
    base = build(tmp_path / "base")
    params = replace(params, epochs=3)  # of two steps
    whole = teach(base, params, tmp_path / "whole")
    step, ran = transformers.Trainer.training_step, []

    def stop(self, *args, **kwargs):
        if len(ran) == 5:
            raise KeyboardInterrupt
        ran.append(self.state.global_step)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(transformers.Trainer, "training_step", stop)
    with pytest.raises(KeyboardInterrupt):
        teach(base, params, tmp_path / "scratch")
    ran.clear()
    resumed = teach(base, params, tmp_path / "scratch")
    assert ran == [4, 5]
    pairs = zip(whole.state_dict().items(), resumed.state_dict().items(), strict=True)
    assert all(one == other and torch.equal(a, b) for (one, a), (other, b) in pairs)


CACHED = ("prepare", "teach --task cb", "cache --task cb")
MEAN = {"pooling": "mean"}  # the base of these projects says nothing of pooling
DISTILL = ("distill", "--task", "cb", "--arm", "head", "--seed", "0")


def identity() -> dict:
    return json.loads((TEACHER / "identity.json").read_text())


def test_the_docs_read_it(built_project):
    built_project(*CACHED, train_teacher=MEAN)
    page = (ROOT / "docs/concepts/teacher.md").read_text(encoding="utf-8")
    block = page.partition("```python\n")[2].partition("```")[0]
    found: dict = {}
    exec(block.replace("/wic", "/cb"), found)
    encoded = encode(load_tokenizer(TEACHER), ["a text"], ["its second text"], 64)
    wanted = extract(load_trained(TEACHER, 3, "mean"), encoded, 3, 8, CPU)[0]
    assert np.abs(found["logits"].detach().numpy() - wanted).max() < 1e-5


def test_identity_covers_the_head(built_project):
    built_project(*CACHED, train_teacher=MEAN)
    assert identity()["pooling"] == "mean"
    assert run("verify", "--task", "cb")[0] == 0
    head = TEACHER / "fold-1" / "head.safetensors"
    kept = head.read_bytes()
    shutil.copy(TEACHER / "fold-0" / "head.safetensors", head)
    assert fails("cache", "--task", "cb").startswith(f"{TEACHER}: folds_sha256 must be [")
    head.write_bytes(kept)
    weights = load_file(TEACHER / "head.safetensors")
    save_file({**weights, "bias": weights["bias"] + 1}, TEACHER / "head.safetensors")
    assert fails("cache", "--task", "cb").startswith(f"{TEACHER}: weights_sha256 must be '")
    (TEACHER / "head.safetensors").unlink()
    assert fails("cache", "--task", "cb").startswith(f"{TEACHER}: pooling must be 'mean'")


def test_a_teacher_that_pools_otherwise_than_the_parameters_say_is_refused(built_project):
    built_project(*CACHED, "shrink", train_teacher=MEAN)
    cls = ("--set", "train_teacher.pooling=cls")
    for command in (("cache", "--task", "cb"), DISTILL):
        for setting in (cls, ("--set", "train_teacher.pooling=auto")):
            message = fails(*command, *setting)
            assert "must pool by cls, as train_teacher.pooling says of tiny, got mean" in message
    assert "kdcache teach --task cb && kdcache cache --task cb" in message
    assert run(*DISTILL)[0] == 0  # as the other remedy is


@pytest.mark.slow
def test_a_teacher_that_pools_otherwise_is_cured_as_the_message_says(built_project):
    built_project(*CACHED, "shrink", train_teacher=MEAN)
    cls = ("--set", "train_teacher.pooling=cls")
    for command in (("teach", "--task", "cb"), ("cache", "--task", "cb"), DISTILL):
        assert run(*command, *cls)[0] == 0
    assert read_manifest(Path("cache/cb")).identity["pooling"] == "cls"


def test_auto_says_nothing_of_a_teacher_of_another_model(built_project):
    built_project(*CACHED, train_teacher=MEAN)
    shutil.copytree("tiny", "other")  # which says nothing of pooling, so that auto is cls
    settings = ("--set", "train_teacher.pooling=auto", "--set", "train_teacher.model=other")
    assert run("cache", "--task", "cb", *settings)[0] == 0


def test_an_imported_teacher_is_exempt(built_project):
    built_project(*CACHED, "shrink", train_teacher=MEAN)
    assert run("export", "all.npz", "--task", "cb")[0] == 0
    assert run("import", "all.npz", "--task", "cb")[0] == 0
    shutil.rmtree("models/teacher")
    assert "pooling" not in read_manifest(Path("cache/cb")).identity
    assert run(*DISTILL)[0] == 0  # though the parameters say mean


def test_a_teacher_made_before_there_was_a_choice_reads_cls(built_project):
    built_project(*CACHED)
    old = identity()
    assert old.pop("pooling") == "cls"
    (TEACHER / "identity.json").write_text(json.dumps(old))
    seal(TEACHER / "identity.json")
    (TEACHER / "probe.json").unlink()
    assert run("verify", "--task", "cb")[0] == 0  # the cache says cls, the teacher nothing
    assert run("cache", "--task", "cb")[0] == 0
    manifest = read_manifest(Path("cache/cb"))
    assert "pooling" not in manifest.identity
    assert manifest.probe is None
    (TEACHER / "identity.json").write_text(json.dumps({**old, "pooling": "cls"}))
    seal(TEACHER / "identity.json")
    assert run("verify", "--task", "cb")[0] == 0  # and the other way round
    assert "must pool by mean" in fails("cache", "--task", "cb", "--set", "train_teacher.pooling=mean")


def test_cls_is_refused_where_the_tokenizer_puts_none(project):
    project()
    assert run("prepare")[0] == 0
    path = Path("tiny/tokenizer_config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"cls_token": "[SEP]"}))
    assert "train_teacher.pooling: with cls, the tokenizer must" in fails("teach", "--task", "cb")


def test_a_pooling_that_cannot_be_read_is_refused_before_anything_starts(project):
    project()
    path = Path("tiny/1_Pooling/config.json")
    path.parent.mkdir()
    path.write_text(json.dumps({"pooling_mode_max_tokens": True}))
    assert run("prepare")[0] == 0
    message = fails("teach", "--task", "cb")
    assert "max_tokens" in message
    assert not Path(".kdcache").exists() or not list(Path(".kdcache").glob("train_teacher*"))
    settings = ("train_teacher.pooling=mean", "train_teacher.folds=0")
    assert run("teach", "--task", "cb", *(part for key in settings for part in ("--set", key)))[0] == 0
