"""Invented rows in the layouts of the six tasks of studies/tasks, each with its traps.

Usage: write_powered(FOLDER) writes FOLDER/<task>/<file>.
"""

import json
from itertools import cycle, islice
from pathlib import Path

TEXT = "the bank lent us money we sat on a river it rains and they saw that she was wet"


def _sentences(count: int, seed: int) -> list[str]:
    """Different short sentences; the same for the same arguments."""
    words = TEXT.split()
    starts = [(seed + 3 * i) % len(words) for i in range(count)]
    pieces = [islice(cycle(words), start, start + 4 + i % 5) for i, start in enumerate(starts)]
    return [f"{' '.join(piece)} {seed + i} ." for i, piece in enumerate(pieces)]


def _write(path: Path, text: str, encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))


def write_powered(folder: Path, train: int = 48, held_out: int = 24) -> Path:
    """Write all six tasks: ``train`` and ``held_out`` rows per file, four labels or two."""
    files = {"train": (train, 0), "held_out": (held_out, 1000)}
    rows = {name: [(s, i) for i, s in enumerate(_sentences(*of))] for name, of in files.items()}

    # CSV with a header, CRLF, quotes and newlines in cells
    intents = ("card_arrival", "lost_card", "top_up", "exchange_rate")
    for name, part in (("train", "train"), ("test", "held_out")):
        lines = [f'"{s[:8]}\n{s[8:]}, ""please""",{intents[i % 4]}' for s, i in rows[part]]
        _write(folder / "banking77" / f"{name}.csv", "\r\n".join(["text,category", *lines, ""]))

    # JSON lines
    for name, part in (("train", "train"), ("val", "held_out"), ("test", "held_out")):
        dumped = [json.dumps({"text": f"{name} {s}", "intent": intents[i % 4]}) for s, i in rows[part]]
        _write(folder / "clinc150" / f"{name}.jsonl", "\n".join(dumped) + "\n")

    # TSV without a header; a quote and a backslash are text
    topics = ("World", "Sports", "Business", "Sci/Tech")
    for name, part in (("train", "train"), ("test", "held_out")):
        lines = [f'AP - "{s}\\team\t{topics[i % 4]}' for s, i in rows[part]]
        _write(folder / "ag_news" / f"{name}.tsv", "\n".join(lines) + "\n")

    # TSV without a header, four columns, no newline at the end
    for name, part in (("train", "train"), ("dev", "held_out")):
        lines = [f"gj04\t{i % 2}\t{'' if i % 2 else '*'}\t{s}" for s, i in rows[part]]
        _write(folder / "cola" / f"{name}.tsv", "\n".join(lines))

    # TSV with a byte-order mark and a header; quotes are text
    header = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
    for name, part in (("train", "train"), ("dev", "held_out"), ("test", "held_out")):
        lines = [f'{i % 2}\t{i}\t{i}\t{name} " {s}\t{s} "' for s, i in rows[part]]
        _write(folder / "mrpc" / f"{name}.tsv", "\ufeff" + "\n".join([header, *lines]) + "\n")

    # "label text" lines, not UTF-8, with a byte that str.splitlines would cut at; no split
    lines = [f"{i % 2} {s} … é " for s, i in rows["train"]]
    _write(folder / "subj" / "subj.all", "\n".join(lines) + "\n", "cp1252")
    return folder
