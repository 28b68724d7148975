"""Every loss once more, as plain loops written from the formula; slow, in Python floats.

A test may put mpmath's functions in place of these three, for numbers of as many digits as it likes.
"""

import itertools
from math import exp, log, sqrt


def softmax(row, t=1.0):
    top = max(row)
    exps = [exp((z - top) / t) for z in row]
    return [e / sum(exps) for e in exps]


def centred(row):
    mean = sum(row) / len(row)
    return [z - mean for z in row]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def norm(row):
    return sqrt(dot(row, row))


def unit(row):
    return [x / norm(row) for x in row]


def minus(a, b):
    return [x - y for x, y in zip(a, b, strict=True)]


def pearson(a, b):
    return dot(unit(centred(a)), unit(centred(b)))


def huber(x):
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def pairs(rows, columns=None):
    return itertools.product(range(len(rows)), range(len(columns or rows)))


def divergence(p, q):
    return sum(a * log(a / b) for a, b in zip(p, q, strict=True))


def kl(s, t, temperature):
    total = sum(
        divergence(softmax(b, temperature), softmax(a, temperature)) for a, b in zip(s, t, strict=True)
    )
    return temperature**2 * total / len(s)


def dist_inter(s, t, temperature):
    rows = [1 - pearson(softmax(a, temperature), softmax(b, temperature)) for a, b in zip(s, t, strict=True)]
    return temperature**2 * sum(rows) / len(rows)


def dkd(s, t, temperature, labels, alpha=1.0, beta=8.0):
    total, labelled = 0.0, 0
    for row_s, row_t, label in zip(s, t, labels, strict=True):
        if label < 0:
            continue
        labelled += 1
        p, q = softmax(row_t, temperature), softmax(row_s, temperature)
        target = divergence([p[label], 1 - p[label]], [q[label], 1 - q[label]])
        others = [c for c in range(len(p)) if c != label]
        p_others = [p[c] / (1 - p[label]) for c in others]
        q_others = [q[c] / (1 - q[label]) for c in others]
        total += alpha * target + beta * divergence(p_others, q_others)
    return temperature**2 * total / max(1, labelled)


def gram(s, t, temperature, more_s=(), more_t=()):
    p_s, p_t = ([softmax(row, temperature) for row in z] for z in (s, t))
    q_s = p_s + [softmax(row, temperature) for row in more_s]
    q_t = p_t + [softmax(row, temperature) for row in more_t]
    c = len(p_s[0])
    distance = sum((dot(p_s[i], q_s[j]) - dot(p_t[i], q_t[j])) ** 2 for i, j in pairs(p_s, q_s))
    energy = sum((dot(p_t[i], q_t[j]) - 1 / c) ** 2 for i, j in pairs(p_s, q_s))
    floor = len(p_s) * len(q_s) * (0.5 * (1 - 1 / c)) ** 2 / (c - 1)
    return distance / max(energy, floor)


def gram_centred(s, t, more_s=(), more_t=()):
    x_s, x_t, y_s, y_t = (
        [unit(centred(row)) for row in z] for z in (s, t, s + list(more_s), t + list(more_t))
    )
    gaps = [(dot(x_s[i], y_s[j]) - dot(x_t[i], y_t[j])) ** 2 for i, j in pairs(x_s, y_s)]
    return sum(gaps) / len(gaps)


def sp(s, t, more_s=(), more_t=(), prepare=centred):
    total, count = 0.0, 0
    x_s, x_t, y_s, y_t = ([prepare(row) for row in z] for z in (s, t, s + list(more_s), t + list(more_t)))
    for i in range(len(x_s)):
        row_s = unit([dot(x_s[i], y) for y in y_s])
        row_t = unit([dot(x_t[i], y) for y in y_t])
        total += sum((a - b) ** 2 for a, b in zip(row_s, row_t, strict=True))
        count += len(row_s)
    return total / count


def cka(s, t, more_s=(), more_t=(), prepare=centred):
    def relation(z, more):
        everyone = [prepare(row) for row in z + list(more)]
        mean = [sum(column) / len(everyone) for column in zip(*everyone, strict=True)]
        everyone = [minus(row, mean) for row in everyone]
        return [[dot(a, b) for b in everyone] for a in everyone[: len(z)]]

    k_s, k_t = ([x for row in relation(*sets) for x in row] for sets in ((s, more_s), (t, more_t)))
    return 1 - dot(unit(k_s), unit(k_t))


def dist_intra(s, t, temperature):
    p_s, p_t = ([softmax(row, temperature) for row in z] for z in (s, t))
    columns = [1 - pearson(a, b) for a, b in zip(zip(*p_s, strict=True), zip(*p_t, strict=True), strict=True)]
    return temperature**2 * sum(columns) / len(columns)


def rkd_distance(s, t, prepare=centred):
    def distances(z):
        z = [prepare(row) for row in z]
        d = [norm(minus(z[i], z[j])) for i, j in pairs(z)]
        apart = [x for x in d if x > 0]
        return [x / (sum(apart) / len(apart)) for x in d]

    gaps = [huber(a - b) for a, b in zip(distances(s), distances(t), strict=True)]
    return sum(gaps) / len(gaps)


def rkd_angle(s, t, prepare=centred):
    def cosines(z):
        z = [prepare(row) for row in z]
        n = range(len(z))
        return [
            0.0 if i in (j, k) else dot(unit(minus(z[j], z[i])), unit(minus(z[k], z[i])))
            for i in n for j in n for k in n
        ]  # fmt: skip

    gaps = [huber(a - b) for a, b in zip(cosines(s), cosines(t), strict=True)]
    return sum(gaps) / len(gaps)


def pkt(s, t, prepare=centred):
    def rows(z):
        u = [unit(prepare(row)) for row in z]
        k = [[(dot(a, b) + 1) / 2 for b in u] for a in u]
        return [[x / sum(row) for x in row] for row in k]

    total = 0.0
    for row_s, row_t in zip(rows(s), rows(t), strict=True):
        total += sum(b * log((b + 1e-7) / (a + 1e-7)) for a, b in zip(row_s, row_t, strict=True))
    return total / len(s) ** 2


def feature_mse(s, t):
    gaps = sum((a - b) ** 2 for x, y in zip(s, t, strict=True) for a, b in zip(x, y, strict=True))
    return gaps / sum(b * b for y in t for b in y)


def feature_cosine(s, t):
    return sum(1 - dot(unit(a), unit(b)) for a, b in zip(s, t, strict=True)) / len(s)
