"""Writing students to folders and reading them back: PEFT adapters, or a plain transformers model."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import (
    AutoPeftModelForSequenceClassification,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    TaskType,
    get_peft_model,
)
from peft.utils.constants import DUMMY_TARGET_MODULES
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from kdcache.data.task import Task
from kdcache.digests import file_digest
from kdcache.encoder.adapters import WEIGHTS, quiet_peft, save_adapter
from kdcache.encoder.batching import Encoded
from kdcache.encoder.load import WEIGHTS as BACKBONE_WEIGHTS
from kdcache.encoder.load import load_classifier
from kdcache.encoder.parts import head_names, take_apart
from kdcache.errors import ModelError
from kdcache.params import build
from kdcache.students.methods import METHODS
from kdcache.students.prompted_backbone import Backbone
from kdcache.students.prompts import Prompt
from kdcache.students.student import Head, Student, predict

ABOUT = "student.json"
RELOAD_ROWS = 8
RELOAD_TOLERANCE = 1e-5


@dataclass(frozen=True)
class About:
    """What ``student.json`` says, so that a folder serves text without the project that made it.

    Args:
        method: a key of ``METHODS``.
        backbone: its folder, relative to the project's root.
        backbone_sha256: of its weights: prompts fit no others.
        num_virtual_tokens: length of the prompt, in tokens; 0 without.
        max_length: of the inputs, in tokens.
        task: labels, template, truncation.
    """

    method: str
    backbone: str
    backbone_sha256: str
    num_virtual_tokens: int
    max_length: int
    task: Task


def save_student(
    student: Student, folder: Path, backbone: Path, about: Mapping[str, Any], card: Mapping[str, str],
    probe: Encoded,
) -> None:  # fmt: skip
    """Write weights (safetensors), canonical configs and a model card; then reload and compare.

    Args:
        student: trained.
        folder: where to; made here.
        backbone: the frozen backbone, written relative to the project so that the folder can
            be loaded from the project's root on any machine.
        about: ``max_length`` and ``task`` of ``About``.
        card: facts for the model card, in order.
        probe: rows on which the reloaded student must give the same logits.

    Raises:
        ModelError: the folder does not give the student's logits.
    """
    base = Path(os.path.relpath(backbone)).as_posix()
    tokens = 0 if student.prompt is None else len(student.prompt())
    num_outputs = about["task"].num_outputs
    whole = student.model or _as_peft(student, backbone, num_outputs)
    device = student.backbone.device
    whole.to("cpu")
    if isinstance(whole, PeftModel):
        save_adapter(whole, folder, base)
    else:
        whole.save_pretrained(str(folder))  # type: ignore[operator]
    whole.to(device)
    digest = file_digest(backbone / BACKBONE_WEIGHTS)
    known = About(student.method, base, digest, tokens, about["max_length"], about["task"])
    text = json.dumps(asdict(known), indent=2, sort_keys=True, ensure_ascii=False)
    (folder / ABOUT).write_text(text + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_model_card(known, card), encoding="utf-8")
    _check_reload(student, folder, num_outputs, probe.take(range(min(RELOAD_ROWS, len(probe)))))


def load_folder(folder: Path, backbone: Backbone | None = None) -> tuple[Student, About]:
    """Read a student back.

    Args:
        folder: from ``save_student``.
        backbone: the shared one, if it is already loaded; a reference brings its own.

    Raises:
        ModelError: no student there, or its backbone is missing or another.
    """
    about = read_about(folder)
    outputs = about.task.num_outputs
    if about.method == "full":
        model: Any = AutoModelForSequenceClassification.from_pretrained(str(folder), dtype=torch.float32)
        return _reference(about.method, model, model, outputs), about
    base = find_backbone(folder, about)
    if (found := file_digest(base / BACKBONE_WEIGHTS)) != about.backbone_sha256:
        raise ModelError(
            f"{folder}: the sha256 of {base / BACKBONE_WEIGHTS} must be {about.backbone_sha256}, "
            f"got {found}. The backbone was made again since: train the student again."
        )
    plain = load_classifier(base, outputs, seed=0)
    if about.method == "lora":
        whole = PeftModel.from_pretrained(plain, str(folder)).eval()
        return _reference(about.method, whole, plain, outputs), about
    weights = load_file(folder / WEIGHTS)
    names = head_names(plain)
    head = Head(take_apart(plain)[1], outputs)
    for name, module in zip(names, head.chain, strict=True):
        own = {k.partition(f".{name}.")[2]: v for k, v in weights.items() if f".{name}." in k}
        module.load_state_dict(own)
    place = METHODS[about.method].place
    prompt = Prompt(place, weights["prompt_embeddings"]) if place else None
    shared = backbone or Backbone.load(base)
    return Student(about.method, shared, prompt, head).to(shared.device), about


def find_backbone(folder: Path, about: About) -> Path:
    """The backbone's folder.

    Raises:
        ModelError: it is not where the student says.
    """
    base = Path(about.backbone)
    if not (base / "config.json").is_file():
        raise ModelError(
            f"{folder}: its backbone must be at {base}, relative to the current folder, got nothing "
            "there. Change to the project's root, or run: kdcache shrink"
        )
    return base


def read_about(folder: Path) -> About:
    """Read ``student.json``.

    Raises:
        ModelError: it is not there, or not what kdcache writes.
    """
    path = folder / ABOUT
    if not path.is_file():
        raise ModelError(f"{path}: a student's folder must hold it, got nothing there. Run: kdcache distill")
    return build(About, json.loads(path.read_text(encoding="utf-8")), str(path))


def _reference(method: str, whole: nn.Module, plain: PreTrainedModel, outputs: int) -> Student:
    encoder, chain = take_apart(plain)
    return Student(method, Backbone(encoder), None, Head(chain, outputs), whole)


def _as_peft(student: Student, backbone: Path, num_outputs: int) -> PeftModel:
    """The student as PEFT's own model, its trained values put in."""
    model = load_classifier(backbone, num_outputs, seed=0)
    also = [name.rpartition(".")[2] for name in head_names(model)]
    config: Any
    if student.prompt is None:  # a LoRA without targets saves the trained modules and nothing else
        config = LoraConfig(
            task_type=TaskType.SEQ_CLS, target_modules=DUMMY_TARGET_MODULES, modules_to_save=also
        )
    else:
        prompt, deep = student.prompt(), student.prompt.place == "deep"
        kind = PrefixTuningConfig if deep else PromptTuningConfig
        config = kind(task_type=TaskType.SEQ_CLS, num_virtual_tokens=len(prompt), modules_to_save=also)
        if not deep:
            config.token_dim = prompt.shape[1]  # ELECTRA's embeddings have a dim of their own
    with quiet_peft():
        whole = get_peft_model(model, config)
    for wrapper, own in zip(take_apart(model)[1], student.head.chain, strict=True):
        wrapper.modules_to_save["default"].load_state_dict(own.state_dict())  # type: ignore[union-attr,index]
    if student.prompt is not None:
        whole.prompt_encoder["default"].embedding.weight.data = student.prompt().detach().cpu()
    config.base_model_name_or_path = str(backbone)
    return whole


