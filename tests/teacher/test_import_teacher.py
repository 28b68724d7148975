"""Teachers from elsewhere: one or several per task, by command and by the section ``import_teacher``."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import fails, run

from kdcache.cache.manifest import read_manifest
from kdcache.cache.reader import load_cache
from kdcache.digests import seal
from kdcache.errors import ParamsError
from kdcache.project import Project
from kdcache.teacher.import_teacher import check_teachers, import_teacher

CACHE = Path("cache/cb")
LABELS = ("entailment", "contradiction", "neutral")
IMPORTED = ("--set", "fine_tune=[wic]", "--set")


def outputs(path: Path, seed: int, kind: str = "probability") -> dict[str, np.ndarray]:
    """Write a file of random outputs for every prepared row of cb; return id → probabilities."""
    rng, given, lines = np.random.default_rng(seed), {}, []
    for split in ("train", "tune", "validation"):
        for example_id in pq.read_table(f"data/cb/{split}.parquet")["example_id"].to_pylist():
            given[example_id] = p = rng.dirichlet(np.ones(3))
            values = p if kind == "probability" else np.log(p) + 30 * rng.random()
            lines.append(
                {"example_id": example_id, **{f"{kind}_{n}": v for n, v in zip(LABELS, values, strict=True)}}
            )
    rng.shuffle(lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return given


@pytest.fixture
def two(built_project) -> dict[str, dict[str, np.ndarray]]:
    """A prepared project with the files of two teachers of cb in a folder."""
    built_project("prepare")
    return {
        "llm": outputs(Path("outside/cb/llm.jsonl"), 1),
        "words": outputs(Path("outside/cb/words.jsonl"), 2, "logit"),
    }


def content() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(CACHE.iterdir())}


def test_probabilities_of_several_teachers_are_averaged_by_weight(two):
    def cached(*options: str) -> tuple[dict[str, Any], float]:
        assert run("import", "outside/cb", "--task", "cb", *options)[0] == 0
        far = []
        for split in ("train", "tune", "validation"):
            rows = load_cache(CACHE, split)
            weights = np.array(rows.manifest.identity["weights"])
            for example_id, logits in zip(rows.rows.example_id, rows.rows.logits, strict=True):
                mean = weights @ np.stack([two[name][example_id] for name in ("llm", "words")])
                far.append(np.abs(np.exp(logits) - mean).max())
        return rows.manifest.identity, max(far)

    alike, far = cached()
    assert far < 1e-5
    assert alike["weights"] == [0.5, 0.5]
    assert alike["teachers"] == ["llm.jsonl", "words.jsonl"]
    assert (alike["given"], alike["mean_of"]) == (["probabilities", "logits"], "probabilities")
    unlike, far = cached("--weight", "llm=3", "--weight", "words=1")
    assert far < 1e-5
    assert unlike["weights"] == [0.75, 0.25]
    assert unlike["source_sha256"] != alike["source_sha256"]
    whole = content()
    assert cached("--weight", "llm=6", "--weight", "words=2")[0] == unlike  # only their ratio counts
    assert content() == whole
    assert run("verify", "--task", "cb")[0] == 0

    two["words"] = outputs(Path("outside/cb/words.jsonl"), 3, "logit")
    other, far = cached()
    assert far < 1e-5
    assert other["source_sha256"] != alike["source_sha256"]


def test_a_teacher_alone_in_its_folder_is_kept_as_it_is(two):
    Path("outside/cb/words.jsonl").unlink()
    assert run("import", "outside/cb", "--task", "cb")[0] == 0
    manifest = content()["manifest.json"]
    assert "weights" not in read_manifest(CACHE).identity
    assert run("import", "outside/cb/llm.jsonl", "--task", "cb")[0] == 0
    named = {"source": "cb", "digest": 0}
    assert {**json.loads(manifest)["identity"], **named} == {**read_manifest(CACHE).identity, **named}


def test_probabilities_that_are_completed_in_other_ways_are_of_other_teachers(two):
    digests = set()
    for policy in ("refuse", "renormalise", "spread"):
        assert run("import", "outside/cb/llm.jsonl", "--task", "cb", "--missing-mass", policy)[0] == 0
        manifest = read_manifest(CACHE)
        digests.add(manifest.teacher_digest)
        if policy == "refuse":
            assert manifest.teacher_digest == manifest.identity["source_sha256"]
    assert len(digests) == 3


def test_outputs_that_lack_a_split_students_need_are_named_with_what_to_do(two):
    lines = Path("outside/cb/llm.jsonl").read_text().splitlines(keepends=True)
    tune = set(pq.read_table("data/cb/tune.parquet")["example_id"].to_pylist())
    Path("some.jsonl").write_text(
        "".join(line for line in lines if json.loads(line)["example_id"] not in tune)
    )
    assert run("import", "some.jsonl", "--task", "cb")[0] == 0
    assert run("shrink")[0] == 0
    error = fails("distill", "--task", "cb", "--arm", "head")
    assert "none of the rows of tune" in error
    assert "unlabelled" not in error
    assert "import" in error


def turn_labels() -> tuple[list[str], list[str]]:
    """List the labels of the prepared cb in another order; return the old and the new one."""
    path = Path("data/cb/task.json")
    task = json.loads(path.read_text())
    old = task["labels"]
    task["labels"] = [*old[1:], old[0]]
    path.write_text(json.dumps(task))
    seal(path)
    for split in ("train", "tune", "validation"):
        file = Path(f"data/cb/{split}.parquet")
        table = pq.read_table(file)
        labels = [task["labels"].index(old[k]) for k in table["label"].to_pylist()]
        field = table.schema.field("label")
        pq.write_table(table.set_column(table.column_names.index("label"), field, [labels]), file)
        seal(file)
    return old, task["labels"]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".npz", ".csv"])
def test_numbers_without_names_need_the_order_of_the_labels(two, suffix):
    """The task lists its labels in another order now: names say which is which, else it is refused."""
    assert run("import", "outside/cb/llm.jsonl", "--task", "cb")[0] == 0
    assert run("export", f"all{suffix}", "--task", "cb")[0] == 0
    before = load_cache(CACHE, "train").rows.logits
    old, new = turn_labels()
    if suffix != ".csv":
        assert "0 is now 2" in fails("import", f"all{suffix}", "--task", "cb")
        return
    assert run("import", f"all{suffix}", "--task", "cb")[0] == 0
    after = load_cache(CACHE, "train").rows.logits
    assert np.array_equal(after, before[:, [old.index(name) for name in new]])


@pytest.mark.parametrize("form", ["list", "by index", "floats", "one corrected", "predicted"])
def test_a_column_label_tells_of_another_order_and_of_nothing_else(two, form):
    lines = [json.loads(line) for line in Path("outside/cb/llm.jsonl").read_text().splitlines()]
    truth: dict[str, int] = {}
    for split in ("tune", "validation", "train"):
        table = pq.read_table(f"data/cb/{split}.parquet")
        truth |= dict(zip(table["example_id"].to_pylist(), table["label"].to_pylist(), strict=True))
    of_train = table["example_id"][0].as_py()
    rows = []
    for line in lines:
        values, label = [line[f"probability_{name}"] for name in LABELS], truth[line["example_id"]]
        if form == "one corrected" and line["example_id"] == of_train:
            label = (label + 1) % 3
        told = {"floats": float(label), "predicted": int(np.argmax(values))}.get(form, label)
        named = {f"probability_{k}": v for k, v in enumerate(values)}
        numbers = named if form == "by index" else {"probabilities": values}
        rows.append({"example_id": line["example_id"], "label": told} | numbers)
    Path("some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run("import", "some.jsonl", "--task", "cb")[0] == 0
    turn_labels()
    if form in ("list", "by index", "floats"):
        assert "is now" in fails("import", "some.jsonl", "--task", "cb")


def test_files_of_other_formats_beside_teachers_are_named(two):
    Path("outside/cb/b.JSONL").write_text("")
    code, _, error = run("import", "outside/cb", "--task", "cb")
    assert code == 0
    assert "b.JSONL" in error


def test_the_section_gives_the_bytes_of_the_command(two):
    options = ("--weight", "llm=2", "--weight", "words=1")
    _, out, _ = run("import", "outside/cb", "--task", "cb", *options)
    whole = content()
    shutil.rmtree("cache")
    section = out.splitlines()[-1]
    assert section == "import_teacher: {cb: {path: outside/cb, weights: {llm: 2, words: 1}}}"
    set_ = (*IMPORTED, section.replace(": ", "=", 1))
    code, out, _ = run("run", "--task", "cb", *set_)  # no teacher is trained, and all else goes its way
    assert code == 0
    assert "outside/cb" in out
    assert not Path("models/teacher").exists()
    assert content() == whole
    Project.load(set_[1::2])
    check_teachers(Project.load(set_[1::2]))


BAD_IMPORTS = {  # what is done → options, and what the line must tell
    "no file": (["nowhere.csv"], ["nowhere.csv", "exist"]),
    "no folder": (["nowhere", "--weight", "a=1"], ["nowhere", "folder"]),
    "empty folder": (["empty"], ["empty", ".csv"]),
    "two of a name": (["twice"], ["twice", "llm"]),
    "weights of a file": (["outside/cb/llm.jsonl", "--weight", "llm=1"], ["llm.jsonl", "folder"]),
    "weight of nobody": (["outside/cb", "--weight", "lm=1", "--weight", "words=1"], ["'lm'", "llm?"]),
    "weight missing": (["outside/cb", "--weight", "llm=1"], ["outside/cb", "words"]),
    "weight 0": (["outside/cb", "--weight", "llm=0", "--weight", "words=1"], ["llm", "> 0"]),
    "weight no number": (["outside/cb", "--weight", "llm=x", "--weight", "words=1"], ["llm", "number"]),
    "two weights of one": (["outside/cb", "--weight", "llm=1", "--weight", "llm=2"], ["llm=2", "one weight"]),
    "weights too large": (["outside/cb", "--weight", "llm=1e308", "--weight", "words=1e308"], ["finite"]),
    "weight without a name": (["outside/cb", "--weight", "2"], ["--weight 2", "NAME=NUMBER"]),
    "rows missing in one": (["lacking"], ["lacking/words.jsonl", "every row of"]),
    "of another task": (["other.jsonl"], ["other.jsonl", "data/cb"]),
    "labels of another task": (["labels.csv"], ["labels.csv", "label", "entailment"]),
    "named twice": (
        ["outside/cb", *IMPORTED, "import_teacher={cb: {path: outside/cb}}"],
        ["import_teacher", "cb", "kdcache cache --task cb"],
    ),
    "trained and imported": (
        ["outside/cb", "--set", "import_teacher={cb: {path: outside/cb}}"], ["fine_tune", "cb"]
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def bad_files(build_once, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bad") / "project"
    shutil.copytree(build_once(("prepare",)), folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        llm, words = Path("outside/cb/llm.jsonl"), Path("outside/cb/words.jsonl")
        outputs(llm, 1)
        outputs(words, 2, "logit")
        for name in ("empty", "twice", "lacking"):
            Path(name).mkdir()
        Path("empty/notes.txt").write_text("")
        for name in ("twice/llm.csv", "twice/llm.jsonl", "lacking/llm.jsonl"):
            shutil.copy(llm, name)
        lines = words.read_text().splitlines(keepends=True)
        Path("lacking/words.jsonl").write_text("".join(lines[1:]))
        Path("other.jsonl").write_text(llm.read_text().replace('"train-', '"wic-'))
        Path("labels.csv").write_text("example_id,logit_false,logit_true\ntrain-0,0,1\n")
    return folder


@pytest.mark.parametrize("defect", BAD_IMPORTS)
def test_a_bad_import_is_one_line_and_writes_nothing(bad_files, monkeypatch, defect):
    monkeypatch.chdir(bad_files)
    options, told = BAD_IMPORTS[defect]
    line = fails("import", "--task", "cb", *options)
    for part in told:
        assert part in line
    assert not Path("cache").exists()


BAD_TEACHERS = {  # what params.yaml says → what the line must tell
    "neither": (["fine_tune=[wic]"], ["fine_tune", "import_teacher", "cb"]),
    "both": (["import_teacher={cb: {path: x.csv}}"], ["cb", "fine_tune"]),
    "trained stranger": (["fine_tune=[wic, cb, wik]"], ["fine_tune", "'wik'", "wic?"]),
    "imported stranger": (["import_teacher={wik: {path: x.csv}}"], ["import_teacher", "'wik'", "wic?"]),
    "no path": (["fine_tune=[wic]", "import_teacher={cb: {}}"], ["import_teacher.cb.path"]),
    "typo": (["fine_tune=[wic]", "import_teacher={cb: {path: x.csv, wieghts: {}}}"], ["weights?"]),
    "no mapping": (["fine_tune=[wic]", "import_teacher={cb: x.csv}"], ["import_teacher.cb", "mapping"]),
    "a list": (["fine_tune=[wic]", "import_teacher=[cb]"], ["import_teacher", "mapping"]),
}


@pytest.mark.parametrize("defect", BAD_TEACHERS)
def test_each_task_has_one_teacher(bad_files, monkeypatch, defect):
    monkeypatch.chdir(bad_files)
    check_teachers(Project.load())
    overrides, told = BAD_TEACHERS[defect]
    with pytest.raises(ParamsError) as error:
        check_teachers(Project.load(overrides))
    for part in told:
        assert part in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_training_never_replaces_an_imported_cache_in_the_pipeline(two):
    imported = ["fine_tune=[wic]", "import_teacher={cb: {path: outside/cb}}"]
    with pytest.raises(ParamsError, match="cb"):
        import_teacher(Project.load(), "cb")
    import_teacher(Project.load(imported), "cb")
    check_teachers(Project.load(imported))
    whole = content()
    for fine_tune in ("[wic, cb]", "null"):  # null as in a params.yaml from before the key
        with pytest.raises(ParamsError) as error:
            check_teachers(Project.load([f"fine_tune={fine_tune}"]))
        assert "cache/cb" in str(error.value)
        assert "import_teacher" in str(error.value)
    assert content() == whole
    (CACHE / "manifest.json").write_text("{}")  # a damaged one can only be made again
    check_teachers(Project.load())
