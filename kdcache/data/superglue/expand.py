"""Row expanders: a row as a SuperGLUE file has it → one flat row per example.

Each takes a row of the official JSONL files or of the hub's Parquet files and gives the same rows for both.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from kdcache.data.parsers import Values
from kdcache.digests import value_digest

Expander = Callable[[Values], Iterator[dict[str, Any]]]


def expand_multirc(row: Values) -> Iterator[dict[str, Any]]:
    """One row per answer. The official files nest answers in questions in a passage."""
    for answer in _multirc_answers(row) if isinstance(row.get("passage"), Mapping) else (row,):
        idx = answer["idx"]
        unit = f"{idx['paragraph']}-{idx['question']}"
        yield {**answer, "unit": unit, "document": _short_name(answer["paragraph"])}


def _multirc_answers(line: Values) -> Iterator[dict[str, Any]]:
    passage = line["passage"]
    for question in passage["questions"]:
        for answer in question["answers"]:
            yield {
                "paragraph": passage["text"],
                "question": question["question"],
                "answer": answer["text"],
                "label": answer.get("label"),
                "idx": {"paragraph": line["idx"], "question": question["idx"], "answer": answer["idx"]},
            }


def expand_record(row: Values) -> Iterator[dict[str, Any]]:
    """One row per distinct entity, which is right where it is one of the answers."""
    for query in _record_queries(row) if "qas" in row else (row,):
        passage = query["passage"].replace("\n@highlight\n", " ")
        idx, answers = query["idx"], sorted(set(query["answers"]))
        entities = sorted({entity for entity in query["entities"] if entity.strip()})
        if not entities:
            raise ValueError("no entity to choose from")
        document = _short_name(passage)
        for number, entity in enumerate(entities):
            yield {
                "passage": passage,
                "document": document,
                "statement": query["query"].replace("@placeholder", entity),
                "label": int(entity in answers) if answers else None,
                "unit": f"{idx['passage']}-{idx['query']}",
                "candidate": entity,
                "answers": answers,
                "idx": {"passage": idx["passage"], "query": idx["query"], "candidate": number},
            }


def _record_queries(line: Values) -> Iterator[dict[str, Any]]:
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


def _short_name(passage: str) -> str:
    """A short name for a long text, because every row carries its group."""
    return value_digest(passage)[:16]


def expand_wsc(row: Values) -> Iterator[dict[str, Any]]:
    """Find the characters of the two spans, which the data give as the index of a word and a text."""
    row = {**row, **row.get("target", {})}
    places: dict[str, int] = {}
    for number in (1, 2):
        start, end = _find_words(row["text"], row[f"span{number}_index"], row[f"span{number}_text"])
        places |= {f"start{number}": start, f"end{number}": end}
    yield {**row, **places}


def _find_words(text: str, index: int, words: str) -> tuple[int, int]:
    """Find the occurrence of ``words`` nearest to word ``index``.

    The data differ from the text in case, spaces, a final full stop, and now and then in the index by a
    word or two. If the words do not occur in the text, the span is as many words from ``index`` on.

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


def expand_axg(row: Values) -> Iterator[dict[str, Any]]:
    """Name the pair: sentences that differ only in the gender of a pronoun follow each other.

    The official file also names it, ``pair_id``; the hub's copy does not.
    """
    yield {**row, "unit": row["idx"] // 2}


EXPANDERS: dict[str, Expander] = {
    "axg": expand_axg,
    "multirc": expand_multirc,
    "record": expand_record,
    "wsc": expand_wsc,
}
