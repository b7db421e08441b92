"""The language cache of a store: one embedding per instruction, keyed by (text, encoder, revision).

Legend: L numbers of an embedding.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stores.cloud.storage import Storage, open_storage
from stores.errors import StoreCorrupt, StoreMissing, UsageError
from stores.layout import LANGUAGE_FILE
from stores.tables import parse_table, write_table

LANGUAGE: Final = pa.schema(
    [
        ("instruction", pa.string()),
        ("encoder", pa.string()),
        ("revision", pa.string()),
        ("embedding", pa.list_(pa.float32())),  # the spec's `language_width` numbers
    ]
)


@dataclass(frozen=True)
class LanguageRow:
    """One instruction; embedding float32 [L]. revision says which weights: a commit, or a hash of the files."""

    instruction: str
    encoder: str
    revision: str
    embedding: NDArray[np.float32]


def write_language(path: Path | str, rows: list[LanguageRow]) -> None:
    """Write `rows`, sorted by instruction. Raises UsageError on a double, widths that differ, or NaN or infinity."""
    instructions = [row.instruction for row in rows]
    if len(set(instructions)) != len(rows) or len({(row.encoder, row.revision) for row in rows}) > 1:
        raise UsageError(f"language cache: expected distinct instructions by one encoder, got {instructions}")
    for row in rows:
        shape = rows[0].embedding.shape
        if len(shape) != 1 or row.embedding.shape != shape or not np.isfinite(row.embedding).all():
            raise UsageError(
                f"embedding of {row.instruction!r}: expected {list(shape)} finite numbers, got {row.embedding.shape}"
            )
    table = [
        {
            "instruction": row.instruction,
            "encoder": row.encoder,
            "revision": row.revision,
            "embedding": row.embedding.astype(np.float32),
        }
        for row in sorted(rows, key=lambda row: row.instruction)
    ]
    write_table(path, table, LANGUAGE)


@dataclass(frozen=True)
class LanguageCache:
    """Embeddings float32 [L] by instruction, all of one encoder and revision. L: the width that its reader expects."""

    encoder: str
    revision: str
    vectors: Mapping[str, NDArray[np.float32]]

    @classmethod
    def load(cls, root: Path | str | Storage, width: int) -> "LanguageCache":
        """Of the store at `root`. Raises StoreMissing or StoreCorrupt."""
        storage = open_storage(root)
        return cls.from_bytes(storage.read(LANGUAGE_FILE), f"{storage.root}: {LANGUAGE_FILE}", width)

    @classmethod
    def from_bytes(cls, data: bytes, where: str, width: int) -> "LanguageCache":
        """From the file's content; `where` names it in errors."""
        rows = parse_table(data, LANGUAGE, where).to_pylist()
        vectors = {row["instruction"]: np.asarray(row["embedding"], np.float32) for row in rows}
        encoders = {(row["encoder"], row["revision"]) for row in rows}
        sound = all(v.shape == (width,) and np.isfinite(v).all() for v in vectors.values())
        if len(encoders) != 1 or len(vectors) != len(rows) or not sound:
            raise StoreCorrupt(
                f"{where}: expected distinct instructions with {width} finite numbers by one encoder, got "
                f"{len(rows)} rows by {sorted(encoders)}"
            )
        encoder, revision = encoders.pop()
        return cls(encoder, revision, vectors)

    def vector(self, instruction: str) -> NDArray[np.float32]:
        """float32 [L]. Raises StoreMissing naming the instructions that are known; never a substitute."""
        if instruction not in self.vectors:
            raise StoreMissing(f"no embedding of {instruction!r}; this cache knows: {sorted(self.vectors)}")
        return self.vectors[instruction]
