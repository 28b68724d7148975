"""Writing students to folders and reading them back, in the formats of PEFT and transformers."""

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from peft import (
    AutoPeftModelForFeatureExtraction,
    AutoPeftModelForSequenceClassification,
    LoraConfig,
    PeftModel,
    PeftType,
    PrefixTuningConfig,
    PromptTuningConfig,
    TaskType,
    get_peft_model,
)
from peft.utils.constants import DUMMY_TARGET_MODULES
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, AutoModelForSequenceClassification

from kdcache.data.task import Task
from kdcache.digests import file_digest
from kdcache.encoder.adapter_config import WEIGHTS
from kdcache.encoder.adapters import load_trained, quiet_peft, save_adapter, save_trained
from kdcache.encoder.batching import Encoded
from kdcache.encoder.load import WEIGHTS as BACKBONE_WEIGHTS
from kdcache.encoder.load import load_classifier
from kdcache.encoder.mean_pooled import HEAD, load_head, save_head
from kdcache.encoder.parts import head_names, last_linear, take_apart, with_weights
from kdcache.encoder.pooling import pool
from kdcache.encoder.weights import check_weights, read_weights
from kdcache.places import ABOUT
from kdcache.project import write_json
from kdcache.students.about import About, find_backbone, read_about
from kdcache.students.card import head_options, model_card
from kdcache.students.methods import METHODS, Method
from kdcache.students.prompted_backbone import Backbone
from kdcache.students.prompts import Prompt
from kdcache.students.student import Head, Student, predict

EMBEDDINGS = "prompt_embeddings"  # a prompt's name in a file
PEFT = re.compile(r"^base_model\.(model\.)?")  # what PEFT puts before the name of a module
PROMPT = "prompt.safetensors"
OWN_FILE = ("late", "states")  # places of prompts that PEFT does not know, which have that file
RELOAD_ROWS = 8
# By the precision that the student was scored in: how far its logits may be off those of the reload, in
# float32, as a share of their size. On six layers of MiniLM, over all methods with prompts, the furthest
# were 9e-4 in TF32 (inputs and weights rounded as it rounds them) and 9e-3 in bfloat16.
RELOAD_TOLERANCE = {"float32": 1e-5, "tf32": 5e-3, "bfloat16": 5e-2}


def save_student(
    student: Student, folder: Path, backbone: Path, about: Mapping[str, Any], card: Mapping[str, str],
    probe: Encoded,
) -> dict[str, float | str]:  # fmt: skip
    """Write weights (safetensors), canonical configs and a model card; reload the weights and compare.

    Args:
        student: trained.
        folder: where to; made here.
        backbone: the frozen backbone, written relative to the project so that the folder can
            be loaded from the project's root on any machine.
        about: ``max_length`` and ``task`` of ``About``.
        card: facts for the model card, in order.
        probe: rows on which the reloaded student should give the same logits.

    Returns:
        Nothing where it does. Else ``reload_gap``, how far it is off as a share of the logits' size,
        or ``reload_error``, the type of what loading it raised. The card and a line on stderr say so
        too: the student is trained, so it is kept.
    """
    base = Path(os.path.relpath(backbone)).as_posix()
    tokens = 0 if student.prompt is None else len(student.prompt())
    task, pooling = about["task"], student.backbone.pooling
    folder.mkdir(parents=True, exist_ok=True)
    _write_weights(student, folder, backbone, base, task)
    digest = file_digest(backbone / BACKBONE_WEIGHTS)
    known = About(cast(Method, student.method), base, digest, tokens, about["max_length"], task, pooling)
    write_json(asdict(known), folder / ABOUT)
    loader = METHODS[student.method].loader(pooling)
    reader = loader if loader == "kdcache" else f"plain {loader}"
    tolerance = RELOAD_TOLERANCE[student.backbone.precision]
    found: dict[str, float | str] = {}
    facts = {**card, "pooling": pooling}
    try:
        gap = _reload_gap(student, folder, known, probe.take(range(min(RELOAD_ROWS, len(probe)))))
        if not gap <= tolerance:
            found["reload_gap"], got = gap, f"a difference of {gap:.2g}"
            facts["reload_gap"] = f"{gap:.2g} of the logits' size, between training and {reader}"
    except Exception as error:  # of any type: three libraries load it
        found["reload_error"] = facts["reload_error"] = kind = type(error).__name__  # no path of this machine
        got = " ".join(f"{kind}: {error}".split())
    if found:
        print(
            f"{folder.name}: {reader} must give the student's logits within {tolerance:g} of their size, got "
            f"{got}. The student is kept; score it as you will use it.",
            file=sys.stderr,
        )
    (folder / "README.md").write_text(model_card(known, facts), encoding="utf-8")
    return found


