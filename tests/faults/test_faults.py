"""Faults in each verb that writes; see ``faults.py``. Some by default, all of them in the slow tier."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from faults import inject

FAULTS = Path(__file__).parent / "faults.py"
VERBS = (
    "prepare", "teach", "cache", "shrink", "explore", "distill", "report", "import", "export", "predict",
    "figure", "evaluate", "student", "init",
)  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("faults") / "base"


def inject_apart(base: Path, kind: str, every: int, *verbs: str) -> list[dict]:
    command = [sys.executable, str(FAULTS), str(base), kind, str(every), *verbs]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["verb"] for one in found] == list(verbs)
    return found


def test_a_killed_start_of_a_project_goes_on(in_memory):
    """The verb that needs no other: the default tier builds no teacher."""
    (found,) = inject(in_memory / "base", "kill", 40, ["init"])
    assert found["failed"] == []
    assert found["tried"] >= 3


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("kind", ["kill", "full", "closed"])
def test_every_fault_holds(base, kind, verb):
    (found,) = inject_apart(base, kind, 1, verb)
    assert found["failed"] == []


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("pair", [f"{a}+{b}" for k, a in enumerate(VERBS) for b in VERBS[k:]])
def test_two_verbs_at_once_end_as_one_after_the_other(base, pair):
    (found,) = inject_apart(base, "twice", 1, pair)
    assert found["failed"] == []
