"""Sharing one cache, student, export or backbone through any place that pyarrow or fsspec opens."""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdcache.cache.dataset_card import dataset_card
from kdcache.cache.manifest import MANIFEST, Manifest, read_manifest
from kdcache.cache.verify import verify_cache
from kdcache.digests import SEAL, file_digest
from kdcache.errors import CacheCorrupt, KdcacheError, reason_of, shorten
from kdcache.places import ABOUT, CARD, PLAIN_NAME, replacing, require_plain
from kdcache.plain_json import MAX_BYTES, parse_json
from kdcache.project import BACKBONE_RECORD
from kdcache.serve.deploy import EXPORT
from kdcache.store.location import Location
from kdcache.students.about import read_about

# What can be shared → what lies in a folder of it. The first that fits counts.
SHAREABLE = {
    "cache": MANIFEST, "export": EXPORT, "student": ABOUT, "students": f"*/{ABOUT}",
    "backbone": BACKBONE_RECORD,
}  # fmt: skip


@dataclass(frozen=True)
class Shared:
    """What was pushed or pulled.

    Args:
        kind: a key of ``SHAREABLE``.
        place: where it is now.
        files: name → sha256, without the file that lists them and a cache's card.
        copied: how many files were copied; the others were there.
    """

    kind: str
    place: str
    files: dict[str, str]
    copied: int


def push(folder: Path | str, to: Path | str) -> Shared:
    """Copy a cache, with a card made from its manifest, or a student, students, an export or a backbone.

    What lies at the place is never replaced. A push that was interrupted goes on: files that are there
    already stay. The file that lists the digests comes last, so that half a copy is none.

    Args:
        folder: what to share.
        to: a folder or URI, such as ``s3://bucket/reviews`` or ``hf://datasets/me/reviews``.

    Raises:
        KdcacheError: the folder holds nothing of these kinds, or is damaged; the place holds other files, or
            cannot be written.
    """
    folder, location = Path(folder), Location.parse(to)
    kind = kind_to_share(folder)
    if kind == "cache":
        manifest = _sound_cache(folder)
        files, last = _listed(manifest), MANIFEST
        made = {CARD: dataset_card(manifest).encode(), last: manifest.to_bytes()}
    else:
        names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
        names = [name for name in names if name != SEAL and not _hidden(name)]
        for name in names:
            for part in name.split("/"):
                require_plain(part, f"{folder / name}")
        files = {name: file_digest(folder / name) for name in names}
        made, last = {SEAL: _index(files)}, SEAL
    copied = 0
    remedy = "Fix that and push again; it goes on where it stopped."
    with _one_line(location, remedy), _arriving(location) as arriving:
        there = {name for name in arriving.names(recursive=True) if not _hidden(name)}
        same = {name: arriving.digest(name) == digest for name, digest in files.items() if name in there}
        same |= {name: arriving.read(name) == content for name, content in made.items() if name in there}
        same |= {CARD: True} if kind == "cache" else {}  # somebody may have added to it
        if other := sorted(name for name in there if not same.get(name, False)):
            raise KdcacheError(
                f"{location}: it must be new or hold the same copy, got another {other[0]} there. "
                "Choose another place."
            )
        for name in sorted({*files, *made} - there, key=lambda name: (name == last, name)):
            with _whole(arriving, name) as target:
                if name in made:
                    target.write(made[name])
                else:
                    with (folder / name).open("rb") as source:
                        shutil.copyfileobj(source, target)
            copied += name in files
    return Shared(kind, str(location), files, copied)


