"""What a task is, where its rows come from, how they are split and scored.

``task`` and ``splits`` are all that later stages know of the data; ``prepare`` alone reads sources.
"""
