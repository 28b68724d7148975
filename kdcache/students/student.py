"""A student (backbone, head and perhaps a prompt), and the forward pass of many students at once."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from kdcache.encoder.adapters import add_lora
from kdcache.encoder.batching import Encoded, Padded
from kdcache.encoder.load import load_classifier
from kdcache.encoder.mean_pooled import fresh_linear
from kdcache.encoder.parts import last_linear, take_apart
from kdcache.encoder.plans import in_row_order, plan_for
from kdcache.encoder.prompt_init import Start
from kdcache.students.arms import ArmSpec
from kdcache.students.frozen_inputs import FrozenInputs
from kdcache.students.methods import METHODS, late_layers_on
from kdcache.students.prompted_backbone import Backbone
from kdcache.students.prompts import Prompt, build_prompt
from kdcache.students.row_prompts import RowPrompts

EVAL_BATCH_SIZE = 128
LORA_RANK = 8


class Head(nn.Module):
    """The modules from pooled state to logits: the pooler, where there is one, and the classifier.

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
            states: pooled, of shape (batch, dim).
        """
        hidden = states[:, None]
        for module in self.chain:
            hidden = module(hidden)
        features, self._features = self._features, torch.empty(0)
        return hidden.flatten(0, -2), features.flatten(0, -2)


class Student(nn.Module):
    """What is trained and saved.

    Args:
        method: a key of ``METHODS``.
        backbone: the shared frozen one, or a reference's own.
        prompt: None for methods without.
        head: its own.
        model: of a reference: the classifier that backbone and head are parts of, perhaps in PEFT.
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
        """What is trained besides the head: the prompt, or a reference's own weights."""
        if self.prompt is not None:
            return list(self.prompt.parameters())
        if self.model is None:
            return []
        heads = set(self.head.parameters())
        return [p for p in self.backbone.encoder.parameters() if p.requires_grad and p not in heads]

    @property
    def late_layers(self) -> int:
        """How many of the last layers its prompt enters, where those below read the text alone; else 0."""
        if self.prompt is None or self.prompt.place != "late":
            return 0
        return self.backbone.layers_entered(self.prompt.weight.shape[1])

    @property
    def prefix_tokens(self) -> int:
        """Virtual tokens of its prefix, if the first layer's attention to a text is always the same; else 0.

        On GPUs it is 0: whether they gain by it was not measured.
        """
        backbone = self.backbone
        if self.prompt is None or self.prompt.place != "deep" or backbone.config.num_hidden_layers == 1:
            return 0  # a single layer is the last one, of which a head on [CLS] reads one token
        if getattr(backbone.config, "is_decoder", False):
            return 0  # its tokens do not see later ones
        return len(self.prompt.weight) if backbone.device.type == "cpu" and not backbone.dropout else 0

    @property
    def reads_frozen_states(self) -> bool:
        """Whether its head reads what the shared backbone gives without a prompt."""
        return self.prompt is None and self.model is None

    @property
    def head_parameters(self) -> list[nn.Parameter]:
        """What is trained of head and pooler."""
        return [p for p in self.head.parameters() if p.requires_grad]


