"""Files that survive anything: atomic writes, append-only journals, fingerprints.

JSON objects are written with a checksum of their own under the key `check`: a bit that flipped on
the disk, or a number changed by hand, is noticed when they are read. Objects without one, which
earlier versions wrote, are read as they are.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO, Any
from zlib import crc32

from nas.errors import RunError
from nas.progress import console
from nas.typed import MismatchError, decode

try:
    import fcntl
except ImportError:  # not on this system
    _LOCKS = False
else:
    _LOCKS = True

CHECK = "check"  # the key of a checksum
_DIGITS = 8  # of a checksum


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends without an error.

    It is locked meanwhile: what a killed process has left is not, and is removed by the next.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_left(path)
        with _temporary(path) as held:
            temporary = Path(held.name)
            try:
                yield temporary
                with temporary.open("rb") as written:
                    os.fsync(written.fileno())
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise _storage_error(path, error) from error


def _temporary(path: Path) -> IO[str]:
    """A new file beside `path`, with the permissions that the umask leaves, locked."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        file = temporary.open("x")
        if _locked(file) and temporary.exists():
            return file
        file.close()  # another process took it for one that was left


def remove_left(path: Path) -> None:
    """Remove temporary files of `path` whose process has ended."""
    if not _LOCKS:
        return
    left = re.compile(rf"\.{re.escape(path.name)}\.\w{{8}}")
    for name in os.listdir(path.parent):
        if left.fullmatch(name):
            with suppress(OSError), path.with_name(name).open("r+") as file:
                if _locked(file):
                    path.with_name(name).unlink()


def require_writable(path: Path) -> None:
    """Make the folder of a file that is written later; `RunError` if the file cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise _storage_error(path, error) from error


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a text file, in UTF-8, whole or not at all."""
    write_bytes(path, text.encode())


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of equal keys as CSV, with these as the header; `None` becomes an empty cell."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as `csv_text` has them."""
    write_text(path, csv_text(rows))


