"""Tasks: their task files, readers of their rows, splits and metrics.

Only ``prepare`` reads sources. Later stages know the data by ``task`` and ``splits``.
"""
