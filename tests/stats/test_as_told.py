"""docs/reference/statistics.md: its code runs on predictions as they lie on disk."""

import re
from pathlib import Path

import numpy as np
import pandas as pd

DOCS = Path(__file__).parent.parent.parent / "docs"


def test_code_runs_as_told(tmp_path, monkeypatch, capsys):
    text = (DOCS / "reference" / "statistics.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("predictions").mkdir()
    rng = np.random.default_rng(0)
    for task in ("wic", "cb"):
        (Path("data") / task).mkdir(parents=True)
        ids = [f"{task}-{i}" for i in range(40)]
        labels = rng.integers(2, size=40)
        rows = pd.DataFrame({"example_id": ids, "group": [i[:-1] for i in ids], "text": ids})
        rows.to_parquet(f"data/{task}/validation.parquet")
        runs = [(arm, seed) for arm in ("head", "ce", "kl", "kl+gram", "full") for seed in range(3)]
        frames = [
            pd.DataFrame({
                "example_id": ids, "label": labels, "arm": arm, "seed": seed,
                "logits": list(rng.standard_normal((40, 2)).astype(np.float32)),
            })
            for arm, seed in [*runs, ("teacher", 0)]
        ]  # fmt: skip
        pd.concat(frames).to_parquet(f"predictions/{task}.parquet")
    exec(compile(code, "docs/reference/statistics.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"[+−]\d+\.\d \(95% CI −?\d+\.\d to −?\d+\.\d\)", lines[1])
    assert len(lines) == 5
