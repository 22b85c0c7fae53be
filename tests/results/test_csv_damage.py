"""Curves in damaged CSV files: an error that names the line, or the numbers of what the file still says; never a shifted column."""

import os
import re

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icmbench.harness.cli import main
from icmbench.results.score_checks import doubts
from icmbench.results.scores import ScoresError, codec_names, read_scores
from icmbench.results.tables import bdrate_frame

HEADER = ["codec", "bpp", "AP", "lpips"]
ROWS = [
    ["jpeg", "0.24", "20.5", "0.41"],
    ["jpeg", "0.35", "24", "0.33"],
    ["jpeg", "0.76", "29.25", "0.2"],
    ["avif", "0.1", "20.5", "0.41"],
    ["avif", "0.2", "24", "0.33"],
    ["avif", "0.52", "29.25", "0.2"],
    ["uncompressed", "", "31", ""],
]
# Mutations of each kind that hypothesis tries.
EXAMPLES = int(os.environ.get("ICMBENCH_FUZZ") or 60)
# What people and spreadsheets write where a number belongs, and what no number may be.
WRONG_NUMBERS = [
    "nan",
    "NaN",
    "inf",
    "-inf",
    "text",
    "1,234.5",
    "1 234",
    "1'234",
    "12%",
    "0,15",
    "0x1",
    "1_0",
    "\u0661",
    "null",
    "--",
]
rows_of_numbers = st.integers(0, 5)
columns_of_numbers = st.integers(1, 3)


def written(rows, header=HEADER, separator=","):
    """Text of a CSV file; cells with a separator are quoted."""
    lines = [[f'"{cell}"' if separator in cell else cell for cell in row] for row in (header, *rows)]
    return "".join(separator.join(line) + "\n" for line in lines)


def meaning(rows):
    """(codec, rate, metric, value) of every cell that holds one, from rows in the order of `HEADER`."""
    return sorted(
        (row[0], float(row[1]) if row[1] else -1.0, metric, float(cell))
        for row in rows
        for metric, cell in zip(HEADER[2:], row[2:], strict=True)
        if cell
    )


