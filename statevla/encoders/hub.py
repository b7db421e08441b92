"""Whether a model of a hub can be had, found out in seconds: a loader alone would retry for more than a minute."""

from pathlib import Path
from typing import Any, Final

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
