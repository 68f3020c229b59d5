"""One owner of a folder at a time, among processes on any number of machines that share the disk.

The owner of FOLDER holds `FOLDER/.claim/owner-TOKEN`, with `owner.json` (who it is) and `beat` (a counter that a thread
raises). The owner writes every file inside this folder first and then renames it to its destination. A take-over
renames the folder, so that the paths of the earlier owner no longer exist: its next write fails in the final rename,
however long the process was suspended. If two processes try to take over, the file system lets one rename succeed.

Clocks of different machines are never compared. An owner counts as dead if its process is gone from this machine, or if
a waiting process saw no new beat for the whole lease, by its own monotonic clock.
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
_POLL_S = 0.05  # between two checks of an owner's beat
_LOG_AFTER_S = 3.0
_CLAIM, _OWNER = ".claim", "owner-"
_LOG = logging.getLogger(__name__)


class FolderClaimed(UserError):
    """Another process, which is alive, owns the folder."""


class ClaimLost(UserError):
    """Another process took over the folder. This process has written nothing since."""


class Claim:
    """The ownership of one folder. It begins with `take`, and ends with `release` or the end of a `with` block."""

    def __init__(self, folder: Path, staging: Path, created: list[Path], beat_s: float):
        self.folder, self._staging, self._created, self._beat_s = folder, staging, created, beat_s
        self._file_numbers = itertools.count()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="claim", daemon=True)
        self._thread.start()

    @classmethod
    def take(cls, folder: Path, *, beat_s: float = BEAT_S, lease_s: float = LEASE_S) -> "Claim":
        """Makes this process the owner of `folder`, which is created if it is missing.

        Returns at once if there is no owner or its process is known to be gone. Otherwise it waits for the owner's next
        beat, and takes the folder over if there is none for the duration of the owner's lease.

        Raises:
            FolderClaimed: the owner is alive; the message names its host and process.
            UserError: the folder cannot be created or written.
        """
        token = uuid.uuid4().hex[:12]
        with disk.errors_explained(folder):
            created = _create(folder)
            prepared = folder / f"{_CLAIM}-{token}"
            try:
                (prepared / f"{_OWNER}{token}").mkdir(parents=True)
                _describe_owner(prepared / f"{_OWNER}{token}", token, lease_s)
                staging = _wait_for(folder, prepared, token, lease_s)
            except BaseException:
                shutil.rmtree(prepared, ignore_errors=True)
                _remove_empty(created)
                raise
            _clear_leftovers(folder)
        return cls(folder, staging, created, beat_s)

    def __enter__(self) -> "Claim":
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def write(self, path: Path, content: bytes) -> None:
        """Writes a whole file and syncs it to disk. If it raises, the old file is unchanged.

        Raises:
            ClaimLost: another process owns the folder now.
        """
        temporary = self._staging / f"{next(self._file_numbers)}.tmp"
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
                temporary.unlink(missing_ok=True)  # if the disk is full, it would stay full

    def discard(self, path: Path) -> None:
        """Removes a file or a folder.

        Raises:
            ClaimLost: another process owns the folder now.
        """
        aside = self._staging / f"{next(self._file_numbers)}.discarded"
        with self._fence():
            os.rename(path, aside)
            shutil.rmtree(aside) if aside.is_dir() else aside.unlink()

    def check(self) -> None:
        """Raises ClaimLost if another process owns the folder now. `write` and `discard` need no such call before."""
        if (self._staging / "owner.json").exists():
            return
        what, taker = f"{str(self.folder)!r} was taken over by", owner(self.folder)
        if taker is None:
            raise ClaimLost(f"{what} another process or removed, while this one stood still")
        raise ClaimLost(f"{what} {taker}, while this process stood still")

    def release(self) -> None:
        """Ends the ownership, and removes the folders that `take` created and that are still empty."""
        self._is_over.set()
        self._thread.join()
        gone = self.folder / f"{_CLAIM}-{self._staging.name}"
        try:
            os.rename(self._staging, gone)
        except OSError:
            return  # taken over, or the disk failed, where the lease ends by itself
        shutil.rmtree(gone, ignore_errors=True)
        _remove_empty([*self._created, self.folder / _CLAIM])

    @contextmanager
    def _fence(self) -> Iterator[None]:
        """Turns a FileNotFoundError into ClaimLost if another process has taken the folder."""
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
                return  # taken over; the next write reports it
            except OSError:
                pass  # the disk may be back for the next beat


class NoClaim(Claim):
    """Stands for the claim in a process that writes nothing, as another process of the same trial has the claim."""

    def __init__(self, folder: Path):
        self.folder = folder

    def _nothing(self, *arguments: Any, **named: Any) -> None:
        pass

    write = discard = check = release = _nothing


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
        """Whether its process is known to be gone."""
        # During a take-over, `info` is still an earlier owner's.
        is_current = self.folder.name == f"{_OWNER}{self.info.get('token')}"
        return is_current and process_identity.has_ended(self.info.get("process", {}))

    def __str__(self) -> str:
        process = self.info.get("process", {})
        return f"process {process.get('process_id', 'unknown')} on host {process.get('host', 'unknown')}"


def _wait_for(folder: Path, prepared: Path, token: str, lease_s: float) -> Path:
    """Renames `prepared` to the claim, or takes over a dead owner's claim. Returns this process's staging folder."""
    staging = folder / _CLAIM / f"{_OWNER}{token}"
    watched, since, began, is_logged = None, 0.0, time.monotonic(), False
    while True:
        try:
            os.rename(prepared, folder / _CLAIM)
            return staging
        except OSError:
            if not (folder / _CLAIM).is_dir():
                raise
        now = time.monotonic()
        if (current := owner(folder)) is None:
            if now - began > lease_s:
                raise UserError(f"{str(folder / _CLAIM)!r} is not a valid claim: remove it, and run the command again")
            time.sleep(_POLL_S)  # released meanwhile
            continue
        if watched is None or watched.folder != current.folder:
            watched, since = current, now
        elif watched.beat != current.beat:
            raise FolderClaimed(
                f"{str(folder)!r} is in use by {current}: wait for its end, or give another --experiment_name"
            )
        if current.has_ended or now - since > current.lease_s:
            if _take_over(current, staging, token, lease_s):
                shutil.rmtree(prepared, ignore_errors=True)
                return staging
            continue
        if not is_logged and now - began > _LOG_AFTER_S:
            is_logged = True
            _LOG.warning("%s is claimed by %s; waiting up to %g s for a sign of life", folder, current, current.lease_s)
        time.sleep(_POLL_S)


def _take_over(earlier: _Owner, staging: Path, token: str, lease_s: float) -> bool:
    """Takes over the earlier owner's claim; False if another process was first, or the owner released the claim."""
    try:
        os.rename(earlier.folder, staging)
        for entry in staging.iterdir():  # temporary files of the dead owner; processes that wait read the beat
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name not in ("owner.json", "beat"):
                entry.unlink()
        _describe_owner(staging, token, lease_s)
    except FileNotFoundError:
        return False
    _LOG.warning("%s is taken over from %s, which does not respond any more", staging.parents[1], earlier)
    return True


