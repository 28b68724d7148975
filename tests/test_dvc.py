"""dvc.yaml on a tiny model: each stage reruns when, and only when, something it depends on has changed."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import ROOT
from smoke import dvc, environment, make_project

AFTER_TEACHER = ["train_teacher@wic", "cache_teacher@wic", "distill@wic"]


def stages_run(output: str) -> list[str]:
    """The stages that ran, without ``code``, which always does."""
    return [name for name in re.findall(r"Running stage '([^']+)'", output) if name != "code"]


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_no_machine_fact_in_tracked_text():
    for name in ("dvc.lock", "code.json", "metrics", "curves", "reports"):
        path = ROOT / name
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            text = file.read_text(encoding="utf-8")
            assert not re.search(r"/(home|root|tmp|Users)/", text), file


def test_the_pipeline_fits_on_one_screen():
    assert len((ROOT / "dvc.yaml").read_text(encoding="utf-8").splitlines()) <= 50


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_reruns_are_exact_and_no_larger_than_needed(tmp_path: Path):
    project = make_project(tmp_path / "project", tasks=["wic"], own_package=True)
    first_run = stages_run(dvc(project, "repro"))
    assert sorted(first_run) == sorted(["prepare@wic", *AFTER_TEACHER, "student_backbone", "report"])
    lock = (project / "dvc.lock").read_bytes()
    assert stages_run(dvc(project, "repro")) == []

    # From nothing, on the same machine: the same bytes.
    for name in (
        "data",
        "models",
        "cache",
        "metrics",
        "curves",
        "reports",
        ".dvc/cache",
        ".kdcache",
        "dvc.lock",
    ):
        path = project / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    dvc(project, "repro")
    assert (project / "dvc.lock").read_bytes() == lock

    package = project / "kdcache"
    edit(package / "losses" / "inter_class.py", '"""', '"""Other words. ')
    edit(package / "teacher" / "fine_tune.py", "\n\nMOST_FOLDS", "\n\n# a comment\nMOST_FOLDS")
    edit(package / "cli" / "pipeline.py", 'help="', 'help="Other words. ')
    assert stages_run(dvc(project, "repro")) == []

    edit(package / "losses" / "inter_class.py", "import torch", "import math\n\nimport torch")
    assert stages_run(dvc(project, "repro")) == ["distill@wic"]  # the same bytes: nothing after it

    edit(package / "losses" / "inter_class.py", "temperature**2", "temperature**3")
    assert stages_run(dvc(project, "repro")) == ["distill@wic", "report"]

    edit(package / "teacher" / "fine_tune.py", "learning_rate=params.lr", "learning_rate=2 * params.lr")
    assert stages_run(dvc(project, "repro")) == [*AFTER_TEACHER, "report"]

    # Another version of a package that decides numbers.
    other = project / "peft-99.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: peft\nVersion: 99.0\n")
    ran = stages_run(dvc(project, "repro"))
    assert sorted(ran) == sorted([*AFTER_TEACHER, "student_backbone"])  # the same bytes again

    params = yaml.safe_load((project / "params.yaml").read_text())
    params["distill"]["lr"] = 0.05
    (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    assert stages_run(dvc(project, "repro"))[0] == "distill@wic"

    # The backbone is examined on one more task, and stays the same to the students of the first.
    params["tasks"] = params["fine_tune"] = ["wic", "cb"]
    (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    ran = stages_run(dvc(project, "repro"))
    assert {"student_backbone", "distill@cb"} <= set(ran)
    assert "distill@wic" not in ran


def refused(project: Path) -> str:
    """What ``dvc repro`` says, which must fail."""
    with pytest.raises(SystemExit) as error:
        dvc(project, "repro")
    return str(error.value)


def write_outputs(project: Path, seed: int) -> None:
    """Write a file of some teacher's logits for the prepared rows of cb."""
    rng = np.random.default_rng(seed)
    lines = ["example_id,logit_entailment,logit_contradiction,logit_neutral"]
    for path in sorted((project / "data" / "cb").glob("*.parquet")):
        ids = pq.read_table(path)["example_id"].to_pylist()
        lines += [",".join([i, *map(str, rng.normal(size=3))]) for i in ids]
    (project / "outside.csv").write_text("\n".join(lines) + "\n")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_each_task_has_its_own_kind_of_teacher(tmp_path: Path):
    """wic's is fine-tuned, that of cb comes from a file; a change of one leaves the other alone."""
    imports = {"cb": {"path": "outside.csv"}}
    arms = {"head": {"method": "head"}, "ce": {}, "kl": {"ce_weight": 0, "inter_class": {"name": "kl"}}}
    students = {"arms": arms, "seeds": [0]}  # no arm asks for features, which the file does not have
    project = make_project(tmp_path / "project", import_teacher=imports, distill=students)
    assert "outside.csv" in refused(project)
    write_outputs(project, 0)
    dvc(project, "repro")
    assert (project / "models" / "teacher" / "wic").exists()
    assert not (project / "models" / "teacher" / "cb").exists()
    write_outputs(project, 1)
    assert stages_run(dvc(project, "repro")) == ["import_teacher@cb", "distill@cb", "report"]

    # What the pipeline would make by training is refused, and no run cache brings it back either.
    params = project / "params.yaml"
    shown = params.read_text()
    manifest = project / "cache" / "cb" / "manifest.json"
    imported = manifest.read_bytes()
    shutil.rmtree(manifest.parent)
    changed = yaml.safe_load(shown) | {"fine_tune": ["wic", "cb"], "import_teacher": {}}
    params.write_text(yaml.safe_dump(changed, sort_keys=False))
    dvc(project, "repro", "cache_teacher@cb")
    trained = manifest.read_bytes()
    assert trained != imported
    command = [sys.executable, "-m", "kdcache", "import", "outside.csv", "--task", "cb"]
    subprocess.run(command, cwd=project, env=environment(project), check=True)
    assert manifest.read_bytes() == imported
    assert "cache/cb: the cache was imported" in refused(project)
    assert manifest.read_bytes() == imported
    both = yaml.safe_load(shown) | {"fine_tune": ["wic", "cb"]}
    params.write_text(yaml.safe_dump(both, sort_keys=False))
    assert {"cache_teacher@cb", "import_teacher@cb"} <= set(re.findall(r"\w+@cb", refused(project)))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_fresh_clone_is_readable_without_warnings(tmp_path: Path):
    """git clone, then what dvc shows of a project; after dvc pull from a remote nothing has to run again."""
    project = make_project(tmp_path / "project", tasks=["cb"])
    config = project / ".dvc" / "config"
    config.write_text(config.read_text(encoding="utf-8").replace("    no_scm = true\n", ""))
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    shutil.copy(ROOT / "kdcache/template/gitignore", project / ".gitignore")

    def call(*command: str, cwd: Path) -> str:
        done = subprocess.run(
            command, cwd=cwd, env=environment(project), capture_output=True, text=True, check=True
        )
        return done.stdout + done.stderr

    call(*git, "init", "-q", cwd=project)
    dvc(project, "remote", "add", "-d", "store", str(tmp_path / "store"))
    dvc(project, "repro")
    dvc(project, "push")
    call(*git, "add", "-A", cwd=project)
    call(*git, "commit", "-qm", "all", cwd=project)
    clone = tmp_path / "clone"
    call(*git, "clone", "-q", str(project), str(clone), cwd=tmp_path)

    def shown(*arguments: str) -> str:
        out = call(sys.executable, "-m", "dvc", *arguments, cwd=clone)
        assert not re.search("warning|error|failed", out, flags=re.IGNORECASE), out
        return out

    assert "metrics/cb.json" in shown("metrics", "show")
    assert "index.html" in shown("plots", "show")
    assert "workspace" in shown("exp", "show", "--no-pager", "--md")
    shown("pull")
    assert stages_run(dvc(clone, "repro")) == []
    assert "cb" not in shown("status"), "nothing has changed"
