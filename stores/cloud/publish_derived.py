"""What was computed from a store, beside the store in object storage: statistics, features, latents.

A derived folder goes to where its store was published, under the same name, in the same way as the store
(`stores.cloud.publish`): its ``manifest.json`` is a register. A claim takes it, objects and seal go into a fresh folder
``publication-<16 hex digits>/`` beside it, a pointer to that takes the claim's place, and what else lies there is
removed. So under any stall a reader finds all of one content or nothing: an object's name has one right content for
ever, and no claim names a folder that a register, read after a listing, did not.

What is there under that name, of another content or unfinished, is replaced only when told to; a seal beside its
objects (copied by other means) is read and replaced too. Statistics are a seal alone: one conditional put.
Decoded pictures stay where they are: whoever wants them makes them in the time that it takes to read them.
"""

import hashlib
from pathlib import Path
from typing import Any, Final

from stores.cloud.conditional import ConditionalStorage, Entry
from stores.cloud.publish import LEGACY, Registered, claim_of, parse_register, pointer_to
from stores.cloud.storage import LocalStorage, is_publication, open_storage, pointed
from stores.derived import find_seal, is_foreign, parse_seal
from stores.errors import StoreChanged, StoreCorrupt, StoreLocked, StoreMissing
from stores.kept import FINISHED, Kept, list_kept
from stores.layout import DECODED, MANIFEST, is_seal
from stores.manifest import StoreObject, content_hash, hash_objects, hash_stream
from stores.printable import word
from stores.progress import Progress, ProgressEvent

_NOT_SENT: Final = (DECODED,)


def publish_derived(
    root: Path | str, url: str, progress: Progress | None = None, replace: bool = False, **options: Any
) -> list[str]:
    """Copy every finished derived folder of the store at folder `root` to where that store is published; their names.

    replace: what else is there under a name is replaced, and what is there already is compared by content, not by size
    alone; without, it is not sent again.
    Raises StoreMissing when no store is at `url`, StoreLocked when another one is, or something else under a name;
    StoreChanged when somebody else writes there, StoreCorrupt when a local object is not as its seal says.
    """
    remote = ConditionalStorage(url, **options)
    found = remote.get(MANIFEST)
    if found is None:
        raise StoreMissing(f"{remote.root}: no store is there; run `statevla publish {word(root)} {url}`")
    pointer = pointed(found[0])
    prefix = "" if pointer is None else f"{pointer[0]}/"
    here = content_hash(root)
    if content_hash(open_storage(url, **options)) != here:
        raise StoreLocked(f"{remote.root}: another store than {root} is there; what was computed from one is not sent")
    sent = []
    for item in list_kept(root):
        if item.state == FINISHED and item.path.split("/")[0] not in _NOT_SENT:
            _Folder(LocalStorage(root), remote, prefix, item).send(replace, progress)
            sent.append(item.path)
    return sent


