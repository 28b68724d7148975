"""The README is true: its commands parse, its packages exist, its table was produced, its code compiles."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kdcache.cli import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


LINES = [line for block in blocks("sh") for line in block.splitlines() if line]


def test_the_two_commands_stand_on_lines_of_their_own():
    first = [block.strip() for block in blocks("sh")[:2]]
    assert first == [
        'pip install -e ".[sample]" -c constraints.txt && dvc repro',
        'pip install -e ".[test]" -c constraints.txt && pytest -n 2 --dist loadfile',
    ]


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("kdcache ")])
def test_each_command_line_parses(line):
    result = CliRunner().invoke(app, [*shlex.split(line)[1:], "--help"])
    assert result.exit_code == 0, result.output


def test_own_data_become_a_labelled_file_as_told(project, monkeypatch, tmp_path):
    """The README's commands from init to predict, on a CSV with the columns that it names."""
    tiny = project() / "tiny"
    monkeypatch.chdir(tmp_path)
    (columns,) = re.findall(r"with the columns `(\w+)` and `(\w+)`", README)
    rows = [f"the bank of row {i},{('good', 'bad')[i % 2]}" for i in range(80)]
    Path("reviews.csv").write_text("\n".join([",".join(columns), *rows]))
    Path("new.csv").write_text("text\nthe bank of another row\n")
    small = [
        "threads=1", f"train_teacher.model={tiny}", "train_teacher.epochs=1", "train_teacher.folds=0",
        f"student_backbone.model={tiny}", "student_backbone.num_layers=1", "distill.steps=2",
        "distill.seeds=[0]", "distill.num_virtual_tokens=4",
        "distill.arms={head+kl: {method: head, ce_weight: 0, inter_class: {name: kl}}}",
        *(f"{section}.max_length=64" for section in ("train_teacher", "student_backbone", "distill")),
    ]  # fmt: skip
    kdcache = [
        shlex.split(line)[1:] for line in LINES[LINES.index("cd reviews") - 1 :] if line != "cd reviews"
    ]
    assert [arguments[0] for arguments in kdcache] == ["init", "run", "distill", "predict"]
    for arguments in kdcache:
        if arguments[0] in ("run", "distill"):
            arguments += [part for value in small for part in ("--set", value)]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        if arguments[0] == "init":
            monkeypatch.chdir(tmp_path / "reviews")
    header, row = Path("../labelled.csv").read_text().splitlines()
    assert header.split(",")[:4] == ["example_id", "prediction", "probability_bad", "probability_good"]
    assert row.split(",")[1] in ("good", "bad")


def test_table_is_the_one_that_was_produced():
    shown = README.split("<!-- results -->\n")[1].split("<!-- /results -->")[0]
    produced = (ROOT / "reports" / "results.md").read_text(encoding="utf-8")
    scores = produced.split("## Scores\n\n")[1].split("\n## ")[0].strip().split("\n\n")
    assert shown.strip().split("\n\n") == [part for part in scores[1:] if not part.startswith("![")]


def test_every_package_is_named_with_where_it_lives():
    table = README.split("## Where things live\n\n")[1].split("\n\n")[0]
    shown = set(re.findall(r"`([^`]+)`", table.replace("`, `", "`\n`")))
    paths = {name for name in shown if "/" in name or "." in name}
    for name in paths:
        assert (ROOT / name).exists(), name
    packages = {f"kdcache/{path.parent.name}/" for path in ROOT.glob("kdcache/*/__init__.py")}
    assert packages <= paths


def test_code_compiles():
    for block in blocks("python"):
        compile(block, "README.md", "exec")
