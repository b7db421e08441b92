"""A unit's record: what its worker says of the shard, as JSON text that travels and lies on disk.

The process that makes a unit turns its record into text: a record names every member of every segment, and to measure
and pack such a tree for its way to the driver took Dask longer than it takes to write the shard.
"""

import hashlib
from pathlib import Path
from typing import Any

import orjson

from stores.disk import durable
from stores.layout import record_path


def encode_record(record: dict[str, Any]) -> bytes:
    """A record, of texts and whole numbers, as compact JSON; one form for one record. Raises TypeError on others."""
    return orjson.dumps(record, option=orjson.OPT_SORT_KEYS)


def decode_record(data: bytes | str) -> dict[str, Any]:
    """Inverse of `encode_record`."""
    record: dict[str, Any] = orjson.loads(data)
    return record


def write_record(root: Path, unit: str, key: str, record: dict[str, Any]) -> None:
    """Write a unit's record and its key (`pipelines.ingest.unit.unit_key`) durably, with a hash of both."""
    durable.write_bytes(root / record_path(unit), _sealed({**record, "key": key}))


def read_record(root: Path, unit: str) -> dict[str, Any] | None:
    """The unit's record with its ``key``, or None when there is none or it is not what was written: then the unit is
    made again.
    """
    path = root / record_path(unit)
    if not path.is_file():  # a pipe would be waited for
        return None
    try:
        found = path.read_bytes()
        record = decode_record(found)
        del record["sha256"]
        return record if _sealed(record) == found and "key" in record else None
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, KeyError):
        return None


def _sealed(record: dict[str, Any]) -> bytes:
    return encode_record({**record, "sha256": hashlib.sha256(encode_record(record)).hexdigest()}) + b"\n"
