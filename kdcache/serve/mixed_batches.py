"""A student that labels text, checked requests to it, and forward passes shared by several students.

A prompt-tuned student adds a few vectors and a head to its backbone. So rows for the students of
many tasks fit into one batch: each row takes its own student's prompt through the shared layers.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from kdcache.data.task import Task
from kdcache.encoder.batching import Encoded, encode
from kdcache.encoder.plans import fixed_plan
from kdcache.encoder.token_rows import TokenRows
from kdcache.errors import DataError, ModelError, ParamsError, shorten
from kdcache.students.about import About
from kdcache.students.student import Student, forward

BATCH_SIZE = 32  # sequences per forward pass

Second = str | Sequence[str] | None


class Prediction(NamedTuple):
    """The most likely label of a row, and the probability of each label."""

    label: str
    probabilities: dict[str, float]


class LoadedStudent:
    """A student that reads text; made by ``load_student``.

    Args:
        student: on its device.
        about: what its folder says of it.
        tokenizer: its backbone's.
    """

    def __init__(self, student: Student, about: About, tokenizer: Any) -> None:
        self.student = student
        self.about = about
        self.tokenizer = tokenizer

    def __repr__(self) -> str:
        return f"<{self.task.name}: {self.about.method} over {self.about.backbone}, {', '.join(self.labels)}>"

    @property
    def task(self) -> Task:
        """The task it was trained on."""
        return self.about.task

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes; position = class index."""
        return self.task.labels

    def predict(
        self, texts: Sequence[str], pairs: Sequence[Second] | None = None, batch_size: int = BATCH_SIZE
    ) -> list[Prediction]:
        """Label rows of text.

        Args:
            texts: first sequences, as the task's template renders them: the column ``text`` of
                prepared data.
            pairs: second sequences, for a task of pairs. In a task of choices: the choices of each row.
            batch_size: sequences per forward pass.

        Returns:
            One prediction per row, in order.

        Raises:
            DataError: a row does not fit the task; the message names the row.
        """
        return predict_requests(self._requests(texts, pairs), batch_size)

    def logits(
        self, texts: Sequence[str], pairs: Sequence[Second] | None = None, batch_size: int = BATCH_SIZE
    ) -> np.ndarray:
        """Compute the logits of the same rows.

        Returns:
            float32 array of shape (rows, num_labels).

        Raises:
            DataError: as ``predict``.
        """
        found = compute_logits(self._requests(texts, pairs), batch_size)
        return np.stack(found) if found else np.empty((0, self.task.num_labels), dtype=np.float32)

    def request(self, text: Any, second: Any, where: str) -> "Request":
        """Check one row.

        Args:
            text: the first sequence.
            second: the second one, or the choices.
            where: the row's place, for messages.

        Raises:
            DataError: the row does not fit the task.
        """
        _check_text(text, "text", where)
        if self.task.num_choices == 1:
            if not isinstance(second, str | None):
                raise DataError(f"{where}: text_pair must be a text, got {shorten(second)}.")
            if self.task.pairs is not None and self.task.pairs != bool((second or "").strip()):
                wanted = "text_pair must be a text that is not" if self.task.pairs else "text_pair must be"
                raise DataError(
                    f"{where}: {wanted} empty, as {self.task.name} is a task of "
                    f"{'pairs' if self.task.pairs else 'single texts'}, got {shorten(second)}."
                )
            _check_unicode(second or "", "text_pair", where)
            return Request(self, text, (second or "",), where)
        if not isinstance(second, list | tuple) or len(second) != self.task.num_choices:
            raise DataError(
                f"{where}: A row of {self.task.name} has {self.task.num_choices} texts in choices, "
                f"got {shorten(second)}."
            )
        for choice in second:
            _check_text(choice, "a choice", where)
        return Request(self, text, tuple(second), where)

    def _requests(self, texts: Sequence[str], pairs: Sequence[Second] | None) -> list["Request"]:
        for given in (texts, [] if pairs is None else pairs):
            table = isinstance(given, Mapping) or hasattr(given, "columns")
            if isinstance(given, (str, bytes)) or table or not hasattr(given, "__len__"):
                got = shorten(given) if isinstance(given, str) else type(given).__name__
                raise DataError(f"texts and pairs must be lists, got {got}. Put texts in a list.")
        pairs = [None] * len(texts) if pairs is None else pairs
        if len(pairs) != len(texts):
            raise DataError(f"texts and pairs must have one length, got {len(texts)} and {len(pairs)}.")
        rows = zip(texts, pairs, strict=True)
        return [self.request(*row, f"row {number}") for number, row in enumerate(rows, start=1)]


@dataclass(frozen=True)
class Request:
    """A checked row for one student.

    Args:
        student: the student that labels it.
        text: the first sequence.
        seconds: the second sequence ("" for none), or one per choice.
        where: the row's place, for messages.
    """

    student: LoadedStudent
    text: str
    seconds: tuple[str, ...]
    where: str


def predict_requests(requests: Sequence[Request], batch_size: int = BATCH_SIZE) -> list[Prediction]:
    """Label requests to students of one backbone, in order."""
    return [
        to_prediction(request.student.labels, logits)
        for request, logits in zip(requests, compute_logits(requests, batch_size), strict=True)
    ]


