"""The cache: a teacher's logits and features per example, in Parquet files with a manifest.

The package knows files, digests and rows, and nothing of a task's texts. ``schema`` defines a row,
``manifest`` describes the whole cache, ``writer`` writes its files, and ``reader`` reads them; others
exchange, join, compare and verify. The specification is docs/reference/cache-format.md.
"""
