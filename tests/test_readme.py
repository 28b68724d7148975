"""The README says what is so: its commands, its tree, its table, its code."""

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


def test_first_screen_gives_the_two_commands():
    first = [block.strip() for block in blocks("sh")[:2]]
    assert first == [
        'pip install -e ".[sample]" -c constraints.txt && dvc repro',
        'pip install -e ".[test]" -c constraints.txt && pytest',
    ]
    assert README.index(first[1]) < 2500


@pytest.mark.parametrize("line", [line for block in blocks("sh")[2:] for line in block.splitlines() if line])
def test_each_command_line_parses(line):
    program, *arguments = shlex.split(line)
    assert program == "kdcache"
    result = CliRunner().invoke(app, [*arguments, "--help"])
    assert result.exit_code == 0, result.output


def test_own_task_becomes_an_inspected_cache_as_told(project):
    """The README's task file and commands, on a CSV with the columns it names."""
    folder = project()
    name = "tasks/reviews"
    assert f"`{name}.toml`" in README
    (toml,) = blocks("toml")
    (folder / "tasks").mkdir()
    (folder / f"{name}.toml").write_text(toml)
    rows = [f'"the bank, row {i}","{1 + i % 5}"' for i in range(60)]
    (folder / f"{name}.csv").write_text("\n".join(["review,stars", *rows]))
    commands = [line for block in blocks("sh") for line in block.splitlines() if f"{name}.toml" in line]
    assert len(commands) == 2
    for command in commands:
        result = CliRunner().invoke(app, shlex.split(command)[1:])
        assert result.exit_code == 0, result.output
    assert "cache/reviews, format 1" in result.output
    assert (folder / "cache" / "reviews" / "manifest.json").is_file()


def test_table_is_the_one_that_was_produced():
    shown = README.split("<!-- results -->\n")[1].split("<!-- /results -->")[0]
    produced = (ROOT / "reports" / "results.md").read_text(encoding="utf-8")
    body = produced.removeprefix("# Results\n\n").split("## Cost")[0]
    assert shown.strip() == body.strip()


def test_tree_is_true():
    tree = README.split("## Where things live\n\n```\n")[1].split("```")[0]
    shown: set[str] = set()
    parent = ""
    for line in tree.splitlines():
        name = line.split()[0]
        path = f"{parent}{name}" if line.startswith("  ") else name
        if name.endswith("/") and not line.startswith("  "):
            parent = name
        assert (ROOT / path).exists(), path
        shown.add(path.rstrip("/"))
    there = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "kdcache").iterdir()
        if path.name not in ("__init__.py", "__pycache__")
    }
    assert there <= shown


def test_links_and_pictures_exist():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / target).exists(), target


def test_code_compiles():
    for block in blocks("python"):
        compile(block, "README.md", "exec")