def owner(folder: Path) -> _Owner | None:
    """The folder's owner, dead or alive; None if there is none. As text it is a name for messages."""
    for owned in sorted((folder / _CLAIM).glob(f"{_OWNER}*")):
        try:
            beat = (owned / "beat").read_bytes()
            info = json.loads((owned / "owner.json").read_bytes())
        except (OSError, ValueError):
            if not owned.is_dir():
                continue  # renamed meanwhile
            beat, info = b"", {}  # damaged by a loss of power
        return _Owner(owned, beat, info if isinstance(info, dict) else {})
    return None


def _describe_owner(path: Path, token: str, lease_s: float) -> None:
    info = {"token": token, "lease_s": lease_s, "process": process_identity.current()}
    temporary = path / "owner.tmp"
    temporary.write_text(json.dumps(info))
    os.replace(temporary, path / "owner.json")
    if not (path / "beat").exists():
        (path / "beat").write_bytes(b"0".zfill(20))


def _write_beat(path: Path, count: int) -> None:
    with open(path / "beat", "r+b") as file:  # "r+" does not create the file if the folder is gone
        file.write(f"{os.getpid()}:{count}".encode().zfill(20))


def _clear_leftovers(folder: Path) -> None:
    """Removes released claims, and prepared claims of processes that are known to be gone."""
    for path in folder.glob(f"{_CLAIM}-*"):
        if path.name.startswith(f"{_CLAIM}-{_OWNER}"):
            shutil.rmtree(path, ignore_errors=True)
            continue
        infos = [*path.glob("owner.json"), *path.glob("*/owner.json")]
        try:
            is_dead = all(process_identity.has_ended(json.loads(info.read_bytes())["process"]) for info in infos)
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if is_dead and infos:
            shutil.rmtree(path, ignore_errors=True)


def _create(folder: Path) -> list[Path]:
    """Creates the folder and its missing parents; returns the created folders, the outermost first."""
    missing = [path for path in [folder, *folder.parents] if not path.exists()][::-1]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        disk.sync_folder(path.parent)
    return missing


def _remove_empty(folders: list[Path]) -> None:
    for path in reversed(folders):
        try:
            path.rmdir()
        except OSError:
            pass  # not empty, or gone
