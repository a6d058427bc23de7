"""Finds out which captions belong to which picture: by tables, or by text files of equal names."""

from __future__ import annotations

import csv
import json
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import StringIO
from pathlib import Path, PurePosixPath

from nas.data.imagefolder.folders import NO_PICTURE, LeftOut, Parts, listed
from nas.errors import DataError

TABLES = (".csv", ".tsv", ".jsonl")
FILES = ("file", "file_name", "filename", "filepath", "path", "image", "image_path")
TEXTS = ("caption", "text", "title", "captions", "name", "description")
_LONGEST = 2_000  # letters of a caption that are kept; text towers read far fewer
_SHAPE = "give a table with the columns file and caption, e.g. captions.csv"


def captioned(
    root: Path, pictures: Sequence[Parts], left_out: LeftOut, say: Callable[[str], None]
) -> dict[Path, tuple[str, ...]]:
    """The captions of each picture that has any, in the order of the pictures.

    Tables lie in the folder or right in one of its folders, and name files from where they lie.
    What is not used is counted and said. Raises `DataError` for a table that cannot be read.
    """
    found: dict[Parts, list[str]] = {parts: [] for parts in pictures}
    tables = sorted(p for at in (root, *_folders(root)) for p in _tables(at))
    lost: list[str] = []
    for table in tables:
        left_out.read(table.relative_to(root).as_posix())
        for name, caption in _rows(table):
            parts = _named(root, table, name)
            if parts in found:
                found[parts].append(caption)
            else:
                lost.append(name)
    if not tables:
        _read_texts(root, found, left_out)
    if lost:
        say(f"{len(lost):,} captions are of files that are no pictures here: {listed(lost, 3)}")
    return {root.joinpath(*parts): own for parts, own in _kept(found, say).items()}


def _kept(
    found: dict[Parts, list[str]], say: Callable[[str], None]
) -> dict[Parts, tuple[str, ...]]:
    """The captions that say something, each once; what is left out is counted and said."""
    kept: dict[Parts, tuple[str, ...]] = {}
    empty = again = cut = 0
    bare: list[str] = []
    for parts, captions in found.items():
        plain = [_plain(caption) for caption in captions]
        own = tuple(dict.fromkeys(c[:_LONGEST] for c in plain if c))
        empty += sum(not c for c in plain)
        again += sum(map(bool, plain)) - len(own)
        cut += sum(len(c) > _LONGEST for c in plain)
        if own:
            kept[parts] = own
        else:
            bare.append("/".join(parts))
    for count, what in (
        (empty, "captions are empty, and left out"),
        (again, "captions stand twice at one picture, and count once"),
        (cut, f"captions have more than {_LONGEST:,} letters, of which the first are kept"),
    ):
        if count:
            say(f"{count:,} {what}")
    if bare:
        say(f"left out {len(bare):,} pictures without a caption: {listed(bare, 3)}")
    return kept


def _plain(caption: str) -> str:
    """A caption as it can be written: composed, in one line, without control characters."""
    known = caption.encode(errors="replace").decode()  # JSON can hold half a character
    letters = (c for c in known if c.isspace() or unicodedata.category(c) != "Cc")
    return " ".join(unicodedata.normalize("NFC", "".join(letters)).split())


def _folders(root: Path) -> list[Path]:
    try:
        return [p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")]
    except OSError:
        return []


def _tables(folder: Path) -> list[Path]:
    try:
        return [p for p in folder.iterdir() if p.suffix.lower() in TABLES and p.is_file()]
    except OSError:
        return []


def _named(root: Path, table: Path, name: str) -> Parts:
    """The picture that a table means, as names of folders and of the file below the root."""
    parts = (*table.parent.relative_to(root).parts, *PurePosixPath(name.replace("\\", "/")).parts)
    return tuple(part for part in parts if part != ".")


def _read_texts(root: Path, found: dict[Parts, list[str]], left_out: LeftOut) -> None:
    """Take the captions of each picture from the text file of its name, one a line."""
    used = set()
    for parts, captions in found.items():
        path = root.joinpath(*parts).with_suffix(".txt")
        if path.is_file():
            captions += _lines(path)
            used.add(path.relative_to(root).as_posix())
    others = [name for name in left_out.names.pop(NO_PICTURE, []) if name not in used]
    if others:
        left_out.names[NO_PICTURE] = others


def _rows(table: Path) -> Iterator[tuple[str, str]]:
    """The rows of a table: the name of a file, and one caption of it; a missing one is empty."""
    for number, file, text in (
        _json_lines(table) if table.suffix.lower() == ".jsonl" else _separated(table)
    ):
        if not isinstance(file, str):
            raise DataError(f"{table}, line {number} names no file", _SHAPE)
        for caption in text if isinstance(text, list) else [text]:
            yield file.strip(), caption if isinstance(caption, str) else ""


def _columns(where: str, names: Iterable[str]) -> tuple[str, str]:
    """Which of these names of columns are those of files and of captions."""
    known = {name.strip().casefold(): name for name in names}
    file, text = (next((known[key] for key in of if key in known), None) for of in (FILES, TEXTS))
    if file is None or text is None:
        shown = ", ".join(known.values())[:80] or "none"
        raise DataError(f"{where} has no columns of files and captions, but {shown}", _SHAPE)
    return file, text


def _separated(table: Path) -> Iterator[tuple[int, object, object]]:
    by, name = ("\t", "tab") if table.suffix.lower() == ".tsv" else (",", "comma")
    rows = csv.DictReader(StringIO(_text(table), newline=""), delimiter=by)
    try:
        file, text = _columns(str(table), rows.fieldnames or ())
        for row in rows:
            if None in row:
                raise DataError(
                    f"{table}, line {rows.line_num} has more values than there are columns",
                    f'put captions that hold a {name} into quotes, "like this"',
                )
            yield rows.line_num, row[file], row[text]
    except csv.Error as error:
        raise DataError(f"{table}, line {rows.line_num}: {error}", _SHAPE) from None


def _json_lines(table: Path) -> Iterator[tuple[int, object, object]]:
    for number, line in enumerate(_lines(table), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{table}, line {number} is not JSON: {error}", "mend it") from None
        if not isinstance(record, dict):
            raise DataError(f"{table}, line {number} is not a JSON object", _SHAPE)
        file, text = _columns(f"{table}, line {number}", record)
        yield number, record[file], record[text]


def _lines(path: Path) -> list[str]:
    """The lines of a file, one at least; other separators than newlines stay in them."""
    return _text(path).removesuffix("\n").split("\n")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8", "save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", "check its permissions") from None
