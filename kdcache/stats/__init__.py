"""Statistics of predictions: how much better an arm is, and how certain that is.

Pure functions of arrays and frames. ``runs`` writes every metric as a function of sums over groups of rows,
``contrasts`` compares arms by seed and group, ``estimates`` gives levels and effects with intervals,
``verdicts`` says what follows from them, ``plan`` what a study needs, ``two_projects`` joins two projects.
docs/reference/statistics.md explains the choices and has the measured error rates.
"""
