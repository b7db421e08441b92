"""A unit's record: what its worker says of the shard, as bytes that travel and lie on disk unchanged.

The process that makes a unit turns its record into bytes, and whoever hands it on leaves them alone. A record names
every member of every segment; to measure and pack such a tree for its way to the driver took Dask longer than it takes
to write the shard.
"""

import hashlib
from pathlib import Path
from typing import Any, Final

import orjson

from stores.disk import durable

_KEY: Final = b'{"key":"'
_RECORD: Final = b'","record":'
_HASH: Final = hashlib.sha256().digest_size * 2


def encode_record(record: dict[str, Any]) -> bytes:
    """A record, of texts and whole numbers, as compact JSON; one form for one record. Raises TypeError on others."""
    return orjson.dumps(record, option=orjson.OPT_SORT_KEYS)


def decode_record(data: bytes | str) -> dict[str, Any]:
    """Inverse of `encode_record`."""
    record: dict[str, Any] = orjson.loads(data)
    return record


def record_path(unit: str) -> str:
    """Path of the unit's record below the store."""
    return f"units/{unit}.json"


def write_record(root: Path, unit: str, key: str, data: bytes) -> None:
    """Write a unit's encoded record and its key (`pipelines.ingest.unit.unit_key`) durably, with a hash of both."""
    content = _KEY + key.encode() + _RECORD + data
    durable.write_bytes(root / record_path(unit), content + _seal(content))


def read_record(root: Path, unit: str) -> dict[str, Any] | None:
    """The unit's record with its ``key``, or None when there is none or it is not what was written: then the unit is
    made again.
    """
    try:
        found = (root / record_path(unit)).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    content = found[: -len(_seal(b""))]
    if found != content + _seal(content):
        return None
    start = len(_KEY) + _HASH
    return {**decode_record(content[start + len(_RECORD) :]), "key": content[len(_KEY) : start].decode()}


def _seal(content: bytes) -> bytes:
    """What follows a key and a record in their file."""
    return b',"sha256":"' + hashlib.sha256(content).hexdigest().encode() + b'"}\n'
