"""Every method on every architecture, as the table in docs/reference/methods.md says, cell by cell."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ARCHITECTURES, ROOT, build_tiny_model
from engine import TASK, build_run, fit, make_rows, share_off
from specs import tiny_spec

from kdcache.encoder.batching import encode
from kdcache.encoder.load import load_tokenizer, setup
from kdcache.errors import ModelError
from kdcache.students.folder import load_folder, save_student
from kdcache.students.methods import METHODS
from kdcache.students.prompted_backbone import Backbone
from kdcache.students.prompts import build_prompt
from kdcache.students.row_prompts import RowPrompts
from kdcache.students.student import Student, build_student, predict

FIRST = ["the bank of the river", "a bat", "a crane on a tree", "seal", "the match", "bank", "river", "bat"]
SECOND = ["bank", "", "the crane", "a seal the match the bank", "", "bat", "", "tree"]
TOKENS = 4  # those of tiny_spec
FEW_STEPS = {"epochs": 1}
ENCODERS = tuple(ARCHITECTURES)
TAKES_PREFIXES = ENCODERS[:5]
PLACES = [(name, place) for name in ENCODERS for place in ("states", "input")]
PLACES += [(name, place) for name in TAKES_PREFIXES for place in ("deep", "late")]
METHOD_AT = {"deep": "prefix", "late": "late_prefix", "states": "deep_prompt", "input": "prompt"}
AS_DEEP, REFUSED = "as `deep_prompt", "–"


def table() -> dict[tuple[str, str], str]:
    """(architecture, method) → the cell in docs/reference/methods.md."""
    text = (ROOT / "docs" / "reference" / "methods.md").read_text(encoding="utf-8")
    lines = text.split("<!-- matrix -->")[1].split("<!-- /matrix -->")[0].strip().splitlines()
    head, _, *rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]
    return {(row[0], m): cell for row in rows for m, cell in zip(head[1:], row[1:], strict=True)}


TABLE = table()
CELLS = {
    (name, method, pooling): loader
    for (name, method), cell in TABLE.items() if cell not in (AS_DEEP, REFUSED)
    for pooling, loader in zip(("cls", "mean"), cell.split(" / "), strict=True)
}  # fmt: skip
# One cell per architecture, and each method at least once; the others are slow.
BY_DEFAULT = {
    ("bert", "prefix", "mean"), ("minilm", "prompt", "mean"), ("roberta", "lora", "cls"),
    ("xlm-roberta", "head", "mean"), ("electra", "p_tuning", "cls"), ("deberta", "full", "mean"),
    ("deberta-v2", "prompt", "cls"), ("modernbert", "lora", "mean"), ("mpnet", "deep_prompt", "mean"),
    ("distilbert", "deep_prompt", "cls"), ("albert", "deep_prompt", "mean"), ("bert", "late_prefix", "cls"),
    ("electra", "late_prefix", "mean"),
}  # fmt: skip


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An architecture's folder and a few rows, built once."""
    root = tmp_path_factory.mktemp("architectures")

    @cache
    def build(architecture: str) -> SimpleNamespace:
        folder = build_tiny_model(root / architecture, architecture=architecture)
        encoded = encode(load_tokenizer(folder), FIRST, SECOND, max_length=32)
        return SimpleNamespace(folder=folder, encoded=encoded)

    return build


def untrained(part: SimpleNamespace, shared: Backbone, method: str, **changes: Any) -> Student:
    """A student over an architecture's backbone; ``changes`` are those of ``tiny_spec``."""
    return build_student(tiny_spec(method, **changes), 3, 0, part.folder, shared, part.encoded)


