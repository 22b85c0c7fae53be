"""Damage to files, in one place: drop, null and other values, text, duplicate, swap, extra, truncate."""

import copy
import json
import math

from hypothesis import strategies as st

VALUES = [
    None,
    math.nan,
    math.inf,
    -math.inf,
    10**400,
    -1,
    0,
    1.5,
    True,
    "",
    "7",
    "x",
    [],
    {},
    [1],
    "\ud800",
    "../a.jpg",
    "/dev/zero",
]
PIECES = [
    ",",
    ";",
    "\n",
    '"',
    "1",
    "-",
    ".",
    " ",
    "\t",
    "\r",
    "nan",
    "null",
    "1e1",
    "_",
    "٣",
    "\ufeff",
    "a.jpg,17\n",
    "a.jpg,18\n",
    ",,",
    "1,024",
]


def places(node, path=()):
    """The paths to all values of a JSON document, the root left out."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield (*path, key)
        yield from places(child, (*path, key))


@st.composite
def damaged(draw, document):
    """The text of a document in which one place is damaged."""
    document = copy.deepcopy(document)
    path = draw(st.sampled_from(list(places(document))))
    parent = document
    for key in path[:-1]:
        parent = parent[key]
    key, operation = path[-1], draw(st.sampled_from(["drop", "replace", "text", "duplicate", "swap", "extra", "truncate"]))
    if operation == "drop":
        del parent[key]
    elif operation == "replace":
        parent[key] = draw(st.sampled_from(VALUES))
    elif operation == "text":
        parent[key] = str(parent[key])
    elif operation == "duplicate":
        if isinstance(parent, list):
            twin = copy.deepcopy(parent[key])
            if isinstance(twin, dict) and draw(st.booleans()):
                twin[draw(st.sampled_from(sorted(twin)))] = draw(st.sampled_from(VALUES))
            parent.insert(draw(st.integers(0, len(parent))), twin)
        else:
            marked = json.dumps(document).replace(
                json.dumps(key) + ": ", f"{json.dumps(key)}: {json.dumps(VALUES[0])}, {json.dumps(key)}: ", 1
            )
            return marked
    elif operation == "swap":
        other = draw(st.sampled_from(list(parent) if isinstance(parent, dict) else range(len(parent))))
        parent[key], parent[other] = parent[other], parent[key]
    elif operation == "extra":
        parent.append(draw(st.sampled_from(VALUES))) if isinstance(parent, list) else parent.update(
            extra=draw(st.sampled_from(VALUES))
        )
    text = json.dumps(document)
    return text[: draw(st.integers(0, len(text) - 1))] if operation == "truncate" else text


@st.composite
def damaged_text(draw, text):
    """A text with a piece cut out, replaced, or put in; or cut off; or with two lines exchanged."""
    operation = draw(st.sampled_from(["drop", "replace", "insert", "truncate", "swap", "duplicate"]))
    start = draw(st.integers(0, len(text)))
    length = draw(st.integers(1, 6))
    if operation == "drop":
        return text[:start] + text[start + length :]
    if operation == "replace":
        return text[:start] + draw(st.sampled_from(PIECES)) + text[start + length :]
    if operation == "insert":
        return text[:start] + draw(st.sampled_from(PIECES)) + text[start:]
    if operation == "truncate":
        return text[:start]
    lines = text.splitlines(keepends=True)
    a, b = (draw(st.integers(0, len(lines) - 1)) for _ in range(2))
    if operation == "swap":
        lines[a], lines[b] = lines[b], lines[a]
    else:
        lines.insert(b, lines[a])
    return "".join(lines)
