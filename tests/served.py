"""Students for serving, untrained but each unlike the others, in folders as distill writes them."""

from pathlib import Path

import torch
from transformers import (
    DebertaV2Config,
    DebertaV2Model,
    ModernBertConfig,
    ModernBertModel,
    PreTrainedModel,
)

from kdcache.batching import encode
from kdcache.models import load_tokenizer
from kdcache.students.backbone import Backbone
from kdcache.students.export import save_student
from kdcache.students.student import Recipe, build_student
from kdcache.tasks.schema import Task

WIC = Task("wic", ("false", "true"), "wic/1", ("accuracy",))
CB = Task("cb", ("entailment", "contradiction", "neutral"), "cb/1", ("accuracy",), truncate="first")
COPA = Task("copa", ("choice1", "choice2"), "copa/1", ("accuracy",), num_choices=2)
TEXTS = [f"{a} {b}" for a in ("bank", "bat", "crane", "match") for b in ("the", "river", "on a tree by the")]


def make_student(
    folder: Path, backbone: Path, task: Task = WIC, method: str = "prefix", seed: int = 0, tokens: int = 4,
    max_length: int = 32,
) -> Path:  # fmt: skip
    """Write a student whose prompt and head are noise; ``backbone`` is relative to the current folder."""
    n = task.num_choices
    probe = encode(load_tokenizer(backbone), TEXTS, TEXTS[::-1], max_length, num_choices=n)
    recipe = Recipe(method, task.num_outputs, tokens, max_length, seed)
    student = build_student(recipe, backbone, Backbone.load(backbone), probe)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in [*student.tuned, *student.head_parameters]:
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    about = {"max_length": max_length, "task": task}
    save_student(student, folder, backbone, about, {"task": task.name, "arm": "x", "seed": "0"}, probe)
    return folder


def make_backbone(folder: Path, kind: str, tiny: Path) -> Path:
    """A random encoder of 16 dims that tells positions by distance, with the tiny tokenizer."""
    tokenizer = load_tokenizer(tiny)
    sizes = {
        "vocab_size": len(tokenizer), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": 96, "pad_token_id": 0, "initializer_range": 0.2,
    }  # fmt: skip
    torch.manual_seed(0)
    model: PreTrainedModel
    if kind == "deberta-v2":
        model = DebertaV2Model(
            DebertaV2Config(
                **sizes, relative_attention=True, pos_att_type=["p2c", "c2p"], position_biased_input=False,
                type_vocab_size=0, max_relative_positions=96,
            )
        )  # fmt: skip
    else:
        model = ModernBertModel(
            ModernBertConfig(
                **sizes, classifier_pooling="cls", bos_token_id=2, cls_token_id=2, sep_token_id=3,
                eos_token_id=3,
            )
        )  # fmt: skip
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return folder