def load_folder(
    folder: Path, backbone: Backbone | None = None, base: Path | None = None
) -> tuple[Student, About]:
    """Read a student back.

    Args:
        folder: from ``save_student``.
        backbone: the shared one, if it is already loaded; a reference brings its own.
        base: the backbone's folder, from ``find_backbone``; None looks for it.

    Raises:
        ModelError: no student there, or its backbone is missing or another.
    """
    about = read_about(folder)
    outputs, facts = about.task.num_outputs, METHODS[about.method]
    if about.method == "full":
        return _load_reference(folder, folder, about), about
    base = base or find_backbone(folder, about)
    if facts.own_weights:
        return _load_reference(folder, base, about), about
    shared = backbone.read_by(about.pooling) if backbone else Backbone.load(base, about.pooling)
    chain: list[nn.Module]
    if about.pooling == "mean":
        linear = nn.Linear(shared.config.hidden_size, outputs)
        load_head(linear, folder)
        chain = [linear]
    else:
        plain = load_classifier(base, outputs, seed=0)
        chain = take_apart(plain)[1]
        path = folder / (HEAD if facts.place in OWN_FILE else WEIGHTS)
        modules = dict(zip(head_names(plain), with_weights(chain), strict=True))
        wanted = {
            f"{n}.{key}": value for n, part in modules.items() for key, value in part.state_dict().items()
        }
        inside = (EMBEDDINGS,) if facts.place in ("deep", "input") else ()  # the prompt lies in the same file
        weights = {PEFT.sub("", k): v for k, v in read_weights(path).items() if k not in inside}
        check_weights(path, weights, wanted)
        for name, part in modules.items():
            own = {k.removeprefix(f"{name}."): v for k, v in weights.items() if k.startswith(f"{name}.")}
            part.load_state_dict(own)
    prompt = None
    if facts.place:
        path = folder / (PROMPT if facts.place in OWN_FILE else WEIGHTS)
        values = {k: v for k, v in read_weights(path).items() if k == EMBEDDINGS}
        width = shared.prompt_width(facts.place, _late_layers(values, shared))
        claimed = torch.empty(about.num_virtual_tokens, width, device="meta")  # takes no memory
        check_weights(path, values, {EMBEDDINGS: claimed})
        prompt = Prompt(facts.place, values[EMBEDDINGS])
    return Student(about.method, shared, prompt, Head(chain, outputs)).to(shared.device), about


def _late_layers(values: Mapping[str, torch.Tensor], backbone: Backbone) -> int:
    """Return how many layers a late prompt enters, by its width: one of the numbers that the backbone has."""
    shape = values[EMBEDDINGS].shape if EMBEDDINGS in values else ()
    width = shape[-1] if shape else 0
    return min(max(1, backbone.layers_entered(width)), backbone.config.num_hidden_layers)


def _load_reference(folder: Path, base: Path, about: About) -> Student:
    """Load a student with weights of its own, whose encoder lies in ``base``."""
    outputs = about.task.num_outputs
    whole = load_trained(folder, outputs, about.pooling, PeftType.LORA, base)
    encoder, chain = take_apart(whole)
    return Student(about.method, Backbone(encoder, about.pooling), None, Head(chain, outputs), whole)


