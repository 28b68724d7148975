"""The whole benchmark through dvc.yaml on the real files, tiny."""

import json
from pathlib import Path

import pytest
from conftest import superglue_task
from smoke import dvc, make_project

from kdcache.data.superglue import SUPERGLUE

SHARED = Path(__file__).parents[1].parent / "shared" / "data" / "superglue"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_ten_run_through_dvc_on_the_real_files(tmp_path: Path):
    if not SHARED.is_dir():
        pytest.skip("the real SuperGLUE files are not beside this project")
    project = make_project(
        tmp_path / "project",
        tasks=list(SUPERGLUE),
        prepare={"source": "superglue", "path": str(SHARED), "max_rows": 48},
        train_teacher={"max_length": 92, "folds": 0},
        distill={
            "max_length": 92,
            "arms": {"head": {"method": "head"}, "kl": {"inter_class": {"name": "kl"}}},
        },
    )
    dvc(project, "repro")
    for name in SUPERGLUE:
        task = superglue_task(name)
        metrics = json.loads((project / "metrics" / f"{name}.json").read_text(encoding="utf-8"))
        assert 0 < metrics["rows"]["validation"] <= 48
        for arm in metrics["arms"].values():
            assert set(arm["validation"]) == {*task.metrics, "agreement"}
            assert set(arm["diagnostics"]) == set(task.diagnostics)
        # Passages are cut, and it is said how many.
        assert (metrics["truncated"]["train"] > 0.5) == (name in ("boolq", "multirc", "record"))
    report = (project / "reports" / "results.md").read_text(encoding="utf-8")
    assert "SuperGLUE score over the eight validation splits: teacher " in report
    assert "|  | axb matthews | axg accuracy | axg gender parity |" in report
