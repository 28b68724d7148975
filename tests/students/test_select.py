"""select: tune keeps the step that is best there; last looks at nothing."""

import json

import torch
from conftest import fails, run
from safetensors.torch import load_file

from kdcache.students.run import Run


def test_student_of_the_best_step_is_the_one_saved(cached_project, monkeypatch):
    folder = cached_project(distill={"epochs": None, "steps": 3, "seeds": [0]})
    scores = iter([0.5, 0.6, 0.9, 0.9])  # the probe and three steps; the earlier of equal ones wins
    seen: list[dict[str, torch.Tensor]] = []

    def scripted(student_run, _):
        seen.append({k: v.clone() for k, v in student_run.student.state_dict().items()})
        return {"tune_accuracy": next(scores)}

    monkeypatch.setattr(Run, "score", scripted)
    arguments = ("distill", "--task", "cb", "--arm", "kl", "--set", "distill.select=tune")
    assert run(*arguments)[0] == 0
    saved = folder / "runs" / "cb" / "kl-0"
    assert json.loads((saved / "result.json").read_text())["step"] == 2
    prompts = load_file(saved / "adapter_model.safetensors")["prompt_embeddings"]
    assert [torch.equal(prompts, state["prompt.weight"]) for state in seen] == [False, False, True, False]


def test_last_step_is_kept_where_it_is_wanted(cached_project):
    folder = cached_project(distill={"seeds": [0], "epochs": None, "steps": 13, "select": "last"})
    assert run("distill", "--task", "cb", "--arm", "kl", "--arm", "head")[0] == 0
    steps = {arm: json.loads((folder / "runs" / "cb" / f"{arm}-0" / "result.json").read_text())["step"]
             for arm in ("kl", "head")}  # fmt: skip
    assert steps == {"kl": 13, "head": 0}


def test_tune_needs_the_split(project):
    project(prepare={"tune_fraction": 0}, train_teacher={"folds": 0})
    assert run("prepare")[0] == 0
    remedy = "Set prepare.tune_fraction above 0 and run: kdcache prepare --task cb"
    message = "must be last without a tune split, got tune. " + remedy
    teach = fails("teach", "--task", "cb", "--set", "train_teacher.select=tune")
    assert teach == f"train_teacher.select: it {message}"
    assert run("run", "--task", "cb")[0] == 0
    distill = fails("distill", "--task", "cb", "--set", "distill.select=tune")
    assert distill == f"distill.select: it {message}"