def read(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("csv") / "curves.csv"
    path.write_text(text, encoding="utf-8", newline="")
    frame = read_scores(path)
    rows = frame[["codec", "bpp", "metric", "value"]].fillna({"bpp": -1.0}).itertuples(index=False, name=None)
    return sorted(rows)


def check(tmp_path_factory, text, rows, line=None):
    """Reading the text gives an error that names the line, or what the rows mean."""
    try:
        got = read(tmp_path_factory, text)
    except ScoresError as error:
        assert "curves.csv: " in str(error) and "\n" not in str(error)
        if line is not None:
            assert re.search(rf"\blines? {line}\b", str(error)), (str(error), line)
        return
    assert rows is not None and got == meaning(rows), (text, got)


def copy_rows():
    return [[*row] for row in ROWS]


@settings(max_examples=EXAMPLES, derandomize=True, deadline=None)
@given(rows_of_numbers, columns_of_numbers, st.sampled_from(WRONG_NUMBERS), st.sampled_from([",", ";", "\t"]))
def test_a_cell_that_holds_no_number(tmp_path_factory, row, column, text, separator):
    rows = copy_rows()
    rows[row][column] = text
    path = tmp_path_factory.mktemp("csv") / "curves.csv"
    path.write_text(written(rows, separator=separator), encoding="utf-8")
    with pytest.raises(ScoresError, match=rf"line {row + 2}\b"):
        read_scores(path)


@settings(max_examples=EXAMPLES, derandomize=True, deadline=None)
@given(rows_of_numbers, columns_of_numbers, st.sampled_from(["0", "-0.24", "1e9", "-1e-9", "1e-12", "1e400", "3e7"]))
def test_a_number_out_of_range(tmp_path_factory, row, column, text):
    rows = copy_rows()
    rows[row][column] = text
    harmless = column > 1 and text in ("0", "1e-12", "-1e-9")  # Values that a metric can have, rounding included.
    check(tmp_path_factory, written(rows), rows if harmless else None, row + 2)


@settings(max_examples=EXAMPLES, derandomize=True, deadline=None)
@given(st.integers(0, 6), st.integers(0, 3), st.sampled_from(["drop", "add", "empty"]), st.sampled_from(["", "7", "x"]))
def test_a_field_too_few_or_too_many(tmp_path_factory, row, column, operation, text):
    rows = copy_rows()
    if operation == "drop":
        del rows[row][column]
    elif operation == "add":
        rows[row].insert(column, text)
    else:
        rows[row][column] = ""
    is_measured = operation == "empty" and not (column == 0 or (column == 1 and row != 6))
    check(tmp_path_factory, written(rows), rows if is_measured else None, row + 2)


@settings(max_examples=EXAMPLES, derandomize=True, deadline=None)
@given(st.integers(1, 10**6))
def test_a_file_that_is_cut_off(tmp_path_factory, seed):
    text = written(ROWS)
    end = seed % len(text)
    rest = text[:end]
    whole_lines = rest.count("\n")
    at_line_end = not rest or rest.endswith("\n")
    check(tmp_path_factory, rest, ROWS[: whole_lines - 1] if at_line_end and whole_lines > 1 else None)


@settings(max_examples=EXAMPLES, derandomize=True, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([";", "\t", "|", " ", "", "\n", ",,"]))
def test_one_separator_that_is_another(tmp_path_factory, seed, other):
    text = written(ROWS)
    places = [match.start() for match in re.finditer(r"[,\n]", text[:-1])]
    place = places[seed % len(places)]
    line = text[:place].count("\n") + 1
    damaged = text[:place] + other + text[place + 1 :]
    in_header = line == 1
    try:
        got = read(tmp_path_factory, damaged)
    except ScoresError as error:
        assert in_header or re.search(rf"\bline ({line}|{line + 1})\b", str(error)), str(error)
        return
    assert got == meaning(ROWS)


@settings(max_examples=EXAMPLES, derandomize=True, deadline=None)
@given(rows_of_numbers, st.integers(0, 7), columns_of_numbers, st.sampled_from(["", "1", "2.5"]))
def test_a_row_that_is_there_twice(tmp_path_factory, row, place, column, text):
    rows = copy_rows()
    twin = [*rows[row]]
    if text and column > 1:
        twin[column] = text
    rows.insert(place, twin)
    first, second = sorted(k for k, other in enumerate(rows) if other[:2] == twin[:2])
    path = tmp_path_factory.mktemp("csv") / "curves.csv"
    path.write_text(written(rows))
    with pytest.raises(ScoresError, match=rf"line {second + 2} gives .* again, after line {first + 2}"):
        read_scores(path)


@settings(max_examples=EXAMPLES, derandomize=True, deadline=None)
@given(
    st.permutations(range(4)), st.permutations(range(7)), st.sampled_from([",", ";", "\t"]), st.booleans(), st.booleans(),
    st.sampled_from(["\n", "\r\n", "\n\n", "\r"]), st.sampled_from(["", "\ufeff"]), st.booleans(), st.booleans(),
)  # fmt: skip
def test_what_stays_valid_is_read(tmp_path_factory, columns, order, separator, comma, trailing, end, mark, quotes, spaces):
    """Columns and rows in any order, other separators, decimal commas, quotes, spaces, marks and line ends."""
    rows = [ROWS[k] for k in order]
    table = [[row[column] for column in columns] for row in (HEADER, *rows)]
    if comma and separator != ",":
        table[1:] = [[cell.replace(".", ",") for cell in row] for row in table[1:]]
    table = [[f'"{cell}"' if quotes else cell for cell in row] + [""] * trailing for row in table]
    text = mark + "".join((separator + " " * spaces).join(row) + end for row in table)
    assert read(tmp_path_factory, text) == meaning(ROWS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bpp,AP,codec\n0,15,20,jpeg\n", r"line 2 has 4 fields under 3 columns \(bpp, AP, codec\): a number with a decimal comma"),
        ("codec,bpp,AP\njpeg,1,234.5,20\n", "line 2 has 4 fields .*thousands separator"),
        ("codec,bpp,AP\njpeg,0.1,20,\n", "line 2 has 4 fields .*ends with a separator that the header lacks"),
        ("codec,bpp,AP\njpeg;0.1;20\n", "line 2 has 1 field .*separated by semicolons, the header by commas"),
        ("codec|bpp|AP\njpeg|0.1|20\n", r"no column 'codec'.*'codec\|bpp\|AP'"),
        (",codec,bpp,AP\n0.5,jpeg,0.1,20\n", r"column 1 has no name in the header and line 2 holds '0\.5' there"),
        (",codec,bpp,AP\n1,jpeg,0.1,20\n1,jpeg,0.2,30\n", "column 1 has no name in the header and line 3 holds '1' there"),
        ("codec,,bpp,AP\njpeg,0,0.1,20\n", "column 2 has no name"),
        ("codec,bpp,AP,AP\njpeg,0.1,20,30\n", "column 'AP' is in the header twice"),
        ("codec,bpp,metric,value,tasj\njpeg,0.1,AP,20,yolox\n", "column 'tasj' is unknown; did you mean 'task'"),
        ("codec,bpp,metric,value,Unit\njpeg,0.1,AP,20,%\n", "column 'Unit' is unknown; did you mean 'unit'"),
        ("codec,bpp,rate,AP\njpeg,0.1,100,30\n", "both columns bpp and rate"),
        ("codec;bpp;AP\njpeg;0,15;20.5\n", "line 2: column 'AP' holds '20.5' with a point, and line 2 holds '0,15' with a comma"),
        ("codec;rate;AP\njpeg;1,234;20\n", "line 2: column 'bpp' holds '1,234', which may have decimals or thousands"),
        ("codec;rate;AP\njpeg;1.234;20\n", "may have decimals or thousands"),
        ('codec,bpp,AP\njpeg,"0,15",20\n', "line 2: column 'bpp' holds '0,15', which is no number; write a decimal point"),
        ("codec,bpp,AP\njpeg,0.1,12%\n", "holds '12%', which is no number; leave out the percent sign"),
        ("codec,bpp,AP\njpeg,1 234,12\n", "holds '1 234', which is no number; leave out what separates thousands"),
        ("codec,bpp,AP\njpeg,0.1,120\n", r"line 2: codec 'jpeg' has AP 120, which is out of range \(0 to 100\)"),
        ("codec,bpp,metric,value,unit\njpeg,0.1,mine,120,%\n", "has mine 120, which is out of range"),
        ("codec,bpp,AP\njpeg,1e9,20\n", "line 2: codec 'jpeg' has 1e[+]09 bpp"),
        # Rate and quality changed places; and kilobits of an image as its rate.
        ("codec,bpp,AP\njpeg,20.5,0.24\njpeg,24.5,0.35\n", "line 3: codec 'jpeg' has 24.5 bpp, and pixels have 24 bits before"),
        ("codec,bpp,AP\njpeg,94.4,20\n", "line 2: codec 'jpeg' has 94.4 bpp, .*write bits per pixel, or name the column rate"),
        ("codec,bpp,AP\na,0.1,20\na,0.2,0.24\na,0.3,29\n", "line 3: codec 'a' has AP 0.24, and 20 at a lower rate; write all in"),
        ("codec,rate,AP\na,100,20\na,200,30\na,1e12,40\n", "line 4: codec 'a' has rate 1e[+]12, and the median of the file is 200"),
        ("codec,bpp,metric,value\njpeg,0.1,AP,\n", "line 2: codec 'jpeg' has no value"),
        ('codec,bpp,AP\n"jpeg,0.1,20\n', "line 2: cannot be read as a CSV file .*quotation marks"),
        ("codec,bpp,AP,limited\njpeg,0.1,20,perhaps\n", "line 2: column 'limited' holds 'perhaps'; write true or false"),
        ("codec,bpp,AP\n,0.1,20\n", "line 2: codec '' has no codec"),
        ("codec,bpp,AP\njpeg,0.1,20", "line 2 is the last and has no line break"),
    ],
)
def test_every_cause_is_named(tmp_path, text, message):
    path = tmp_path / "curves.csv"
    path.write_text(text)
    with pytest.raises(ScoresError, match=message) as error:
        read_scores(path)
    assert str(error.value).startswith(f"{path}: ")


