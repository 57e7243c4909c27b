"""Hypothesis strategies that damage what is well formed: documents, bytes and lines of text."""

from __future__ import annotations

import copy
import struct

from hypothesis import strategies as st

ODD_NUMBERS = st.one_of(
    st.sampled_from(
        [0, -1, 1, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**30, 10**400, -(10**400)]
    ),
    st.integers(),
    st.floats(),
)
ODD_WORDS = st.one_of(
    st.sampled_from(
        [
            "",
            "\0",
            "..",
            "../..",
            "/etc/passwd",
            "<script>",
            "1e999",
            "nan",
            "|O",
            ">u2",
            "<f8",
            "pickle",
            "zstd",
        ]
    ),
    st.text(max_size=12),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), ODD_NUMBERS, ODD_WORDS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(ODD_WORDS, inner, max_size=3)),
    max_leaves=8,
)


@st.composite
def documents(draw, valid):
    """A JSON document of which up to three values are replaced, lost, or joined by others."""
    document = copy.deepcopy(valid)
    for _ in range(draw(st.integers(0, 3))):
        holder, keys = document, []
        while isinstance(holder, (dict, list)) and holder:
            keys = sorted(holder, key=str) if isinstance(holder, dict) else range(len(holder))
            key = draw(st.sampled_from(list(keys)))
            if not isinstance(holder[key], (dict, list)) or not holder[key] or draw(st.booleans()):
                break
            holder = holder[key]
        if not isinstance(holder, (dict, list)) or not holder:
            continue
        what = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if what == "remove":
            del holder[key]
        elif what == "add" and isinstance(holder, dict):
            holder[draw(ODD_WORDS)] = draw(VALUES)
        else:
            holder[key] = draw(VALUES)
    return document


@st.composite
def damaged(draw, valid: bytes, most: int = 4):
    """Bytes that are cut, flipped, overwritten by extreme numbers, repeated, or lengthened."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(0, most))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        what = draw(st.sampled_from(["flip", "flip", "number", "cut", "insert", "repeat", "drop"]))
        if what == "flip" and data:
            data[at] ^= draw(st.integers(1, 255))
        elif what == "number":
            form = draw(st.sampled_from(["<I", ">I", "<H", ">H", "<Q", ">Q"]))
            whole = 256 ** struct.calcsize(form) - 1
            number = draw(st.sampled_from([0, 1, whole, whole // 2, whole // 2 + 1, whole // 255]))
            packed = struct.pack(form, number)
            data[at : at + len(packed)] = packed
        elif what == "cut":
            del data[at:]
        elif what == "insert":
            data[at:at] = draw(st.binary(max_size=20))
        elif what == "repeat":
            data[at:at] = data[at : at + draw(st.integers(1, 64))]
        else:
            del data[at : at + draw(st.integers(1, 64))]
    return bytes(data)


@st.composite
def headers(draw, valid: dict[str, str], colon: str):
    """Lines of ``key: value``, some with other values, some gone, some of another kind, in any order."""
    lines = []
    for key, value in valid.items():
        kind = draw(st.sampled_from(["keep"] * 6 + ["odd", "number", "lose", "twice"]))
        if kind == "odd":
            lines.append(f"{key}{colon}{draw(ODD_WORDS)}")
        elif kind == "number":
            lines.append(f"{key}{colon}{draw(st.lists(ODD_NUMBERS.map(str), max_size=4).map(' '.join))}")
        elif kind != "lose":
            lines += [f"{key}{colon}{value}"] * (2 if kind == "twice" else 1)
    for line in draw(st.lists(ODD_WORDS, max_size=2)):
        lines.insert(draw(st.integers(0, len(lines))), line)
    return lines
