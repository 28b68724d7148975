"""Exported students: the same labels outside the project, in a process without kdcache."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import fails, run
from served import COPA, WIC, make_home

import kdcache
from kdcache.errors import ModelError
from kdcache.students.about import find_backbone, read_about

pytest.importorskip("onnxruntime")

WITHOUT = "import sys\nfor name in ('kdcache', 'torch', 'transformers', 'peft'): sys.modules[name] = None\n"


def validation(project: Path) -> tuple[list[str], list[str]]:
    table = pq.read_table(project / "data/cb/validation.parquet")
    return table["text"].to_pylist(), table["text_pair"].to_pylist()


def all_files() -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}


def card_code(folder: Path) -> str:
    """The card's code, which prints labels, for this folder."""
    text = (folder / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    return code.replace("PATH", folder.as_posix())


def run_card(folder: Path, cwd: Path, texts: list[str], pairs: list[str]) -> list[str]:
    code = card_code(folder)
    assert len([line for line in code.splitlines() if line]) == 10
    code = re.sub(r"encode_batch\(.*\)", f"encode_batch({list(zip(texts, pairs, strict=True))!r})", code)
    code = code.replace("print([", "print(json.dumps([").replace("(1)])", "(1)]))")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT + code], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_an_onnx_export_runs_without_kdcache(distilled_project, tmp_path_factory):
    student = kdcache.load_student("runs/cb/kl+gram-0")
    texts, pairs = validation(distilled_project)
    texts[0] = " ".join([texts[0]] * 40)  # cut as the student cuts it
    wanted = [one.label for one in student.predict(texts, pairs)]
    out = tmp_path_factory.mktemp("elsewhere") / "cb"
    code, told, error = run("export-student", "runs/cb/kl+gram-0", "--to", "onnx", "--out", str(out))
    assert code == 0, error
    assert "100.0% of 32 rows" in told
    shutil.rmtree(distilled_project / "models")
    assert run_card(out, out.parent, texts, pairs) == wanted
    assert json.loads((out / "labels.json").read_text()) == list(student.labels)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kl+gram-0", "head-0"])
def test_int8_says_what_it_changed(distilled_project, name):
    code, told, error = run("export-student", f"runs/cb/{name}", "--to", "onnx", "--int8", "--out", "cb8")
    assert code == 0, error
    card = Path("cb8/README.md").read_text()
    share = float(re.search(r"same label .* \| ([\d.]+)%", card).group(1))
    assert f"{share}% of 32 rows" in told
    count, all_products = map(int, re.search(r"int8 in (\d+) of (\d+) products", card).groups())
    assert 1 <= count <= all_products
    assert share >= 98 or count == 1, "as many products as keep the labels, one at least"
    texts, pairs = validation(distilled_project)
    wanted = [one.label for one in kdcache.load_student(f"runs/cb/{name}").predict(texts, pairs)]
    same = np.mean(
        [
            a == b
            for a, b in zip(run_card(Path("cb8").resolve(), Path.cwd(), texts, pairs), wanted, strict=True)
        ]
    )
    assert abs(100 * same - share) <= 100 / 32 + 0.1, "padding differs, and with it the scale of activations"


def test_an_exported_folder_loads_anywhere(distilled_project, tmp_path_factory, monkeypatch):
    texts, pairs = validation(distilled_project)
    wanted = kdcache.load_student("runs/cb/kl+gram-0").logits(texts, pairs)
    out = tmp_path_factory.mktemp("elsewhere") / "cb"
    code, _, error = run("export-student", "runs/cb/kl+gram-0", "--to", "folder", "--out", str(out))
    assert code == 0, error
    (out / "old").touch()
    assert run("export-student", "runs/cb/head-0", "--to", "folder", "--out", str(out))[0] == 0
    assert run("export-student", "runs/cb/kl+gram-0", "--to", "folder", "--out", str(out))[0] == 0
    assert not (out / "old").exists(), "an earlier export is replaced"
    assert [path.name for path in out.parent.iterdir()] == ["cb"]
    rows = [line for line in Path("runs/cb/kl+gram-0/README.md").read_text().splitlines() if "|" in line]
    assert [line for line in (out / "README.md").read_text().splitlines() if "|" in line] == rows
    monkeypatch.chdir("runs/cb/kl+gram-0")
    Path("README.md").write_text("mine")
    assert run("export-student", ".", "--to", "folder")[0] == 0
    assert (distilled_project / "runs/cb/kl+gram-0-folder/student.json").is_file()
    shutil.rmtree(distilled_project / "models")
    monkeypatch.chdir(out.parent)
    np.testing.assert_array_equal(kdcache.load_student("cb").logits(texts, pairs), wanted)


