"""Rows without a label teach students through the teacher, and nobody else."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import run_all, write_project
from six_tasks import write_powered
from typer.testing import CliRunner

from kdcache.cache.manifest import MANIFEST, read_manifest
from kdcache.cli import app
from kdcache.digests import value_digest
from kdcache.project import Project
from kdcache.students.grid import Grid

OWN = ("--set", "paths.tasks=own", "--set", "tasks=[mine]")
TASK_FILE = """
splits = {train = "train.jsonl", validation = "test.jsonl", unlabelled = "val.jsonl"}
text = "text"
label = "intent"
"""


def run(*arguments: str) -> None:
    result = CliRunner().invoke(app, [*arguments, *OWN], catch_exceptions=False)
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def built(tmp_path_factory, tiny_model) -> Path:
    """A project whose task has 48 training and 24 unlabelled rows, up to the cache and the backbone."""
    sections = {"distill": {"seeds": [0], "epochs": 2, "batch_size": 16}}
    folder = write_project(tmp_path_factory.mktemp("unlabelled") / "project", tiny_model, **sections)
    write_powered(folder)
    (folder / "clinc150").rename(folder / "own")
    (folder / "own" / "mine.toml").write_text(TASK_FILE)
    run_all(folder, ["run", "--set", "prepare.max_rows=null", *OWN])
    return folder


@pytest.fixture
def cached(built, tmp_path, monkeypatch) -> Path:
    """A copy of that project, and the current folder."""
    folder = tmp_path / "project"
    shutil.copytree(built, folder)
    monkeypatch.chdir(folder)
    return folder


def result(folder: Path, arm: str) -> dict:
    return json.loads((folder / "runs" / "mine" / f"{arm}-0" / "result.json").read_text())


def weights(folder: Path, arm: str) -> bytes:
    return (folder / "runs" / "mine" / f"{arm}-0" / "adapter_model.safetensors").read_bytes()


def test_unlabelled_rows_teach_by_distillation_alone(cached):
    train, more = (pq.read_table(cached / "data" / "mine" / f"{s}.parquet") for s in ("train", "unlabelled"))
    assert (train.num_rows, more.num_rows) == (36, 24)
    assert set(more["label"].to_pylist()) == {-1}
    cost = json.loads((cached / "models" / "teacher" / "mine" / "cost.json").read_text())
    assert cost["examples"] == 36 + 36  # one teacher on all labelled rows, two on half each

    manifest = read_manifest(cached / "cache" / "mine")
    assert manifest.files["unlabelled.parquet"]["rows"] == 24
    assert set(manifest.metrics) == {"train", "tune", "validation"}

    arms = ("--arm", "ce", "--arm", "kl")
    run("distill", *arms)
    steps = 2 * 4  # two epochs of 60 rows in batches of 16, for every arm
    assert (result(cached, "ce")["steps"], result(cached, "kl")["steps"]) == (steps, steps)
    assert result(cached, "kl")["examples"] == 2 * 60
    assert 2 * 36 < result(cached, "ce")["examples"] < 3 * 36  # in its third pass, of 3 batches each
    ce, kl = weights(cached, "ce"), weights(cached, "kl")
    run("distill", *arms, "--set", "distill.arms.kl.unlabelled=false")
    assert result(cached, "kl")["steps"] == steps
    assert result(cached, "kl")["examples"] == result(cached, "ce")["examples"]
    assert weights(cached, "ce") == ce
    alone = weights(cached, "kl")
    assert alone != kl
    run("distill", *arms, "--set", "distill.unlabelled=false")
    assert {result(cached, arm)["steps"] for arm in ("ce", "kl")} == {2 * 3}
    same = (f"distill.steps={steps}", "distill.epochs=null", "distill.unlabelled=false")
    run("distill", *arms, *(part for key in same for part in ("--set", key)))
    assert (weights(cached, "ce"), weights(cached, "kl")) == (ce, alone)


def test_rows_that_train_leaves_over_lose_their_labels(project):
    folder = project(prepare={"tune_fraction": 0.25})
    write_powered(folder)
    (folder / "clinc150").rename(folder / "own")
    (folder / "own" / "mine.toml").write_text(TASK_FILE.replace(', unlabelled = "val.jsonl"', ""))

    def rows(max_rows: str) -> dict[str, dict[str, int]]:
        run("prepare", "--set", f"prepare.max_rows={max_rows}")
        tables = {path.stem: pq.read_table(path) for path in (folder / "data" / "mine").glob("*.parquet")}
        return {
            split: dict(zip(table["text"].to_pylist(), table["label"].to_pylist(), strict=True))
            for split, table in tables.items()
        }

    few, scarce = rows("{train: 24}"), rows("{train: 24, unlabelled: 16}")
    assert {split: scarce[split] for split in few} == few
    more = scarce["unlabelled"]
    assert (len(more), set(more.values())) == (16, {-1})
    assert not more.keys() & {*few["train"], *few["tune"]}
    arguments = ("prepare", "--set", "prepare.max_rows={train: 4711, unlabelled: 16}", *OWN)
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 1
    assert refused.stderr.startswith("prepare.max_rows.unlabelled: ")
    assert len(refused.stderr.splitlines()) == 1


def test_joined_rows_keep_their_own_targets(cached):
    grid = Grid(Project.load([*OWN[1::2]]), "mine")
    train, more, joined = grid.splits["train"], grid.splits["unlabelled"], grid.rows
    assert joined.labels.tolist() == [*train.labels.tolist(), *[-1] * 24]
    for i in (0, 35, 36, 59):
        part, row = (train, i) if i < 36 else (more, i - 36)
        assert joined.teacher_logits[i].tolist() == part.cached.logits[row].tolist()
        assert joined.encoded.take([i]).sequences == part.encoded.take([row]).sequences
        assert joined.encoded.lengths[i] == part.encoded.lengths[row]


def test_rows_that_are_not_to_teach_need_not_be_cached(cached):
    paths = [path for path in (cached / "data" / "mine").glob("*.parquet") if path.stem != "unlabelled"]
    ids = [i for path in paths for i in pq.read_table(path)["example_id"].to_pylist()]
    labels = len(read_manifest(cached / "cache" / "mine").identity["labels"])
    lines = [",".join(["example_id", *(f"logit_{k}" for k in range(labels))])]
    lines += [",".join([i, *("0.5" for _ in range(labels))]) for i in ids]
    (cached / "outputs.csv").write_text("\n".join(lines))
    run("import", "outputs.csv", "--task", "mine")
    arguments = ["distill", "--task", "mine", "--arm", "ce", *OWN]
    refused = CliRunner().invoke(app, arguments).stderr
    assert all(
        told in refused for told in ("--set distill.unlabelled=false", "kdcache import FILE --task mine")
    )
    run(*arguments[:5], "--set", "distill.unlabelled=false")


def test_a_cache_that_lacks_the_teachers_scores_is_refused_before_training(cached):
    path = cached / "cache" / "mine" / MANIFEST
    whole = path.read_bytes()
    body = json.loads(whole)
    del body["digest"], body["metrics"]["validation"]
    path.write_text(json.dumps(body | {"digest": value_digest(body)}, indent=2, sort_keys=True) + "\n")
    try:
        done = CliRunner().invoke(app, ["distill", "--task", "mine", "--arm", "ce", *OWN])
    finally:
        path.write_bytes(whole)
    assert done.exit_code == 1
    assert "the teacher's accuracy on validation" in " ".join(done.stderr.split())
