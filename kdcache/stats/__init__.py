"""How much better an arm is, and how sure that is: predictions of all arms and seeds → statements.

Pure functions of arrays and frames. ``runs`` makes every metric a function of sums over groups of rows,
``contrasts`` compares arms by seed and group, ``estimates`` gives levels and effects with intervals,
``verdicts`` what is said of them, ``plan`` what a study needs, ``bootstrap`` an independent check.
docs/statistics.md says why so, and what was measured.
"""