@pytest.mark.parametrize("data", [b"codec,bpp,AP\njpeg,0.1,\xff\n", "codec,bpp\n".encode("utf-16"), b"codec,bpp,AP\nj\0peg,1,2\n"])
def test_what_is_no_text_is_refused(tmp_path, data):
    path = tmp_path / "curves.csv"
    path.write_bytes(data)
    with pytest.raises(ScoresError, match=r"UTF-16|line 2: cannot be read as a CSV file"):
        read_scores(path)


def test_folders_and_pipes_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ScoresError, match="no regular file"):
            read_scores(path)


@pytest.mark.parametrize("separator", [",", ";"])
def test_decimal_commas_beside_semicolons_give_the_same_bd_rate(tmp_path, separator):
    """By hand: avif needs 0.1 / 0.15, 0.2 / 0.35 and 0.5 / 0.75 of the rate at AP 20, 30 and 38, between -33.3 and -42.9 %."""
    rows = [("jpeg", 0.15, 20), ("jpeg", 0.35, 30), ("jpeg", 0.75, 38), ("avif", 0.1, 20), ("avif", 0.2, 30), ("avif", 0.5, 38)]
    text = "".join(separator.join(map(str, row)) + "\n" for row in (("codec", "bpp", "AP"), *rows))
    path = tmp_path / "curves.csv"
    path.write_text(text.replace(".", ",") if separator == ";" else text)
    percent = bdrate_frame(read_scores(path), "jpeg")["bd_rate_percent"].item()
    assert percent == pytest.approx(-39.9, abs=0.05)


