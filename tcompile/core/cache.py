"""Results that took long to make, kept by content in the cache of the person.

An entry's name is a digest of all that it depends on, so nothing is ever out of date: what depends
on something else has another name. Entries are JSON, read as data.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from tcompile.core.decode import parse_json
from tcompile.core.files import read_text

SCHEMA = 1
#: Seconds after which nothing is still being written.
_STALE = 24 * 3600.0


def cache_dir() -> Path:
    """Return the folder of all entries: TCOMPILE_CACHE, else the platform's own for caches."""
    own = os.environ.get("TCOMPILE_CACHE")
    found = Path(own) if own else user_cache_path("tcompile", appauthor=False)
    # For Python 3.10 there is only a platformdirs that takes a relative XDG_CACHE_HOME, which the
    # XDG specification says to ignore.
    return found if own or found.is_absolute() else Path.home() / ".cache" / "tcompile"


def entry_path(kind: str, key: Mapping[str, Any]) -> Path:
    """The file of an entry, whether or not it is there."""
    return cache_dir() / kind / f"{digest_of(key)}.json"


def digest_of(key: Mapping[str, Any]) -> str:
    """SHA-256 of JSON values, whatever the order of their names."""
    text = json.dumps(key, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def cached(
    kind: str,
    key: Mapping[str, Any],
    make: Callable[[], dict[str, Any]],
    check: Callable[[dict[str, Any]], object] = lambda _: None,
) -> dict[str, Any]:
    """Return the result of `make`, from the cache if it was made before.

    An entry that is corrupt, of another version or of other things is made again and rewritten.

    Args:
        kind: the folder, such as `losses` or `profiles`.
        key: all that the result depends on, JSON values: digests of files, settings, versions.
        make: gives JSON values.
        check: is given what was found; if it raises, that is made again.
    """
    value = kept(kind, key, check)
    if value is None:
        value = make()
        keep(kind, key, value)
    return value


def kept(
    kind: str, key: Mapping[str, Any], check: Callable[[dict[str, Any]], object]
) -> dict[str, Any] | None:
    """An entry's value; None if there is none that `check` takes. Arguments as `cached`."""
    with suppress(Exception):  # Whatever an entry holds, it is not worth failing for.
        document = parse_json(read_text(entry_path(kind, key)))
        own = json.loads(json.dumps(key))
        if (document["schema"], document["kind"], document["key"]) == (SCHEMA, kind, own):
            found: dict[str, Any] = document["value"]
            if isinstance(found, dict):
                check(found)
                return found
    return None


def keep(kind: str, key: Mapping[str, Any], value: dict[str, Any]) -> None:
    """Write an entry; a cache that cannot be written is done without."""
    with suppress(OSError):
        document = {"schema": SCHEMA, "kind": kind, "key": dict(key), "value": value}
        _write(entry_path(kind, key), document)


def _write(path: Path, document: dict[str, Any]) -> None:
    """Under another name first, so that half of it is never seen."""
    text = json.dumps(document, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(".*.part"):  # by what was killed while it wrote
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _STALE:
                left.unlink()
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        Path(name).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise
