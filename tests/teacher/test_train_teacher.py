"""Teachers of every method, and ensembles, from rows to the cache."""

import contextlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from save_every import save_every
from typer.testing import CliRunner

from kdcache.cache.cached_rows import CacheRows
from kdcache.cache.reader import load_cache
from kdcache.cache.writer import write_cache
from kdcache.cli import app
from kdcache.digests import file_digest, value_digest
from kdcache.encoder.adapters import load_trained
from kdcache.encoder.batching import encode
from kdcache.encoder.forward import extract
from kdcache.encoder.load import load_classifier, load_tokenizer, save_model
from kdcache.errors import CacheMissing, DataError
from kdcache.project import Project
from kdcache.teacher import checkpoints, train_teacher, training

CACHE, TEACHER = Path("cache/cb"), Path("models/teacher/cb")
PREFIX = {"method": "prefix", "num_virtual_tokens": 4}
CACHED = ("prepare", "teach --task cb", "cache --task cb")
ENSEMBLE = {"ensemble": 2, "seed": 3, "batch_size": 4}
LORA = {"method": "lora", "lora_rank": 4, "lora_alpha": 8}


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def fails(*arguments: str, code: int = 1) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.stderr.strip().splitlines()[-1]


def chain(*commands: str) -> None:
    for command in commands:
        run(command, "--task", "cb")


def logits_of(folder: Path, split: str) -> np.ndarray:
    """What a model of the teacher says of the prepared rows, apart from the stage."""
    rows = pq.read_table(f"data/cb/{split}.parquet").to_pydict()
    encoded = encode(load_tokenizer(TEACHER), rows["text"], rows["text_pair"], 64)
    return extract(load_trained(folder, 3, "cls"), encoded, 3, 8, torch.device("cpu"))[0]


def identity() -> dict:
    return json.loads((TEACHER / "identity.json").read_text())


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param(PREFIX, id="prefix", marks=pytest.mark.slow),
        pytest.param(LORA, id="lora", marks=pytest.mark.slow),
        pytest.param({"ensemble": 2}, id="ensemble", marks=pytest.mark.slow),
    ],
)
def test_interrupted_teacher_goes_on_and_equals_an_uninterrupted_one(built_project, monkeypatch, keys):
    save_every(2, checkpoints, monkeypatch.setattr)
    params = {"epochs": 3, "folds": 0, "batch_size": 8, **keys}
    folder = built_project("prepare", name="interrupted", train_teacher=params)
    shutil.copytree(folder, folder.parent / "whole")
    step, ran = transformers.Trainer.training_step, []

    def stop_at_step_five(self, *args, **kwargs):
        if self.state.global_step == 5 and self.args.seed == keys.get("ensemble", 1) - 1:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(transformers.Trainer, "training_step", stop_at_step_five)
    assert fails("teach", "--task", "cb", code=130).startswith("Interrupted: finished work is kept")
    assert not (folder / "models").exists()

    def count(self, *args, **kwargs):
        ran.append(self.args.seed)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(transformers.Trainer, "training_step", count)
    run("teach", "--task", "cb")
    assert not Path("timings/train_teacher-cb.json").exists()
    assert len(ran) == 5  # of nine steps the checkpoint held four; a finished member is not trained again
    monkeypatch.chdir(folder.parent / "whole")
    run("teach", "--task", "cb")
    assert Path("timings/train_teacher-cb.json").exists()
    one, other = (content(folder.parent / name / TEACHER) for name in ("interrupted", "whole"))
    assert one == other


@pytest.mark.slow
def test_models_that_two_workers_train_are_those_of_one_process(built_project):
    params = {"ensemble": 2, "folds": 0, "epochs": 1}
    folder = built_project("prepare", name="serial", train_teacher=params)
    shutil.copytree(folder, folder.parent / "shared")
    assert "seed 1" in run("teach", "--task", "cb")
    with contextlib.chdir(folder.parent / "shared"):
        assert "seed 1" not in run("teach", "--task", "cb", "--workers", "2")  # the workers are silent
    one, other = (content(folder.parent / name / TEACHER) for name in ("serial", "shared"))
    assert one == other
    assert not list(folder.glob(".kdcache/training-*"))


def test_another_number_of_processes_goes_on_from_no_checkpoint_of_this_one(built_project, monkeypatch):
    built_project("prepare")
    alone = training.Training(Project.load(), "wic").scratch
    monkeypatch.setattr(training, "num_processes", lambda: 2)
    assert training.Training(Project.load(), "wic").scratch != alone


