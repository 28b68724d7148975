"""Many unlabelled rows from the first stage to the last: seconds, rows/s and peak memory of each command.

    python benchmarks/many_rows.py [ROWS …] [COMMAND …]   (default: 100000 1000000, all commands)

400 rows have labels, the others have none. Teacher and student are tiny, since the rows are what is measured:
`distill` trains one student for one epoch of all rows, in batches of 256. Prints Markdown. Every
command is a process of its own, with one thread.
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

TASK = """\
text = "text"
label = "label"
labels = ["river", "money", "bat"]
read = {format = "csv"}
[splits]
train = "train.csv"
tune = "tune.csv"
validation = "validation.csv"
unlabelled = "unlabelled.csv"
"""
WORDS = ["the", "a", "bank", "river", "money", "is", "it", "near", "bat", "tree", "on", "flew", "and"]
COMMANDS = {
    "prepare": "prepare", "teach": "teach", "cache": "cache", "verify": "verify --teacher-rows 64",
    "shrink": "shrink", "distill": "distill --arm kl --seed 0",
}  # fmt: skip


def write_project(folder: Path, count: int) -> None:
    """Write rows, task file, model and params.yaml."""
    from conftest import build_tiny_model, tiny_params

    rng = random.Random(0)
    for split, rows in {"train": 400, "tune": 200, "validation": 200, "unlabelled": count}.items():
        with (folder / f"{split}.csv").open("w", encoding="utf-8") as file:
            file.write("text,label\n")
            for number in range(rows):
                label = rng.choice(["river", "money", "bat"])
                text = " ".join([f"{split}{number}", label, *rng.choices(WORDS, k=8)])
                file.write(f"{text},{label if split != 'unlabelled' else ''}\n")
    (folder / "tasks").mkdir()
    (folder / "tasks" / "rows.toml").write_text(TASK, encoding="utf-8")
    build_tiny_model(folder / "tiny")
    params = tiny_params(
        "tiny", prepare={"source": "files", "path": ".", "max_rows": None},
        train_teacher={"max_length": 32, "folds": 0}, student_backbone={"max_length": 32},
        distill={"max_length": 32, "batch_size": 256, "num_virtual_tokens": 2, "workers": 1},
    )  # fmt: skip
    params |= {"tasks": ["rows"], "fine_tune": ["rows"]}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


def main(counts: list[int], only: list[str]) -> None:
    """Print the table."""
    print("| command | rows | s | rows/s | peak MiB |\n|---|---:|---:|---:|---:|", flush=True)
    for count in counts:
        with tempfile.TemporaryDirectory(dir=os.environ.get("KDCACHE_BENCH")) as base:
            subprocess.run([sys.executable, __file__, "--write", base, str(count)], check=True)
            for name, arguments in COMMANDS.items():
                if only and name not in only:
                    continue
                verb, *more = arguments.split()
                task = [] if verb == "shrink" else ["--task", "rows"]
                command = [sys.executable, "-m", "kdcache", verb, *task, *more]
                start = time.perf_counter()
                with (
                    tempfile.TemporaryFile() as error,
                    subprocess.Popen(command, cwd=base, stdout=subprocess.DEVNULL, stderr=error) as process,
                ):
                    _, status, usage = os.wait4(process.pid, 0)
                    process.returncode = os.waitstatus_to_exitcode(status)
                    seconds, peak = time.perf_counter() - start, usage.ru_maxrss / 1024
                    error.seek(0)
                    if process.returncode:
                        sys.exit(f"{name} failed: {error.read().decode()[-2000:]}")
                row = f"| {name} | {count:,} | {seconds:.0f} | {count / seconds:,.0f} | {peak:.0f} |"
                print(row, flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"]:
        write_project(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        numbers = [int(word) for word in sys.argv[1:] if word.isdecimal()]
        main(numbers or [10**5, 10**6], [word for word in sys.argv[1:] if not word.isdecimal()])