CARD = """
import json, sys
for name in ("kdcache",): sys.modules[name] = None
texts = json.load(open("texts.json"))
"""


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_an_exported_folders_card_runs_without_kdcache(built_project, tmp_path_factory, pooling):
    """transformers' pipeline where one of its classes carries the student; else peft, from any folder."""
    sections = {name: {"pooling": pooling} for name in ("train_teacher", "student_backbone", "distill")}
    arms = {name: {"method": name} for name in ("head", "lora", "full", "prefix")}
    sections["distill"] |= {"arms": arms, "seeds": [0]}
    built_project("prepare", "teach --task cb", "cache --task cb", "shrink", **sections)
    assert run("distill", "--task", "cb")[0] == 0
    texts, pairs = validation(Path())
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    rows = [{"text": a, "text_pair": b} for a, b in zip(texts, pairs, strict=True)]
    (elsewhere / "texts.json").write_text(json.dumps(rows))
    wanted = {}
    for arm in arms:
        student = kdcache.load_student(f"runs/cb/{arm}-0")
        wanted[arm] = student.logits(texts, pairs)
        assert (
            run("export-student", f"runs/cb/{arm}-0", "--to", "folder", "--out", str(elsewhere / arm))[0] == 0
        )
    shutil.rmtree("models")
    for arm in arms:
        again = kdcache.load_student(elsewhere / arm)
        np.testing.assert_allclose(again.logits(texts, pairs), wanted[arm], atol=1e-5)
        code = card_code(elsewhere / arm)
        if "pipeline" in code:
            assert pooling == "cls"
            assert arm != "prefix"
            code = re.sub(r'\(\{"text".*?\}', "(texts", code)
            code = code.replace("print(", "found = (").replace('")(', '", top_k=None)(')
            code += f"\nlabels = {list(again.labels)!r}\n"
            code += "scores = [{one['label']: one['score'] for one in row} for row in found]\n"
            code += "found = [[row[name] for name in labels] for row in scores]"
        elif pooling == "mean":
            code = code.replace(
                '["a text"], None', '[r["text"] for r in texts], [r["text_pair"] for r in texts]'
            )
            code += "\nfound = logits.softmax(1).tolist()"
        else:
            code += (
                "\nimport torch\nfrom transformers import AutoTokenizer\n"
                f"tokenizer = AutoTokenizer.from_pretrained({str(elsewhere / arm / 'backbone')!r})\n"
                "batch = tokenizer([r['text'] for r in texts], [r['text_pair'] for r in texts], padding=True,"
                "max_length=64, truncation='only_first', return_tensors='pt')\n"
                "with torch.no_grad(): found = model(**batch).logits.softmax(1).tolist()"
            )
        code += "\njson.dump(found, open('found.json', 'w'))"
        done = subprocess.run(
            [sys.executable, "-c", CARD + code], cwd=elsewhere, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (arm, done.stderr)
        p = np.exp(wanted[arm] - wanted[arm].max(1, keepdims=True))
        found = json.loads((elsewhere / "found.json").read_text())
        np.testing.assert_allclose(found, p / p.sum(1, keepdims=True), atol=1e-4, err_msg=arm)


def test_a_backbone_is_found_by_its_digest_or_named(distilled_project, tmp_path_factory, monkeypatch):
    texts, pairs = validation(distilled_project)
    folder = distilled_project / "runs/cb/kl+gram-0"
    wanted = kdcache.load_student(folder).logits(texts, pairs)
    assert run("shrink")[0] == 0
    assert [path.name for path in Path("models").glob("backbone*")] == ["backbone"], "the same one again"
    code, told, error = run("shrink", "--num-layers", "2")
    assert code == 0, error
    (old,) = Path("models").glob("backbone-*")
    assert old.as_posix() in told, "students need it"
    assert np.array_equal(kdcache.load_student(folder).logits(texts, pairs), wanted), "beside the new one"
    assert run("shrink", "--num-layers", "1", "--layers", "1")[0] == 0
    assert list(Path("models").glob("backbone-*")) == [old], "nobody needs the one between"
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.move(old, elsewhere / "b")
    with pytest.raises(ModelError, match="backbone=FOLDER"):
        kdcache.load_student(folder)
    monkeypatch.chdir(elsewhere)
    assert np.array_equal(kdcache.load_student(folder, backbone="b").logits(texts, pairs), wanted)
    pool = kdcache.StudentPool([folder, folder.with_name("head-0")], backbone="b")
    assert len(pool.students) == 2
    with pytest.raises(ModelError, match="must be"):
        kdcache.load_student(folder, backbone=distilled_project / "models/backbone")


@pytest.mark.parametrize("method", ["prefix", "full"])  # prefix did so before
def test_every_student_finds_its_own_backbone_beside_another(tiny_model, tmp_path, monkeypatch, method):
    home = make_home(tmp_path, tiny_model, {"wic": (WIC, method, 4)})
    monkeypatch.chdir(home)
    about = read_about(home / "wic")
    assert find_backbone(home / "wic", about) == Path("backbone")
    (home / "models").mkdir()
    (home / "backbone").rename(home / "models" / "z")
    another = shutil.copytree(home / "models" / "z", home / "models" / "a")
    weights = bytearray((another / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (another / "model.safetensors").write_bytes(weights)
    assert find_backbone(home / "wic", replace(about, backbone="models/a")).name == "z"


def test_an_export_is_not_scored_on_rows_of_other_labels(distilled_project):
    path = distilled_project / "runs/cb/kl+gram-0/student.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps(said | {"task": said["task"] | {"labels": said["task"]["labels"][::-1]}}))
    export = ("export-student", "runs/cb/kl+gram-0", "--to", "onnx", "--out", "cb")
    assert "as it is prepared now" in fails(*export, "--int8")
    assert not Path("cb").exists()
    code, told, error = run(*export)
    assert (code, "same label" in told, "not compared" in error) == (0, False, True)
    shutil.rmtree("cb")
    Path("params.yaml").write_text("batch_size: 3\n")  # another program's
    assert run("export-student", "runs/cb/kl+gram-0", "--to", "folder", "--out", "cb")[0] == 0


@pytest.mark.parametrize("method", ["head", "full"])
def test_a_student_of_choices_is_exported_from_any_folder(tiny_model, tmp_path, monkeypatch, method):
    home = make_home(tmp_path, tiny_model, {"copa": (COPA, method, 4)})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    backbone = ("--backbone", str(home / "backbone"))
    assert run("export-student", str(home / "copa"), "--to", "folder", *backbone)[0] == 0
    rows = (["It rains."], [("It is wet.", "It is dry.")])
    wanted = kdcache.load_student(home / "copa", backbone=home / "backbone").logits(*rows)
    shutil.rmtree(home / "backbone")
    np.testing.assert_allclose(kdcache.load_student(home / "copa-folder").logits(*rows), wanted, atol=1e-5)


def test_what_cannot_be_exported_is_one_line(distilled_project):
    student = "runs/cb/kl+gram-0"
    assert "--to onnx" in fails("export-student", student, "--to", "folder", "--int8")
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("x")
    Path("mine/model.onnx").write_text("x")  # of anybody
    before = all_files()
    for inside in (f"{student}/portable", f"{student}/../kl+gram-0/a/b"):
        assert "outside" in fails("export-student", student, "--to", "folder", "--out", inside)
        assert all_files() == before
    for form in ("onnx", "folder"):
        for place in ("mine", "mine/thesis.txt", student, "runs/cb/head-0"):
            assert "earlier export" in fails("export-student", student, "--to", form, "--out", place)
            assert all_files() == before
    shutil.rmtree("data")
    assert "kdcache prepare" in fails("export-student", student, "--to", "onnx", "--int8")
