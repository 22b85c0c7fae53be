"""CSV files that people and programs made, read without guessing: a cell stands under its own header, or the file is refused.

    bytes --decode--> text --separator of the header--> rows of as many fields as the header --> frame of text, indexed by line

A comma, semicolon or tab separates fields. Beside semicolons and tabs, decimal commas are understood. A first column without a name
that numbers the rows, as pandas writes one, is left out. Everything else that would shift a column or change a number is an error
that names the line: rows that are longer or shorter than the header, a separator at the end of a row, columns without a name or
with one name, numbers with a thousands separator or a percent sign, a last line that may be cut off.

Many spreadsheets write no line break after the last line. Such a file is read if its last field is surely whole: it ends with a
quotation mark, or with a number of as many decimals as all others of its column have. The first digits of a number that was cut
off would look right in every table.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import pandas as pd

from icmbench.results.errors import ScoresError, quote
from icmbench.results.plain_files import read_plain_file

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
# A number with decimal commas, beside semicolons and tabs.
COMMA_NUMBER = re.compile(r"[+-]?(\d+,\d*|,\d+)([eE][+-]?\d+)?", re.ASCII)
# A number whose comma or point may as well separate thousands.
MAYBE_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}[.,]\d{3}", re.ASCII)
INFINITE = re.compile(r"[+-]?inf(inity)?", re.IGNORECASE)
# What pandas calls an index without a name that it wrote and read again.
PANDAS_INDEX = re.compile(r"Unnamed: 0(\.\d+)?")
# Numbers before the last one that must have as many decimals as it has, before it counts as whole without a line break.
MIN_EQUAL_DECIMALS = 4
# Spellings of a missing value. An empty cell says the same and is no word of a language.
MISSING_WORDS = frozenset({"none", "null", "na", "n/a", "<na>", "#n/a", "-", "--"})
THOUSANDS = re.compile(r"\d[\s'\u2019_]\d")


def read_csv_text(path: str | Path, key: str, exact: Collection[str] = ()) -> tuple[pd.DataFrame, str]:
    """Read a CSV file as text.

    Args:
        path: the file, UTF-8 with or without a byte order mark.
        key: a column that the file must have; it tells which separator the header has.
        exact: in a file with all of these columns, which a program wrote, spaces around a cell are part of the text; they are left
            out of any other file, and of every file if there are no such columns.

    Returns:
        A frame of str, one row per record, indexed by the number of the line on which the record begins; and the separator.
        Empty lines, and a column without a name or content at the end, are left out.

    Raises:
        ScoresError: the file cannot be read, or its rows do not fit its header. The message does not name the file.
    """
    text = _decode(path)
    separator = _separator_of(text, key)
    keep_spaces = bool(exact) and {*_header_of(text, separator)} >= {*exact}
    records = [*_records(text, separator, keep_spaces)]
    if not records:
        raise ScoresError("cannot be read as a CSV file (it is empty)")
    (_, header), *rows = records
    names = [name.strip() for name in header]
    for line, row in rows:
        if len(row) != len(names):
            raise ScoresError(_width_message(line, row, names, separator))
    if not text.endswith(("\n", "\r")) and not _ends_whole(text, [row for _, row in rows]):
        raise ScoresError(
            f"line {records[-1][0]} is the last and has no line break, so it may be cut off; if it is whole, add a line break"
        )
    while names and not names[-1] and not any(row[-1].strip() for _, row in rows):
        names.pop()
        rows = [(line, row[:-1]) for line, row in rows]
    if names and (not names[0] or PANDAS_INDEX.fullmatch(names[0])):
        _check_index(rows)
        names, rows = names[1:], [(line, row[1:]) for line, row in rows]
    _check_names(names, separator)
    cells = [row if keep_spaces else [cell.strip() for cell in row] for _, row in rows]
    return pd.DataFrame(cells, columns=names, index=[line for line, _ in rows], dtype=object), separator


def _ends_whole(text: str, rows: Sequence[Sequence[str]]) -> bool:
    """Whether the last field of a text without a line break at its end cannot have been longer."""
    if text.endswith('"'):
        return True
    *others, last = [re.fullmatch(r"[+-]?\d+[.,](\d+)", row[-1].strip(), re.ASCII) for row in rows] or [None]
    decimals = {len(number[1]) if number else 0 for number in others}
    return last is not None and len(others) >= MIN_EQUAL_DECIMALS and decimals == {len(last[1])}


def _check_index(rows: Sequence[tuple[int, Sequence[str]]]) -> None:
    """Raise ScoresError unless the first column, which has no name, numbers the rows: whole numbers that differ."""
    seen: set[str] = set()
    for line, row in rows:
        cell = row[0].strip()
        if not (cell.isascii() and cell.isdigit()) or cell in seen:
            raise ScoresError(
                f"column 1 has no name in the header and line {line} holds {quote(cell)} there, so it does not number the rows; "
                "name it or leave it out"
            )
        seen.add(cell)


def _decode(path: str | Path) -> str:
    try:
        data = read_plain_file(Path(path))
    except FileNotFoundError:
        raise ScoresError("no such file") from None
    except (OSError, ValueError) as error:  # A path with a null character raises ValueError.
        raise ScoresError(f"cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ScoresError("is UTF-16 text; save it as CSV in UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ScoresError(f"line {line}: cannot be read as a CSV file (it is no UTF-8 text); save it as CSV in UTF-8") from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ScoresError(f"line {line}: cannot be read as a CSV file (it holds a null character); write it again")
    return text


def _separator_of(text: str, name: str) -> str:
    """The separator under which the header has a column of this name; without one, that which gives the most columns."""
    headers = {separator: _header_of(text, separator) for separator in SEPARATORS}
    return max(headers, key=lambda separator: (name in [cell.strip() for cell in headers[separator]], len(headers[separator])))


def _header_of(text: str, separator: str) -> list[str]:
    """The names in the header if it is separated so; none if it cannot be, as quotation marks show."""
    try:
        return next(_records(text, separator), (0, [""]))[1]
    except ScoresError:
        return []


def _records(text: str, separator: str, keep_spaces: bool = False) -> Iterator[tuple[int, list[str]]]:
    """(number of its first line, fields) of every record that is not blank."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=not keep_spaces, strict=True)
    line = 1
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ScoresError(f"line {line}: cannot be read as a CSV file ({error}); check its quotation marks") from None
        if len(row) > 1 or any(cell.strip() for cell in row):
            yield line, row
        line = reader.line_num + 1