def bits(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def changed(module: torch.nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}


def test_the_table_is_whole():
    assert set(TABLE) == {(name, method) for name in ENCODERS for method in METHODS}
    for text, method in ((AS_DEEP, "prefix"), (REFUSED, "late_prefix")):
        others = {(name, method) for name in ENCODERS if name not in TAKES_PREFIXES}
        assert {cell for cell, found in TABLE.items() if found == text} == others


@pytest.mark.parametrize(
    ("architecture", "method", "pooling"),
    [cell if cell in BY_DEFAULT else pytest.param(*cell, marks=pytest.mark.slow) for cell in CELLS],
)
def test_it_trains_only_what_it_should_and_reloads_to_the_same_logits(
    tiny, architecture, method, pooling, tmp_path, monkeypatch
):
    part = tiny(architecture)
    monkeypatch.chdir(part.folder.parent)
    shared = Backbone.load(part.folder, pooling)
    labels = [row % 3 for row in range(len(FIRST))]
    run = build_run(part.folder, shared, make_rows(part.encoded, labels, shared), method, **FEW_STEPS)
    student = run.student
    frozen, before = bits(shared.encoder), bits(student)
    own = {p for p in student.parameters() if p.requires_grad}
    moving = own if student.tuned else set()  # the control is a probe, fitted already
    mine = {name for name, p in student.named_parameters(remove_duplicate=False) if p in moving}
    assert own == {*student.tuned, *student.head_parameters}
    untrained = predict(student, part.encoded, 8)
    fit(run)
    assert changed(shared.encoder, frozen) == set()
    assert changed(student, before) == mine, "all that requires a gradient moves, nothing else"
    logits = predict(student, part.encoded, 8)
    assert (np.abs(logits - untrained).max() > 1e-3) == bool(student.tuned)

    folder = tmp_path / "student"
    about = {"task": TASK, "max_length": 32}
    card = {"task": "tiny", "arm": "a", "seed": "0"}
    assert save_student(student, folder, part.folder, about, card, part.encoded) == {}
    reloaded = load_folder(folder)[0]
    assert share_off(predict(reloaded, part.encoded, 8), logits) < 1e-5
    if METHODS[method].place:  # p_tuning's MLP is gone, its sum is there
        assert torch.equal(reloaded.prompt(), student.prompt())
    if METHODS[method].place in ("deep", "input"):
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["peft_type"] == ("PREFIX_TUNING" if method == "prefix" else "PROMPT_TUNING")
        width = 16 if method == "prefix" else ARCHITECTURES[architecture][1].get("embedding_size", 16)
        assert config["token_dim"] == width
    assert METHODS[method].loader(pooling) == CELLS[architecture, method, pooling]  # who loaded it above


@pytest.mark.parametrize("method", ["prefix", "late_prefix"])
def test_keys_and_values_are_refused_where_the_encoder_takes_none(tiny, method):
    part = tiny("modernbert")
    with pytest.raises(ModelError) as error:
        untrained(part, Backbone.load(part.folder), method)
    assert str(error.value) == (
        f"distill.method: the backbone of {method} must be one of bert, roberta, xlm-roberta, camembert, "
        "electra, got modernbert, which takes no keys and values. Use deep_prompt."
    )


@pytest.mark.parametrize(
    ("architecture", "method", "most"),
    [
        ("bert", "prefix", 96), ("bert", "prompt", 96), ("electra", "prefix", 96),
        ("roberta", "prefix", 94), ("xlm-roberta", "prompt", 94), ("roberta", "head", 94),
        ("deberta-v2", "prompt", 96), ("mpnet", "deep_prompt", 94), ("albert", "deep_prompt", 96),
    ],
)  # fmt: skip
def test_positions_run_out_where_the_table_says(tiny, architecture, method, most):
    """One token less, and the longest row there can be goes through; one more is refused."""
    part = tiny(architecture)
    shared = Backbone.load(part.folder)
    longest = most - (0 if method == "head" else TOKENS)
    student = untrained(part, shared, method, max_length=longest)
    row = encode(part.encoded.tokenizer, ["the " * 200], None, max_length=longest)
    assert np.isfinite(predict(student, row, 1)).all()
    with pytest.raises(ModelError) as error:
        untrained(part, shared, method, max_length=longest + 1)
    tokens, either = (
        ("", "") if method == "head" else (" + num_virtual_tokens", " or distill.num_virtual_tokens")
    )
    assert str(error.value) == (
        f"distill: max_length{tokens} must be at most the {most} positions of the backbone, "
        f"got {most + 1}. Lower distill.max_length{either}."
    )


def prompts_of(place: str, backbone: Backbone, encoded: Any, lengths: tuple[int, ...]) -> list[torch.Tensor]:
    method = METHOD_AT[place]
    made = (build_prompt(method, place, backbone, n, encoded, seed=n, late_layers=1) for n in lengths)
    return [prompt().detach() for prompt in made]


@pytest.mark.parametrize(
    ("architecture", "place", "pooling"),
    [
        # Half of the cells: each architecture, place and pooling, and each two of them.
        pytest.param(name, place, pooling, marks=[] if of_default else pytest.mark.slow)
        for name, place in PLACES
        for pooling in ("cls", "mean")
        for of_default in [(ENCODERS.index(name) + (place == "input") + (pooling == "mean")) % 2]
    ],
)
def test_a_row_sees_its_own_prompt_and_text_alone(tiny, architecture, place, pooling):
    """Prompts of several lengths, none at all, and padding in one batch: each row as if alone, unpadded."""
    part = tiny(architecture)
    backbone = Backbone.load(part.folder, pooling)
    backbone.encoder.double()
    prompts: list[Any] = [prompt.double() for prompt in prompts_of(place, backbone, part.encoded, (5, 2, 4))]
    prompts.append(None)
    batch = part.encoded.batch(range(len(FIRST)))
    rows = RowPrompts.of(place, prompts, [2] * 4)
    rows.values[rows.mask == 0] = 7.0  # what stands under the mask must not matter
    together = backbone.pooled(batch, rows)
    for row in range(len(FIRST)):
        real = batch["attention_mask"][row].bool()
        alone = {name: value[row, real][None] for name, value in batch.items()}
        prompt = prompts[row // 2]
        own = None if prompt is None else RowPrompts.of(place, [prompt], [1])
        assert (backbone.pooled(alone, own)[0] - together[row]).abs().max() < 1e-10


@pytest.mark.parametrize("architecture", ENCODERS)
def test_a_prompt_of_words_is_these_words_after_cls(tiny, architecture):
    """So [CLS] is what heads read, and positions and segments are those of a text."""
    part = tiny(architecture)
    backbone = Backbone.load(part.folder)
    words = torch.tensor(part.encoded.tokenizer.convert_tokens_to_ids(["river", "on", "tree"]))
    batch = part.encoded.batch(range(len(FIRST)))
    prompt = backbone.encoder.get_input_embeddings()(words)
    prompted = backbone.pooled(batch, RowPrompts.of("input", [prompt], [len(FIRST)]))

    def after_cls(name: str, inserted: torch.Tensor) -> torch.Tensor:
        own = batch[name]
        return torch.cat([own[:, :1], inserted.expand(len(own), -1), own[:, 1:]], dim=1)

    ones = torch.ones_like(words)
    inserted = {"input_ids": words, "attention_mask": ones, "token_type_ids": 0 * ones}
    text = backbone.pooled({name: after_cls(name, inserted[name]) for name in batch})
    assert (prompted - text).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("architecture", "place"),
    [(name, place) for name, place in PLACES if name in ("bert", "minilm", "electra")],
)
def test_segments_survive_a_prompt(tiny, architecture, place):
    part = tiny(architecture)
    backbone = Backbone.load(part.folder)
    rows = RowPrompts.of(place, prompts_of(place, backbone, part.encoded, (TOKENS,)), [len(FIRST)])
    batch = part.encoded.batch(range(len(FIRST)))
    whole = backbone.pooled(batch, rows)
    one_segment = backbone.pooled({**batch, "token_type_ids": batch["token_type_ids"] * 0}, rows)
    is_pair = torch.tensor([bool(second) for second in SECOND])
    moved = (whole - one_segment).abs().amax(dim=1)
    assert (moved[is_pair] > 1e-3).all()
    assert (moved[~is_pair] == 0).all()


@pytest.mark.parametrize("architecture", ENCODERS)
def test_the_last_layer_is_shortened_in_berts_layers_alone(tiny, architecture):
    assert bool(Backbone.load(tiny(architecture).folder)._last_attention) == (architecture in TAKES_PREFIXES)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize(("architecture", "place"), [cell for cell in PLACES if cell[0] in TAKES_PREFIXES])
def test_the_last_layer_for_what_is_read_alone_is_exact(tiny, architecture, place, pooling):
    part = tiny(architecture)
    fast, full = (Backbone.load(part.folder, pooling) for _ in range(2))
    for encoder in (fast.encoder, full.encoder):
        encoder.double()
    full._last_attention = []
    batch = part.encoded.batch(range(len(FIRST)))
    prompts = [prompt.double() for prompt in prompts_of(place, full, part.encoded, (TOKENS, 2))]
    for lengths in ([len(FIRST), 0], [3, len(FIRST) - 3]):
        rows = RowPrompts.of(place, prompts[: 1 + bool(lengths[1])], lengths[: 1 + bool(lengths[1])])
        assert (fast.pooled(batch, rows) - full.pooled(batch, rows)).abs().max() < 1e-12
    assert (fast.pooled(batch) - full.pooled(batch)).abs().max() < 1e-12


@pytest.mark.parametrize("architecture", ENCODERS)
def test_lora_adapts_the_encoder_and_trains_the_head(tiny, architecture):
    """No module is both adapted and trained whole; every Linear of the encoder is adapted."""
    part = tiny(architecture)
    student = untrained(part, Backbone.load(part.folder), "lora")
    trained = {name for name, p in student.model.named_parameters() if p.requires_grad}
    adapted = {name for name in trained if "lora_" in name}
    assert adapted
    assert not [name for name in adapted if "modules_to_save" in name or "original_module" in name]
    in_head = {id(p) for p in student.head.parameters() if p.requires_grad}
    by_name = dict(student.model.named_parameters())
    assert {id(by_name[name]) for name in trained - adapted} == in_head
    assert not {id(by_name[name]) for name in adapted} & {id(p) for p in student.head.parameters()}


def save_some(backbone: Path, folder: Path) -> None:
    """Untrained students of the methods whose PEFT configs hold sets, into folders of their names."""
    setup(threads=1)  # another count gives other bits, and tests before this one have set theirs
    encoded = encode(load_tokenizer(backbone), FIRST, SECOND, max_length=32)
    for method in ("prefix", "lora"):
        student = build_student(tiny_spec(method), 3, 0, backbone, Backbone.load(backbone), encoded)
        card = {"task": "tiny", "arm": "a", "seed": "0"}
        save_student(student, folder / method, backbone, {"task": TASK, "max_length": 32}, card, encoded)


@pytest.mark.slow
def test_a_folder_has_the_same_bytes_in_every_process(tiny, tmp_path, monkeypatch):
    """Here, and there with another hash seed: no order of a set reaches a file."""
    backbone = tiny("roberta").folder
    monkeypatch.chdir(backbone.parent)
    save_some(Path("roberta"), tmp_path / "here")
    there = str(tmp_path / "there")
    code = f"import test_matrix as t; t.save_some(t.Path('roberta'), t.Path({there!r}))"
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests" / "students")))
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": paths}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    here, there = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (tmp_path / "here", tmp_path / "there")
    )
    assert here == there
    assert {path.parts[0] for path in here} == {"prefix", "lora"}
