"""The language cache of a store: one embedding per instruction, keyed by (text, encoder, revision)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stores.cloud.storage import Storage, open_storage
from stores.errors import StoreCorrupt, StoreMissing, UsageError
from stores.schema import LANGUAGE_DIM
from stores.tables import parse_table, write_table

LANGUAGE_FILE: Final = "language.parquet"
LANGUAGE: Final = pa.schema(
    [
        ("instruction", pa.string()),
        ("encoder", pa.string()),
        ("revision", pa.string()),
        ("embedding", pa.list_(pa.float32())),  # 512 numbers
    ]
)


@dataclass(frozen=True)
class LanguageRow:
    """One instruction; embedding float32 [512]. revision says which weights: a commit, or a hash of the files."""

    instruction: str
    encoder: str
    revision: str
    embedding: NDArray[np.float32]


def write_language(path: Path | str, rows: list[LanguageRow]) -> None:
    """Write `rows`, sorted by instruction. Raises UsageError on a double, another width, or NaN or infinity."""
    instructions = [row.instruction for row in rows]
    if len(set(instructions)) != len(rows) or len({(row.encoder, row.revision) for row in rows}) > 1:
        raise UsageError(f"language cache: expected distinct instructions by one encoder, got {instructions}")
    for row in rows:
        if row.embedding.shape != (LANGUAGE_DIM,) or not np.isfinite(row.embedding).all():
            raise UsageError(
                f"embedding of {row.instruction!r}: expected {LANGUAGE_DIM} finite numbers, got {row.embedding.shape}"
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
    """Embeddings float32 [512] by instruction, all of one encoder and revision."""

    encoder: str
    revision: str
    vectors: Mapping[str, NDArray[np.float32]]

    @classmethod
    def load(cls, root: Path | str | Storage) -> "LanguageCache":
        """Of the store at `root`. Raises StoreMissing or StoreCorrupt."""
        storage = open_storage(root)
        return cls.from_bytes(storage.read(LANGUAGE_FILE), f"{storage.root}: {LANGUAGE_FILE}")

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> "LanguageCache":
        """From the file's content; `where` names it in errors."""
        rows = parse_table(data, LANGUAGE, where).to_pylist()
        vectors = {row["instruction"]: np.asarray(row["embedding"], np.float32) for row in rows}
        encoders = {(row["encoder"], row["revision"]) for row in rows}
        sound = all(v.shape == (LANGUAGE_DIM,) and np.isfinite(v).all() for v in vectors.values())
        if len(encoders) != 1 or len(vectors) != len(rows) or not sound:
            raise StoreCorrupt(
                f"{where}: expected distinct instructions with {LANGUAGE_DIM} finite numbers by one encoder, got "
                f"{len(rows)} rows by {sorted(encoders)}"
            )
        encoder, revision = encoders.pop()
        return cls(encoder, revision, vectors)

    def vector(self, instruction: str) -> NDArray[np.float32]:
        """float32 [512]. Raises StoreMissing naming the instructions that are known; never a substitute."""
        if instruction not in self.vectors:
            raise StoreMissing(f"no embedding of {instruction!r}; this cache knows: {sorted(self.vectors)}")
        return self.vectors[instruction]
