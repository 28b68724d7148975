"""Layers are chosen as asked, and a cut keeps what each of them does."""

import pytest
import torch
from conftest import SMALL
from encoders import ENCODERS, build, read_texts, states_of
from transformers import AlbertConfig, AutoModel

from kdcache.backbone.cut import choose_layers, cut
from kdcache.encoder.load import load_encoder
from kdcache.errors import ModelError, ParamsError

STACKS = {"modernbert": "layers", "distilbert": "transformer.layer"}


@pytest.mark.parametrize("name", [name for name in ENCODERS if name != "albert"])
def test_cut_is_the_full_one_without_the_other_layers(name, tmp_path):
    """Every kept layer maps the same states to the same states as in the full model."""
    folder = build(name, tmp_path / "model")
    full, texts = load_encoder(folder), read_texts(folder)
    keep = (0, 2, 3)
    layers = dict(full.named_modules())[STACKS.get(name, "encoder.layer")]
    smaller = cut(full, keep)
    if name == "modernbert":
        assert smaller.config.layer_types == [full.config.layer_types[k] for k in keep]
    # the dropped layer hands its input on
    tuples = name in ("deberta-v2", "mpnet")
    layers[1].forward = lambda states, *_args, **_kwargs: (states, None) if tuples else states
    torch.testing.assert_close(states_of(smaller, texts), states_of(full, texts))


def test_layers_are_chosen_as_asked():
    assert choose_layers("first", 2, 6) == (0, 1)
    assert choose_layers("spread", 4, 12) == (0, 4, 7, 11)
    assert choose_layers("spread", 6, 6) == tuple(range(6))
    assert choose_layers([1, 4], 2, 6) == (1, 4)
    with pytest.raises(
        ParamsError, match=r"^student_backbone.num_layers: it must be at most the model's 2 layers, got 3."
    ):
        choose_layers("first", 3, 2)
    for wrong in ([1], [4, 1], [1, 1], [1, 6]):
        with pytest.raises(ParamsError, match=r"must be 2 ascending numbers from 0 to 5, got \["):
            choose_layers(wrong, 2, 6)


def test_a_shared_layer_is_repeated_less_often(tmp_path):
    folder = build("albert", tmp_path / "model")
    full, texts = load_encoder(folder), read_texts(folder)
    smaller = cut(full, (0, 2, 3))
    assert smaller.config.num_hidden_layers == 3
    assert full.config.num_hidden_layers == 4
    with torch.no_grad():
        wanted = full(**texts.batch(range(len(texts))), output_hidden_states=True).hidden_states[3]
    torch.testing.assert_close(states_of(smaller, texts), wanted)


def test_what_cannot_be_cut_is_refused(tmp_path):
    config = AlbertConfig(vocab_size=9, num_hidden_layers=4, num_hidden_groups=2, **SMALL)
    shared = AutoModel.from_config(config)
    with pytest.raises(ModelError, match=r"must be one stack of 4 layers, got albert, which has 0 of them"):
        cut(shared, (0, 1))
    modern = load_encoder(build("modernbert", tmp_path / "model"))
    with pytest.raises(
        ModelError,
        match=r"must make a modernbert of 2 layers, got \[1, 3\] \(.*attn_norm.*\). Keep layer 0, or",
    ):
        cut(modern, (1, 3))