def pull(source: Path | str, folder: Path | str) -> Shared:
    """Fetch what ``push`` put somewhere, and verify it before it gets its name.

    Args:
        source: a folder or URI.
        folder: where to: new, empty, or the same copy already.

    Raises:
        KdcacheError: nothing whole lies at the source, a file is not the one that was pushed, or other files
            lie in the folder, which stays as it was.
    """
    location, target = Location.parse(source), Path(folder)
    with _one_line(location, "Fix that and pull again."):
        if location.exists(MANIFEST):
            manifest = read_manifest(location)
            files, last, index = _listed(manifest), MANIFEST, manifest.to_bytes()
        else:
            files, last = _read_index(location), SEAL
            index = _index(files)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        wanted = files | ({last: hashlib.sha256(index).hexdigest()} if last == MANIFEST else {})
        for name, digest in wanted.items():
            if not (target / name).is_file() or file_digest(target / name) != digest:
                raise KdcacheError(
                    f"{target}: it must be new, empty or the same copy, got another {name} there. "
                    "Choose another folder."
                )
        if last == MANIFEST:
            _sound_cache(target)
        return Shared(kind_to_share(target), str(target), files, 0)
    if target.is_dir():
        target.rmdir()
    with replacing(target) as part:
        for name, digest in files.items():
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            with _one_line(location, "Fix that and pull again."):
                if not location.exists(name):
                    raise KdcacheError(f"{location}/{name}: it must be there, got nothing. Push it again.")
                with location.open(name) as stream, (part / name).open("wb") as file:
                    shutil.copyfileobj(stream, file)
            if (found := file_digest(part / name)) != digest:
                raise KdcacheError(
                    f"{location}/{name}: its sha256 must be {digest}, got {found}. Push it again."
                )
        (part / last).write_bytes(index)
        if (kind := kind_to_share(part)) == "cache":
            _sound_cache(part)
        for path in part.rglob(ABOUT):
            read_about(path.parent)
    return Shared(kind, str(target), files, len(files))


def kind_to_share(folder: Path) -> str:
    """Return what lies in a folder, a key of ``SHAREABLE``.

    Raises:
        KdcacheError: nothing that can be shared.
    """
    for kind, mark in SHAREABLE.items():
        if any(folder.glob(mark)):
            return kind
    raise KdcacheError(
        f"{folder}: it must be a folder of one of these: {', '.join(SHAREABLE)}, got something else. "
        "Share a whole project by dvc push."
    )


def _sound_cache(folder: Path) -> Manifest:
    for check in verify_cache(folder):
        if check.problem:
            raise CacheCorrupt(check.problem)
    return read_manifest(folder)


def _listed(manifest: Manifest) -> dict[str, str]:
    return {name: entry["sha256"] for name, entry in manifest.files.items()}


def _index(files: Mapping[str, str]) -> bytes:
    return (json.dumps(files, indent=2, sort_keys=True) + "\n").encode()


def _read_index(location: Location) -> dict[str, str]:
    """Read the list of digests. Its names stay within the folder."""
    where = f"{location}/{SEAL}"
    if not location.exists(SEAL):
        raise KdcacheError(
            f"{location}: it must hold {MANIFEST} or {SEAL}, got neither. Check the address. "
            "A push that stopped half-way is finished by the same push."
        )
    found: Any = None
    if location.size(SEAL) <= MAX_BYTES:
        with contextlib.suppress(ValueError):
            found = parse_json(location.read(SEAL))
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise KdcacheError(f"{where}: it must list a sha256 per file, got something else. Push it again.")
    for name in found:
        if not all(PLAIN_NAME.fullmatch(part) for part in name.split("/")):
            raise KdcacheError(
                f"{where}: a file must lie within the folder, got {shorten(name)}. Push it again."
            )
    return found


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


@contextlib.contextmanager
def _arriving(location: Location) -> Iterator[Location]:
    """Where to write: a new local folder gets its name when all is there, other places file by file."""
    folder = location.folder
    if folder is None or (folder.is_dir() and any(folder.iterdir())):
        yield location
        return
    if folder.is_dir():
        folder.rmdir()
    with replacing(folder) as part:
        part.mkdir()
        yield Location.parse(part)


@contextlib.contextmanager
def _whole(location: Location, name: str) -> Iterator[Any]:
    """Open a new file that is there as a whole or not at all."""
    if location.folder is None:
        try:
            with location.create(name) as target:
                yield target
        except BaseException:  # closing the stream put there what had come
            with contextlib.suppress(OSError):
                location.remove(name)
            raise
        return
    path = location.folder / name
    part = path.with_name(f".{path.name}.part")  # hidden, so that the next push does not take it for a file
    try:
        with location.create(part.relative_to(location.folder).as_posix()) as target:
            yield target
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def _one_line(location: Location, remedy: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise KdcacheError(f"{location}: it must be reachable, got: {reason_of(error)}. {remedy}") from error
