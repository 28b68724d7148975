"""What a teacher cannot read or cache is found before its first step, in whatever split it stands."""

from pathlib import Path

import pytest
import transformers
from conftest import build_tiny_model, build_tokenizer, fails, run
from transformers import CanineConfig, CanineModel, CanineTokenizer, GPT2Config, GPT2Model
from transformers import PreTrainedTokenizerFast as Fast

LONG = "the bank near the river " * 40
TASK = """
splits = {train = "mine.csv", test = "test.csv"}
holdout = {fraction = 0.2}
text = "text"
label = "label"
"""
OWN = ("--task", "mine", "--set", "tasks=[mine]", "--set", "train_teacher.folds=0")


@pytest.fixture
def prepared(project, monkeypatch):
    """A prepared task with the long rows in one split; no step of training may be taken."""

    def make(long_in: str = "") -> Path:
        folder = project()
        (folder / "tasks").mkdir(exist_ok=True)
        (folder / "tasks" / "mine.toml").write_text(TASK)
        for split, rows in (("mine", 40), ("test", 4)):
            lines = [f"the bat {i},{'ny'[i % 2]}\n" for i in range(rows)]
            lines[3] = f"{LONG},y\n" if split == long_in else lines[3]
            (folder / "tasks" / f"{split}.csv").write_text("text,label\n" + "".join(lines))
        assert run("prepare", *OWN)[0] == 0
        monkeypatch.setattr(transformers.Trainer, "training_step", None)
        return folder

    return make


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize("long_in", ["mine", "test"])
def test_positions_run_out_before_the_first_step(prepared, architecture, long_in):
    build_tiny_model(prepared(long_in) / "base", architecture=architecture, **(
        {"max_position_embeddings": 96} if architecture == "distilbert" else {}
    ))  # fmt: skip
    error = fails("teach", *OWN, "--set", "train_teacher.model=base", "--set", "train_teacher.max_length=128")
    assert "max_length" in error
    assert "128" in error


def test_rows_that_fit_are_no_reason_to_refuse(prepared, monkeypatch):
    folder = prepared()
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    assert run("teach", *OWN, "--set", "train_teacher.max_length=500")[0] == 0


def test_ids_beyond_the_embeddings(prepared):
    folder = prepared()
    build_tiny_model(folder / "small", vocab_size=50)
    error = fails("teach", *OWN, "--set", "train_teacher.model=small")
    assert "50 embeddings" in error


def test_a_slow_tokenizer(prepared):
    folder = prepared()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    CanineModel(CanineConfig(**sizes, num_hash_buckets=64)).save_pretrained(folder / "canine")
    CanineTokenizer().save_pretrained(folder / "canine")
    assert "CanineTokenizer" in fails("teach", *OWN, "--set", "train_teacher.model=canine")


def gpt2(folder: Path, **tokens: str) -> None:
    tokenizer = Fast(tokenizer_object=build_tokenizer().backend_tokenizer, unk_token="[UNK]", **tokens)
    sizes = {"vocab_size": len(tokenizer), "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 96}
    GPT2Model(GPT2Config(**sizes, bos_token_id=2, eos_token_id=3)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def test_a_model_that_cannot_be_cached(prepared):
    folder = prepared()
    gpt2(folder / "gpt", cls_token="[CLS]", pad_token="[PAD]")
    error = fails("teach", *OWN, "--set", "train_teacher.model=gpt")
    assert "gpt" in error


def test_a_token_to_pad_with_is_found(prepared, monkeypatch):
    folder = prepared()
    gpt2(folder / "gpt", eos_token="[SEP]")
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    own = (*OWN, "--set", "train_teacher.model=gpt", "--set", "train_teacher.pooling=mean")
    code, _, error = run("teach", *own)
    assert code == 0
    assert "[SEP]" in error
    assert run("cache", *own)[0] == 0