def to_prediction(labels: Sequence[str], logits: np.ndarray) -> Prediction:
    """Turn one row's logits into its label and probabilities: a softmax.

    Args:
        labels: names of the classes.
        logits: of shape (num_labels,).

    >>> to_prediction(("no", "yes"), np.array([0.0, 0.0])).probabilities
    {'no': 0.5, 'yes': 0.5}
    """
    exponentials = np.exp(logits - logits.max())
    probabilities = (exponentials / exponentials.sum()).tolist()
    return Prediction(labels[int(logits.argmax())], dict(zip(labels, probabilities, strict=True)))


@torch.inference_mode()
def compute_logits(requests: Sequence[Request], batch_size: int = BATCH_SIZE) -> list[np.ndarray]:
    """Compute the logits of requests to students of one backbone, in batches sorted by length.

    Returns:
        One array of shape (num_labels,) per request, in order.
    """
    if not requests:
        return []
    students = list(dict.fromkeys(request.student for request in requests))
    numbers = {student: number for number, student in enumerate(students)}
    tokenised = _tokenise(requests)
    of = np.array([numbers[r.student] for r, own in zip(requests, tokenised, strict=True) for _ in own])
    sequences = TokenRows.of([sequence for own in tokenised for sequence in own])
    lengths = sequences.lengths
    encoded = Encoded(students[0].tokenizer, sequences, lengths, np.zeros(len(sequences), dtype=bool))
    device = students[0].student.backbone.device
    found: list[np.ndarray] = [np.empty(0)] * len(sequences)
    for members in _passes([student.student for student in students], of):
        for part in fixed_plan(lengths[members], batch_size):
            rows = members[part]
            rows = rows[np.argsort(of[rows], kind="stable")]  # rows of one student are contiguous
            here, counts = np.unique(of[rows], return_counts=True)
            batch = encoded.batch(rows, device)
            outputs = forward([students[k].student for k in here], batch, counts.tolist())
            values = [row for logits, _ in outputs for row in logits.cpu().numpy()]
            if not all(np.isfinite(value).all() for value in values):
                names = ", ".join(students[k].task.name for k in here)
                raise ModelError(f"A student of {names} must give finite logits, got NaN or infinity.")
            for row, value in zip(rows, values, strict=True):
                found[row] = value
    each = iter(found)
    return [np.concatenate([next(each) for _ in own]) for own in tokenised]


def _passes(students: Sequence[Student], of: np.ndarray) -> Iterator[np.ndarray]:
    """Groups of sequences that can share forward passes: of one pooling, with prompts at one place.

    Pooling parts them: it decides where virtual tokens stand, whether segments are read, and for which
    tokens the last layer is computed.

    Args:
        students: without repeats.
        of: the position in ``students`` of each sequence's student.

    Yields:
        Positions of sequences.
    """
    places = [(s.backbone.pooling, s.prompt and (s.prompt.place, s.late_layers)) for s in students]
    some = {pooling: place for pooling, place in places if place}
    kinds = [(pooling, place or some.get(pooling)) for pooling, place in places]
    for kind in dict.fromkeys(kinds):
        yield np.flatnonzero(np.array([other == kind for other in kinds])[of])


def _tokenise(requests: Sequence[Request]) -> list[list[dict[str, list[int]]]]:
    """Tokenise the sequences of each request, as its student was trained to read them."""
    by_student: dict[LoadedStudent, list[int]] = {}
    for number, request in enumerate(requests):
        by_student.setdefault(request.student, []).append(number)
    found: list[list[dict[str, list[int]]]] = [[] for _ in requests]
    for student, numbers in by_student.items():
        some = [requests[number] for number in numbers]
        try:
            encoded = _encode(student, some)
        except ParamsError:
            for request in some:
                _refuse_long(student, request)
            raise
        n = encoded.num_choices
        for k, number in enumerate(numbers):
            found[number] = encoded.sequences[k * n : (k + 1) * n]
    return found


def _encode(student: LoadedStudent, requests: Sequence[Request]) -> Encoded:
    task = student.task
    texts = [request.text for request in requests for _ in request.seconds]
    seconds = [second for request in requests for second in request.seconds]
    return encode(
        student.tokenizer, texts, seconds, student.about.max_length, task.truncate, task.num_choices
    )


def _refuse_long(student: LoadedStudent, request: Request) -> None:
    try:
        _encode(student, [request])
    except ParamsError:
        first = student.task.truncate == "first"
        kept, value = ("text_pair", request.seconds[0]) if first else ("text", request.text)
        raise DataError(
            f"{request.where}: {kept} does not fit into the {student.about.max_length} tokens that this "
            f"student of {student.task.name} reads, got {shorten(value)}. Shorten it."
        ) from None


def _check_text(value: Any, name: str, where: str) -> None:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: {name} must be a text that is not empty, got {shorten(value)}.")
    _check_unicode(value, name, where)


def _check_unicode(value: str, name: str, where: str) -> None:
    """Refuse half a character: JSON can spell it, but no tokenizer reads it."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: {name} holds half a Unicode character, {value[error.start]!a}. Repair the row."
        ) from None
