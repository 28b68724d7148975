"""The SuperGLUE family (Wang et al., 2019), in the official JSONL layout.

Label order is that of the data sets' hub version, so that logits mean the same from either.
"""

from kdcache.tasks.schema import Span, Task

WIC = Task(
    name="wic",
    folder="WiC",
    labels=(False, True),
    template="wic/1",
    text="{sentence1}",
    text_pair="{sentence2}",
    spans=(Span("sentence1", "start1", "end1"), Span("sentence2", "start2", "end2")),
    group="word",
    metrics=("accuracy",),
)

CB = Task(
    name="cb",
    folder="CB",
    labels=("entailment", "contradiction", "neutral"),
    template="cb/1",
    text="{premise}",
    text_pair="{hypothesis}",
    group="premise",
    metrics=("accuracy", "macro_f1"),
)
