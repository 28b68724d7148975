"""What SECURITY.md promises."""

import ast
import json
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from builders import rows, write
from conftest import ROOT
from served import WIC, make_home

from kdcache.cache.manifest import MANIFEST
from kdcache.cache.read_outputs import read_outputs
from kdcache.cache.reader import load_cache
from kdcache.cache.verify import verify_cache
from kdcache.digests import file_digest, value_digest
from kdcache.errors import CacheCorrupt, DataError, KdcacheError, ParamsError
from kdcache.plain_yaml import parse_yaml
from kdcache.serve.pool import load_student


class Bomb:
    """What runs when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("ran"),)


@pytest.fixture(autouse=True)
def nothing_ran(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / "ran").exists()


def test_digests_find_damage_and_not_forgery(tmp_path: Path):
    write(tmp_path / "wic", tmp_path)
    path = tmp_path / "wic" / "train.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    with pytest.raises(CacheCorrupt, match="sha256"):
        load_cache(tmp_path / "wic", "train")
    path.write_bytes(whole)
    # Whoever writes the files writes matching digests: only the pinned digest tells.
    body = json.loads((tmp_path / "wic" / MANIFEST).read_bytes())
    pinned = body.pop("digest")
    body["identity"]["model"] = "another"
    forged = json.dumps(body | {"digest": value_digest(body)}, indent=2, sort_keys=True) + "\n"
    (tmp_path / "wic" / MANIFEST).write_text(forged)
    assert not [check for check in verify_cache(tmp_path / "wic") if check.problem]
    assert load_cache(tmp_path / "wic", "train").manifest.digest != pinned


def test_row_groups_beyond_the_format_are_refused(tmp_path: Path, monkeypatch):
    """They bound what a reader holds."""
    monkeypatch.setattr("kdcache.cache.writer.ROW_GROUP_ROWS", 4)
    write(tmp_path / "wic", tmp_path, rows(10))
    problems = [check.problem for check in verify_cache(tmp_path / "wic") if check.problem]
    assert len(problems) == 1
    assert "row groups of 4, 4, 2 rows" in problems[0]
    with pytest.raises(CacheCorrupt, match="row groups"):
        load_cache(tmp_path / "wic", "train")


def test_nothing_is_unpickled(tmp_path: Path):
    np.savez(tmp_path / "x.npz", example_id=np.array(["a"]), logits=np.array([[Bomb(), 1]], object))
    with pytest.raises(DataError, match="unpickled"):
        read_outputs(tmp_path / "x.npz", ("no", "yes"))
    with zipfile.ZipFile(tmp_path / "y.npz", "w") as file:
        file.writestr("logits.npy", pickle.dumps(Bomb()))
    with pytest.raises(DataError):
        read_outputs(tmp_path / "y.npz", ("no", "yes"))
    with pytest.raises(ParamsError):
        parse_yaml("!!python/object/apply:pathlib.Path.touch [ran]", "x.yaml")


def test_no_code_of_ours_unpickles_what_comes_from_elsewhere():
    """numpy.load is told so each time, and torch.load reads kdcache's own checkpoints only, as tensors."""
    for path in (ROOT / "kdcache").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func)
            told = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            assert not re.search(r"pickle\.loads?$|^(eval|exec)$|yaml\.unsafe_load|joblib\.load", name), path
            if name == "np.load":
                assert told.get("allow_pickle", "False") == "False", path
            if name == "torch.load":
                assert told.get("weights_only", "True") == "True", path
            if name.endswith((".from_pretrained", ".from_config")):
                assert told.get("trust_remote_code") == "False", path


def test_no_code_of_a_model_folder_runs(tmp_path: Path, tiny_model: Path):
    make_home(tmp_path, tiny_model, {"prefix": (WIC, "prefix", 4)})
    backbone = tmp_path / "backbone"
    (backbone / "theirs.py").write_text("from pathlib import Path\nPath('ran').touch()\nclass Model: ...\n")
    config = json.loads((backbone / "config.json").read_text())
    theirs = {
        "AutoConfig": "theirs.Model",
        "AutoModel": "theirs.Model",
        "AutoTokenizer": ["theirs.Model", None],
    }
    theirs["AutoModelForSequenceClassification"] = "theirs.Model"
    (backbone / "config.json").write_text(json.dumps(config | {"auto_map": theirs}))
    load_student("prefix")
    (backbone / "config.json").write_text(json.dumps(config | {"auto_map": theirs, "model_type": "theirs"}))
    with pytest.raises((KdcacheError, ValueError)):
        load_student("prefix")


def test_weights_that_are_pickles_are_not_read(tmp_path: Path, tiny_model: Path):
    make_home(tmp_path, tiny_model, {"prefix": (WIC, "prefix", 4)})
    weights = tmp_path / "prefix" / "adapter_model.safetensors"
    weights.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(KdcacheError):
        load_student("prefix")
    weights.rename(weights.with_name("adapter_model.bin"))
    with pytest.raises(KdcacheError):
        load_student("prefix")
    assert file_digest(weights.with_name("adapter_model.bin"))


def test_nothing_is_fetched_that_the_user_did_not_name(tmp_path: Path, tiny_model: Path, monkeypatch):
    """Whatever a folder's files name: the base of an adapter, a config's kernels."""
    make_home(tmp_path, tiny_model, {"prefix": (WIC, "prefix", 4), "lora": (WIC, "lora", 0)})
    asked: list[object] = []

    def ask(*arguments: object, **_: object) -> None:
        asked.append(arguments)
        raise OSError("no network")

    monkeypatch.setattr("socket.getaddrinfo", ask)
    monkeypatch.setattr("socket.socket.connect", ask)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in ("prefix", "lora"):
        load_student(name).predict(["a river"], ["the bank"])
        path = tmp_path / name / "adapter_config.json"
        config = json.loads(path.read_text()) | {"base_model_name_or_path": "nobody/no-such-model"}
        path.write_text(json.dumps(config))
        try:
            load_student(name)
        except KdcacheError:
            continue
    assert asked == []