ON_A_STORE = ("engine=ray", "paths.parts=memory://teachers/parts")


def test_a_node_that_has_trained_a_model_stores_it_again(built_project, monkeypatch):
    """The store may have been down, or emptied since."""
    built_project("prepare", train_teacher={"folds": 0, "epochs": 1})
    fit_model, trained = training.fine_tune, []
    monkeypatch.setattr(training, "fine_tune", lambda *some: trained.append(some) or fit_model(*some))
    for _ in range(2):
        on_node = training.Training(Project.load(ON_A_STORE), "wic")
        (fit,) = on_node.fits
        on_node.open()(fit)
        assert on_node.stored.read(str(fit)) is not None
        on_node.stored.remove()
    assert len(trained) == 1


def test_a_node_with_other_files_or_packages_trains_no_model(built_project):
    built_project("prepare")
    with pytest.raises(DataError, match="first process"):
        train_teacher.open_training(Project.load().raw, "wic", "training-0123456789abcdef")
    build = training.Training(Project.load(), "wic").scratch.name
    train_teacher.open_training(Project.load().raw, "wic", build)


def test_a_teacher_of_another_pretrained_model_is_another_build(built_project):
    folder = built_project("prepare")
    before = training.Training(Project.load(), "wic").scratch
    for name in ("model.safetensors", "tokenizer_config.json"):
        path = folder / "tiny" / name
        content = path.read_bytes()
        path.unlink()  # it may be a link
        path.write_bytes(content.replace(b'"', b' "', 1) if name.endswith("json") else content[:-4] + b"abcd")
        after = training.Training(Project.load(), "wic").scratch
        assert after != before
        before = after


def test_a_process_with_other_data_than_the_first_is_refused(built_project, monkeypatch):
    built_project("prepare")
    monkeypatch.setattr(train_teacher, "from_main", lambda value: "train_teacher-0123456789abcdef")
    assert "the same data" in fails("teach", "--task", "wic")


def test_a_teacher_is_of_one_kind_of_machine(built_project, monkeypatch):
    built_project("prepare", train_teacher={"ensemble": 2, "folds": 0, "epochs": 1})
    fit, trained = training.fine_tune, []

    def stop_at_the_second(*arguments, **more):
        trained.append(arguments[5].seed)
        if arguments[5].seed == 1:
            raise KeyboardInterrupt
        return fit(*arguments, **more)

    with monkeypatch.context() as patched:
        patched.setattr(training, "fine_tune", stop_at_the_second)
        fails("teach", "--task", "cb", code=130)
        assert trained == [0, 1]
        training.Training(Project.load(), "cb").train(training.Fit(None, 0))
        assert trained == [0, 1], "a model that a worker finished before it died is not trained again"
    with monkeypatch.context() as patched:
        patched.setattr(training, "machine_kind", lambda device: "another")
        error = fails("teach", "--task", "cb")
    assert "another" in error
    assert "kdcache clean" in error
    run("teach", "--task", "cb")


@pytest.mark.slow
def test_prefix_teacher_is_an_adapter_that_the_cache_is_made_of(built_project):
    folder = built_project("prepare", train_teacher={**PREFIX, "lr": 1e-2})
    chain("teach")
    assert {path.name for path in TEACHER.glob("*.*")} == {
        "adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "identity.json", "cost.json", "folds.parquet", "probe.json", "digests.json",
    }  # fmt: skip
    names = ("adapter_model.safetensors", "fold-1/adapter_model.safetensors")
    base = file_digest(Path("tiny/model.safetensors"))
    all_rows, fold = (value_digest([file_digest(TEACHER / name), base]) for name in names)
    assert identity()["weights_sha256"] == all_rows
    assert identity()["folds_sha256"][1] == fold
    assert identity()["method"] == "prefix"
    chain("cache")
    run("verify", "--task", "cb")
    rows = load_cache(CACHE, "train")
    rows = rows.align(pq.read_table("data/cb/train.parquet")["example_id"].to_pylist())
    for k in (0, 1):
        of_fold = rows.fold == k
        assert np.abs(logits_of(TEACHER / f"fold-{k}", "train") - rows.logits)[of_fold].max() < 1e-5

    # Another base under the same adapter is another teacher.
    path = folder / "tiny" / "model.safetensors"
    weights = load_file(path)
    weights["embeddings.word_embeddings.weight"][5] += 1
    save_file(weights, path, {"format": "pt"})
    moved = value_digest([file_digest(TEACHER / names[0]), file_digest(path)])
    assert fails("cache", "--task", "cb") == (
        f"{TEACHER}: weights_sha256 must be '{all_rows}' as in identity.json, got '{moved}'. "
        "Run: kdcache teach --task cb"
    )


