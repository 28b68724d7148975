"""Exporting a student: a folder that needs nothing beside it, for kdcache or for onnxruntime alone."""

import json
import shutil
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from kdcache.data.splits import read_split, sequences
from kdcache.data.task import read_task
from kdcache.encoder.adapters import adapter_of, merge_adapter
from kdcache.encoder.batching import STRATEGIES, Encoded, encode
from kdcache.encoder.load import load_classifier, load_tokenizer, save_model
from kdcache.encoder.parts import take_apart, with_weights
from kdcache.encoder.plans import fixed_plan
from kdcache.errors import DataError, ModelError, ParamsError
from kdcache.places import ABOUT, CARD
from kdcache.project import write_json
from kdcache.serve.mixed_batches import LoadedStudent
from kdcache.serve.pool import load_student
from kdcache.serve.prepared_split import require_learned
from kdcache.students.about import EXPORTED_BACKBONE, About, find_backbone, read_about
from kdcache.students.card import loading_code
from kdcache.students.folder import load_folder
from kdcache.students.methods import METHODS
from kdcache.students.student import predict

Target = Literal["folder", "onnx"]
GRAPH, LABELS = "model.onnx", "labels.json"
EXPORT = "export.json"  # the mark of an export, the only thing that another one may replace
WANTED = {"float32": 0.995, "int8": 0.98}  # share of validation rows with the label of PyTorch
ROWS_AT_ONCE = 32
ROWS_TO_RANK = 256


@dataclass(frozen=True)
class Validation:
    """Rows of validation as the student reads them, their labels, and its logits in PyTorch."""

    encoded: Encoded
    labels: np.ndarray
    logits: np.ndarray


def export_student(
    folder: Path,
    out: Path,
    form: Target,
    int8: bool = False,
    data: Path | None = None,
    backbone: Path | None = None,
) -> dict[str, float]:
    """Write a student so that it runs elsewhere.

    Args:
        folder: the student's.
        out: where to; new, empty or an earlier export.
        form: ``folder`` is read anywhere by ``load_student``: a student's folder with its backbone and
            tokenizer within, or a whole model of transformers where one of its classes carries the student.
            ``onnx`` is a graph with the prompt as a constant, the tokenizer's file and the
            labels, which onnxruntime and tokenizers read.
        int8: quantise the graph: as many of its products with weights as keep 98% of the labels on
            validation, one at least. Needs ``data``.
        data: prepared data of the task; None measures nothing.
        backbone: see ``load_student``.

    Returns:
        What was measured of a graph on validation: ``agreement`` with PyTorch, ``drift``, the largest
        difference of logits, ``size``, the largest logit, ``accuracy`` of the export, ``accuracy_pytorch``
        and ``rows``, their number. Empty without data, and for a folder.

    Raises:
        ParamsError: int8 of a folder, or ``out`` holds something else.
        DataError: int8 without prepared data.
        ModelError: the folder holds no student, or one that torch cannot export; int8 of a student whose task
            was prepared again with another template or other labels.
    """
    if int8 and form == "folder":
        raise ParamsError("--int8 is for --to onnx. Remove it, or write a graph.")
    if int8 and data is None:
        raise DataError(
            "--int8: the task's prepared data must be there to measure what it changes, got none. "
            "Run it in the project, after: kdcache prepare"
        )
    if out.exists() and not (out / EXPORT).is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise ParamsError(
            f"{out}: it must be new, empty or an earlier export, got something else there. "
            "Choose another folder with --out."
        )
    if form == "folder" and out.resolve().is_relative_to(folder.resolve()):
        raise ParamsError(f"{out}: it must lie outside of the student's folder. Choose another with --out.")
    about = read_about(folder)
    out = out.resolve()  # a link stays a link
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        made = Path(scratch) / "made"
        if form == "folder":
            _write_folder(folder, find_backbone(folder, about, backbone), about, made)
            found: dict[str, float] = {}
        else:
            loaded = load_student(folder, backbone=backbone)
            found = _write_onnx(loaded, made, int8, _validate(loaded, folder, data, int8) if data else None)
        write_json({"form": form, "measured": found}, made / EXPORT)
        if out.exists():
            out.rename(Path(scratch) / "replaced")
        made.rename(out)
    return found


