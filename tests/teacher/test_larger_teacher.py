"""A teacher of another architecture, size and tokenizer than its students."""

from pathlib import Path

from conftest import build_tiny_model, build_tokenizer, run, sample_words
from tokenizers import models, trainers
from transformers import AutoTokenizer

from kdcache.cache.reader import load_cache


def build_wider(folder: Path) -> Path:
    """A RoBERTa of 24 dims and 3 layers that reads pieces of words."""
    build_tiny_model(folder, num_layers=3, architecture="roberta", hidden_size=24)
    tokenizer = build_tokenizer("roberta")
    inner = tokenizer.backend_tokenizer
    inner.model = models.BPE(unk_token="<unk>")
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    inner.train_from_iterator(sample_words(), trainers.BpeTrainer(vocab_size=300, special_tokens=special))
    tokenizer.save_pretrained(str(folder))
    return folder


def test_students_learn_from_a_teacher_with_another_tokenizer(built_project):
    built_project("prepare", "shrink")
    build_wider(Path("wider"))
    text = "The mayor said that it rained."
    assert len(AutoTokenizer.from_pretrained("wider")(text)["input_ids"]) > len(
        AutoTokenizer.from_pretrained("tiny")(text)["input_ids"]
    )
    of_teacher = ("--set", "train_teacher.model=wider", "--set", "train_teacher.folds=0")
    for verb in ("teach", "cache"):
        assert run(verb, "--task", "cb", *of_teacher)[0] == 0
    cached = load_cache("cache/cb", "train")
    assert cached.rows.features.shape[1] == 24
    arms = ("--arm", "kl", "--arm", "feature_mse", "--seed", "0")
    assert run("distill", "--task", "cb", *arms, *of_teacher)[0] == 0
    for arm in ("kl", "feature_mse"):  # the second compares 24 features with 16
        assert Path(f"runs/cb/{arm}-0/result.json").is_file()
