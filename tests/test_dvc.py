"""dvc.yaml: each stage lists what it imports, and reruns when, and only when, it must."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from closure import ROOT, import_closure, imported_modules, module_file
from smoke import dvc, make_project, run_readme_code

STAGES = ["prepare", "train_teacher", "cache_teacher", "student_backbone", "distill", "report"]
STUDIES = sorted(path.parent.name for path in (ROOT / "studies").glob("*/dvc.yaml"))


def definition(file: str, stage: str) -> dict:
    entry = yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))["stages"][stage]
    return entry.get("do", entry)


def stages_of(file: str) -> list[str]:
    return list(yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))["stages"])


FILES = ["dvc.yaml", *(f"studies/{name}/dvc.yaml" for name in STUDIES)]


@pytest.mark.parametrize(("file", "stage"), [(file, stage) for file in FILES for stage in stages_of(file)])
def test_each_stage_lists_exactly_its_import_closure(file, stage):
    deps = {dep for dep in definition(file, stage)["deps"] if dep.endswith(".py")}
    assert deps == import_closure(ROOT / "pipeline" / f"{stage}.py")
    assert "constraints.txt" in definition(file, stage)["deps"]


def test_a_study_takes_from_another_what_it_does_not_make():
    """From the first of its own stages on it has all, and params.yaml their sections alone."""
    assert stages_of("dvc.yaml") == STAGES
    for name in STUDIES:
        made = stages_of(f"studies/{name}/dvc.yaml")
        assert made == STAGES[-len(made) :]
        params = yaml.safe_load((ROOT / "studies" / name / "params.yaml").read_text(encoding="utf-8"))
        assert set(params) == {"tasks", "threads", "paths", *made}
        own = {"data": "prepare", "teacher": "train_teacher", "cache": "cache_teacher",
               "backbone": "student_backbone"}  # fmt: skip
        for path, stage in own.items():
            assert params["paths"][path].startswith(f"studies/{name}/") == (stage in made), (name, path)


def test_stage_script_module_and_section_share_one_name():
    sections = yaml.safe_load((ROOT / "params.yaml").read_text())
    for stage in STAGES:
        assert (ROOT / "pipeline" / f"{stage}.py").is_file()
        assert (ROOT / "kdcache" / "stages" / f"{stage}.py").is_file()
        assert stage in sections


def test_data_flows_one_way():
    closures = {stage: import_closure(ROOT / "pipeline" / f"{stage}.py") for stage in STAGES}
    assert "kdcache/teacher/train.py" not in closures["distill"]
    assert not any(
        "kdcache/losses/" in path for path in closures["train_teacher"] | closures["cache_teacher"]
    )
    assert not any(
        "kdcache/students/" in path for path in closures["train_teacher"] | closures["cache_teacher"]
    )
    assert not any("kdcache/cache/" in path for path in closures["train_teacher"])
    sources = {"kdcache/data/find.py", "kdcache/data/source.py", "kdcache/data/superglue.py"}
    assert [stage for stage in STAGES if closures[stage] & sources] == ["prepare"]
    assert not any("kdcache/cli/" in path for closure in closures.values() for path in closure)


def test_no_imports_in_a_circle():
    files = sorted((ROOT / "kdcache").rglob("*.py"))
    graph = {path: {module_file(name) for name in imported_modules(path)} - {path} for path in files}
    done: set[Path] = set()

    def visit(path: Path, trail: tuple[Path, ...]) -> None:
        assert path not in trail, f"circle: {[p.name for p in trail]}"
        if path not in done:
            for following in graph[path]:
                visit(following, (*trail, path))
            done.add(path)

    for path in files:
        visit(path, ())


def test_no_file_is_longer_than_300_lines():
    for folder in ("kdcache", "pipeline"):
        for path in (ROOT / folder).rglob("*.py"):
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 300, path


def md5(path: Path) -> str:
    """As DVC digests a file, or a folder (its sorted list of paths and digests)."""
    if path.is_file():
        return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    files = [
        p for p in path.rglob("*") if p.is_file() and "__pycache__" not in p.parts and p.suffix != ".pyc"
    ]
    entries = [{"md5": md5(p), "relpath": p.relative_to(path).as_posix()} for p in files]
    listing = json.dumps(sorted(entries, key=lambda entry: entry["relpath"]))
    return hashlib.md5(listing.encode(), usedforsecurity=False).hexdigest() + ".dir"


def test_lock_was_made_by_this_tree():
    lock = yaml.safe_load((ROOT / "dvc.lock").read_text(encoding="utf-8"))
    outputs = {out["path"] for entry in lock["stages"].values() for out in entry["outs"]}
    checked = 0
    for name, entry in lock["stages"].items():
        for dep in entry["deps"]:
            made_here = any(out == dep["path"] or out.startswith(dep["path"] + "/") for out in outputs)
            if not made_here:
                assert md5(ROOT / dep["path"]) == dep["md5"], f"{name}: {dep['path']} changed; run dvc repro"
                checked += 1
    assert checked > 80
    for entry in lock["stages"].values():
        for out in entry["outs"]:  # metrics, curves and reports are committed beside the lock
            if out["path"].split("/")[0] in ("metrics", "curves", "reports"):
                assert md5(ROOT / out["path"]) == out["md5"], out["path"]


def test_no_machine_fact_in_tracked_text():
    for name in ("dvc.lock", "metrics", "curves", "reports"):
        path = ROOT / name
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            text = file.read_text(encoding="utf-8")
            assert not re.search(r"/(home|root|tmp|Users)/", text), file


def stages_run(output: str) -> list[str]:
    return re.findall(r"Running stage '([^']+)'", output)


@pytest.mark.timeout(600)
def test_reruns_are_exact_and_no_larger_than_needed(tmp_path: Path):
    project = make_project(tmp_path / "project", tasks=["wic"])
    everything = [
        "prepare@wic",
        "train_teacher@wic",
        "cache_teacher@wic",
        "student_backbone",
        "distill@wic",
        "report",
    ]
    assert sorted(stages_run(dvc(project, "repro"))) == sorted(everything)
    first = (project / "dvc.lock").read_bytes()
    assert stages_run(dvc(project, "repro")) == []
    run_readme_code(project, tasks=["wic"])

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
    assert (project / "dvc.lock").read_bytes() == first

    params = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(params.replace("lr: 0.03", "lr: 0.05"))
    reran = stages_run(dvc(project, "repro"))  # the report too, if a score moved
    assert reran[0] == "distill@wic"
    assert set(reran) <= {"distill@wic", "report"}

    with (project / "kdcache" / "losses" / "table.py").open("a") as source:
        source.write("\n# a comment\n")
    assert stages_run(dvc(project, "repro")) == ["distill@wic"]  # the same bytes: nothing after it

    (project / "params.yaml").write_text(
        params.replace("lr: 0.03", "lr: 0.05").replace("epochs: 1", "epochs: 2", 1)
    )
    reran = stages_run(dvc(project, "repro"))
    assert reran[:3] == ["train_teacher@wic", "cache_teacher@wic", "distill@wic"]
    assert set(reran[3:]) <= {"report"}