def _write_folder(folder: Path, base: Path, about: About, made: Path) -> None:
    card = (folder / CARD).read_text(encoding="utf-8")
    if about.pooling == "cls" and METHODS[about.method].place is None:
        about = _write_classifier(folder, base, about, made)
        where, code, within = "It is a whole model of transformers", _pipeline(about, base), "."
    else:
        shutil.copytree(folder, made)
        shutil.copytree(base, made / EXPORTED_BACKBONE, dirs_exist_ok=True)
        if (path := made / "adapter_config.json").is_file():
            config = json.loads(path.read_text(encoding="utf-8"))
            config |= {"base_model_name_or_path": EXPORTED_BACKBONE}
            path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        where, within = "The backbone is in `backbone/`", EXPORTED_BACKBONE
        code = loading_code(replace(about, backbone=base.as_posix()), EXPORTED_BACKBONE)
    said = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    said |= {"backbone": within, "method": about.method}
    write_json(said, made / ABOUT)
    start, end = card.find("\n# "), card.rfind("|\n") + 1
    table = card[start:end] if 0 <= start < end else ""  # somebody wrote another card
    front = ["---", "library_name: transformers", "pipeline_tag: text-classification", "---"]
    lines = [f"{where}. PATH is this folder:", "", "```python", *code, "```", ""]
    lines += ['With kdcache, from anywhere: `kdcache.load_student("PATH")`.']
    text = "\n".join([*front, table, "", *lines]) + "\n"
    (made / CARD).write_text(text, encoding="utf-8")


def _write_classifier(folder: Path, base: Path, about: About, made: Path) -> About:
    """Write a student that a class of transformers carries: no prompt, and a head that reads [CLS]."""
    student = load_folder(folder, base=base)[0].to("cpu")
    model: Any = student.model
    if model is None:
        model = load_classifier(base, about.task.num_outputs, seed=0)
        for part, own in zip(
            with_weights(take_apart(model)[1]), with_weights(student.head.chain), strict=True
        ):
            part.load_state_dict(own.state_dict())
    elif adapter_of(model):
        model = merge_adapter(model)
    tokenizer = load_tokenizer(base)
    tokenizer.model_max_length = about.max_length
    save_model(model, tokenizer, made, about.task.output_names)
    return replace(about, method="full")


def _pipeline(about: About, base: Path) -> list[str]:
    if about.task.num_choices > 1:  # a pipeline labels single rows
        return loading_code(replace(about, backbone=base.as_posix()))
    text = '{"text": "a text", "text_pair": "its pair"}' if about.task.pairs else '"a text"'
    cut = f'truncation="{STRATEGIES[about.task.truncate] if about.task.pairs else "longest_first"}"'
    return [
        "from transformers import pipeline", "",
        f'print(pipeline("text-classification", "PATH")({text}, {cut}))',
    ]  # fmt: skip


def _write_onnx(loaded: LoadedStudent, made: Path, int8: bool, rows: Validation | None) -> dict[str, float]:
    from kdcache.serve.onnx_graph import write_graph

    about, tokenizer = loaded.about, loaded.tokenizer
    made.mkdir()
    inputs = ["input_ids", "attention_mask"]
    if about.pooling == "cls" and "token_type_ids" in tokenizer.model_input_names:
        inputs.append("token_type_ids")
    write_graph(loaded.student, about.max_length, inputs, made / GRAPH)
    found: dict[str, float] = {}
    computes = "float32"
    if rows:
        found, computes = _quantise(made / GRAPH, rows) if int8 else (_measure(made / GRAPH, rows), computes)
    pairs = about.task.pairs or about.task.num_choices > 1
    fast = tokenizer.backend_tokenizer
    fast.enable_truncation(
        about.max_length, strategy=STRATEGIES[about.task.truncate] if pairs else "longest_first"
    )
    fast.enable_padding(pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token)
    fast.save(str(made / "tokenizer.json"))
    fast.no_truncation()
    fast.no_padding()
    (made / LABELS).write_text(json.dumps(about.task.labels, ensure_ascii=False) + "\n", encoding="utf-8")
    (made / CARD).write_text(_card(about, inputs, computes, found), encoding="utf-8")
    return found


