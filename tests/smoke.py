"""The shipped dvc.yaml, whole, on 32 rows, 1 epoch and a tiny random model.

Usage: python tests/smoke.py FOLDER   (the folder must not exist; the copy stays there)
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from conftest import ROOT, build_tiny_model, tiny_params

COPIED = ("dvc.yaml", ".dvcignore", "pipeline", "sample", "tasks")


def make_project(folder: Path, own_package: bool = False, **sections: Any) -> Path:
    """Copy what a project holds and make it tiny; ``own_package`` gives it a kdcache to edit."""
    folder.mkdir(parents=True)
    for name in (*COPIED, *(["kdcache"] if own_package else [])):
        source = ROOT / name
        if source.is_dir():
            left_out = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, folder / name, symlinks=True, ignore=left_out)
        else:
            shutil.copy(source, folder / name)
    (folder / ".dvc").mkdir()
    shutil.copy(ROOT / ".dvc" / "config", folder / ".dvc" / "config")
    with (folder / ".dvc" / "config").open("a") as config:
        config.write("    no_scm = true\n")
    shutil.copytree(ROOT / ".dvc" / "plots", folder / ".dvc" / "plots")
    build_tiny_model(folder / "tiny")
    params = tiny_params("tiny")
    for name, value in sections.items():
        params[name] = {**params[name], **value} if isinstance(value, dict) else value
    params["fine_tune"] = [task for task in params["tasks"] if task not in params["import_teacher"]]
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    return folder


def environment(folder: Path) -> dict[str, str]:
    """Variables that make a project copy use its own kdcache, where it has one, or else this tree's."""
    return {
        **os.environ,
        "PYTHONPATH": str(folder if (folder / "kdcache").is_dir() else ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }


def dvc(folder: Path, *arguments: str) -> str:
    """Run dvc in a project copy; return what it printed."""
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"dvc {' '.join(arguments)} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout


ALONE = "import sys; sys.modules['kdcache'] = None\n"


def run_readme_code(project: Path, tasks: Sequence[str]) -> None:
    """The README's Python on these tasks, run in a project folder; without kdcache where it names none."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for block in re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL):
        if not set(re.findall(r"models/students/(\w+)/", block)) <= set(tasks):
            continue
        done = subprocess.run(
            [sys.executable, "-c", block if "import kdcache" in block else ALONE + block],
            cwd=project, env=environment(project), capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"README.md: this code failed:\n{block}\n{done.stderr[-3000:]}")
        if "nlargest" in block:
            assert len(done.stdout.splitlines()) == 6


if __name__ == "__main__":
    project = make_project(Path(sys.argv[1]))
    dvc(project, "repro")
    run_readme_code(project, tasks=["wic", "cb"])
    print((project / "reports" / "results.md").read_text(encoding="utf-8"))
