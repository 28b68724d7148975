"""The SuperGLUE family (Wang et al., 2019): eight tasks, and two diagnostics as splits of RTE.

Label order is that of the data sets' hub version, so that logits mean the same from either.
"""

import re
from collections.abc import Iterator
from typing import Any

from kdcache.data.source import Diagnostic, Row, Source, Span
from kdcache.data.task import Task
from kdcache.digests import value_digest

_FALSE_TRUE = ("false", "true")
_ENTAILMENT = ("entailment", "not_entailment")


def _flatten_wsc(line: Row) -> Iterator[Row]:
    yield {**line, **line["target"]}


def _flatten_multirc(line: Row) -> Iterator[Row]:
    passage = line["passage"]
    for question in passage["questions"]:
        for answer in question["answers"]:
            row: dict[str, Any] = {
                "paragraph": passage["text"],
                "question": question["question"],
                "answer": answer["text"],
                "idx": {"paragraph": line["idx"], "question": question["idx"], "answer": answer["idx"]},
            }
            yield row | ({"label": answer["label"]} if "label" in answer else {})


def _flatten_record(line: Row) -> Iterator[Row]:
    text = line["passage"]["text"]
    entities = [text[entity["start"] : entity["end"] + 1] for entity in line["passage"]["entities"]]
    for query in line["qas"]:
        yield {
            "passage": text,
            "query": query["query"],
            "entities": entities,
            "answers": [answer["text"] for answer in query.get("answers", ())],
            "idx": {"passage": line["idx"], "query": query["idx"]},
        }


def _expand_multirc(row: Row) -> Iterator[Row]:
    idx = row["idx"]
    yield {**row, "unit": f"{idx['paragraph']}-{idx['question']}", "document": _name(row["paragraph"])}


def _expand_record(row: Row) -> Iterator[Row]:
    """One row per distinct entity; right where it is one of the answers."""
    passage = row["passage"].replace("\n@highlight\n", " ")
    idx, answers, document = row["idx"], sorted(set(row["answers"])), _name(passage)
    entities = sorted({entity for entity in row["entities"] if entity.strip()})
    if not entities:
        raise ValueError("no entity to choose from")
    for number, entity in enumerate(entities):
        yield {
            "passage": passage,
            "document": document,
            "statement": row["query"].replace("@placeholder", entity),
            "label": int(entity in answers) if answers else -1,
            "unit": f"{idx['passage']}-{idx['query']}",
            "candidate": entity,
            "answers": answers,
            "idx": {"passage": idx["passage"], "query": idx["query"], "candidate": number},
        }


def _name(passage: str) -> str:
    """A short name for a long text, since every row carries its group."""
    return value_digest(passage)[:16]


def _expand_wsc(row: Row) -> Iterator[Row]:
    """Find the characters of the two spans, which the data gives as a word's index and a text."""
    places: dict[str, int] = {}
    for number in (1, 2):
        start, end = _find_words(row["text"], row[f"span{number}_index"], row[f"span{number}_text"])
        places |= {f"start{number}": start, f"end{number}": end}
    yield {**row, **places}


def _find_words(text: str, index: int, words: str) -> tuple[int, int]:
    """Characters of ``words`` where they stand nearest to word ``index``.

    The data differ in case, blanks, a final stop, and now and then in the index by a word or
    two. Where the words do not stand in the text at all, as many words from ``index`` on.

    >>> text = "Then the lawyer asked him ."
    >>> [text[slice(*_find_words(text, *span))] for span in ((1, "The lawyer."), (3, "him"), (3, "no one"))]
    ['the lawyer', 'him', 'asked him']
    """
    pieces = words.rstrip(" .,;:!?").split()
    pattern = r"\s+".join(re.escape(piece) for piece in pieces)
    found = [match.span() for match in re.finditer(rf"(?<!\w){pattern}(?!\w)", text, re.IGNORECASE)]
    starts = [match.span() for match in re.finditer(r"\S+", text)]
    if not 0 <= index < len(starts):
        raise ValueError(f"the text has {len(starts)} words, no word {index}")
    at = starts[index][0]
    if found:
        return min(found, key=lambda span: abs(span[0] - at))
    return at, starts[min(index + len(pieces), len(starts)) - 1][1]


