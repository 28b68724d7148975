"""One teacher over the two processes of torchrun: the teacher of one process, to float32's tolerance."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import build_tiny_model, fails, run_all, write_params, write_project
from safetensors.torch import load_file
from under_torchrun import smooth_score

from kdcache.cache.manifest import check_identity, read_manifest
from kdcache.encoder.load import load_classifier, setup
from kdcache.errors import CacheStale, ParamsError
from kdcache.spread import Engine
from kdcache.teacher import processes
from kdcache.teacher.base_probe import TokenisedSplit
from kdcache.teacher.sharding import fsdp_config
from kdcache.torchrun import AFTER_FIRST_S

SCRIPT = Path(__file__).parent / "under_torchrun.py"
TEACHER = "models/teacher/cb"
ROWS = {"max_rows": {"train": 33, "validation": 32}}
# Of 25 rows the last batch has one, so one process has none. The best of three epochs is the second.
PARAMS = {"folds": 0, "epochs": 3, "batch_size": 8, "select": "tune", "lr": 3e-3, "seed": 2}
WITHOUT_DROPOUT = {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0}
SHARDED = {"shard_weights": True}
TOLERANCE = 1e-5


def torchrun(*lines: str, cwd: Path) -> tuple[int, str, str]:
    """Run commands of kdcache in two processes; return the exit code, stdout and stderr."""
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    path = os.pathsep.join(sys.path)
    done = subprocess.run(
        [*run, str(SCRIPT), *lines], cwd=cwd, capture_output=True, text=True, timeout=200, check=False,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def content(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in (folder / TEACHER).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def identity(folder: Path) -> dict:
    return json.loads((folder / TEACHER / "identity.json").read_text())


def distance(one: Path, other: Path, model: Path = Path("model.safetensors")) -> float:
    """How far two teachers' weights lie apart.

    Biases of keys change no output, so their gradient is zero but for rounding. Adam makes whole steps of it.
    """
    a, b = (load_file(folder / TEACHER / model) for folder in (one, other))
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a if "key.bias" not in name)


@pytest.fixture(scope="module")
def projects(tmp_path_factory) -> Callable[..., Path]:
    """Write a prepared project, with a model that has dropout or none."""
    root = tmp_path_factory.mktemp("processes")
    made: dict[str, Path] = {}

    def make(name: str, model: dict | None = None, **params) -> Path:
        kind = json.dumps(model, sort_keys=True)
        if kind not in made:
            tiny = build_tiny_model(root / f"model-{len(made)}", **(model or {}))
            made[kind] = write_project(root / f"prepared-{len(made)}", tiny, prepare=ROWS)
            run_all(made[kind], ["prepare", "--task", "cb"])
        folder = root / name
        shutil.copytree(made[kind], folder)
        write_params(folder, prepare=ROWS, train_teacher={**PARAMS, **params})
        return folder

    return make


@pytest.fixture(scope="module")
def trained(projects) -> Path:
    """A folder of projects whose teachers two processes trained, all in one start of torchrun."""
    root = projects("one", WITHOUT_DROPOUT).parent
    projects("last", WITHOUT_DROPOUT, select="last")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(TokenisedSplit, "score", smooth_score)
        for name in ("one", "last"):
            run_all(root / name, ["teach", "--task", "cb"])
    projects("shared", WITHOUT_DROPOUT)
    projects("sharded", WITHOUT_DROPOUT, **SHARDED)
    projects("sharded-last", WITHOUT_DROPOUT, select="last", **SHARDED)
    projects("sharded-stopped", WITHOUT_DROPOUT, **SHARDED)
    projects("dropout")
    projects("dropout-stopped")
    lines = [f"{name}:teach --task cb" for name in ("shared", "sharded", "sharded-last", "dropout")]
    for name in ("sharded-stopped", "dropout-stopped"):
        lines += [f"{name}:stop@7 teach --task cb", f"{name}:teach --task cb"]
    code, out, error = torchrun(*lines, cwd=root)
    assert code == 0, error
    assert out.count("stopped in") == 4
    (root / "out.txt").write_text(out)
    (root / "error.txt").write_text(error)
    return root


@pytest.mark.parametrize("kind", ["shared", "sharded"])
def test_two_processes_train_the_teacher_of_one(trained, kind):
    one, several = trained / "one", trained / kind
    assert distance(one, trained / "last") > 100 * TOLERANCE  # the best epoch is another than the last
    assert distance(one, several) < TOLERANCE
    assert distance(trained / "last", trained / "sharded-last") < TOLERANCE
    for name in ("cost.json", "folds.parquet", "probe.json", "config.json"):
        assert (one / TEACHER / name).read_bytes() == (several / TEACHER / name).read_bytes()


@pytest.mark.parametrize("kind", ["shared", "sharded"])
def test_the_identity_says_that_several_processes_trained_it(trained, kind):
    one, several = identity(trained / "one"), identity(trained / kind)
    assert {name for name in several if several[name] != one.get(name)} == {
        "processes", "shard_weights", "weights_sha256"
    }  # fmt: skip
    assert (several["processes"], several["shard_weights"]) == (2, kind == "sharded")
    assert not {"processes", "shard_weights"} & one.keys()  # identities from before keep their bytes
    run_all(trained / kind, *(line.split() for line in ("cache --task cb", "verify --task cb")))
    made = read_manifest(trained / kind / "cache" / "cb")
    labels = tuple(made.identity["labels"])
    check_identity(made, "cb", labels, {}, several, {})
    older = replace(made, identity={k: v for k, v in made.identity.items() if k != "processes"})
    with pytest.raises(CacheStale, match="processes must be 2, got 1"):
        check_identity(older, "cb", labels, {}, several, {})


@pytest.mark.parametrize("kind", ["dropout", "sharded"])
def test_a_teacher_of_several_processes_goes_on_after_a_stop_to_the_same_bytes(trained, kind):
    assert content(trained / kind) == content(trained / f"{kind}-stopped")


def test_only_the_first_process_says_something(trained):
    assert (trained / "out.txt").read_text().count("cb: teacher on all rows") == 8
    assert (trained / "error.txt").read_text().strip() == ""


def test_an_error_of_one_process_ends_all_and_is_one_line(projects):
    folder = projects("failing")
    code, _, error = torchrun("failing:fail@3 teach --task cb", cwd=folder.parent)
    assert code == 1
    assert [line for line in error.splitlines() if "the last process fails" in line] == [
        "the last process fails"
    ]


@pytest.mark.parametrize(("rank", "seconds"), [("0", []), ("1", [AFTER_FIRST_S])])
def test_an_error_of_all_processes_is_shown_by_the_first(project, monkeypatch, rank, seconds):
    project()
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a run")
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "1")
    fails("teach", "--task", "no-such-task")
    assert slept == seconds


@pytest.mark.parametrize(
    ("processes_there", "keys", "engine", "parts"),
    [
        (2, {"batch_size": 7}, Engine(), ("batch_size", "2", "7")),
        (2, {}, Engine("ray", 2), ("engine", "ray", "2")),
        (2, {}, Engine("local", 3), ("engine", "local", "3")),
        (1, {"shard_weights": True}, Engine(), ("shard_weights", "torchrun")),
    ],
)
def test_what_does_not_go_with_the_number_of_processes_is_refused(
    monkeypatch, processes_there, keys, engine, parts
):
    monkeypatch.setattr(processes, "num_processes", lambda: processes_there)
    with pytest.raises(ParamsError) as caught:
        processes.check_processes(**{"batch_size": 8, "shard_weights": False, "engine": engine} | keys)
    assert all(part in str(caught.value) for part in parts)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "layer"), [("bert", "BertLayer"), ("modernbert", "ModernBertEncoderLayer")])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_weights_are_sharded_layer_by_layer(tmp_path, kind, layer, pooling):
    model = load_classifier(build_tiny_model(tmp_path, architecture=kind), 3, 0, pooling)
    assert fsdp_config(model)["transformer_layer_cls_to_wrap"] == [layer]


def test_one_process_shards_nothing(project):
    project(train_teacher=SHARDED)
    assert fails("teach", "--task", "cb").startswith("train_teacher.shard_weights: ")


@pytest.fixture
def gpus(monkeypatch) -> list[int]:
    """A machine with four GPUs, and which of them are taken."""
    taken: list[int] = []
    for name, value in (
        ("is_available", lambda: True),
        ("device_count", lambda: 4),
        ("set_device", taken.append),
    ):
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a run")
    return taken


def test_each_process_of_torchrun_takes_a_gpu(gpus, monkeypatch):
    for process in (0, 3, 5):  # shares of a cache may be more than the GPUs
        monkeypatch.setenv("LOCAL_RANK", str(process))
        assert setup(1).type == "cuda"
    assert gpus == [0, 3, 1]


def test_a_gpu_trains_for_one_process_only(gpus, monkeypatch):
    for name, value in (("WORLD_SIZE", "5"), ("LOCAL_WORLD_SIZE", "5"), ("LOCAL_RANK", "4"), ("RANK", "4")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ParamsError, match="4, got 5"), processes.together():
        pass
    assert gpus == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dropout", "sharded"])
def test_a_killed_process_ends_all_and_the_same_command_goes_on(projects, trained, kind):
    if kind == "sharded":
        folder = projects("killed-sharded", WITHOUT_DROPOUT, **SHARDED)
    else:
        folder = projects("killed")
    assert torchrun(f"{folder.name}:die@7 teach --task cb", cwd=trained)[0] == 1
    assert [path.name for path in folder.glob(".kdcache/training-*/*/checkpoint-*")] == ["checkpoint-6"]
    assert not (folder / TEACHER).exists()
    assert torchrun(f"{folder.name}:teach --task cb", cwd=trained)[0] == 0
    assert content(folder) == content(trained / kind)


@pytest.mark.slow
def test_teachers_of_every_kind_are_those_of_one_process(projects):
    kinds = {
        "mean": {"pooling": "mean"},
        "lora": {"method": "lora", "lora_rank": 4, "lora_alpha": 8},
        "prefix": {"method": "prefix", "num_virtual_tokens": 4},
        "folds": {"ensemble": 2, "folds": 2, "epochs": 1, "select": "last"},
    }
    folders = {name: projects(name, WITHOUT_DROPOUT, **keys) for name, keys in kinds.items()}
    root = folders["mean"].parent
    folders["mean-sharded"] = projects("mean-sharded", WITHOUT_DROPOUT, **kinds["mean"], **SHARDED)
    folders["folds-sharded"] = projects("folds-sharded", WITHOUT_DROPOUT, **kinds["folds"], **SHARDED)
    lines = []
    for name, folder in folders.items():
        shutil.copytree(folder, root / f"{name}-stopped")
        stopped = [f"{name}-stopped:stop@3 teach --task cb", f"{name}-stopped:teach --task cb"]
        lines += [f"{name}:teach --task cb", *stopped]
    code, out, error = torchrun(*lines, cwd=root)
    assert code == 0, error
    assert out.count("stopped in") == 2 * len(folders)
    for name, folder in folders.items():
        assert content(folder) == content(root / f"{name}-stopped"), name
        alone = projects(f"{name}-alone", WITHOUT_DROPOUT, **kinds[name.removesuffix("-sharded")])
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(TokenisedSplit, "score", smooth_score)
            run_all(alone, ["teach", "--task", "cb"])
        models = [path.relative_to(alone / TEACHER) for path in (alone / TEACHER).rglob("*model.safetensors")]
        assert len(models) == (6 if "folds" in name else 1)
        for model in models:
            assert distance(alone, folder, model) < TOLERANCE, (name, model)