def build_student(
    spec: ArmSpec, num_outputs: int, seed: int, folder: Path, backbone: Backbone, real_text: Encoded
) -> Student:
    """Build an untrained student.

    Args:
        spec: its arm.
        num_outputs: logits per sequence.
        seed: of head and prompt.
        folder: the backbone's, for a fresh head (and a reference's own copy).
        backbone: the shared frozen one, made of the same folder.
        real_text: rows whose tokens a prompt starts from; where the arm starts from another
            student's prompt, that one is to be put in afterwards.

    Returns:
        A student whose prompt and head, or own weights, require a gradient and nothing else.

    Raises:
        ModelError: the method does not work on this architecture, or positions run out.
    """
    facts = METHODS[spec.method]
    backbone.check(facts.place, spec.num_virtual_tokens, spec.max_length, spec.late_layers)
    if facts.own_weights:
        model = load_classifier(folder, num_outputs, seed, backbone.pooling)
        whole = add_lora(model, LORA_RANK, 2 * LORA_RANK) if spec.method == "lora" else model
        encoder, above = take_apart(whole)
        own = Backbone(encoder, backbone.pooling, backbone.dtype, backbone.dropout).to(backbone.device)
        return Student(spec.method, own, None, Head(above, num_outputs), whole).to(backbone.device)
    prompt = None
    if facts.place:
        start: Start = "words" if spec.init == "words" else "separators"
        late = late_layers_on(backbone.config, spec.late_layers)
        prompt = build_prompt(
            spec.method, facts.place, backbone, spec.num_virtual_tokens, real_text, seed, start, late
        )
    chain: list[nn.Module]
    if backbone.pooling == "mean":
        chain = [fresh_linear(backbone.config.hidden_size, num_outputs, seed)]
    else:  # the architecture's own, with what the folder holds of it
        chain = take_apart(load_classifier(folder, num_outputs, seed))[1]
    return Student(spec.method, backbone, prompt, Head(chain, num_outputs)).to(backbone.device)


def forward(
    students: Sequence[Student], batch: Mapping[str, torch.Tensor], counts: Sequence[int]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Run a batch whose consecutive groups of rows belong to students of one backbone.

    Args:
        students: of one pooling, with prompts at one place, or without any.
        batch: padded together, see ``Backbone.pooled``.
        counts: sequences per student.

    Returns:
        (logits, features) per student.
    """
    prompts = [None if student.prompt is None else student.prompt() for student in students]
    place = next((student.prompt.place for student in students if student.prompt is not None), None)
    rows = None if place is None else RowPrompts.of(place, prompts, counts)
    states = students[0].backbone.pooled(batch, rows)
    return [student.head(part) for student, part in zip(students, states.split(list(counts)), strict=True)]


@torch.no_grad()
def predict(
    student: Student,
    encoded: Encoded,
    batch_size: int = EVAL_BATCH_SIZE,
    frozen: FrozenInputs | None = None,
) -> np.ndarray:
    """Compute a student's logits of every row.

    Args:
        student: on any device.
        encoded: the rows.
        batch_size: rows per forward pass.
        frozen: the same rows, of whose states students share those that their prompts do not change.

    Returns:
        float32, of shape (rows, num_labels), in row order.
    """
    plan = plan_for(student.backbone.device, encoded.lengths, batch_size, encoded.num_choices)
    logits = [some for some, _ in _outputs(student, encoded, plan, frozen)]
    return in_row_order(logits, plan).cpu().numpy()


@torch.no_grad()
def features_of(student: Student, encoded: Encoded) -> torch.Tensor:
    """Return what the last Linear of a student reads of every row, float32 of shape (rows, dim)."""
    plan = plan_for(student.backbone.device, encoded.lengths, EVAL_BATCH_SIZE, encoded.num_choices)
    features = (some.float() for _, some in _outputs(student, encoded, plan))
    return in_row_order(features, plan, encoded.folder)


def _outputs(
    student: Student, encoded: Encoded, plan: Sequence[np.ndarray], frozen: FrozenInputs | None = None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield logits and features of the batches of a plan."""
    if frozen is not None and student.reads_frozen_states:
        for rows in plan:
            logits, features = student.head(frozen.states_of(rows))
            yield encoded.by_row(logits), encoded.by_row(features)
        return
    device = student.backbone.device
    padded = encoded if device.type == "cpu" else Padded.of(encoded, device)
    for rows in plan:
        batch = padded.batch(rows)
        if frozen is not None:
            batch = frozen.with_trunk(batch, torch.from_numpy(rows).to(device), student.late_layers)
        ((logits, features),) = forward([student], batch, [len(batch["input_ids"])])
        yield encoded.by_row(logits), encoded.by_row(features)
