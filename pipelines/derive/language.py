"""The language cache of an ingest: every instruction once, through the chosen frozen encoder."""

from collections.abc import Sequence
from pathlib import Path

from statevla.encoders.text import TextEncoder
from stores.language import LanguageRow, write_language


def write_instructions(path: Path, instructions: Sequence[str], encoder: TextEncoder) -> None:
    """Embed each distinct instruction and write the cache durably. The driver does it: few texts, one set of bits."""
    texts = sorted(set(instructions))
    vectors = encoder.for_store(texts)(texts)
    rows = [
        LanguageRow(text, encoder.id, encoder.revision, vector) for text, vector in zip(texts, vectors, strict=True)
    ]
    write_language(path, rows)
