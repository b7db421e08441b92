"""Whether a model of a hub can be had, found out in seconds: a loader alone would retry for more than a minute."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from stores.errors import StateVLAError, UsageError

TIMEOUT_SECONDS: Final = 5.0
CONFIG: Final = "config.json"


def require_weights(model: str, file: str = CONFIG, revision: str | None = None) -> bool:
    """True when `model` is a folder or in the local cache, so that nothing needs to be asked of the network; False when
    the hub answers for it. file: of the model, by which the cache is known to have it. Raises OSError when neither
    holds.
    """
    from huggingface_hub import HfApi, constants, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    pinned: dict[str, Any] = {} if revision is None else {"revision": revision}
    if Path(model).is_dir() or isinstance(try_to_load_from_cache(model, file, **pinned), str):
        return True
    if constants.HF_HUB_OFFLINE:
        raise OSError("not in the local cache, and HF_HUB_OFFLINE is set")
    try:
        HfApi().model_info(model, timeout=TIMEOUT_SECONDS, **pinned)
    except HfHubHTTPError as error:
        raise OSError(f"the hub refuses it: {str(error).strip().splitlines()[0]}") from error
    except Exception as error:  # of whichever HTTP library, offline, no name service, no answer in time
        raise OSError(f"not in the local cache, and the hub does not answer: {error}") from error
    return False


@contextlib.contextmanager
def usable(say: Callable[[str], str]) -> Iterator[None]:
    """Raise what loading a model raises as one UsageError, `say` of its reason.

    The files are anybody's: a broken one makes a library raise whatever it stumbles over (JSON, safetensors, a key, a
    type), of no common kind. What weights are missing, who loads asks; the library's own report lists those, too, that
    a part of a model has no use for, as if something were wrong.
    """
    try:
        with _without_reports():
            yield
    except (StateVLAError, MemoryError):
        raise
    except Exception as error:
        lines = str(error).strip().splitlines()
        plain = isinstance(error, OSError | ValueError | ImportError | RuntimeError)
        reason = type(error).__name__ if not lines else lines[0] if plain else f"{type(error).__name__}: {lines[0]}"
        raise UsageError(say(reason)) from error


@contextlib.contextmanager
def _without_reports() -> Iterator[None]:
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
