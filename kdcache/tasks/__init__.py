"""What a task is, where its rows come from, and how they are split.

``schema`` is all that stages after ``prepare`` know of a task. ``find`` is the door to the
sources, which ``prepare`` alone goes through.
"""
