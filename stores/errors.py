"""Errors of the whole toolkit: one small hierarchy, raised with what, expected, got and what to run."""


class StateVLAError(Exception):
    """Root of every error that a user's input or disk can cause. The CLI prints its text and exits with 1."""


class UsageError(StateVLAError):
    """A request that cannot be carried out as asked: unknown key, missing folder, ambiguous default (exit 2)."""


class SourceError(StateVLAError):
    """One source demonstration cannot be used; ingest turns it into a quarantine record with this reason."""


class SourceTrouble(StateVLAError):
    """What a source lies on failed, not what is in it: rights, a dangling link, the disk, memory, a stall. Nothing is
    quarantined for it, and the run ends: the same command, run again, may find it well.
    """


class StoreError(StateVLAError):
    """Root of errors about a store on disk."""


class StoreMissing(StoreError):
    """A store, or an object that its manifest names, is not there."""


class PlaceMissing(StoreMissing):
    """There is no bucket of that name; no store, nor a place for one."""


class ConnectionLost(StoreError):
    """A place that is reached over a network did not answer, however often it was asked."""


class StoreCorrupt(StoreError):
    """An object of a store is not what the manifest or an index says: size, checksum, shape or content."""


class StoreLocked(StoreError):
    """Another process writes to the store."""


class StoreChanged(StoreLocked):
    """An object in object storage is not what a conditional put expected: somebody else wrote it."""


class StaleKey(StoreError):
    """Statistics, features, latents or a checkpoint were made from another store or another transform; or a store or a
    policy is another one by now than the one that was handed over.
    """


class ObsSpecMismatch(StateVLAError):
    """A policy and a world disagree on cameras, orientation, robot state or action convention."""
