"""The cache: a teacher's logits and features per example, in Parquet files with a manifest.

The package knows files, digests and rows. It knows nothing of models or of a task's texts.
``schema`` defines a row, ``manifest`` describes the whole cache, and ``location`` opens the place
where it lies. Only ``writer`` and ``reader`` touch the Parquet bytes. The specification is
docs/reference/cache-format.md.
"""
