"""One owner of a folder at a time, among processes on any number of machines that share the disk.

The owner of FOLDER holds `FOLDER/.claim/owner-TOKEN`, with `owner.json` (who it is) and `beat` (a counter that a thread
raises). Every file of the owner is written inside this folder first and then moved to its place. A take-over renames
the folder, so the paths of the earlier owner exist no more: whatever it still tries to publish fails in that one
rename, however long it was stopped before. The file system decides between two comers, since a rename succeeds once.

Clocks of different machines are never compared. An owner counts as dead if its process is gone from this machine, or if
a comer saw no new beat for the whole lease, by the comer's own monotonic clock.
"""

import itertools
import json
import logging
import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuning import disk, process_identity
from tuning.errors import UserError

BEAT_S = 1.0
LEASE_S = 30.0
_LOOK_S = 0.05  # between two looks at the beat of an owner
_SAY_AFTER_S = 3.0
_CLAIM, _OWNER = ".claim", "owner-"
_LOG = logging.getLogger(__name__)


class FolderClaimed(UserError):
    """Another process owns the folder, and it is alive."""


class ClaimLost(UserError):
    """Another process took the folder over. This one has written nothing since."""


class Claim:
    """The ownership of one folder, made by `take` and ended by `release`, or by the end of a `with` block."""

    def __init__(self, folder: Path, staging: Path, made: list[Path], beat_s: float):
        self.folder, self._staging, self._made, self._beat_s = folder, staging, made, beat_s
        self._names = itertools.count()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="claim", daemon=True)
        self._thread.start()

    @classmethod
    def take(cls, folder: Path, *, beat_s: float = BEAT_S, lease_s: float = LEASE_S) -> "Claim":
        """Makes this process the owner of `folder`, which is made where it is missing.

        Returns at once if there is no owner or its process is known to be gone. Otherwise it waits for the owner's next
        beat, at most for the owner's lease, and then takes the folder over.

        Raises:
            FolderClaimed: the owner is alive; the message names its host and process.
            UserError: the folder cannot be made or written.
        """
        token = uuid.uuid4().hex[:12]
        with disk.errors_explained(folder):
            made = _make(folder)
            prepared = folder / f"{_CLAIM}-{token}"
            try:
                (prepared / f"{_OWNER}{token}").mkdir(parents=True)
                _describe_owner(prepared / f"{_OWNER}{token}", token, lease_s)
                staging = _wait_for(folder, prepared, token, lease_s)
            except BaseException:
                shutil.rmtree(prepared, ignore_errors=True)
                _remove_empty(made)
                raise
            _clear_leftovers(folder)
        return cls(folder, staging, made, beat_s)

    def __enter__(self) -> "Claim":
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def write(self, path: Path, content: bytes) -> None:
        """Puts a file in its place, whole and on disk, or raises and leaves what was there.

        Raises:
            ClaimLost: another process owns the folder now.
        """
        temporary = self._staging / f"{next(self._names)}.tmp"
        with self._fence():
            try:
                with open(temporary, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                if not path.parent.exists():
                    path.parent.mkdir(exist_ok=True)
                    disk.sync_folder(path.parent.parent)
                os.replace(temporary, path)
                disk.sync_folder(path.parent)
            finally:
                temporary.unlink(missing_ok=True)  # of a full disk, which it would keep full

    def discard(self, path: Path) -> None:
        """Removes a file or a folder.

        Raises:
            ClaimLost: another process owns the folder now.
        """
        aside = self._staging / f"{next(self._names)}.discarded"
        with self._fence():
            os.rename(path, aside)
            shutil.rmtree(aside) if aside.is_dir() else aside.unlink()

    def check(self) -> None:
        """Raises ClaimLost if another process owns the folder now. `write` and `discard` need no such call before."""
        if not (self._staging / "owner.json").exists():
            raise ClaimLost(_lost(self.folder))

    def release(self) -> None:
        """Ends the ownership. Of the folders that `take` made those go that are still empty."""
        self._is_over.set()
        self._thread.join()
        gone = self.folder / f"{_CLAIM}-{self._staging.name}"
        try:
            os.rename(self._staging, gone)
        except FileNotFoundError:
            return  # taken over
        shutil.rmtree(gone, ignore_errors=True)
        _remove_empty([*self._made, self.folder / _CLAIM])

    @contextmanager
    def _fence(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            self.check()
            raise error

    def _beat(self) -> None:
        for count in itertools.count(1):
            if self._is_over.wait(self._beat_s):
                return
            try:
                _write_beat(self._staging, count)
            except FileNotFoundError:
                return  # taken over; the next write says so
            except OSError:
                pass  # the disk may be back in time for the next


class NoClaim(Claim):
    """What stands for a claim in a process that writes nothing, as another one of its trial has the claim."""

    def __init__(self, folder: Path):
        self.folder = folder

    def write(self, path: Path, content: bytes) -> None:
        pass

    def discard(self, path: Path) -> None:
        pass

    def check(self) -> None:
        pass

    def release(self) -> None:
        pass


@dataclass(frozen=True)
class _Owner:
    folder: Path
    beat: bytes
    info: dict[str, Any]

    @property
    def lease_s(self) -> float:
        return float(self.info.get("lease_s", LEASE_S))

    @property
    def has_ended(self) -> bool:
        """Whether its process is known to be gone. During a take-over the information is an earlier owner's."""
        is_own = self.folder.name == f"{_OWNER}{self.info.get('token')}"
        return is_own and process_identity.has_ended(self.info.get("process", {}))

    def __str__(self) -> str:
        process = self.info.get("process", {})
        return f"process {process.get('process_id', 'unknown')} on host {process.get('host', 'unknown')}"


def owner(folder: Path) -> str | None:
    """Who owns the folder, in words, dead or alive; None if nobody does."""
    found = _owner(folder)
    return None if found is None else str(found)


def _wait_for(folder: Path, prepared: Path, token: str, lease_s: float) -> Path:
    """Moves `prepared` to its place, or takes a dead owner's folder over; the folder that is now the owner's."""
    own = folder / _CLAIM / f"{_OWNER}{token}"
    watched, since, began, is_told = None, 0.0, time.monotonic(), False
    while True:
        try:
            os.rename(prepared, folder / _CLAIM)
            return own
        except OSError:
            if not (folder / _CLAIM).is_dir():
                raise
        now = time.monotonic()
        if (found := _owner(folder)) is None:
            if now - began > lease_s:
                raise UserError(f"{str(folder / _CLAIM)!r} holds what is no claim: remove it")
            time.sleep(_LOOK_S)  # released meanwhile
            continue
        if watched is None or watched.folder != found.folder:
            watched, since = found, now
        elif watched.beat != found.beat:
            raise FolderClaimed(
                f"{str(folder)!r} is in use by {found}: wait for its end, or give another --experiment_name"
            )
        if found.has_ended or now - since > found.lease_s:
            if _take_over(found, own, token, lease_s):
                shutil.rmtree(prepared, ignore_errors=True)
                return own
            continue
        if not is_told and now - began > _SAY_AFTER_S:
            is_told = True
            _LOG.warning("%s is claimed by %s; waiting up to %g s for a sign of life", folder, found, found.lease_s)
        time.sleep(_LOOK_S)


def _take_over(found: _Owner, own: Path, token: str, lease_s: float) -> bool:
    """False if another comer was first, or the owner released the folder."""
    try:
        os.rename(found.folder, own)
        for entry in own.iterdir():  # temporary files of the dead; the beat stays, for those who watch it
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name not in ("owner.json", "beat"):
                entry.unlink()
        _describe_owner(own, token, lease_s)
    except FileNotFoundError:
        return False
    _LOG.warning("%s was left behind by %s; it is this process's now", own.parents[1], found)
    return True


def _owner(folder: Path) -> _Owner | None:
    for place in sorted((folder / _CLAIM).glob(f"{_OWNER}*")):
        try:
            beat = (place / "beat").read_bytes()
            info = json.loads((place / "owner.json").read_bytes())
        except (OSError, ValueError):
            if not place.is_dir():
                continue  # renamed meanwhile
            beat, info = b"", {}  # torn by a loss of power
        return _Owner(place, beat, info if isinstance(info, dict) else {})
    return None


def _describe_owner(place: Path, token: str, lease_s: float) -> None:
    info = {"token": token, "lease_s": lease_s, "process": process_identity.own()}
    temporary = place / "owner.tmp"
    temporary.write_text(json.dumps(info))
    os.replace(temporary, place / "owner.json")
    if not (place / "beat").exists():
        (place / "beat").write_bytes(b"0".zfill(20))


def _write_beat(place: Path, count: int) -> None:
    with open(place / "beat", "r+b") as file:  # in place: it must not come into being where the folder is gone
        file.write(f"{os.getpid()}:{count}".encode().zfill(20))


def _clear_leftovers(folder: Path) -> None:
    """Removes what killed processes left: released claims, and those of comers that are known to be gone."""
    for place in folder.glob(f"{_CLAIM}-*"):
        if place.name.startswith(f"{_CLAIM}-{_OWNER}"):
            shutil.rmtree(place, ignore_errors=True)
            continue
        infos = [*place.glob("owner.json"), *place.glob("*/owner.json")]
        try:
            is_dead = all(process_identity.has_ended(json.loads(info.read_bytes())["process"]) for info in infos)
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if is_dead and infos:
            shutil.rmtree(place, ignore_errors=True)


def _make(folder: Path) -> list[Path]:
    """Makes the folder and the missing ones above it; those made, outermost first."""
    missing = [place for place in [folder, *folder.parents] if not place.exists()][::-1]
    folder.mkdir(parents=True, exist_ok=True)
    for place in missing:
        disk.sync_folder(place.parent)
    return missing


def _remove_empty(folders: list[Path]) -> None:
    for place in reversed(folders):
        try:
            place.rmdir()
        except OSError:
            pass  # not empty, or gone


def _lost(folder: Path) -> str:
    taker = owner(folder)
    if taker is None:
        return f"{str(folder)!r} was taken over by another process or removed, while this one stood still"
    return f"{str(folder)!r} was taken over by {taker}, while this process stood still"
