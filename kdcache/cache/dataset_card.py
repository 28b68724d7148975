"""The dataset card of a cache: what its manifest says, and how to read it."""

import json

from kdcache.cache.manifest import OUTSIDE, Manifest

PLAIN_COLUMNS = {
    "example_id": "unique within the split", "label": "index of the label, −1 without one",
    "content_hash": "hash of the text as the teacher read it",
    "fold": "which fold's teacher gave the logits; −1 the teacher on all rows, −2 the mean of all folds",
    "logits": "one per label", "features": "input of the last linear layer",
    "logits_plain": "of the teacher on all rows",
    "top_labels": "of the largest logits, by falling logit", "top_logits": "the largest logits",
    "rest": "log mean exp of the other logits",
    **dict.fromkeys(("top_labels_plain", "top_logits_plain", "rest_plain"), "of the teacher on all rows"),
}  # fmt: skip


def dataset_card(manifest: Manifest) -> str:
    """Write the card in Markdown, with the front matter that the Hugging Face hub reads.

    It holds no score of test rows, nor does the manifest.

    Args:
        manifest: of the cache.
    """
    identity = manifest.identity
    task, outside = identity["task"], identity.get("kind") == OUTSIDE
    splits = manifest.splits
    front = [
        "---",
        "task_categories: [text-classification]",
        "tags: [kdcache, knowledge-distillation]",
        "configs:",
    ]
    front += ["- config_name: default", "  data_files:"]
    for split in splits:
        names = manifest.files_of(split)
        path = json.dumps(names[0] if len(names) == 1 else names)
        front += [f"  - split: {json.dumps(split)}", f"    path: {path}"]
    facts = {
        "labels": ", ".join(map(_plain, identity["labels"])),
        "teacher": "an outside model, imported" if outside else _plain(identity.get("model", "unknown")),
        "trained by": _plain(identity.get("method", "")), "pooling": _plain(identity.get("pooling", "")),
        "teachers of folds": str(manifest.num_folds) if manifest.num_folds else "",
        "computed in": manifest.dtype, "format": str(manifest.format_version), "digest": manifest.digest,
    }  # fmt: skip
    told = ["| | |", "|---|---|", *(_row(name, value) for name, value in facts.items() if value)]
    metrics = sorted({name for scores in manifest.metrics.values() for name in scores} - {"rows"})
    table = [_row("split", "rows", *metrics), "|---|---:|" + "---:|" * len(metrics)]
    for split in splits:
        scores = manifest.metrics.get(split, {})
        shares = (f"{100 * scores[name]:.1f}" if name in scores else "–" for name in metrics)
        table.append(_row(split, str(manifest.sum_of(split, "rows")), *shares))
    columns = ["| column | type | meaning |", "|---|---|---|"]
    for name, kind in manifest.columns:
        of_layer = name.startswith("features_") and "pooled states of one layer"
        meaning = PLAIN_COLUMNS.get(name) or of_layer or "of one member of the ensemble"
        columns.append(_row(f"`{name}`", kind, meaning))
    code = [
        "import kdcache", "", f'rows = kdcache.load_cache("PATH", "{splits[0]}").rows',
        "print(rows.logits.shape)",
    ]  # fmt: skip
    lines = [
        *front, "---", "", f"# Teacher's logits for {task}", "",
        "What a teacher says of each row of a task, for training students by distillation. The texts are not",
        "here: rows belong to texts by `example_id` and `content_hash`.", "", *told, "",
        "Scores of the cached logits, in percent. Those of train are of rows that the teacher has seen,",
        "unless it has teachers of folds:", "", *table, "", *columns, "",
        "PATH is a local copy from `kdcache pull`, or this place. `kdcache verify PATH` checks it.", "",
        "```python", *code, "```",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(value: object) -> str:
    """A value that stays in its cell."""
    return " ".join(str(value).replace("|", "\\|").split())
