"""NumPy's ``.npz`` files, whose reader raises what zip, zlib and the arrays inside raise when a file is damaged."""

import zipfile
import zlib
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

# TypeError: what NumPy reads is one array, not a file of several.
_DAMAGE: Final = (OSError, EOFError, KeyError, NotImplementedError, TypeError, zipfile.BadZipFile, zlib.error)


def read_npz(file: Path) -> dict[str, NDArray[Any]]:
    """Name -> array, of all that are in a file; nothing in it is unpickled.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is damaged, or something else.
    """
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except FileNotFoundError:
        raise
    except _DAMAGE as error:
        raise ValueError(str(error)) from error
