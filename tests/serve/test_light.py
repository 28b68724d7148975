"""Labelling text, reading a cache and computing a loss need none of the packages of the pipeline."""

import os
import subprocess
import sys
from pathlib import Path

HEAVY = ("dvc", "matplotlib", "jinja2", "sklearn", "datasets")
CODE = f"""
import sys
for name in {HEAVY}:
    sys.modules[name] = None  # importing it raises ImportError
import torch
import kdcache
from kdcache.cli import app

student = kdcache.load_student("runs/cb/kl+gram-0")
prediction, = student.predict(["the bank"], ["a river"])
assert abs(sum(prediction.probabilities.values()) - 1) < 1e-5
pool = kdcache.StudentPool(["runs/cb/head-0", "runs/cb/kl+gram-0"])
assert len(pool.predict([("runs/cb/head-0", "bank", "a river")])) == 1
rows = kdcache.load_cache("cache/cb", "train").rows
logits = torch.from_numpy(rows.logits.copy())
assert kdcache.kl(logits, logits, temperature=2.0).item() < 1e-6
app(["predict", "--student", "runs/cb/head-0", "--input", "rows.csv"], standalone_mode=False)
"""


def test_serving_needs_none_of_the_pipelines_packages(distilled_project: Path):
    (distilled_project / "rows.csv").write_text("text,text_pair\nthe bank,a river\n")
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=distilled_project, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(root)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].startswith("example_id,prediction,probability_")
