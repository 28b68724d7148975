"""What the benchmarks of students share runs on the code that they measure."""

import math

from conftest import ROOT

from kdcache.students.loop import train_students


def test_a_benchmark_trains_kdcaches_students(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from student_variants import MODEL, Case, Ours, write_models  # type: ignore[import-not-found]

    write_models(MODEL, 1, tmp_path)
    case = Case(ROOT / "sample", "wic", 16, 8, 1, "cpu", tmp_path, 1, "mean", "float32", 1)
    run = Ours(case).start()
    train_students([run])
    assert run.step == 2
    assert math.isfinite(run.last_finite)
