"""Students for serving, untrained but each unlike the others, in folders as distill writes them."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from specs import tiny_spec

from kdcache.data.task import Task
from kdcache.encoder.batching import encode
from kdcache.encoder.load import load_tokenizer
from kdcache.encoder.pooling import Pooling
from kdcache.students.folder import save_student
from kdcache.students.prompted_backbone import Backbone
from kdcache.students.student import build_student

WIC = Task("wic", ("false", "true"), "wic/1", ("accuracy",))
CB = Task("cb", ("entailment", "contradiction", "neutral"), "cb/1", ("accuracy",), truncate="first")
COPA = Task("copa", ("choice1", "choice2"), "copa/1", ("accuracy",), num_choices=2)
TEXTS = [f"{a} {b}" for a in ("bank", "bat", "crane", "match") for b in ("the", "river", "on a tree by the")]


def make_student(
    folder: Path, backbone: Path, task: Task = WIC, method: str = "prefix", seed: int = 0, tokens: int = 4,
    max_length: int = 32, pooling: Pooling = "cls",
) -> Path:  # fmt: skip
    """Write a student whose prompt and head are noise; ``backbone`` is relative to the current folder."""
    n = task.num_choices
    probe = encode(load_tokenizer(backbone), TEXTS, TEXTS[::-1], max_length, num_choices=n)
    spec = tiny_spec(method, num_virtual_tokens=tokens, max_length=max_length)
    student = build_student(spec, task.num_outputs, seed, backbone, Backbone.load(backbone, pooling), probe)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in [*student.tuned, *student.head_parameters]:
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    about = {"max_length": max_length, "task": task}
    card = {"task": task.name, "arm": "x", "seed": "0"}
    assert save_student(student, folder, backbone, about, card, probe) == {}
    return folder


def make_home(root: Path, tiny_model: Path, students: Mapping[str, tuple[Task, str, int]]) -> Path:
    """A folder with a backbone and students of a task, a method and a number of tokens, seeds from 0.

    Those named "mean" pool by it.
    """
    shutil.copytree(tiny_model, root / "backbone")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for seed, (name, (task, method, tokens)) in enumerate(students.items()):
            pooling: Pooling = "mean" if "mean" in name else "cls"
            make_student(Path(name), Path("backbone"), task, method, seed, tokens, pooling=pooling)
    return root