def test_labels_of_every_kind_survive_a_run_s_csv(plain_scores, tmp_path):
    """Names with separators, quotes, spaces around them, markup and control characters are read as they were written."""
    names = [' "a";b ', "a,b\tc", "<b>&amp;$x_1$ | \\ % #", "\x1b[2J\x07", "two\nlines\r", "x" * 4000, "\u65e5\u672c", "=1+1"]
    few = plain_scores[(plain_scores["task"] == "yolox") & (plain_scores["codec"] == "jpeg")]
    frame = pd.concat([few.assign(codec=name) for name in names])
    frame.to_csv(tmp_path / "scores.csv", index=False)
    assert codec_names(read_scores(tmp_path / "scores.csv")) == names


@pytest.mark.parametrize("index", [[0, 1, 2, 3, 4, 5, 6], [0, 2, 3, 7, 8, 10, 11]])
@pytest.mark.parametrize("name", ["", "Unnamed: 0", "Unnamed: 0.1"])
def test_an_index_that_pandas_wrote_is_left_out(tmp_path_factory, index, name):
    """A frame written with its index, whole or after rows were left out, and the same file read and written again."""
    rows = [[str(number), *row] for number, row in zip(index, ROWS, strict=True)]
    assert read(tmp_path_factory, written(rows, [name, *HEADER])) == meaning(ROWS)


WHOLE = ["codec,bpp,AP", "a,0.1,20.51", "a,0.2,24.02", "a,0.4,29.25", "b,0.1,20.50", "b,0.2,31.07"]