def test_lora_teacher_is_a_plain_folder(built_project):
    built_project("prepare", train_teacher={**LORA, "folds": 0})
    chain("teach", "cache")
    assert {path.name for path in TEACHER.iterdir()} == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "identity.json", "cost.json", "folds.parquet", "probe.json", "digests.json",
    }  # fmt: skip
    assert identity()["weights_sha256"] == file_digest(TEACHER / "model.safetensors")
    labels = json.loads((TEACHER / "config.json").read_text())["id2label"]
    assert list(labels.values()) == identity()["labels"]
    run("verify", "--task", "cb")


def test_weights_that_are_not_the_identitys_are_refused(built_project):
    built_project("prepare", "teach --task cb")
    shutil.copy(TEACHER / "model.safetensors", TEACHER / "fold-1" / "model.safetensors")
    assert fails("cache", "--task", "cb").startswith(f"{TEACHER}: folds_sha256 must be [")
    assert not CACHE.exists()


def test_ensemble_is_the_mean_of_teachers_trained_apart(built_project):
    folder = built_project(*CACHED, name="ensemble", train_teacher=ENSEMBLE)
    found = identity()
    members = [[TEACHER, TEACHER / "member-1"]]
    members += [[TEACHER / f"fold-{k}", TEACHER / f"fold-{k}" / "member-1"] for k in (0, 1)]
    digests = [[file_digest(part / "model.safetensors") for part in parts] for parts in members]
    assert len({digest for pair in digests for digest in pair}) == 6
    assert found["members_sha256"] == digests
    assert [found["weights_sha256"], *found["folds_sha256"]] == [value_digest(pair) for pair in digests]

    for split in ("train", "validation"):
        ids = pq.read_table(f"data/cb/{split}.parquet")["example_id"].to_pylist()
        rows = load_cache(CACHE, split).align(ids)
        means = [np.mean([logits_of(part, split) for part in parts], axis=0) for parts in members]
        assert np.abs(rows.logits_plain - means[0]).max() < 1e-5
        if split == "train":
            wanted = np.where((rows.fold == 0)[:, None], means[1], means[2])
        else:
            wanted = (means[1] + means[2]) / 2
        assert np.abs(rows.logits - wanted).max() < 1e-5
        assert len(rows.members) == 2
        for m in (0, 1):
            own = [logits_of(parts[m], split) for parts in members]
            out_of_fold = np.where((rows.fold == 0)[:, None], own[1], own[2])
            wanted = out_of_fold if split == "train" else (own[1] + own[2]) / 2
            assert np.abs(rows.member(m).logits - wanted).max() < 1e-5
        assert np.abs(rows.members[0] - rows.members[1]).max() > 1e-3
    assert load_cache(CACHE, "train").rows.all_rows_teacher().members == ()
    run("verify", "--task", "cb", "--teacher-rows", "24")
    assert digests[2][1] in run("inspect", "--task", "cb").replace("\n", "")
    manifest = load_cache(CACHE, "train").manifest
    assert manifest.num_folds == 2
    assert manifest.cost["forward_examples"] == 2 * (24 * 2 + 8 * 3 + 32 * 3)

    columns = [name for name, _ in manifest.columns][4:]
    assert columns == ["logits", "features", "logits_member_0", "logits_member_1", "logits_plain"]

    # Each member is the teacher of its own seed, trained apart.
    steps = json.loads((TEACHER / "cost.json").read_text())["steps"]
    built_project("prepare", name="alone", train_teacher={"folds": 0, "seed": 4, "batch_size": 4})
    shutil.rmtree("data")
    shutil.copytree(folder / "data", "data")
    chain("teach")
    assert identity()["weights_sha256"] == digests[0][1]
    assert json.loads((TEACHER / "cost.json").read_text())["steps"] * 2 < steps


def test_swapped_members_do_not_pass_for_each_other(built_project):
    built_project(*CACHED, train_teacher=ENSEMBLE)
    cached = {split: load_cache(Path("cache/cb"), split) for split in ("train", "tune", "validation")}
    manifest = cached["train"].manifest
    swapped = {split: replace(of.rows, members=of.rows.members[::-1]) for split, of in cached.items()}
    facts = {"identity": manifest.identity, "tolerance": manifest.tolerance, "metrics": manifest.metrics}
    write_cache(Path("cache/cb"), Path(".kdcache/x"), swapped, **facts)
    run("verify", "--task", "cb", "--teacher-rows", "0")  # the mean is the same
    assert "the teacher must give its logits again within 0.0001" in fails("verify", "--task", "cb")


