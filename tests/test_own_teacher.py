"""The guide docs/reference/own-teacher.md, as a user types it: every block of it runs."""

import csv
import json
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import ROOT, build_tiny_model, run
from smoke import environment
from tiny_llm import serving, write_gguf

from kdcache.cache.reader import load_cache

GUIDE = (ROOT / "docs" / "reference" / "own-teacher.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```", GUIDE, flags=re.DOTALL | re.MULTILINE)
PROGRAMS = {title: text for language, title, text in BLOCKS if language == "python"}
SECTIONS = [yaml.safe_load(text) for language, _, text in BLOCKS if language == "yaml"]
WORDS = {"positive": "good fine lovely quick warm quiet", "negative": "bad broken rude slow cold loud"}


def write_reviews(path: Path, labelled: int = 100, rows: int = 400) -> None:
    """Write a CSV of different reviews, of which only the first have a label."""
    rng, seen = random.Random(0), {}
    things = ["room", "meal", "staff", "view", "bed", "pool", "bath", "desk", "lamp", "door"]
    while len(seen) < rows:
        label = rng.choice(sorted(WORDS))
        first, second = rng.sample(WORDS[label].split(), 2)
        seen[f"The {rng.choice(things)} was {first}, and the {rng.choice(things)} {second}."] = label
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", "label"])
        table.writerows((text, label if i < labelled else "") for i, (text, label) in enumerate(seen.items()))


def set_params(section: dict[str, object]) -> None:
    """Write keys of the top level into params.yaml, as the guide shows them."""
    path = Path("params.yaml")
    text = path.read_text()
    for key, value in section.items():
        shown = yaml.safe_dump({key: value}, default_flow_style=True, width=1000).strip()[1:-1]
        text, count = re.subn(rf"^{key}:.*$", shown, text, flags=re.MULTILINE)
        assert count == 1, key
    path.write_text(text)


def hub_model(home: Path, name: str, **config: object) -> Path:
    """Put a tiny model where the hub's client keeps what it downloaded."""
    folder = home / "hub" / f"models--{name.replace('/', '--')}"
    revision = "0" * 40
    build_tiny_model(folder / "snapshots" / revision, **config)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(revision)
    return home