@torch.no_grad()
def _check_reload(student: Student, folder: Path, num_outputs: int, probe: Encoded) -> None:
    wanted = torch.from_numpy(predict(student, probe, RELOAD_ROWS)[0])
    loader = METHODS[student.method].loader
    if loader is None:
        reader, found = "kdcache", torch.from_numpy(predict(load_folder(folder)[0], probe, RELOAD_ROWS)[0])
    else:
        reader = f"plain {loader}"
        auto: Any = (
            AutoModelForSequenceClassification if loader == "transformers"
            else AutoPeftModelForSequenceClassification
        )  # fmt: skip
        with quiet_peft():
            reloaded = auto.from_pretrained(str(folder), num_labels=num_outputs)
        found = probe.by_row(reloaded.eval()(**probe.batch(range(len(probe)))).logits)
    gap = ((found - wanted).abs().max() / wanted.abs().max().clamp(min=1)).item()
    if not gap <= RELOAD_TOLERANCE:
        raise ModelError(
            f"{folder}: {reader} must give the student's logits within {RELOAD_TOLERANCE:g} of "
            f"their size, got a difference of {gap:g}. Train this student with another method."
        )


def _model_card(about: About, card: Mapping[str, str]) -> str:
    loader = METHODS[about.method].loader
    library = "transformers" if loader == "transformers" else "peft"
    header = [
        "---", f"base_model: {about.backbone}", f"library_name: {library}",
        "pipeline_tag: text-classification", "---",
    ]  # fmt: skip
    if loader is None:
        note = (
            "Plain peft puts these virtual tokens before [CLS] and lets the head read one of them. kdcache "
            "puts them behind [CLS], so load this folder by kdcache, from the project's root:"
        )
        code = ["import kdcache", 'student = kdcache.load_student("PATH")']
    else:
        name = "AutoModel" if loader == "transformers" else "AutoPeftModel"
        note = "Load it from the project's root (PATH is this folder):"
        code = [
            f"from {library} import {name}ForSequenceClassification",
            f'model = {name}ForSequenceClassification.from_pretrained("PATH", '
            f"num_labels={about.task.num_outputs})",
        ]
    what = "fine-tuned" if loader == "transformers" else "trained"
    lines = [
        *header, "", f"# {card['task']}: {card['arm']}, seed {card['seed']}", "",
        f"A student {what} by kdcache over the backbone `{about.backbone}`, method {about.method}.", "",
        "| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in card.items()), "",
        note, "", "```python", *code, "```",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"
