"""A unit's record comes back as it was written, or not at all."""

import os
from pathlib import Path

import pytest

from pipelines.ingest.record import decode_record, encode_record, read_record, write_record
from stores.layout import record_path

KEY = "0123456789abcdef" * 4
RECORD = {
    "unit": "task-000",
    "quarantined": [{"demo": "dé'\"\n", "reason": "line\nend"}],
    "episodes": [{"frames": 3}],
}


def test_what_is_written_is_read_with_its_key(tmp_path: Path) -> None:
    data = encode_record(RECORD)
    assert decode_record(data) == RECORD
    write_record(tmp_path, "task-000", KEY, RECORD)
    assert read_record(tmp_path, "task-000") == {**RECORD, "key": KEY}


def test_one_form_for_one_record() -> None:
    assert encode_record(RECORD) == encode_record(dict(reversed(RECORD.items())))
    with pytest.raises(TypeError, match="surrogates not allowed"):
        encode_record({"demo": "\udcff"})


def test_no_record_where_there_is_none(tmp_path: Path) -> None:
    assert read_record(tmp_path, "task-000") is None
    (tmp_path / "units").write_text("not a folder")
    assert read_record(tmp_path, "task-000") is None


def test_no_record_where_any_byte_is_another(tmp_path: Path) -> None:
    write_record(tmp_path, "task-000", KEY, RECORD)
    path = tmp_path / record_path("task-000")
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert read_record(tmp_path, "task-000") is None, at
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert read_record(tmp_path, "task-000") is None, length


def test_a_pipe_under_a_records_name_is_no_record_and_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / record_path("a")).parent.mkdir()
    os.mkfifo(tmp_path / record_path("a"))
    assert read_record(tmp_path, "a") is None
    write_record(tmp_path, "a", "key", RECORD)
    assert read_record(tmp_path, "a") == {**RECORD, "key": "key"}