def test_the_program_for_a_language_model_stays_short():
    assert len(PROGRAMS["llm.py"].splitlines()) < 60


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """Run lines of a shell in the current folder, as the guide's reader does; return what they print."""
    hub = hub_model(tmp_path / "home", "FacebookAI/roberta-large", architecture="roberta", hidden_size=24)
    monkeypatch.chdir(tmp_path)

    def sh(*lines: str, fails: bool = False) -> str:
        done = subprocess.run(
            ["bash", "-ec", "\n".join(lines)], capture_output=True, text=True, check=False,
            env=environment(Path()) | {"HF_HOME": str(hub), "HF_HUB_OFFLINE": "1", "COLUMNS": "200"},
        )  # fmt: skip
        assert bool(done.returncode) == fails, (lines, done.stdout[-2000:], done.stderr[-2000:])
        return done.stdout + done.stderr

    return sh


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_guide_from_a_table_to_an_evaluated_student(shell, monkeypatch):
    """400 rows, 100 of them labelled; nothing is edited but what the guide shows."""
    start, tuned, words, llm, several, pipeline = (
        text.splitlines() for language, _, text in BLOCKS if language == "sh"
    )
    write_reviews(Path("reviews.csv"))
    shell(*start)
    monkeypatch.chdir("reviews")

    # Teachers that are fine-tuned here: larger than the students, of another architecture and tokenizer.
    build_tiny_model(Path("path/to/encoder"), num_layers=3, architecture="mpnet")
    assert tuned[0].endswith("FacebookAI/roberta-large")
    for line in tuned:
        shell(f"{line} --set train_teacher.epochs=1 --set train_teacher.pooling=cls")
    assert load_cache("cache/reviews", "train").rows.features.shape[1] == 16
    shutil.rmtree("cache")
    shutil.rmtree("models")

    Path("words.py").write_text(PROGRAMS["words.py"])
    assert "import_teacher: {reviews: {path: outside/words.csv}}" in shell(*words[:2])
    shell(*words[2:])
    whole = {path.name: path.read_bytes() for path in Path("cache/reviews").iterdir()}
    # The pipeline would train one in its place, and stops.
    told = shell("dvc repro", fails=True)
    assert "cache/reviews: the cache was imported" in told
    assert "train_teacher" not in told
    assert {path.name: path.read_bytes() for path in Path("cache/reviews").iterdir()} == whole

    set_params(SECTIONS[0])
    out = shell(pipeline[0])
    assert "Running stage 'import_teacher@reviews'" in out
    assert "train_teacher@" not in out
    assert not Path("models/teacher").exists()
    assert {path.name: path.read_bytes() for path in Path("cache/reviews").iterdir()} == whole
    deps = yaml.safe_load(Path("dvc.lock").read_text())["stages"]["import_teacher@reviews"]["deps"]
    assert "outside/words.csv" in [dep["path"] for dep in deps]
    assert Path("reports/index.html").is_file()
    assert "kl" in shell("kdcache report")
    assert "kl over ce" in " ".join(shell(pipeline[1]).replace("`", "").split())
    assert "teacher" in shell(pipeline[2])
    look = json.loads(Path("evaluations/reviews-validation.json").read_text())["looks"][0]
    assert look["teacher"] == load_cache("cache/reviews", "train").manifest.teacher_digest
    assert "Running stage 'import" not in shell("dvc repro")
    assert "outside/words.csv" in shell("kdcache import outside/words.csv --task reviews", fails=True)

    # A language model beside it. That it gives a file such as this one is another test.
    rows = list(csv.DictReader(Path("outside/words.csv").read_text().splitlines()))
    with Path("outside/llm.csv").open("w") as file:
        file.write("example_id,content_hash,logprob_negative,logprob_positive\n")
        file.writelines(f"{row['example_id']},{row['content_hash']},-1.5,-0.75\n" for row in rows)
    set_params(SECTIONS[1])
    shell("dvc repro import_teacher@reviews")
    several_in_pipeline = Path("cache/reviews/manifest.json").read_bytes()
    set_params({"fine_tune": ["reviews"], "import_teacher": {}})
    shell(*several)
    assert Path("cache/reviews/manifest.json").read_bytes() == several_in_pipeline
    shell(llm[1])
    p = np.exp(load_cache("cache/reviews", "train").rows.logits)
    assert np.allclose(p, np.exp([-1.5, -0.75]) / np.exp([-1.5, -0.75]).sum(), atol=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("chat", [False, True])
def test_a_language_model_behind_a_real_server_becomes_a_cache(tmp_path, monkeypatch, chat):
    """llama.cpp's server; the same model in this process says what the numbers must be."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs: pip install llama-cpp-python[server] gguf")
    pytest.importorskip("gguf", reason="needs: pip install llama-cpp-python[server] gguf")
    write_gguf(tmp_path / "tiny.gguf", ["negative", "positive"])
    write_reviews(tmp_path / "reviews.csv", labelled=20, rows=30)
    monkeypatch.chdir(tmp_path)
    assert run("init", "reviews", "--table", "reviews.csv")[0] == 0
    monkeypatch.chdir("reviews")
    assert run("prepare")[0] == 0
    with serving(tmp_path / "tiny.gguf") as address:
        program = PROGRAMS["llm.py"].replace("http://localhost:8000/v1", address)
        Path("llm.py").write_text(program.replace("CHAT = False", f"CHAT = {chat}"))
        subprocess.run([sys.executable, "llm.py"], check=True, env=environment(Path()))
        far = program.replace("WORDS = {}", 'WORDS = {"positive": "üü"}')
        far = far.replace("outside/llm.csv", "outside/far.csv")
        subprocess.run([sys.executable, "-c", far], check=True, env=environment(Path()))
    with Path("outside/far.csv").open() as file:
        assert {row["logprob_positive"] for row in csv.DictReader(file)} == {""}  # not among the tokens

    assert run("import", "outside/llm.csv", "--task", "reviews", "--missing-mass", "renormalise")[0] == 0
    assert run("verify", "--task", "reviews")[0] == 0
    rows = load_cache("cache/reviews", "train").rows
    assert len(set(map(tuple, rows.logits.tolist()))) == len(rows)  # another text, other numbers
    if chat:
        return  # the server's template is its own
    model = llama_cpp.Llama(
        str(tmp_path / "tiny.gguf"), n_ctx=512, n_threads=1, logits_all=True, verbose=False
    )
    texts = dict(zip(*(pq.read_table("data/reviews/train.parquet")[name].to_pylist()
                       for name in ("example_id", "text")), strict=True))  # fmt: skip
    prompt = re.search(r'PROMPT = "(.*)"', program).group(1).replace("\\n", "\n")
    pieces = [model._model.token_get_text(k) for k in range(model.n_vocab())]
    of_words = [pieces.index(f"▁{word}") for word in ("negative", "positive")]
    for example_id, logits in zip(rows.example_id, rows.logits, strict=True):
        model.reset()
        tokens = model.tokenize(prompt.format(text=texts[example_id]).encode())
        model.eval(tokens)
        scores = model.scores[len(tokens) - 1]
        assert scores.argmax() in of_words
        two = scores[of_words]
        assert np.allclose(logits, two - np.logaddexp.reduce(two), atol=1e-3)