def test_mean_of_logits_is_the_mean_of_log_probabilities():
    """Up to a constant per row, which the softmax cancels, so that the choice does not matter."""
    logits = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one, other = logits.mean(0), logits.log_softmax(-1).mean(0)
    for temperature in (0.5, 1.0, 4.0):
        assert torch.allclose((one / temperature).softmax(-1), (other / temperature).softmax(-1), atol=1e-12)


def test_logits_of_the_teacher_on_all_rows_are_stored_too(built_project):
    built_project(*CACHED)
    for split in ("train", "tune", "validation"):
        ids = pq.read_table(f"data/cb/{split}.parquet")["example_id"].to_pylist()
        rows = load_cache(CACHE, split).align(ids)
        all_rows = rows.all_rows_teacher()
        assert np.abs(all_rows.logits - logits_of(TEACHER, split)).max() < 1e-5
        assert np.abs(all_rows.logits - rows.logits).max() > 1e-4
        assert set(all_rows.fold.tolist()) == {-1}
        assert all_rows.features.shape == (len(rows), 0)  # the cached features are of the fold teachers
        assert (all_rows.example_id, all_rows.label.tolist()) == (rows.example_id, rows.label.tolist())
    found = load_cache(CACHE, "train").manifest
    assert found.columns[-1] == ["logits_plain", "float32[3]"]
    labels = load_cache(CACHE, "train").rows.label
    accuracy = (load_cache(CACHE, "train").rows.all_rows_teacher().logits.argmax(1) == labels).mean()
    assert accuracy == pytest.approx(found.all_rows_teacher["train"]["accuracy"])

    shutil.copytree(CACHE, "before/cb")
    run("export", "all.npz", "--task", "cb")
    run("export", "all.jsonl", "--task", "cb")
    for file in ("all.jsonl", "all.npz"):
        run("import", file, "--task", "cb")
        assert load_cache(CACHE, "train").rows.logits_plain is None
        run("verify", "--task", "cb")
    assert "columns.logits_plain: float32[3] → —" in run("diff", "before/cb", "cache/cb")


def test_a_cache_without_folds_is_that_of_the_teacher_on_all_rows(built_project):
    built_project(*CACHED, train_teacher={"folds": 0})
    rows = load_cache(CACHE, "train").rows
    assert rows.logits_plain is None
    assert rows.all_rows_teacher() is rows
    assert [name for name, _ in load_cache(CACHE, "train").manifest.columns][4:] == ["logits", "features"]


def test_a_cross_fitted_cache_without_the_teacher_on_all_rows_is_named(tmp_path: Path):
    rows = CacheRows(
        ["a", "b"], ["ha", "hb"], np.array([0, 1]), np.array([0, 1], np.int8),
        np.eye(2, dtype=np.float32), np.eye(2, 4),
    )  # fmt: skip
    identity_of_wic = {"task": "wic", "labels": ["false", "true"], "folds_sha256": ["a", "b"]}
    write_cache(tmp_path / "wic", tmp_path / "s" / "k", {"train": rows}, identity=identity_of_wic)
    with pytest.raises(CacheMissing) as error:
        load_cache(tmp_path / "wic", "train").rows.all_rows_teacher()
    assert str(error.value) == (
        "cache rows: a cache of cross-fitted logits must also hold logits_plain, got none. "
        "Build the cache again with kdcache cache."
    )
    both = replace(rows, logits_plain=rows.logits * 2)
    joined = CacheRows.joined([both.take([1]), both.take([0])])
    assert joined.all_rows_teacher().logits.tolist() == [[0, 2], [2, 0]]


def test_a_base_whose_head_is_of_another_size_is_told_once(project, tiny_model):
    folder = project(train_teacher={"folds": 0, "epochs": 1, "model": "base"}, prepare={"max_rows": 12})
    save_model(load_classifier(tiny_model, 5, seed=7), load_tokenizer(tiny_model), folder / "base", "abcde")
    run("prepare", "--task", "cb")
    done = CliRunner().invoke(app, ["teach", "--task", "cb"], catch_exceptions=False)
    assert done.exit_code == 0
    assert sum("classifier.weight" in line for line in done.stderr.splitlines()) == 1
