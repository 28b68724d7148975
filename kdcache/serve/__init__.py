"""Trained students that label text: one, many in mixed batches, files and streams."""