def write_json(path: Path, data: Any) -> None:
    """Write data as indented JSON, whole or not at all; an object gets its checksum."""
    sealed = {**data, CHECK: _checksum(data)} if isinstance(data, dict) else data
    write_text(path, json.dumps(sealed, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """What a JSON file holds; `RunError` if it cannot be read, is no JSON, or was altered."""
    text = read_text(path)
    try:
        return parse_json(text)
    except ValueError as error:
        raise RunError(f"{path} {error}", "restore it from a copy, or delete it") from None


def read_object(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds; `RunError` if it holds none."""
    data = read_json(path)
    if not isinstance(data, dict):
        raise RunError(f"{path} holds no object", "restore it from a copy, or delete it")
    return data


def read_text(path: Path) -> str:
    """What a text file in UTF-8 holds; `RunError` if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}", "check the path") from None
    except ValueError:  # not UTF-8, or a path with a NUL byte
        raise RunError(f"{path} is not text", "restore it from a copy, or delete it") from None


def parse_json(text: str) -> Any:
    """What JSON stands for; an object without its checksum.

    Raises `ValueError`, whose words go on after the name of a file: "is not JSON (line 1: ...)".
    """
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON (line {error.lineno}: {error.msg})") from None
    except RecursionError:
        raise ValueError("is no JSON of ours: it is nested too deep") from None
    except ValueError:  # of Python, which converts no number of more digits
        raise ValueError("is no JSON of ours: a number in it has thousands of digits") from None
    if isinstance(data, dict) and CHECK in data:
        found = data.pop(CHECK)
        if found != _checksum(data):
            raise ValueError("was altered after it was written: its checksum is of other content")
    elif isinstance(data, dict) and data:
        key, value = list(data.items())[-1]
        if len(key) == len(CHECK) and isinstance(value, str) and len(value) == _DIGITS:
            raise ValueError("was altered after it was written: its checksum has lost its name")
    return data


def _checksum(data: Mapping[str, Any]) -> str:
    text = json.dumps(data, separators=(",", ":"))
    return f"{crc32(text.encode()):0{_DIGITS}x}"


@dataclass(frozen=True)
class _Record:
    """A record of which nothing is known."""


class Journal:
    """One JSON object a line, with its checksum, appended and flushed.

    A line cut off by a kill is dropped, and so is one that was altered.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from locking this journal; `RunError` if one has it locked.

        Where nothing was written meanwhile, a folder that was made for it is removed again.
        """
        folder = self.path.parent
        lock = folder / f".{self.path.name}.lock"  # not the journal: `keep` makes a new file
        try:
            made = not folder.exists()
            folder.mkdir(parents=True, exist_ok=True)
            file = lock.open("a")
        except OSError as error:
            raise _storage_error(self.path, error) from error
        with file:
            if not _locked(file) or not lock.exists():  # another process, or one that just ended
                raise RunError(
                    f"another process is writing {self.path}",
                    "wait for it, or choose another folder",
                )
            try:
                yield
            finally:
                if not self.path.exists():
                    lock.unlink(missing_ok=True)
                    if made:
                        with suppress(OSError):  # something else is in it
                            folder.rmdir()

    def read(self, of: type | None = None, metric: str = "") -> list[dict[str, Any]]:
        """All whole records; lines that were cut off are left out, damaged ones are counted.

        Each must match the dataclass `of`, if one is given (`nas.typed`): a line is written whole,
        so that one which does not match is of something else; `RunError` names it.
        """
        if not self.path.exists():
            return []
        try:
            text = self.path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise RunError(f"cannot read {self.path}: {error.strerror}", "check the path") from None
        records, damaged = [], []
        lines = text.split("\n")[:-1]  # what follows the last end of a line is torn
        for number, line in enumerate(lines, 1):
            try:
                record = parse_json(line)
            except ValueError:
                record = None
            if not isinstance(record, dict):
                damaged.append(number)
                continue
            try:
                decode(of or _Record, record, "", metric)
            except MismatchError as error:
                fix = "delete the line, and what it says is computed again"
                raise RunError(f"{self.path}, line {number}: {error}", fix) from None
            records.append(record)
        if damaged:
            console.print(
                f"{self.path}: {len(damaged)} damaged lines are left out, the first is line "
                f"{damaged[0]}",
                style="yellow",
                soft_wrap=True,
            )
        return records

    def append(self, record: dict[str, Any]) -> None:
        """Add a record and wait until it is on the disk; `RunError` if it cannot be written."""
        self.extend([record])

    def extend(self, records: Sequence[dict[str, Any]]) -> None:
        """Add several records, as `append` adds each."""
        try:
            self._mend()
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(map(_line, records))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise _storage_error(self.path, error) from error

    def write(self, records: Iterable[dict[str, Any]]) -> None:
        """Write these records instead of those there are, all or none."""
        write_text(self.path, "".join(map(_line, records)))

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Drop all records but the wanted ones."""
        self.write([record for record in self.read() if wanted(record)])

    def _mend(self) -> None:
        """Cut off a torn last line, so that the next record starts a line of its own."""
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return
        with self.path.open("rb+") as file:
            end = file.seek(0, os.SEEK_END)
            if end == 0:
                return
            file.seek(end - 1)
            if file.read(1) != b"\n":
                text = self.path.read_bytes()
                file.truncate(text.rfind(b"\n") + 1)


def _locked(file: IO[str]) -> bool:
    """Lock a file until it is closed; False where another process has it locked."""
    try:
        if _LOCKS:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _line(record: dict[str, Any]) -> str:
    return json.dumps({**record, CHECK: _checksum(record)}, separators=(",", ":")) + "\n"


def fingerprint(*parts: Any) -> str:
    """Twelve hexadecimal digits that change when any part (JSON-able, or bytes) does."""
    digest = sha256()
    for part in parts:
        digest.update(
            part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode()
        )
        digest.update(b"\0")
    return digest.hexdigest()[:12]


def _storage_error(path: Path, error: OSError) -> RunError:
    fix = "choose another place"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        fix = "free some space or choose another place; what was written before is intact"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        fix = "allow writing there, or choose another place"
    return RunError(f"cannot write {path}: {error.strerror or error}", fix)
