"""code.json: an edit changes the digests of the stages that it can reach, and of no other."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

from kdcache import code
from kdcache.errors import ParamsError

ALL = set(code.STAGES)


def newer_pythons() -> list[str]:
    """One interpreter of each newer version that starts; on PATH a name can be a shim of none."""
    found = []
    for name in ("python3.12", "python3.13", "python3.14"):
        for folder in os.get_exec_path():
            path = shutil.which(name, path=folder)
            ask = [path or "false", "-c", "import sys; print(sys.executable)"]
            started = subprocess.run(ask, capture_output=True, text=True, check=False)
            if started.returncode == 0:
                found.append(started.stdout.strip())
                break
    return found


NEWER = newer_pythons()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of kdcache that digests are taken of."""
    folder = tmp_path / "kdcache"
    ignored = shutil.ignore_patterns("__pycache__", "sample", "template")
    shutil.copytree(ROOT / "kdcache", folder, ignore=ignored)
    monkeypatch.setattr(code, "ROOT", folder)
    yield folder
    code.code_digest.cache_clear()  # of the copy: later tests would take them for those of the tree


def digests() -> dict[str, str]:
    code.code_digest.cache_clear()
    return {stage: code.code_digest(module) for stage, module in code.STAGES.items()}


def changed(edit) -> set[str]:
    before = digests()
    edit()
    after = digests()
    return {stage for stage in ALL if before[stage] != after[stage]}


def replace(path: Path, old: str, new: str):
    def edit():
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")

    return edit


def test_prose_reaches_no_stage(package: Path):
    losses = package / "losses" / "inter_class.py"
    assert not changed(replace(losses, '"""', '"""Another first sentence. '))
    assert not changed(lambda: losses.write_text(losses.read_text() + "\n# a comment\n"))
    assert not changed(replace(package / "cli" / "pipeline.py", 'help="', 'help="Other words. '))
    assert not changed(replace(package / "project.py", "nothing there", "no such file"))  # in an error


def test_a_loss_reaches_the_students_only(package: Path):
    found = changed(replace(package / "losses" / "inter_class.py", "temperature**2", "temperature**3"))
    assert found == {"distill"}


def test_the_teachers_training_reaches_the_teacher_only(package: Path):
    found = changed(
        replace(
            package / "teacher" / "fine_tune.py", 'lr_scheduler_type="linear"', 'lr_scheduler_type="cosine"'
        )
    )
    assert found == {"train_teacher"}


def test_a_foundation_reaches_every_stage(package: Path):
    assert changed(replace(package / "digests.py", "sort_keys=True", "sort_keys=False")) == ALL


def test_a_template_beside_a_package_counts(package: Path):
    page = package / "report" / "page.html.jinja"
    assert changed(lambda: page.write_text(page.read_text() + "<!-- more -->")) == {"report"}


def test_a_package_version_reaches_the_stages_that_import_it(package: Path, monkeypatch: pytest.MonkeyPatch):
    real = code._version
    monkeypatch.setattr(code, "_version", real)

    def edit():
        monkeypatch.setattr(code, "_version", lambda name: "99" if name == "peft" else real(name))

    found = changed(edit)
    assert {"train_teacher", "cache_teacher", "distill"} <= found
    assert not found & {"prepare", "report"}


def test_digests_do_not_depend_on_packages_that_are_not_always_installed():
    """What each stage counts comes with the extra that installs the pipeline."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = [*extras["dependencies"], *extras["optional-dependencies"]["pipeline"]]
    needed += extras["optional-dependencies"]["report"]
    installed = {re.split(r"[\[>=<]", name)[0] for name in needed} | {"tokenizers"}  # transformers needs it
    assert {name for names in code.PACKAGES.values() for name in names} <= installed


@pytest.mark.skipif(not NEWER, reason="no newer Python here")
@pytest.mark.parametrize("python", NEWER)
def test_the_digest_is_the_same_on_a_newer_python(python: str):
    program = (
        "from kdcache.code import STAGES, reach, source_digest\n"
        "print([source_digest(reach(module)[0]) for module in STAGES.values()])"
    )
    run = {
        "cwd": ROOT,
        "capture_output": True,
        "text": True,
        "check": False,
        "env": {"PYTHONPATH": str(ROOT)},
    }
    there = subprocess.run([python, "-c", program], **run)
    assert there.returncode == 0, there.stderr
    here = subprocess.run([sys.executable, "-c", program], **run)
    assert there.stdout == here.stdout
    assert there.stdout.count(",") == len(code.STAGES) - 1


def test_the_file_is_the_same_each_time(tmp_path: Path):
    path = tmp_path / "code.json"
    code.code(path)
    first = path.read_bytes()
    code.code(path)
    assert path.read_bytes() == first
    assert set(json.loads(first)) == {"format", *code.STAGES}


@pytest.mark.parametrize("text", ['{"format": 2}', "[]", "no JSON"])
def test_the_file_of_another_version_is_left_as_it_is(tmp_path: Path, text: str):
    path = tmp_path / "code.json"
    path.write_text(text)
    with pytest.raises(ParamsError, match="Another version of kdcache"):
        code.code(path)
    assert path.read_text() == text
