"""Tiny models built from a config, never downloaded, a project folder around them, and its commands."""

import contextlib
import gc
import json
import os
import shutil
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast
from typer.testing import CliRunner

from kdcache.cli import app
from kdcache.data.superglue import SUPERGLUE
from kdcache.data.task import Task
from kdcache.data.taskfile import read_task_file
from kdcache.params import read_params

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT / "sample"
torch.set_num_threads(1)  # on models this small, a second thread only waits


def superglue_task(name: str) -> Task:
    """A task of SuperGLUE, without its rows."""
    return read_task_file(SUPERGLUE[name]).task(name)


@cache
def sample_words() -> list[str]:
    """The words of the sample corpus: the vocabulary of the tiny tokenizer."""
    pieces = pre_tokenizers.BertPreTokenizer()
    text = " ".join(path.read_text(encoding="utf-8") for path in sorted(SAMPLE.rglob("*.jsonl")))
    return sorted({word for word, _ in pieces.pre_tokenize_str(text.lower())})


# What tells the architectures apart, in 16 dims and 2 layers.
SMALL = {
    "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 96,
    "initializer_range": 0.2,
}  # fmt: skip
RELATIVE = {  # as DeBERTa-v3 has it: positions are told by distance alone
    **SMALL, "type_vocab_size": 0, "relative_attention": True, "position_biased_input": False,
    "pos_att_type": ["p2c", "c2p"], "pooler_hidden_size": 16,
}  # fmt: skip
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", SMALL),
    "minilm": ("bert", {**SMALL, "num_attention_heads": 4, "intermediate_size": 64}),
    "roberta": ("roberta", {**SMALL, "type_vocab_size": 1}),
    "xlm-roberta": ("xlm-roberta", {**SMALL, "type_vocab_size": 1}),
    "electra": ("electra", {**SMALL, "embedding_size": 8}),
    "deberta": ("deberta", {**RELATIVE, "max_relative_positions": 32}),
    "deberta-v2": (
        "deberta-v2",
        {**RELATIVE, "position_buckets": 8, "share_att_key": True, "norm_rel_ebd": "layer_norm"},
    ),
    "modernbert": ("modernbert", {**SMALL, "local_attention": 8, "global_attn_every_n_layers": 2}),
    "distilbert": ("distilbert", {"dim": 16, "n_heads": 2, "hidden_dim": 32}),
    "albert": ("albert", {**SMALL, "embedding_size": 8}),
    "mpnet": ("mpnet", SMALL),
}
LIKE_ROBERTA = ("roberta", "xlm-roberta", "mpnet")


def build_tokenizer(architecture: str = "bert") -> PreTrainedTokenizerFast:
    """A word tokenizer with an architecture's own special tokens, their order and its inputs."""
    model_type = ARCHITECTURES[architecture][0]
    if model_type in LIKE_ROBERTA:
        cls, pad, sep, unk = special = ["<s>", "<pad>", "</s>", "<unk>"]
        single, pair = "<s> $A </s>", "<s> $A </s> </s> $B </s>"
    else:
        pad, unk, cls, sep = special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
        single, pair = "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"
    vocab = {word: i for i, word in enumerate([*special, *sample_words()])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=unk))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(token, vocab[token]) for token in (cls, sep)]
    )
    segments = [] if model_type in (*LIKE_ROBERTA, "modernbert", "distilbert") else ["token_type_ids"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, unk_token=unk, cls_token=cls, sep_token=sep,
        model_input_names=["input_ids", *segments, "attention_mask"],
    )  # fmt: skip


def build_tiny_model(
    folder: Path, num_layers: int = 2, seed: int = 0, architecture: str = "bert", **config: Any
) -> Path:
    """Write a random encoder of 16 dims, and a word tokenizer, as a plain transformers folder."""
    tokenizer = build_tokenizer(architecture)
    torch.manual_seed(seed)
    model_type, sizes = ARCHITECTURES[architecture]
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "cls", "sep")}
    ids |= {"bos_token_id": ids["cls_token_id"], "eos_token_id": ids["sep_token_id"]}
    layers = "n_layers" if model_type == "distilbert" else "num_hidden_layers"
    sizes = {**sizes, "vocab_size": len(tokenizer), layers: num_layers, **ids, **config}
    AutoModel.from_config(AutoConfig.for_model(model_type, **sizes)).save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return folder


def tiny_params(model: str, **sections: dict[str, Any]) -> dict[str, Any]:
    """params.yaml as shipped, made tiny: 32 rows, 1 epoch, 2 folds, one thread."""
    params = read_params(ROOT / "params.yaml")
    params["threads"] = 1
    params["tasks"], params["fine_tune"] = ["wic", "cb"], ["wic", "cb"]
    params["prepare"] |= {"max_rows": 32, "tune_fraction": 0.25}
    params["train_teacher"] |= {"model": model, "epochs": 1, "folds": 2, "max_length": 64, "lr": 1e-3}
    params["student_backbone"] |= {"model": model, "num_layers": 1, "max_length": 64}
    params["distill"] |= {
        "steps": None,
        "epochs": 1,
        "select": "last",
        "num_virtual_tokens": 4,
        "seeds": [0, 1],
        "max_length": 64,
    }
    params["distill"]["arms"]["feature_mse"] = {"feature": {"name": "feature_mse"}}
    for name, values in sections.items():
        params[name] = {**params[name], **values}
    return params