def _write_weights(student: Student, folder: Path, backbone: Path, base: str, task: Task) -> None:
    num_outputs = task.num_outputs
    mean, device = student.backbone.pooling == "mean", student.backbone.device
    student.to("cpu")
    if student.model is not None:
        save_trained(student.model, folder, base, task.output_names)  # type: ignore[arg-type]
    elif student.prompt is not None and student.prompt.place in OWN_FILE:
        save_file({EMBEDDINGS: student.prompt().detach().cpu().contiguous()}, folder / PROMPT)
        if not mean:
            names = head_names(load_classifier(backbone, num_outputs, seed=0))
            parts = zip(names, with_weights(student.head.chain), strict=True)
            weights = {f"{n}.{key}": value for n, part in parts for key, value in part.state_dict().items()}
            save_file(weights, folder / HEAD)
    elif student.prompt is not None or not mean:
        save_adapter(_as_peft(student, backbone, num_outputs), folder, base)
    if mean and student.model is None:
        save_head(last_linear(student.head, num_outputs), folder)
    student.to(device)


def _as_peft(student: Student, backbone: Path, num_outputs: int) -> PeftModel:
    """The student as PEFT's own model, its trained values put in; of a mean-pooled one, the encoder."""
    mean, prompt = student.backbone.pooling == "mean", student.prompt
    model: Any = load_classifier(backbone, num_outputs, 0, student.backbone.pooling)
    also = None if mean else [name.rpartition(".")[2] for name in head_names(model)]
    common: Any = {
        "task_type": TaskType.FEATURE_EXTRACTION if mean else TaskType.SEQ_CLS, "modules_to_save": also
    }  # fmt: skip
    config: Any
    if prompt is None:  # a LoRA without targets saves the trained modules and nothing else
        config = LoraConfig(target_modules=DUMMY_TARGET_MODULES, **common)
    elif prompt.place == "deep":
        config = PrefixTuningConfig(num_virtual_tokens=len(prompt()), **common)
    else:
        config = PromptTuningConfig(
            num_virtual_tokens=len(prompt()), num_layers=model.config.num_hidden_layers,
            num_attention_heads=model.config.num_attention_heads,
            token_dim=prompt().shape[1], **common,  # ELECTRA's embeddings have a dim of their own
        )  # fmt: skip
    with quiet_peft():
        whole = get_peft_model(model.encoder if mean else model, config)
    if not mean:
        wrappers = with_weights(take_apart(model)[1])
        for wrapper, own in zip(wrappers, with_weights(student.head.chain), strict=True):
            wrapper.modules_to_save["default"].load_state_dict(own.state_dict())  # type: ignore[union-attr,index]
    if prompt is not None:
        whole.prompt_encoder["default"].embedding.weight.data = prompt().detach().cpu()
    config.base_model_name_or_path = str(backbone)
    return whole


@torch.no_grad()
def _reload_gap(student: Student, folder: Path, about: About, probe: Encoded) -> float:
    """The largest difference of logits, as a share of their size."""
    wanted = torch.from_numpy(predict(student, probe, RELOAD_ROWS))
    loader = METHODS[about.method].loader(about.pooling)
    if loader == "kdcache":
        found = torch.from_numpy(predict(load_folder(folder)[0], probe, RELOAD_ROWS))
    else:
        found = probe.by_row(_plain_logits(folder, about, loader, probe.batch(range(len(probe)))))
    return ((found - wanted).abs().max() / wanted.abs().max().clamp(min=1)).item()


def _plain_logits(folder: Path, about: About, loader: str, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits as the model card's code computes them, by peft or transformers."""
    auto: Any
    path = str(folder.resolve())  # peft takes a bare name for one on the hub
    if about.pooling == "cls":
        auto = AutoPeftModelForSequenceClassification
        if loader == "transformers":
            auto = AutoModelForSequenceClassification
        with quiet_peft():
            return (
                auto.from_pretrained(path, trust_remote_code=False, **head_options(about))
                .eval()(**batch)
                .logits
            )
    auto = AutoModel if loader == "transformers" else AutoPeftModelForFeatureExtraction
    source = about.backbone if about.method == "head" else path
    own = {key: batch[key] for key in ("input_ids", "attention_mask")}
    with quiet_peft():
        encoder = auto.from_pretrained(source, trust_remote_code=False).eval()
        states = encoder(**own).last_hidden_state[:, -own["input_ids"].shape[1] :]
    head = load_file(folder / HEAD)
    return pool(states, own["attention_mask"], "mean") @ head["weight"].T + head["bias"]
