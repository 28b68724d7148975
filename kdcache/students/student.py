"""A student: a backbone, perhaps a prompt, and a head; and the forward pass of many at once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from kdcache.encoder.batching import Encoded, Padded, fixed_plan
from kdcache.encoder.load import last_linear, load_classifier
from kdcache.students.frozen import Backbone, RowPrompts, head_names, take_apart
from kdcache.students.prompts import PROMPTS, Prompt, Start, build_prompt

# Methods with weights of their own, trained one at a time; PROMPTS and ``head`` share a frozen backbone.
REFERENCES = ("lora", "full")
METHODS = ("head", *PROMPTS, *REFERENCES)
EVAL_BATCH_SIZE = 128
LORA_RANK = 8


class Head(nn.Module):
    """From the [CLS] state to logits: the pooler where there is one, and the classifier.

    Args:
        chain: modules in order; the first reads states of shape (batch, tokens, dim) or (batch, dim).
        num_outputs: logits per sequence.
    """

    def __init__(self, chain: Sequence[nn.Module], num_outputs: int) -> None:
        super().__init__()
        self.chain = nn.ModuleList(chain)
        self._features = torch.empty(0)
        last_linear(self, num_outputs).register_forward_pre_hook(self._keep)

    def _keep(self, _module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self._features = inputs[0]

    def forward(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (logits, features) of shape (batch, num_outputs) and (batch, dim).

        Args:
            states: of [CLS], of shape (batch, dim).
        """
        hidden = states[:, None]
        for module in self.chain:
            hidden = module(hidden)
        features, self._features = self._features, torch.empty(0)
        return hidden.flatten(0, -2), features.flatten(0, -2)


class Student(nn.Module):
    """What is trained and saved.

    Args:
        method: one of ``METHODS``.
        backbone: the shared frozen one, or a reference's own.
        prompt: None for methods without.
        head: its own.
        model: of a reference: the classifier that backbone and head are parts of.
    """

    def __init__(
        self,
        method: str,
        backbone: Backbone,
        prompt: Prompt | None,
        head: Head,
        model: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.method = method
        self.backbone = backbone
        self.prompt = prompt
        self.head = head
        self.model = model

    @property
    def tuned(self) -> list[nn.Parameter]:
        """What is trained besides the head: the prompt, or a reference's weights."""
        if self.prompt is not None:
            return list(self.prompt.parameters())
        if self.model is None:
            return []
        heads = set(self.head.parameters())
        return [p for p in self.backbone.encoder.parameters() if p.requires_grad and p not in heads]

    @property
    def head_parameters(self) -> list[nn.Parameter]:
        """Head and pooler."""
        return [p for p in self.head.parameters() if p.requires_grad]


@dataclass(frozen=True)
class Recipe:
    """What decides an untrained student beside its backbone.

    Args:
        method: one of ``METHODS``.
        num_outputs: logits per sequence.
        num_virtual_tokens: length of the prompt, in tokens.
        max_length: of the inputs, in tokens.
        seed: of head and start.
        start: which tokens of real text the prompt starts from.
    """

    method: str
    num_outputs: int
    num_virtual_tokens: int
    max_length: int
    seed: int
    start: Start = "separators"


def build_student(recipe: Recipe, folder: Path, backbone: Backbone, real_text: Encoded) -> Student:
    """Build an untrained student.

    Args:
        recipe: what to build.
        folder: the backbone's, for a fresh head (and a reference's own copy).
        backbone: the shared frozen one, made of the same folder.
        real_text: rows whose tokens a prompt starts from.

    Returns:
        A student whose prompt and head, or own weights, require a gradient and nothing else.

    Raises:
        ModelError: the method does not work on this architecture, or positions run out.
    """
    method = recipe.method
    place = PROMPTS[method][1] if method in PROMPTS else None
    backbone.check(place, recipe.num_virtual_tokens, recipe.max_length)
    model = load_classifier(folder, recipe.num_outputs, recipe.seed)
    if method in REFERENCES:
        return _build_reference(model, recipe, backbone)
    prompt = None
    if place is not None:
        prompt = build_prompt(
            method, backbone, recipe.num_virtual_tokens, real_text, recipe.seed, recipe.start
        )
    head = Head(take_apart(model)[1], recipe.num_outputs)
    return Student(method, backbone, prompt, head).to(backbone.device)


def _build_reference(model: PreTrainedModel, recipe: Recipe, shared: Backbone) -> Student:
    whole: nn.Module = model
    if recipe.method == "lora":
        config = LoraConfig(
            task_type=TaskType.SEQ_CLS, r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules="all-linear",
            modules_to_save=[name.rpartition(".")[2] for name in head_names(model)],
        )  # fmt: skip
        whole = get_peft_model(model, config)
    encoder, chain = take_apart(model)
    own = Backbone(encoder, shared.dtype, shared.dropout).to(shared.device)
    return Student(recipe.method, own, None, Head(chain, recipe.num_outputs), whole).to(shared.device)


def forward(
    students: Sequence[Student], batch: Mapping[str, torch.Tensor], counts: Sequence[int]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Run a batch whose consecutive groups of rows belong to students of one backbone.

    Args:
        students: with prompts at one place, or without any.
        batch: padded together, see ``Backbone.cls_states``.
        counts: sequences per student.

    Returns:
        (logits, features) per student.
    """
    prompts = [None if student.prompt is None else student.prompt() for student in students]
    place = next((student.prompt.place for student in students if student.prompt is not None), None)
    rows = None if place is None else RowPrompts.of(place, prompts, counts)
    states = students[0].backbone.cls_states(batch, rows)
    return [student.head(part) for student, part in zip(students, states.split(list(counts)), strict=True)]


@torch.no_grad()
def predict(
    student: Student,
    encoded: Encoded,
    batch_size: int = EVAL_BATCH_SIZE,
    after_batch: Callable[[int], object] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Run every row through a student.

    Args:
        student: on any device.
        encoded: the rows.
        batch_size: rows per forward pass.
        after_batch: called with the number of rows of each batch that is done.

    Returns:
        float32 logits of shape (rows, num_labels) and features of shape (rows, dim), in row order.
    """
    padded = Padded.of(encoded, student.backbone.device)
    plan = fixed_plan(encoded.lengths, batch_size)
    logits, features = [], []
    for rows in plan:
        batch = padded.batch(rows)
        ((some_logits, some_features),) = forward([student], batch, [len(batch["input_ids"])])
        logits.append(encoded.by_row(some_logits))
        features.append(encoded.by_row(some_features))
        if after_batch:
            after_batch(len(rows))
    back = np.argsort(np.concatenate(plan))
    return torch.cat(logits).cpu().numpy()[back], torch.cat(features).float().cpu().numpy()[back]