def write_params(folder: Path, **sections: dict[str, Any]) -> None:
    """Write the params.yaml of a tiny project."""
    text = yaml.safe_dump(tiny_params("tiny", **sections), sort_keys=False)
    (folder / "params.yaml").write_text(text)


def run(*arguments: str) -> tuple[int, str, str]:
    """Run ``kdcache`` in this process; return its exit code, stdout and stderr."""
    result = CliRunner().invoke(app, list(arguments))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def fails(*arguments: str) -> str:
    """Run what must be refused in one line; return that line."""
    code, _, error = run(*arguments)
    assert code == 1
    assert len(error.splitlines()) == 1, error
    return error.strip()


def pytest_collection_finish() -> None:
    """Hide what is imported by now from the collector: the Trainer calls it at each end of training."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """On tiny tensors a second thread gains nothing, and waits for the first at every operation."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer BERT of 16 dims."""
    return build_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


def write_project(folder: Path, tiny_model: Path, **sections: dict[str, Any]) -> Path:
    """Write a tiny project: params.yaml, its model and the sample; keyword arguments change sections."""
    shutil.copytree(tiny_model, folder / "tiny")
    without = shutil.ignore_patterns("unlabelled.jsonl")  # tests that need such rows say so
    shutil.copytree(SAMPLE, folder / "sample", ignore=without)
    write_params(folder, **sections)
    return folder


def run_all(folder: Path, *commands: list[str]) -> None:
    """Run commands in a folder; each must succeed."""
    with contextlib.chdir(folder):
        for command in commands:
            code, out, error = run(*command)
            assert code == 0, (command, out, error)


@pytest.fixture
def in_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Go to a fresh folder in memory: on a busy disk each file that is written again is waited for."""
    place = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=place if os.access(place, os.W_OK) else None))
    monkeypatch.chdir(folder)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def project(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Make a tiny project in a fresh folder and go there; keyword arguments change sections."""

    def make(name: str = "project", **sections: dict[str, Any]) -> Path:
        folder = write_project(tmp_path / name, tiny_model, **sections)
        monkeypatch.chdir(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def build_once(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Callable[..., Path]:
    """Build a tiny project up to some command, once per session and parameters; nobody may change it."""
    built: dict[str, Path] = {}

    def build(commands: tuple[str, ...], **sections: dict[str, Any]) -> Path:
        key = json.dumps([commands, sections], sort_keys=True)
        if key not in built:
            folder = tmp_path_factory.mktemp("built") / "project"
            if commands:
                shutil.copytree(build(commands[:-1], **sections), folder)
                run_all(folder, commands[-1].split())
            else:
                write_project(folder, tiny_model, **sections)
            built[key] = folder
        return built[key]

    return build


@pytest.fixture
def built_project(
    build_once: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """Copy a project of ``build_once`` and go there; keyword arguments change sections."""

    def make(*commands: str, name: str = "project", **sections: dict[str, Any]) -> Path:
        folder = tmp_path / name
        early = {key: value for key, value in sections.items() if key not in ("distill", "report")}
        shutil.copytree(build_once(commands, **early), folder)
        write_params(folder, **sections)
        monkeypatch.chdir(folder)
        return folder

    return make


@pytest.fixture
def cached_project(built_project: Callable[..., Path]) -> Callable[..., Path]:
    """Make a tiny project as ``project`` does, up to the backbone and the cache of one task."""

    def make(task: str = "cb", name: str = "project", **sections: dict[str, Any]) -> Path:
        commands = ("prepare", f"teach --task {task}", f"cache --task {task}", "shrink")
        return built_project(*commands, name=name, **sections)

    return make


@pytest.fixture
def distilled_project(built_project: Callable[..., Path]) -> Path:
    """A project with the students of two arms of cb in runs/cb."""
    commands = ("prepare", "teach --task cb", "cache --task cb", "shrink")
    return built_project(*commands, "distill --task cb --arm head --arm kl+gram --seed 0")


@pytest.fixture
def write_jsonl() -> Callable[[Path, list[Any]], Path]:
    """Write rows (or raw lines) as JSON lines, making folders on the way."""

    def write(path: Path, rows: list[Any]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return path

    return write


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A store that speaks S3; returns the options of a URI in it."""
    from moto.server import ThreadedMotoServer

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    # What an earlier test of this process left would be there still.
    urllib.request.urlopen(f"http://{host}:{port}/moto-api/reset", data=b"").close()
    yield f"scheme=http&endpoint_override={host}:{port}&allow_bucket_creation=true&region=us-east-1"
    server.stop()
