"""The documentation is true: commands parse, tables are complete, and the format needs no other text."""

import dataclasses
import hashlib
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import typer
import yaml
from typer.testing import CliRunner

from kdcache.cli import app
from kdcache.data import taskfile
from kdcache.data import taskfile_schema as schema
from kdcache.losses.terms import Ramp, Term
from kdcache.params import parse_yaml, read_params
from kdcache.students.arms import Arm
from kdcache.teacher.import_teacher import ImportTeacherParams

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"
LINES = [
    line
    for path in sorted(DOCS.rglob("*.md"))
    for block in re.findall(r"```sh\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for line in block.splitlines()
    if line.startswith("kdcache ")
]


@pytest.mark.parametrize("line", LINES)
def test_each_command_line_parses(line):
    result = CliRunner().invoke(app, [*shlex.split(line)[1:], "--help"])
    assert result.exit_code == 0, result.output


def sections(page: str) -> dict[str, str]:
    """Heading → text below it, of a reference page."""
    parts = re.split(r"^##+ (.*)\n", (REFERENCE / page).read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def rows(text: str) -> list[list[str]]:
    """The cells of a Markdown table, without its header."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def code_of(cell: str) -> str:
    """What a cell has between backticks."""
    return cell.removeprefix("`").removesuffix("`")


def documented(text: str) -> dict[str, str]:
    """Key → default, from a table of keys."""
    return {code_of(key): code_of(default) for key, default, *_ in rows(text)}


def test_parameters_are_those_of_params_yaml_with_their_defaults():
    pages = sections("parameters.md")
    params = read_params(ROOT / "params.yaml")
    top = {key: params.pop(key) for key in ("tasks", "fine_tune", "threads", "engine", "workers", "gpus")}
    for title, section in {"Top level": top, **params}.items():
        told = documented(pages[title])
        assert set(told) == set(section), title
        for key, value in section.items():
            if key != "arms":
                assert parse_yaml(told[key], key) == value, f"{title}.{key}"


@pytest.mark.parametrize(
    ("title", "kind"),
    [("An arm", Arm), ("A term", Term), ("A ramp", Ramp), ("An imported teacher", ImportTeacherParams)],
)
def test_arms_are_documented_with_their_defaults(title: str, kind: Any):
    told = documented(sections("parameters.md")[title])
    fields = {field.name: field.default for field in dataclasses.fields(kind)}
    assert list(told) == list(fields)
    for key, default in fields.items():
        if told[key]:
            assert yaml.safe_load(told[key]) == default, key
        else:
            assert default in (None, dataclasses.MISSING), key


@pytest.mark.parametrize(
    ("title", "kind"),
    [
        ("The task", schema.TaskFile),
        ("splits", schema.Files),
        ("holdout", schema.HoldOut),
        ("read", schema.Layout),
        ("hub", schema.Hub),
        ("spans", schema.Span),
        ("diagnostics", schema.Diagnostic),
    ],
)
def test_every_key_of_a_task_file_is_documented(title: str, kind: Any):
    told = documented(sections("task-files.md")[title])
    fields = dataclasses.fields(kind)
    assert set(told) == {field.name for field in fields}
    required = {
        field.name
        for field in fields
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    assert {key for key, default in told.items() if default == "required"} == required


def test_task_files_shown_are_valid(tmp_path: Path):
    blocks = re.findall(
        r"```toml\n(.*?)```", (REFERENCE / "task-files.md").read_text(encoding="utf-8"), re.DOTALL
    )
    for i, block in enumerate(blocks):
        path = tmp_path / f"task{i}.toml"
        path.write_text(block, encoding="utf-8")
        taskfile.read_task_file(path)
    assert blocks


def commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every command with its name, subcommands included."""
    yield name, command
    for sub, below in getattr(command, "commands", {}).items():
        yield from commands(below, f"{name} {sub}")


def test_every_command_and_option_is_documented():
    common = {"--task", "--set", "--debug", "--help"}
    pages = sections("cli.md")
    there = dict(commands(typer.main.get_command(app), "kdcache"))
    del there["kdcache"]
    assert set(pages) == set(there)
    for name, command in there.items():
        told = {re.sub(r"[\[\]{}]", "", code_of(cells[0])) for cells in rows(pages[name])}
        taken: dict[str, set[str]] = {"option": set(), "argument": set()}
        for parameter in command.params:
            shown = parameter.opts[0]
            if parameter.param_type_name == "argument":
                shown = re.sub(r"[\[\]{}]", "", parameter.metavar or parameter.name).upper()
            taken[parameter.param_type_name].add(shown)
        assert {option for option in told if option.startswith("--")} - common == taken["option"] - common, (
            name
        )
        assert {argument for argument in told if not argument.startswith("--")} == taken["argument"], name


def test_links_between_pages_lead_somewhere():
    for path in [*DOCS.rglob("*.md"), *ROOT.glob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (path.parent / target).exists(), f"{path.relative_to(ROOT)}: {target}"


def test_specification_stays_short():
    rules = re.findall(
        r"^(\d+)\. ", (REFERENCE / "cache-format.md").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert [int(number) for number in rules] == list(range(1, len(rules) + 1))
    assert 10 < len(rules) < 25


@pytest.mark.parametrize("folds", [2, pytest.param(0, marks=pytest.mark.slow)])
def test_format_can_be_checked_without_kdcache(built_project, folds):
    """A reader written from docs/reference/cache-format.md, with pyarrow and the standard library."""
    commands = "prepare", "teach --task cb", "cache --task cb"
    built_project(*commands, **({} if folds == 2 else {"train_teacher": {"folds": folds}}))  # 2 as it is
    cache = Path("cache/cb")
    content = (cache / "manifest.json").read_bytes()
    manifest = json.loads(content)
    assert content == (json.dumps(manifest, sort_keys=True, indent=2) + "\n").encode()
    digest = manifest.pop("digest")
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    assert hashlib.sha256(canonical).hexdigest() == digest
    assert manifest["format_version"] == 1
    assert {path.name for path in cache.iterdir()} == {*manifest["files"], "manifest.json"}
    for name, entry in manifest["files"].items():
        file = cache / name
        assert file.stat().st_size == entry["bytes"]
        assert hashlib.sha256(file.read_bytes()).hexdigest() == entry["sha256"]
        table = pq.read_table(file, page_checksum_verification=True)
        assert table.column_names == [column for column, _ in manifest["columns"]]
        assert not any(field.nullable for field in table.schema)
        rows = table.to_pylist()
        assert len(rows) == len({row["example_id"] for row in rows}) == entry["rows"]
        total = sum(
            int(
                hashlib.sha256(f"{r['label']}\t{r['content_hash']}\t{r['example_id']}".encode()).hexdigest(),
                16,
            )
            for r in rows
        )
        assert f"{total % 2**256:064x}" == manifest["data"][name.removesuffix(".parquet")]
        assert entry["labelled"] == sum(r["label"] >= 0 for r in rows)
        assert entry["correct"] == sum(r["logits"].index(max(r["logits"])) == r["label"] for r in rows)
        metadata = pq.ParquetFile(file).metadata
        for column in range(metadata.num_columns):
            assert metadata.row_group(0).column(column).compression == "ZSTD"
            assert "RLE_DICTIONARY" not in metadata.row_group(0).column(column).encodings
