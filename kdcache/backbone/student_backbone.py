"""The stage ``student_backbone``: a model, or some of its layers → models/backbone/."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from tqdm import tqdm
from transformers import PreTrainedModel

from kdcache.backbone.cut import choose_layers, cut
from kdcache.backbone.probe import (
    BLIND_BELOW,
    encoder_states,
    prepared_tasks,
    read_probes,
    refuse_blind,
    tabulate,
    variation,
)
from kdcache.data.splits import existing_splits, read_split, sequences
from kdcache.data.task import read_task
from kdcache.digests import file_digest
from kdcache.encoder.architectures import check_positions
from kdcache.encoder.batching import encode
from kdcache.encoder.load import WEIGHTS, load_encoder, load_tokenizer, save_model, setup
from kdcache.encoder.pooling import PoolingChoice, check_cls_token, resolve_pooling, write_pooling
from kdcache.encoder.references import resolve
from kdcache.errors import DataError
from kdcache.params import Count, NonNegativeInt, Range
from kdcache.places import ABOUT, check_place, place
from kdcache.plain_json import read_json
from kdcache.project import BACKBONE_RECORD, Project, write_json

EXAMINED_ROWS = 128


@dataclass(frozen=True)
class StudentBackboneParams:
    """Section ``student_backbone``.

    Args:
        model: model reference (see ``kdcache.encoder.references``).
        num_layers: how many layers to keep, or ``all``.
        max_length: of the rows that are read to examine the model, in tokens.
        layers: which ones: ``spread`` evenly from the first to the last, the ``first``, or their
            numbers, from 0.
        pooling: what heads are to read: the state of [CLS], or the mean of the text's states. ``auto``
            asks the model's folder (see ``kdcache.encoder.pooling``).
    """

    model: str
    num_layers: Count | Literal["all"]
    max_length: Annotated[int, Range(8)]
    layers: Literal["first", "spread"] | tuple[NonNegativeInt, ...] = "spread"
    pooling: PoolingChoice = "auto"


def student_backbone(project: Project, probe: Sequence[str] | None = None) -> None:
    """Make the backbone on which all students are trained, and print what it keeps of the full model.

    Args:
        project: the project.
        probe: tasks to probe on; None takes those of the project that are prepared.

    Raises:
        ParamsError: more layers than there are.
        ModelError: the reference does not resolve, positions run out, it cannot be cut, or the result is
            blind.
        DataError: no task is prepared, or none has rows to train on.
    """
    params = project.section("student_backbone", StudentBackboneParams)
    target = Path(project.paths.backbone)
    check_place(target, "backbone")
    base = resolve(params.model)
    pooling = resolve_pooling(params.pooling, base)
    params = replace(params, pooling=pooling)
    texts, pairs = _examined_texts(project)
    device = setup(project.threads)
    tokenizer = load_tokenizer(base)
    check_cls_token(pooling, tokenizer, "student_backbone.pooling")
    examined = encode(tokenizer, texts, pairs, params.max_length)
    full = load_encoder(base)
    check_positions(full.config, params.max_length, 0, params.model, "student_backbone")
    have = full.config.num_hidden_layers
    keep = tuple(range(have))
    if isinstance(params.num_layers, int):
        keep = choose_layers(params.layers, params.num_layers, have)
    probes = read_probes(project, probe, tokenizer, params.max_length)
    variations: dict[str, float] = {}
    scores: dict[str, dict[str, float]] = {}

    def examine(model: PreTrainedModel, which: str) -> None:
        states = encoder_states(model, examined, device, pooling)
        variations[which] = variation(states)
        layers = ", ".join(map(str, range(have) if model is full else keep))
        print(
            f"{which}, layers {layers}: the state read by {pooling} varies over inputs by "
            f"{variations[which]:.2%} of its size",
            flush=True,
        )
        bar = tqdm(probes.items(), desc=f"probing {which}", unit="task", leave=False)
        scores[which] = {name: probe.accuracy(model, pooling, device) for name, probe in bar}

    examine(full, "full")
    model = full
    if isinstance(params.num_layers, int):
        model = cut(full, keep)
        examine(model, "cut")
    if (seen := list(variations.values())[-1]) < BLIND_BELOW:
        first = (cut(full, range(count)) for count in range(1, have))
        enough = (variation(encoder_states(smaller, examined, device, pooling)) for smaller in first)
        fewest = next((k for k, value in enumerate(enough, start=1) if value >= BLIND_BELOW), None)
        refuse_blind(
            seen,
            f"student_backbone, layers {', '.join(map(str, keep))} of {params.model}",
            "Set student_backbone.pooling to mean or layers to spread, or raise num_layers"
            f"{f'; its first {fewest} layers vary enough' if fewest else ''}.",
        )
    record = _settings(params) | {
        "layers": keep,
        "of_layers": have,
        "examined_rows": len(examined),
        "variation": {which: round(value, 4) for which, value in variations.items()},
        "probes": tabulate(probes, scores),
    }
    model.to("cpu")  # type: ignore[arg-type]
    if hasattr(model.config, "classifier_pooling"):  # of ModernBERT, for transformers' own head
        model.config.classifier_pooling = pooling
    with project.alone(target):
        scratch = project.scratch(__name__, asdict(params), project.paths.backbone, goes_on=False)
        made = scratch / "made"
        shutil.rmtree(made, ignore_errors=True)
        save_model(model, tokenizer, made)
        write_pooling(made, pooling, model.config.hidden_size)
        write_json(record, made / BACKBONE_RECORD)
        _keep_for_students(project, target, made)
        place(made, target)
        shutil.rmtree(scratch)


def _keep_for_students(project: Project, old: Path, new: Path) -> None:
    """Move the backbone in place beside it if it is another one and students were trained over it."""
    if not (old / WEIGHTS).is_file() or old.is_symlink():
        return
    digest = file_digest(old / WEIGHTS)
    if digest == file_digest(new / WEIGHTS):
        return
    folders = [Path(paths.students) for paths in project.paths.lookup]
    about = (read_json(path) for folder in folders for path in sorted(folder.glob(f"*/*/{ABOUT}")))
    if any(isinstance(found, dict) and found.get("backbone_sha256") == digest for found in about):
        kept = old.with_name(f"{old.name}-{digest[:8]}")
        if not kept.exists():
            os.replace(old, kept)
            print(f"{kept}: the old backbone, kept for the students that were trained over it")


def _examined_texts(project: Project) -> tuple[list[str], list[str]]:
    """Texts and second texts, or "": the first training rows of every prepared task, as many of each."""
    texts: list[str] = []
    pairs: list[str] = []
    names = prepared_tasks(project) or project.tasks[:1]  # reading that one says what is missing
    for name in names:
        folder = Path(project.paths.data) / name
        task = read_task(folder, name)
        if "train" in existing_splits(folder, task):
            table = read_split(folder, "train", task)[: max(EXAMINED_ROWS // len(names), 1)]
            for found, new in zip((texts, pairs), sequences(table, task), strict=True):
                found += new
    if not texts:
        raise DataError(
            f"student_backbone: a task must have training rows, got none in {project.paths.data}. "
            "Add a task that has some."
        )
    return texts, pairs


def _settings(params: StudentBackboneParams) -> dict[str, Any]:
    """The parameters that the record does not hold elsewhere, without paths of this machine."""
    model = Path(params.model)
    kept = {key: value for key, value in asdict(params).items() if key != "num_layers"}
    return kept | {"model": model.name if model.is_absolute() else params.model}
