"""The stage ``student_backbone``: a model, or some of its layers healed → models/backbone/."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import PreTrainedModel

from kdcache.backbone.cut import choose_layers, cut
from kdcache.backbone.heal import StudentBackboneParams, heal, shiftable_from
from kdcache.backbone.probe import encoder_states, read_probes, refuse_blind, tabulate, variation
from kdcache.data.parsers import FORMATS, Layout
from kdcache.data.readers import read_rows
from kdcache.data.splits import existing_splits, read_split, sequences
from kdcache.data.task import read_task
from kdcache.digests import file_digest, value_digest
from kdcache.encoder.batching import encode
from kdcache.encoder.load import load_encoder, load_tokenizer, resolve, save_model, setup
from kdcache.encoder.pooling import check_cls_token, resolve_pooling, write_pooling
from kdcache.errors import DataError
from kdcache.project import BACKBONE_RECORD, Project, place, write_json

EXAMINED_ROWS = 512

Texts = dict[str, list[tuple[str, str]]]  # source → (text, second text or "")


def student_backbone(project: Project, probe: Sequence[str] | None = None) -> None:
    """Make the backbone on which all students are trained, and print what it keeps of the full model.

    Args:
        project: the project.
        probe: tasks to probe on; None takes those of the project that are prepared.

    Raises:
        ParamsError: more layers than there are, or positions run out.
        ModelError: the reference does not resolve, cannot be cut, or the result is blind.
        DataError: a text file is missing or empty, or a task is not prepared.
        TrainingDiverged: healing's loss became NaN or infinite.
    """
    params = project.section("student_backbone", StudentBackboneParams)
    base = resolve(params.model)
    pooling = resolve_pooling(params.pooling, base)
    params = replace(params, pooling=pooling)
    texts = _read_files(params) if params.text else _task_texts(project)
    device = setup(project.threads)
    tokenizer = load_tokenizer(base)
    check_cls_token(pooling, tokenizer, "student_backbone.pooling")
    rows = dict.fromkeys(row for source in texts.values() for row in source)  # a set that keeps its order
    encoded = encode(tokenizer, [text for text, _ in rows], [pair for _, pair in rows], params.max_length)
    examined = encoded.take(range(min(len(encoded), EXAMINED_ROWS)))
    full = load_encoder(base)
    have = full.config.num_hidden_layers
    keep = tuple(range(have))
    if isinstance(params.num_layers, int):
        keep = choose_layers(params.layers, params.num_layers, have)
        shiftable_from(full, params)  # refuse before anything slow starts
    probes = read_probes(project, probe, tokenizer, params.max_length)
    described = {name: {"rows": len(rows), "sha256": value_digest(rows)} for name, rows in texts.items()}
    scratch = project.scratch(__name__, asdict(params), project.threads, _digest(base), described)
    variations: dict[str, float] = {}
    scores: dict[str, dict[str, float]] = {}

    def examine(model: PreTrainedModel, which: str) -> None:
        states = encoder_states(model, examined, params.batch_size, device, pooling)
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
    model, losses = full, []
    if isinstance(params.num_layers, int):
        model = cut(full, keep)
        examine(model, "raw")
        if params.epochs:
            losses = heal(model, full, keep, encoded, params, device, scratch)
            examine(model, "healed")
    refuse_blind(list(variations.values())[-1], f"layers {', '.join(map(str, keep))} of {params.model}")
    record = _settings(params) | {
        "layers": keep,
        "of_layers": have,
        "text": described,
        "rows": len(encoded),
        "held_out_loss": [round(loss, 6) for loss in losses],
        "variation": {which: round(value, 4) for which, value in variations.items()},
        "probes": tabulate(probes, scores),
    }
    made = scratch / "made"
    model.to("cpu")  # type: ignore[arg-type]
    if hasattr(model.config, "classifier_pooling"):  # of ModernBERT, for transformers' own head
        model.config.classifier_pooling = pooling
    save_model(model, tokenizer, made)
    write_pooling(made, pooling, model.config.hidden_size)
    write_json(record, made / BACKBONE_RECORD)
    _move(made, Path(project.paths.backbone))
    shutil.rmtree(scratch)


def _move(made: Path, target: Path) -> None:
    """Move a finished folder into place, also from another disk, where nothing moves in one go."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if made.stat().st_dev != target.parent.stat().st_dev:
        made = Path(shutil.move(made, target.with_name(f".{target.name}.part")))
    place(made, target)


def _task_texts(project: Project) -> Texts:
    """All texts that students train on, by task."""
    texts: Texts = {}
    for name in project.tasks:
        folder = Path(project.paths.data) / name
        task = read_task(folder, name)
        texts[name] = [
            row
            for split in existing_splits(folder, task) if split in ("train", "tune", "unlabelled")
            for row in zip(*sequences(read_split(folder, split, task), task), strict=True)
        ]  # fmt: skip
    return texts


def _read_files(params: StudentBackboneParams) -> Texts:
    texts: Texts = {}
    for name in params.text:
        path = Path(name)
        if not path.is_file():
            raise DataError(f"student_backbone.text: {name} must be a text file, got no such file.")
        layout = Layout() if path.suffix in FORMATS else Layout(pattern=f"{{{params.column}}}")
        rows = list(read_rows(path, layout, (params.column,)))
        for where, values in rows:
            if not isinstance(values[params.column], str):
                raise DataError(
                    f"{where}: {params.column} must be text, got {values[params.column]!r}. "
                    "Remove the row or set student_backbone.column."
                )
        found = [(row.values[params.column], "") for row in rows if row.values[params.column].strip()]
        if not found:
            raise DataError(f"student_backbone.text: {name} must hold text, got none.")
        texts[path.name if path.is_absolute() else path.as_posix()] = found
    return texts


def _settings(params: StudentBackboneParams) -> dict[str, Any]:
    """The parameters that the record does not hold elsewhere, without paths of this machine."""
    model = Path(params.model)
    kept = {
        key: value for key, value in asdict(params).items() if key not in ("num_layers", "text", "column")
    }
    return kept | {"model": model.name if model.is_absolute() else params.model}


def _digest(folder: Path) -> str:
    """sha256 of a model folder's weights, whatever files they lie in."""
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
    return value_digest([[path.name, file_digest(path)] for path in files])
