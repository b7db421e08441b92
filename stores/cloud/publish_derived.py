"""What was computed from a store, beside the store in object storage: statistics, features, latents; seals last.

A derived folder goes to where its store was published, under the same name. Its objects are created there, never
replaced: of two publishers with different contents under one name neither gets to put a seal, and a reader takes
nothing that has none. What is there under that name, of another key or unfinished, is removed first only when told to.
Decoded pictures stay where they are: whoever wants them makes them in the time that it takes to read them.
"""

from pathlib import Path
from typing import Any, Final

from stores.cloud.conditional import ConditionalStorage, Entry
from stores.cloud.storage import LocalStorage, open_storage, pointed
from stores.derived import parse_seal
from stores.errors import StoreCorrupt, StoreLocked, StoreMissing
from stores.kept import FINISHED, Kept, list_kept
from stores.layout import DECODED, MANIFEST, is_seal
from stores.manifest import StoreObject, content_hash, hash_stream
from stores.progress import Progress, ProgressEvent

_NOT_SENT: Final = (DECODED,)


def publish_derived(
    root: Path | str, url: str, progress: Progress | None = None, replace: bool = False, **options: Any
) -> list[str]:
    """Copy every finished derived folder of the store at folder `root` to where that store is published; their names.

    replace: what else is there under a name is removed first. What is there already is not sent again.
    Raises StoreMissing when no store is at `url`, StoreLocked when another one is, or something else under a name;
    StoreChanged when somebody else writes there, StoreCorrupt when a local object is not as its seal says.
    """
    remote = ConditionalStorage(url, **options)
    found = remote.get(MANIFEST)
    if found is None:
        raise StoreMissing(f"{remote.root}: no store is there; run `statevla publish {root} {url}`")
    at = pointed(found[0])
    here = content_hash(root)
    if content_hash(open_storage(url, **options)) != here:
        raise StoreLocked(f"{remote.root}: another store than {root} is there; what was computed from one is not sent")
    sent = []
    for item in list_kept(root):
        if item.state == FINISHED and item.path.split("/")[0] not in _NOT_SENT:
            _Folder(LocalStorage(root), remote, "" if at is None else f"{at}/", item).send(replace, progress)
            sent.append(item.path)
    return sent


class _Folder:
    """One derived folder on its way. prefix: of the store's names at the remote."""

    def __init__(self, local: LocalStorage, remote: ConditionalStorage, prefix: str, item: Kept) -> None:
        self.local, self.remote, self.prefix, self.item = local, remote, prefix, item
        self.seal_name = item.path if is_seal(item.path) else f"{item.path}/{MANIFEST}"
        self.seal = local.read(self.seal_name)
        self.objects = parse_seal(self.seal, f"{local.root}: {self.seal_name}")[1]

    def send(self, replace: bool, progress: Progress | None) -> None:
        found = self.remote.get(self.prefix + self.seal_name)
        there = self._there()
        if found is not None and found[0] == self.seal and self._is_whole(there):
            return
        names = {self._name(item) for item in self.objects}
        strange = sorted(name for name, entry in there.items() if name in names and not self._is_ours(name, entry))
        other = found is not None and found[0] != self.seal
        if (other or strange or there.keys() - names - {self.prefix + self.seal_name}) and not replace:
            what = "another one" if other else "an unfinished or another one"
            raise StoreLocked(
                f"{self.remote.root}: {self.item.path}: {what} of that name is there. Nothing was overwritten; give "
                "this one another name, or replace that one with --replace"
            )
        if other or strange:
            self.remote.remove([self.prefix + self.seal_name])  # first: without it nobody reads the rest
            self.remote.remove(there)
            there = {}
        done, total = 0, sum(item.bytes for item in self.objects)
        for item in self.objects:
            if self._name(item) not in there:
                self.remote.put(self._name(item), self._read(item), None)
            done += item.bytes
            if progress is not None:
                progress(ProgressEvent("publish", done, total, "B", self.item.path))
        if not self._is_whole(self._there()):
            raise StoreLocked(f"{self.remote.root}: somebody else writes {self.item.path} there; run it again")
        self.remote.put(self.prefix + self.seal_name, self.seal, None)

    def _there(self) -> dict[str, Entry]:
        """Objects of the folder at the remote, by their whole names."""
        if not self.objects:
            return {}
        return self.remote.listing(f"{self.prefix}{self.item.path}")

    def _is_whole(self, there: dict[str, Entry]) -> bool:
        return all(self._name(item) in there and there[self._name(item)].bytes == item.bytes for item in self.objects)

    def _is_ours(self, name: str, entry: Entry) -> bool:
        item = next(item for item in self.objects if self._name(item) == name)
        return self.remote.holds(name, entry, self._read(item))

    def _name(self, item: StoreObject) -> str:
        return f"{self.prefix}{self.item.path}/{item.path}"

    def _read(self, item: StoreObject) -> bytes:
        data = self.local.read(f"{self.item.path}/{item.path}")
        if hash_stream([data]) != (item.bytes, item.sha256):
            raise StoreCorrupt(
                f"{self.local.root}: {self.item.path}/{item.path} is not what its seal says; "
                f"run `statevla verify {self.local.root}`"
            )
        return data