class _Folder:
    """One derived folder on its way. prefix: of the store's names at the remote."""

    def __init__(self, local: LocalStorage, remote: ConditionalStorage, prefix: str, item: Kept) -> None:
        self.local, self.remote, self.item = local, remote, item
        path = item.path if is_seal(item.path) else f"{item.path}/{MANIFEST}"
        self.source, self.seal = find_seal(local, path)
        self.objects = parse_seal(self.seal, f"{local.root}: {path}")[1]
        self.hash = hashlib.sha256(self.seal).hexdigest()
        self.base, self.register = f"{prefix}{item.path}/", f"{prefix}{path}"

    def send(self, replace: bool, progress: Progress | None) -> None:
        if not self.objects:
            self._send_alone(replace)
            return
        there = self.remote.listing(self.base.rstrip("/"))
        before = self._registered()
        ours = before is not None and before.manifest == self.hash
        there_already = before if before is not None and ours and before.who is None else None
        if there_already is None or not self._is_whole(there_already.at, there, replace):
            beside = {name for name in there if not is_publication(name.removeprefix(self.base).partition("/")[0])}
            if not ours and (before is not None or beside) and not replace:
                raise self._refused(before)
            self._check_local()  # before the claim, which takes what is there away from its readers
            now = there_already if there_already is not None and there_already.at else self._claim(before)
            self._put_all(now.at, progress)
            if now.who is not None:
                self._commit(now)
        self._remove_dead()

    def _send_alone(self, replace: bool) -> None:
        found = self.remote.get(self.register)
        if found is not None and found[0] == self.seal:
            return
        if found is not None and not replace:
            raise self._refused(None)
        self.remote.put(self.register, self.seal, None if found is None else found[1])

    def _registered(self) -> Registered | None:
        """What the register says; of a seal that stands there itself, and of what nobody can read, with no folder."""
        found = self.remote.get(self.register)
        if found is None:
            return None
        try:
            known = parse_register(*found)
        except StoreCorrupt:
            known = None
        return known or Registered(hashlib.sha256(found[0]).hexdigest(), LEGACY, found[1])

    def _claim(self, before: Registered | None) -> Registered:
        goes_on = before is not None and before.manifest == self.hash
        at, claim = claim_of(self.hash, before.at if before is not None and goes_on else None)
        try:
            tag = self.remote.put(self.register, claim, None if before is None else before.tag)
        except StoreChanged as error:
            raise self._refused(self._registered()) from error
        return Registered(self.hash, at, tag, {"at": at})

    def _put_all(self, at: str, progress: Progress | None) -> None:
        """Every object, then the seal, into folder `at`; what is there as it should be stays."""
        there = self.remote.listing(f"{self.base}{at}")
        done, total = 0, sum(item.bytes for item in self.objects)
        for item in self.objects:
            self._put(f"{self.base}{at}/{item.path}", self._read(item), there)
            done += item.bytes
            if progress is not None:
                progress(ProgressEvent("publish", done, total, "B", self.item.path))
        self._put(f"{self.base}{at}/{MANIFEST}", self.seal, there)

    def _put(self, name: str, data: bytes, there: dict[str, Entry]) -> None:
        entry = there.get(name)
        if entry is None or not self.remote.holds(name, entry, data):
            self.remote.put(name, data, None if entry is None else entry.tag)

    def _commit(self, now: Registered) -> None:
        try:
            self.remote.put(self.register, pointer_to(now.at, self.hash), now.tag)
        except StoreChanged as error:
            self._remove_dead()
            raise self._refused(self._registered()) from error

    def _remove_dead(self) -> None:
        """Remove what publishers sent and the register does not name: folders of those that lost, objects beside it."""
        there = self.remote.listing(self.base.rstrip("/"))
        now = self._registered()  # after the listing: a folder that is claimed in between is not in it
        if now is not None and now.at != LEGACY:
            kept = f"{self.base}{now.at}/"
            dead = (name for name in there if name != self.register and not name.startswith(kept))
            folder = self.base.rstrip("/")
            self.remote.remove(name for name in dead if not is_foreign(folder, [name]))

    def _is_whole(self, at: str, there: dict[str, Entry], by_content: bool) -> bool:
        """Whether all objects (in folder `at`, the seal too) are there, of their sizes or even `by_content`."""
        folder = self.base if at == LEGACY else f"{self.base}{at}/"
        if at != LEGACY and f"{folder}{MANIFEST}" not in there:
            return False
        for item in self.objects:
            name = f"{folder}{item.path}"
            if name not in there or there[name].bytes != item.bytes:
                return False
            if by_content and not self.remote.holds(name, there[name], self._read(item)):
                return False
        return True

    def _check_local(self) -> None:
        for item, found in zip(
            self.objects, hash_objects(Path(self.local.root, self.source), [i.path for i in self.objects]), strict=True
        ):
            if found != item:
                raise self._damaged(item)

    def _read(self, item: StoreObject) -> bytes:
        data = self.local.read(f"{self.source}/{item.path}")
        if hash_stream([data]) != (item.bytes, item.sha256):
            raise self._damaged(item)
        return data

    def _damaged(self, item: StoreObject) -> StoreCorrupt:
        return StoreCorrupt(
            f"{self.local.root}: {self.source}/{item.path} is not what its seal says; "
            f"run `statevla verify {word(self.local.root)}`"
        )

    def _refused(self, found: Registered | None) -> StoreLocked:
        where = f"{self.remote.root}: {self.item.path}"
        if found is not None and found.who is not None:
            return StoreLocked(
                f"{where} is being published there by process {found.who.get('pid')} on {found.who.get('host')}. Wait "
                "for it; if it died, publish that one again, or replace it with --replace"
            )
        return StoreLocked(
            f"{where}: another one of that name is there. Nothing was overwritten; give this one another name, or "
            "replace that one with --replace"
        )