def _expand_axb(row: Row) -> Iterator[Row]:
    yield {
        "premise": row["sentence1"],
        "hypothesis": row["sentence2"],
        "idx": int(row["idx"]),  # text in the official file
    }


def _expand_axg(row: Row) -> Iterator[Row]:
    """Sentences that differ in a pronoun's gender alone follow each other; the hub drops ``pair_id``."""
    yield {**row, "unit": row["idx"] // 2}


_TASKS = (
    Source(
        task=Task("boolq", _FALSE_TRUE, "boolq/1", ("accuracy",), truncate="first"),
        folder="BoolQ",
        labels=(False, True),
        text="{passage}",
        text_pair="{question}",
        group="passage",
    ),
    Source(
        task=Task(
            "cb", ("entailment", "contradiction", "neutral"), "cb/1", ("accuracy", "macro_f1"),
            truncate="first",
        ),
        folder="CB",
        labels=("entailment", "contradiction", "neutral"),
        text="{premise}",
        text_pair="{hypothesis}",
        group="premise",
    ),
    Source(
        task=Task("copa", ("choice1", "choice2"), "copa/1", ("accuracy",), num_choices=2),
        folder="COPA",
        labels=(0, 1),
        text="{premise} What was the {question}?",
        choices=("{choice1}", "{choice2}"),
        group="choice1",  # items that share their choices differ in the premise alone
    ),
    Source(
        task=Task(
            "multirc", _FALSE_TRUE, "multirc/1", ("f1a", "exact_match"), truncate="first", columns=("unit",)
        ),
        folder="MultiRC",
        labels=(0, 1),
        text="{paragraph}",
        text_pair="{question} {answer}",
        group="document",
        may_be_empty=("answer",),
        flatten=_flatten_multirc,
        expand=_expand_multirc,
    ),
    Source(
        task=Task(
            "record", _FALSE_TRUE, "record/1", ("answer_f1", "answer_exact_match"),
            truncate="first", columns=("unit", "candidate", "answers"),
        ),
        folder="ReCoRD",
        labels=(),
        text="{passage}",
        text_pair="{statement}",
        group="document",
        flatten=_flatten_record,
        expand=_expand_record,
    ),
    Source(
        task=Task(
            "rte", _ENTAILMENT, "rte/1", ("accuracy",), truncate="first", columns=("unit",),
            diagnostics={"axb": ("matthews",), "axg": ("accuracy", "gender_parity")},
        ),
        folder="RTE",
        labels=_ENTAILMENT,
        text="{premise}",
        text_pair="{hypothesis}",
        group="premise",
        diagnostics=(
            Diagnostic("axb", "AX-b/AX-b.jsonl", _expand_axb),
            Diagnostic("axg", "AX-g/AX-g.jsonl", _expand_axg),
        ),
    ),
    Source(
        task=Task("wic", _FALSE_TRUE, "wic/1", ("accuracy",)),
        folder="WiC",
        labels=(False, True),
        text="{sentence1}",
        text_pair="{sentence2}",
        spans=(Span("sentence1", "start1", "end1"), Span("sentence2", "start2", "end2")),
        group="word",
    ),
    Source(
        task=Task("wsc", _FALSE_TRUE, "wsc/1", ("accuracy",)),
        folder="WSC",
        labels=(False, True),
        text="{text}",
        spans=(Span("text", "start1", "end1", "*"), Span("text", "start2", "end2", "#")),
        group="text",
        flatten=_flatten_wsc,
        expand=_expand_wsc,
    ),
)  # fmt: skip

SUPERGLUE = {source.task.name: source for source in _TASKS}
