"""The shipped dvc.yaml, whole, on 32 rows, 1 epoch and a tiny random model.

Usage: python tests/smoke.py FOLDER   (the folder must not exist; the copy stays there)
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from conftest import ROOT, build_tiny_model, tiny_params

COPIED = ("dvc.yaml", ".dvcignore", "constraints.txt", "pipeline", "kdcache", "tasks")


def make_project(folder: Path, **sections: Any) -> Path:
    """Copy what dvc.yaml needs and make it tiny."""
    folder.mkdir(parents=True)
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
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
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    return folder


def dvc(folder: Path, *arguments: str) -> str:
    """Run dvc in a project copy, which its own kdcache serves; return what it printed."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"dvc {' '.join(arguments)} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout


if __name__ == "__main__":
    project = make_project(Path(sys.argv[1]))
    dvc(project, "repro")
    print((project / "reports" / "results.md").read_text(encoding="utf-8"))
