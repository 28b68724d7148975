"""A pattern cuts lines as an expression of lazy groups would, in time in proportion to the line."""

import random
import re
import time

from kdcache.data.line_pattern import cut_line


def test_lines_are_cut_as_by_lazy_groups():
    rng = random.Random(0)
    fits = 0
    for _ in range(3000):
        literals = ["".join(rng.choices("ab ", k=rng.randrange(3))) for _ in range(rng.randrange(2, 5))]
        text = "".join(rng.choices("ab ", k=rng.randrange(10)))
        groups = ["(.+?)"] * (len(literals) - 2) + ["(.+)", ""]
        expression = "".join(re.escape(a) + b for a, b in zip(literals, groups, strict=True))
        found = re.fullmatch(expression, text)
        fits += found is not None
        assert cut_line(text, literals) == (list(found.groups()) if found else None), (text, literals)
    assert 100 < fits < 2900


def test_a_hostile_pattern_takes_no_time():
    start = time.perf_counter()
    assert cut_line("a" * 800, ["", *["a"] * 12, "b"]) is None
    assert cut_line("a" * 800, ["", *["aa"] * 300, "c a"]) is None
    assert time.perf_counter() - start < 1
