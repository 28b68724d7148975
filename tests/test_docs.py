"""docs/ says what is so: its commands parse, and the format can be checked from its text alone."""

import hashlib
import json
import re
import shlex
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from kdcache.cli import app

DOCS = Path(__file__).parent.parent / "docs"
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


def test_specification_stays_short():
    rules = re.findall(
        r"^(\d+)\. ", (DOCS / "cache-format.md").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert [int(number) for number in rules] == list(range(1, len(rules) + 1))
    assert 10 < len(rules) < 25


@pytest.mark.parametrize("folds", [0, 2])
def test_format_can_be_checked_without_kdcache(project, folds):
    """A reader written from docs/cache-format.md, with pyarrow and the standard library."""
    project(train_teacher={"folds": folds})
    for command in ("prepare", "teach", "cache"):
        assert CliRunner().invoke(app, [command, "--task", "cb"]).exit_code == 0
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