@pytest.mark.parametrize("quoted", [False, True])
def test_a_last_line_without_a_line_break_is_read_if_it_is_surely_whole(tmp_path, quoted):
    """As spreadsheets write it: the last number has as many decimals as all others, or a quotation mark closes it."""
    lines = [",".join(f'"{cell}"' for cell in line.split(",")) for line in WHOLE] if quoted else WHOLE
    path = tmp_path / "curves.csv"
    path.write_text("\n".join(lines))
    assert read_scores(path)["value"].tolist() == [20.51, 24.02, 29.25, 20.5, 31.07]
    path.write_text("\n".join(lines).replace(",", ";"))
    assert len(read_scores(path)) == 5


@pytest.mark.parametrize("end", ["a,0.5,31.0", "a,0.5,31.", "a,0.5,31", "a,0.5,", "a,0.5,31.071", "a,0.5,3.1e1"])
def test_a_last_line_that_may_be_cut_off_is_refused(tmp_path, end):
    path = tmp_path / "curves.csv"
    path.write_text("\n".join([*WHOLE, end]))
    with pytest.raises(ScoresError, match="line 7 is the last and has no line break, so it may be cut off"):
        read_scores(path)
    path.write_text("codec,bpp,AP\na,0.1,20.5\na,0.2,24.2\na,0.4,29.2")  # Too few numbers to know how many decimals they have.
    with pytest.raises(ScoresError, match="no line break"):
        read_scores(path)


@pytest.mark.parametrize(
    "text",
    [
        "codec,rate,AP\na,94.4,20\na,140,30\n",  # In any unit, if the column says no other.
        "codec,bpp,AP\na,24,20\n",
        "codec,bpp,metric,value,notes,seed\na,2,AP,20,x,1\n",  # Columns that mean nothing here.
        "codec,bpp,AP\na,0.1,0.2\na,0.2,0.9\na,0.3,24\n",  # A codec that fails at low rates.
        "codec,bpp,AP\na,0.1,9\na,0.2,0.9\n",  # A curve that dips.
        "codec,bpp,metric,value,unit\na,0.1,AP,20,%\na,0.2,AP,0.24,%\n",  # The unit is stated.
        "codec,bpp,mAP\na,0.1,0.20\na,0.2,0.24\n",  # Fractions throughout, which shift no BD-rate.
    ],
)
def test_unusual_numbers_that_may_be_right_are_read(tmp_path, text):
    path = tmp_path / "curves.csv"
    path.write_text(text)
    assert len(read_scores(path)) == text.count("\n") - 1


def doubts_of(tmp_path, text):
    path = tmp_path / "curves.csv"
    path.write_text(text)
    return doubts(read_scores(path))


def test_what_is_likely_to_be_wrong_is_named(tmp_path):
    right = "codec,bpp,AP\na,0.1,20\na,0.2,30\n"
    assert doubts_of(tmp_path, right + "b,0.05,22\nb,0.1,31\n") == []
    (fraction,) = doubts_of(tmp_path, right + "b,0.05,0.22\nb,0.1,0.31\n")
    assert "AP of codec 'b' is at most 0.31 and reaches 30 elsewhere" in fraction
    (unit,) = doubts_of(tmp_path, right + "b,0.00005,22\nb,0.0001,31\n")
    assert "the rates of codec 'a' are about 0.15 and those of 'b' about 7.5e-05" in unit


def test_bdrate_names_its_doubts_and_goes_on(tmp_path, capsys):
    path = tmp_path / "curves.csv"
    path.write_text("codec,bpp,AP\na,0.1,20\na,0.2,30\nb,0.05,0.22\nb,0.1,0.31\n")
    assert main(["bdrate", str(path), "--anchor", "a"]) == 0
    said = capsys.readouterr()
    assert said.err.startswith(f"icmbench: {path}: AP of codec 'b' is at most 0.31") and said.err.count("\n") == 1
