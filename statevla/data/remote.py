"""A store that is read over a network, for training: by way of a cache on this machine."""

from collections.abc import Callable
from pathlib import Path

from statevla.config import DataConfig
from statevla.data.machine import remote_cache_bytes, remote_cache_folder
from statevla.memory import GIB
from stores.cloud.cache import CachedStorage, RangeCache
from stores.cloud.storage import RemoteStorage, open_storage
from stores.errors import UsageError
from stores.reader import Store


def open_to_train(path: Path | str, data: DataConfig, say: Callable[[str], None]) -> Store:
    """The store at a path or URL; what is read of a URL is kept on this machine. say: told where, and how much.

    Raises as `Store.open`, and UsageError where the cache's folder cannot be written.
    """
    storage = open_storage(path)
    if not isinstance(storage, RemoteStorage):
        return Store.open(storage)
    cache = open_cache(data, say)
    say(
        f"{storage.root}: read by ranges, {data.remote_requests} at once (data.remote_requests), kept in "
        f"{cache.folder}, up to {cache.limit / GIB:.1f} GiB (data.remote_cache, data.remote_cache_gib)"
    )
    return Store.open(CachedStorage(storage, cache))


def open_cache(data: DataConfig, say: Callable[[str], None] | None = None) -> RangeCache:
    """The cache of remote stores, as configured. Raises UsageError where its folder cannot be it."""
    folder = remote_cache_folder(data)
    cache = RangeCache(folder, 1)
    cache = RangeCache(folder, remote_cache_bytes(data, cache.bytes()), say)
    if (why := cache.trouble()) is not None:
        raise UsageError(f"data.remote_cache: {folder} cannot be written ({why}); name another folder")
    return cache
