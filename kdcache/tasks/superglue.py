"""The SuperGLUE family (Wang et al., 2019), in the official JSONL layout.

Label order is that of the data sets' hub version, so that logits mean the same from either.
"""

from kdcache.tasks.schema import Task
from kdcache.tasks.source import Source, Span

_WIC = Source(
    task=Task("wic", ("false", "true"), "wic/1", ("accuracy",)),
    folder="WiC",
    labels=(False, True),
    text="{sentence1}",
    text_pair="{sentence2}",
    spans=(Span("sentence1", "start1", "end1"), Span("sentence2", "start2", "end2")),
    group="word",
)

_CB = Source(
    task=Task("cb", ("entailment", "contradiction", "neutral"), "cb/1", ("accuracy", "macro_f1")),
    folder="CB",
    labels=("entailment", "contradiction", "neutral"),
    text="{premise}",
    text_pair="{hypothesis}",
    group="premise",
)

SUPERGLUE = {source.task.name: source for source in (_WIC, _CB)}
