"""studies/powered, whole, on invented rows in the layouts of its six tasks and a tiny random model."""

import shutil
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, tiny_params
from powered import write_powered
from smoke import dvc, make_project
from test_dvc import stages_run

from kdcache.params import read_params

STUDY = "studies/powered"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_six_tasks_run_from_their_task_files(tmp_path: Path):
    project = make_project(tmp_path / "project")
    write_powered(tmp_path / "shared" / "data" / "powered")
    shutil.copytree(ROOT / STUDY / "tasks", project / STUDY / "tasks")
    shutil.copy(ROOT / STUDY / "dvc.yaml", project / STUDY)
    study, tiny = read_params(ROOT / STUDY / "params.yaml"), tiny_params("tiny")
    # every task file, also those that the study leaves out
    tasks = sorted(path.stem for path in (ROOT / STUDY / "tasks").glob("*.toml"))
    params = {
        **tiny, "tasks": tasks, "paths": study["paths"],
        "prepare": {**study["prepare"], "max_rows": {"train": 32}, "tune_fraction": 0.25},
        "distill": {**tiny["distill"], "arms": study["distill"]["arms"], "seeds": [0]},
    }  # fmt: skip
    (project / STUDY / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))

    run = stages_run(dvc(project, "repro", f"{STUDY}/dvc.yaml"))
    assert len(tasks) == 6
    assert len(run) == 4 * 6 + 2
    table = (project / STUDY / "reports" / "results.md").read_text()
    for task in tasks:
        assert f"{task} accuracy" in table
    assert "cola matthews" in table
    assert list((project / STUDY / "metrics").iterdir())

    # A task file is a dependency of its own task's prepare alone; the same rows stop there.
    with (project / STUDY / "tasks" / "cola.toml").open("a") as file:
        file.write("# a comment\n")
    assert stages_run(dvc(project, "repro", f"{STUDY}/dvc.yaml")) == [f"{STUDY}/dvc.yaml:prepare@cola"]
