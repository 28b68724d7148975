"""kdcache select: every row of train is held out once, and no other labelled row is looked at."""

import pytest
from conftest import fails, run

LR = "distill.lr=1e-3,1e-1"


@pytest.fixture
def cached(cached_project):
    return cached_project(distill={"seeds": [3, 4]})


def test_values_are_compared_on_train_alone_and_nothing_is_written(cached, monkeypatch):
    before = sorted(cached.rglob("*"))
    code, out, _ = run("select", "--task", "cb", "--grid", LR, "--folds", "2")
    assert code == 0
    assert "distill.lr" in out
    assert out.count("fold 2 of 2") == 2
    left = [path for path in sorted(cached.rglob("*")) if path not in before and path.suffix != ".lock"]
    assert left == [cached / ".kdcache"] or left == []

    looked_at = []

    def see(grid, arms, seeds, made):
        ids = {split: part.table["example_id"].to_pylist() for split, part in grid.splits.items()}
        looked_at.append((grid.params.lr, arms, seeds, ids))
        assert grid.project.raw["engine"] == "local"  # workers elsewhere would train on all rows
        return [{"validation": {"accuracy": grid.params.lr + len(looked_at) / 100}}]

    monkeypatch.setattr("kdcache.students.select.train_grid", see)
    monkeypatch.setattr("shutil.rmtree", lambda _path: None)
    command = ("select", "--task", "cb", "--grid", LR, "--folds", "3", "--arm", "ce")
    assert run(*command, "--set", "engine=ray")[0] == 0
    assert [(lr, arms, seeds) for lr, arms, seeds, _ in looked_at] == [
        (lr, ["ce"], [3]) for lr in (1e-3, 1e-1) for _ in range(3)
    ]
    for value in (looked_at[:3], looked_at[3:]):
        folds = [ids["validation"] for *_, ids in value]
        everything = [row for fold in folds for row in fold]
        assert len(everything) == len(set(everything)) == 24
        for *_, ids in value:
            assert set(ids) == {"train", "validation"}  # neither tune nor the real validation
            assert sorted(ids["train"] + ids["validation"]) == sorted(everything)
            assert all(row.startswith("train-") for row in everything)
    assert [ids for *_, ids in looked_at[:3]] == [ids for *_, ids in looked_at[3:]]  # paired


def test_a_value_whose_students_diverge_is_left_out(cached):
    command = ("select", "--task", "cb", "--folds", "2", "--arm", "ce", "--grid")
    code, out, error = run(*command, "distill.lr=1e-3,1e38,1e-2")
    assert code == 0
    assert "ce, 1e38: a student diverged" in error
    assert "1e38" not in out.partition("mean, %")[2]
    code, _, error = run(*command, "distill.lr=1e37,1e38")
    assert code == 1
    assert "1e37, 1e38" in error.splitlines()[-1]


def test_the_step_is_chosen_as_in_distill(cached, monkeypatch):
    splits = []

    def see(grid, *_):
        splits.append(set(grid.splits))
        return [{"validation": {"accuracy": 0.5}}]

    monkeypatch.setattr("kdcache.students.select.train_grid", see)
    assert run("select", "--task", "cb", "--grid", LR, "--folds", "2", "--set", "distill.select=tune")[0] == 0
    assert splits == [{"train", "validation", "tune"}] * 4


def test_mistake_is_one_line(cached):
    grid = "--grid: it must be distill.KEY and at least two values, got {}. "
    grid += "For example: --grid distill.lr=1e-2,3e-2"
    cases = {
        ("--grid", "prepare.seed=1,2"): grid.format("prepare.seed=1,2"),
        ("--grid", "distill.lr=1"): grid.format("distill.lr=1"),
        ("--grid", "distill.lrr=1,2"): (
            "distill.lrr: the key must be a known parameter, got 'lrr'. Did you mean lr?"
        ),
        ("--grid", LR, "--arm", "kll"): "distill.arms: unknown arm 'kll'. Did you mean kl?",
    }
    for arguments, message in cases.items():
        assert fails("select", "--task", "cb", *arguments) == message
