"""Files that survive anything: atomic writes, append-only journals, fingerprints."""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

from nas.errors import RunError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends without an error."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise _storage_error(path, error) from error


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a text file, in UTF-8, whole or not at all."""
    write_bytes(path, text.encode())


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of equal keys, with these as the header; `None` becomes an empty cell."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, buffer.getvalue())


def write_json(path: Path, data: Any) -> None:
    """Write data as indented JSON, whole or not at all."""
    write_text(path, json.dumps(data, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """What a JSON file holds; `RunError` if it cannot be read or is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}", "check the path") from None
    except ValueError:
        raise RunError(f"{path} is not JSON", "delete it, or restore it from a copy") from None


class Journal:
    """One JSON object a line, appended and flushed; a line cut off by a kill is dropped."""

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

    def read(self) -> list[dict[str, Any]]:
        """All whole records; lines that were cut off or damaged are left out."""
        if not self.path.exists():
            return []
        text = self.path.read_text(encoding="utf-8", errors="replace")
        records = []
        for line in text.split("\n")[:-1]:  # what follows the last end of a line is torn
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                records.append(record)
        return records

    def append(self, record: dict[str, Any]) -> None:
        """Add a record and wait until it is on the disk; `RunError` if it cannot be written."""
        try:
            self._mend()
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(record))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise _storage_error(self.path, error) from error

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Drop all records but the wanted ones."""
        lines = [_line(record) for record in self.read() if wanted(record)]
        write_text(self.path, "".join(lines))

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
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # not on this system
        pass
    except OSError:
        return False
    return True


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, separators=(",", ":")) + "\n"


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
    return RunError(
        f"cannot write {path}: {error.strerror or error}",
        "free some space or choose another place; what was written before is intact",
    )
