"""A model, or its first N layers healed → models/backbone/, the one folder all students share."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from kdcache.batching import encode
from kdcache.errors import DataError
from kdcache.models import load_tokenizer, resolve, save_model, setup
from kdcache.params import Count, NonNegativeInt, PositiveFloat, Range
from kdcache.shrink import cls_variation, heal, load_encoder, refuse_blind
from kdcache.stages.workspace import Project, place
from kdcache.tasks.schema import read_task
from kdcache.tasks.splits import existing_splits, read_split, sequences

MAX_ROWS_LOOKED_AT = 512


@dataclass(frozen=True)
class StudentBackboneParams:
    """Section ``student_backbone``.

    Args:
        model: model reference (see ``kdcache.models``).
        num_layers: how many of its first layers to keep and heal; ``all`` skips both.
        text: files of unlabelled text, one text per line; an empty list takes the training
            texts of the project's tasks.
        epochs: passes over the text.
        lr: peak learning rate of AdamW.
        batch_size: rows per step.
        max_length: in tokens.
        position_shift: heal under positions shifted by up to this many, in tokens; at least
            the number of virtual tokens that students will use.
        seed: of hold-out, order and shifts.
    """

    model: str
    num_layers: Count | Literal["all"]
    text: tuple[str, ...]
    epochs: Count
    lr: PositiveFloat
    batch_size: Count
    max_length: Annotated[int, Range(8)]
    position_shift: NonNegativeInt
    seed: NonNegativeInt


def student_backbone(project: Project) -> None:
    """Make the backbone that every student's prompts are trained on.

    Raises:
        ModelError: the reference does not resolve, has too few layers, or the result is blind.
        DataError: a text file is missing or empty.
        TrainingDiverged: healing's loss became NaN or infinite.
    """
    params = project.section("student_backbone", StudentBackboneParams)
    base = resolve(params.model)
    texts, pairs = _texts(project, params)
    device = setup(project.threads)
    tokenizer = load_tokenizer(base)
    encoded = encode(tokenizer, texts, pairs, params.max_length)
    looked_at = encoded.take(range(min(len(encoded), MAX_ROWS_LOOKED_AT)))

    def show(model: object, what: str) -> float:
        variation = cls_variation(model, looked_at, params.batch_size, device)  # type: ignore[arg-type]
        print(f"[CLS] varies over inputs by {variation:.2%} of its size: {what}", flush=True)
        return variation

    full = load_encoder(base)
    what = f"all {full.config.num_hidden_layers} layers"
    variation = show(full, what)
    model = full
    if params.num_layers != "all":
        model = load_encoder(base, params.num_layers)
        what = f"the first {params.num_layers} layers, healed"
        show(model, f"the first {params.num_layers} layers, raw")
        heal(
            model,
            full,
            encoded,
            params.epochs,
            params.lr,
            params.batch_size,
            params.position_shift,
            params.seed,
            device,
        )
        variation = show(model, what)
    refuse_blind(variation, what)

    made = project.scratch("backbone", params.model)
    shutil.rmtree(made)
    model.to("cpu")  # type: ignore[arg-type]
    save_model(model, tokenizer, made)
    place(made, Path(project.paths.backbone))


def _texts(project: Project, params: StudentBackboneParams) -> tuple[Sequence[str], Sequence[str] | None]:
    if params.text:
        return _lines(params.text), None
    pairs: dict[tuple[str, str], None] = {}  # a set that keeps its order
    for name in project.tasks:
        folder = Path(project.paths.data) / name
        task = read_task(folder, name)
        for split in existing_splits(folder, task):
            if split in ("train", "tune", "unlabelled"):
                both = sequences(read_split(folder, split, task), task)
                pairs |= dict.fromkeys(zip(*both, strict=True))
    return [text for text, _ in pairs], [pair for _, pair in pairs]


def _lines(files: Sequence[str]) -> list[str]:
    lines: dict[str, None] = {}
    for name in files:
        path = Path(name)
        if not path.is_file():
            raise DataError(f"student_backbone.text: {name} must be a text file, got no such file.")
        lines |= dict.fromkeys(line for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    if not lines:
        raise DataError(f"student_backbone.text: the files must hold text, got none in {', '.join(files)}.")
    return list(lines)