def _quantise(graph: Path, rows: Validation) -> tuple[dict[str, float], str]:
    """Put as many of a graph's products in int8 as keep the labels; return what was measured, and of what."""
    from kdcache.serve.onnx_graph import products, quantise

    scratch, names = graph.parent.parent, products(graph)
    trial = scratch / "trial.onnx"

    def measure(some: list[str], most_rows: int | None = None) -> dict[str, float]:
        quantise(graph, trial, some)
        return _measure(trial, rows, most_rows)

    alone = {
        name: measure([name], ROWS_TO_RANK)
        for name in tqdm(names, desc="int8, each product alone", unit="product", leave=False)
    }
    names.sort(key=lambda name: (-alone[name]["agreement"], alone[name]["drift"]))
    found: dict[str, float] = {}
    count, too_many, best = 0, len(names) + 1, scratch / "int8.onnx"
    while too_many - count > 1:
        more = (count + too_many) // 2
        measured = measure(names[:more])
        if measured["agreement"] >= WANTED["int8"] or more == 1:
            count, found = more, measured
            trial.replace(best)
        else:
            too_many = more
    best.replace(graph)
    return found, f"int8 in {count} of {len(names)} products with weights, ranges by batch, else float32"


def _validate(loaded: LoadedStudent, folder: Path, data: Path, needed: bool) -> Validation | None:
    task = read_task(data, loaded.task.name)
    try:
        require_learned(loaded, task, folder)
    except ModelError as error:
        if needed:
            raise
        print(f"{error} The graph is not compared with PyTorch.", file=sys.stderr)
        return None
    table = read_split(data, "validation", task)
    max_length, truncate = loaded.about.max_length, loaded.task.truncate
    encoded = encode(loaded.tokenizer, *sequences(table, task), max_length, truncate, task.num_choices)
    return Validation(encoded, table["label"].to_numpy(), predict(loaded.student, encoded))


def _measure(graph: Path, rows: Validation, most_rows: int | None = None) -> dict[str, float]:
    """Compare a graph with PyTorch on validation, or on its first rows."""
    from kdcache.serve.onnx_graph import open_session, run_session

    wanted, labels = rows.logits[:most_rows], rows.labels[:most_rows]
    session, got = open_session(graph), np.empty_like(wanted)
    for some in fixed_plan(rows.encoded.lengths[:most_rows], ROWS_AT_ONCE):
        batch = {name: value.numpy() for name, value in rows.encoded.batch(some).items()}
        got[some] = run_session(session, batch).reshape(len(some), -1)
    shares = {
        "agreement": got.argmax(1) == wanted.argmax(1),
        "accuracy": got.argmax(1) == labels, "accuracy_pytorch": wanted.argmax(1) == labels,
    }  # fmt: skip
    drift = {"drift": float(np.abs(got - wanted).max()), "size": float(np.abs(wanted).max())}
    return {name: float(same.mean()) for name, same in shares.items()} | drift | {"rows": len(wanted)}


def _card(about: About, inputs: list[str], computes: str, found: dict[str, Any]) -> str:
    task = about.task
    facts = {"task": task.name, "labels": ", ".join(task.labels), "template": task.template}
    facts |= {"computes in": computes, "method": about.method, "backbone, sha256": about.backbone_sha256}
    if found:
        facts |= {
            f"same label as PyTorch, validation ({found['rows']} rows)": f"{100 * found['agreement']:.1f}%",
            "largest difference of logits": f"{found['drift']:.2g}, where logits reach {found['size']:.2g}",
            "accuracy, validation": f"{100 * found['accuracy']:.1f}%",
            "accuracy of PyTorch": f"{100 * found['accuracy_pytorch']:.1f}%",
        }
    pairs, choices = bool(task.pairs), task.num_choices
    texts = '[("a text", "its pair")]' if pairs else '["a text"]'
    if choices > 1:
        texts = "[" + ", ".join(f'("a text", "choice {k}")' for k in range(choices)) + "]"
    attributes = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    feed = ", ".join(f'"{name}": np.array([row.{attributes[name]} for row in batch])' for name in inputs)
    rows = f".reshape(-1, {choices})" if choices > 1 else ""
    code = [
        "import json", "import numpy as np", "import onnxruntime", "from tokenizers import Tokenizer", "",
        'labels = json.load(open("PATH/labels.json"))',
        'tokenizer = Tokenizer.from_file("PATH/tokenizer.json")',
        'session = onnxruntime.InferenceSession("PATH/model.onnx")',
        f"batch = tokenizer.encode_batch({texts})",
        f"logits = session.run(None, {{{feed}}})[0]{rows}",
        "print([labels[k] for k in logits.argmax(1)])",
    ]  # fmt: skip
    lines = [
        "---", "library_name: onnx", "pipeline_tag: text-classification", "---", "",
        f"# {task.name}", "", "| | |", "|---|---|",
        *(f"| {key} | {value} |" for key, value in facts.items()), "",
        "It needs onnxruntime, tokenizers and numpy (PATH is this folder). Texts are as the template renders",
        "them:",
        "", "```python", *code, "```",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"