def _width_message(line: int, row: Sequence[str], names: Sequence[str], separator: str) -> str:
    """Why a row does not fit the header, and what is likely to be the cause."""
    fields = f"{len(row)} field{'s' * (len(row) != 1)}"
    sentence = f"line {line} has {fields} under {len(names)} columns ({', '.join(names)[:100]}): "
    other = next((mark for mark in SEPARATORS if mark != separator and any(mark in cell for cell in row)), None)
    if len(row) < len(names):
        if other is not None and not (other == "," and separator == ";"):
            return f"{sentence}it is separated by {SEPARATORS[other]}, the header by {SEPARATORS[separator]}; use one separator"
        return f"{sentence}a field is missing or the line is cut off; write every field, an empty one for what was not measured"
    if not row[-1].strip():
        return f"{sentence}it ends with a separator that the header lacks; leave it out"
    if separator == ",":
        return (
            f"{sentence}a number with a decimal comma or thousands separator, or a name with a comma, is split; write decimal "
            "points, and put names in quotation marks"
        )
    return f"{sentence}a name holds a separator or the row has a field too many; put names in quotation marks"


def _check_names(names: Sequence[str], separator: str) -> None:
    """Raise ScoresError if a column has no name, a name is given twice, or a name holds another separator."""
    for number, name in enumerate(names, start=1):
        if not name:
            raise ScoresError(f"column {number} has no name in the header; name it or leave it out")
        if names.count(name) > 1:
            raise ScoresError(f"column {quote(name)} is in the header twice; keep one or rename it")
        if any(mark in name for mark in SEPARATORS):
            raise ScoresError(
                f"column {quote(name)} of the header holds a second kind of separator beside {SEPARATORS[separator]}; use one"
            )


def plain_numbers(frame: pd.DataFrame, columns: Iterable[str], separator: str, infinite: Iterable[str] = ()) -> pd.DataFrame:
    """Check that columns hold numbers or nothing, and write decimal commas as points.

    Args:
        frame: text, indexed by line, as `read_csv_text` returns it.
        columns: the columns that hold numbers.
        separator: that of the file. Decimal commas are understood beside semicolons and tabs, if all numbers have them.
        infinite: those of the columns that may hold infinite numbers too.

    Returns:
        A new frame in which the columns hold text that every program reads as the same number, or empty text.

    Raises:
        ScoresError: a cell holds no number, or one that may be read in two ways. The message names its line and column.
    """
    columns, infinite = [*columns], {*infinite}
    cells = [(line, column, text) for column in columns for line, text in frame[column].items() if text]
    with_comma = [cell for cell in cells if COMMA_NUMBER.fullmatch(cell[2].strip())] if separator != "," else []
    # Semicolons are the mark of countries that write decimal commas, and points between thousands.
    with_mark = with_comma or ([cell for cell in cells if "." in cell[2]] if separator == ";" else [])
    frame = frame.copy()
    for line, column, text in cells:
        cell = text.strip()
        is_comma = bool(with_comma) and bool(COMMA_NUMBER.fullmatch(cell))
        is_number = is_comma or (bool(NUMBER.fullmatch(cell)) and not math.isinf(float(cell)))
        if not (is_number or (column in infinite and INFINITE.fullmatch(cell))):
            raise ScoresError(f"line {line}: {_no_number_message(column, text)}")
        if with_comma and "." in cell:
            comma_line, _, comma_text = with_comma[0]
            raise ScoresError(
                f"line {line}: column {quote(column)} holds {quote(text)} with a point, and line {comma_line} holds "
                f"{quote(comma_text)} with a comma; write all numbers with decimal points"
            )
    if with_mark and all(MAYBE_THOUSANDS.fullmatch(text.strip()) for _, _, text in with_mark):
        line, column, text = with_mark[0]
        raise ScoresError(
            f"line {line}: column {quote(column)} holds {quote(text)}, which may have decimals or thousands; separate columns by "
            "commas and write decimal points"
        )
    for column in columns:
        frame[column] = [cell.strip().replace(",", ".") for cell in frame[column]]
    return frame


def _no_number_message(column: str, text: str) -> str:
    """Why a cell holds no number, and the remedy."""
    cell = text.strip()
    holds = f"column {quote(column)} holds {quote(text)}, which"
    if INFINITE.fullmatch(cell) or NUMBER.fullmatch(cell) or cell.lower() in ("nan", "+nan", "-nan"):
        return f"{holds} is not finite; leave the cell empty if nothing was measured"
    if cell.lower() in MISSING_WORDS:
        return f"{holds} is no number; leave the cell empty if nothing was measured"
    if cell.endswith("%") and NUMBER.fullmatch(cell[:-1].strip()):
        return f"{holds} is no number; leave out the percent sign"
    if re.search(r"\d", cell) and "," in cell:
        return f"{holds} is no number; write a decimal point and no thousands separators"
    if THOUSANDS.search(cell):
        return f"{holds} is no number; leave out what separates thousands"
    return f"{holds} is no number; correct it or leave that column out"
