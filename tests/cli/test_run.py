"""``kdcache run``: the backbone is made before the teacher, and one that is there stays."""

import json
from pathlib import Path

from conftest import fails, run

BACKBONE = Path("models/backbone")


def test_the_backbone_is_probed_on_the_tasks_of_the_run_before_a_teacher_is_trained(project):
    project()
    assert run("run", "--task", "cb", "--to", "shrink")[0] == 0
    assert list(json.loads((BACKBONE / "shrink.json").read_text())["probes"]) == ["cb"]
    assert not Path("models/teacher").exists()


def test_a_mistake_in_the_backbone_s_section_costs_no_teacher(project):
    project()
    assert "layers" in fails("run", "--task", "cb", "--set", "student_backbone.num_layers=9")
    assert not Path("models").exists()


def test_a_backbone_that_is_there_is_kept_and_said(project):
    project()
    assert run("prepare")[0] == 0
    assert run("shrink", "--num-layers", "2")[0] == 0
    made = {path.name: path.read_bytes() for path in BACKBONE.iterdir() if path.is_file()}
    code, out, _ = run("run", "--task", "cb", "--to", "shrink")  # params.yaml keeps one layer
    assert code == 0
    assert f"{BACKBONE}: " in out
    record = json.loads((BACKBONE / "shrink.json").read_text())
    first, second = record["layers"]
    assert f"layers {first}, {second} of {record['model']}, pooling {record['pooling']}" in out
    assert {path.name: path.read_bytes() for path in BACKBONE.iterdir() if path.is_file()} == made


def test_shrink_probes_on_a_task_file(project):
    """A task that params.yaml does not list, by the file that prepared it."""
    project()
    Path("own").mkdir()
    rows = [f"the bank of row {i},{('good', 'bad')[i % 2]}" for i in range(80)]
    Path("own/mine.csv").write_text("\n".join(["text,label", *rows]))
    Path("own/mine.toml").write_text(
        'splits = {train = "mine.csv"}\nholdout = {fraction = 0.2}\ntext = "text"\nlabel = "label"\n'
    )
    assert run("prepare", "--task", "own/mine.toml")[0] == 0
    assert run("shrink", "--probe", "own/mine.toml")[0] == 0
    assert list(json.loads((BACKBONE / "shrink.json").read_text())["probes"]) == ["mine"]
