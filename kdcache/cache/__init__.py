"""The cache: a teacher's logits and features per example, in Parquet, with a manifest.

Knows files, digests and rows; knows nothing of models or of the tasks' texts. ``schema`` says
what a row is, ``manifest`` what made it, ``location`` where it lies; ``writer`` and ``reader``
are the only ones that touch the bytes. docs/cache-format.md specifies them.
"""
