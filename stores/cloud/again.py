"""A request that fails on the way is made again, after waits that grow; then a clear error. Nothing is ever skipped."""

import errno
import random
import time
from collections.abc import Callable
from typing import Final, TypeVar

from stores.errors import ConnectionLost

T = TypeVar("T")

WAITS = [0.1, 0.3, 1.0, 3.0, 9.0]
"""Seconds before each further try, give or take a quarter, so that many readers do not come back at once."""

_PASSING_ERRORS: Final = frozenset({
    None, errno.EIO, errno.EAGAIN, errno.EBUSY, errno.EPIPE, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH,
    errno.ECONNABORTED, errno.ECONNRESET, errno.ECONNREFUSED, errno.ETIMEDOUT,
})  # fmt: skip
_PASSING_NAMES: Final = frozenset({
    "ClientConnectionError", "ClientPayloadError",  # aiohttp
    "ConnectionError", "HTTPClientError", "IncompleteReadError", "ResponseStreamingError",  # botocore
})  # fmt: skip
_PASSING_CODES: Final = frozenset({408, 425, 429, 500, 502, 503, 504})


class ShortAnswer(OSError):
    """An answer holds less than was asked for, though there is more."""


def is_passing(error: BaseException) -> bool:
    """Whether the same request may well succeed a moment later: a connection that broke, a server in trouble.

    Every fsspec backend has its own exceptions; they are told by type, and by the status where they have one.
    """
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return status in _PASSING_CODES
    if isinstance(error, FileNotFoundError | PermissionError):
        return False
    if isinstance(error, OSError) and error.errno in _PASSING_ERRORS:
        return True
    return any(kind.__name__ in _PASSING_NAMES for kind in type(error).__mro__)


def again(do: Callable[[], T], root: str, name: str) -> T:
    """`do()`, tried once and then after each of `WAITS`. Raises what will not pass at once, at last ConnectionLost."""
    began = time.monotonic()
    for wait in (*WAITS, None):
        try:
            return do()
        except Exception as error:
            if not is_passing(error):
                raise
            if wait is None:
                raise ConnectionLost(
                    f"{root}: {name} cannot be read: {type(error).__name__}: {error or 'no answer'}. It was asked for "
                    f"{len(WAITS) + 1} times in {time.monotonic() - began:.0f} s; nothing was skipped. Run the same "
                    "command again when the connection is back, a training run with --resume"
                ) from error
            time.sleep(wait * random.uniform(0.75, 1.25))
    raise AssertionError("the last turn returns or raises")
