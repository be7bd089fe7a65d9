"""Split texts into words: lower case, without accents, one word per character in scripts that write no spaces."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]
from numpy.typing import NDArray

# Every ASCII byte that is no letter or digit becomes a space; bytes of other characters stay.
_ASCII = bytes(
    code + 32 if 65 <= code <= 90 else code if code > 127 or chr(code).isalnum() else 32 for code in range(256)
)
_ASCII_WORD = re.compile(r"[a-z0-9]+")
_NO_SPACES = r"([\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}])"


def fold(texts: pa.StringArray) -> pa.StringArray:
    """The texts in lower case, without accents and punctuation, words separated by spaces.

    Texts in ASCII take a path that is several times faster.
    """
    if len(texts) == 0:
        return texts
    other = pc.invert(pc.string_is_ascii(texts))
    if not pc.any(other).as_py():
        return _folded_ascii(texts)
    marked = pc.replace_substring_regex(pc.utf8_normalize(texts.filter(other), "NFKD"), r"\p{M}+", "")
    marked = pc.replace_substring_regex(pc.utf8_lower(marked), r"[^\p{L}\p{N}]+", " ")
    marked = pc.replace_substring_regex(marked, _NO_SPACES, r" \1 ")
    plain = pc.if_else(other, pa.scalar(""), texts)
    return pc.replace_with_mask(_folded_ascii(plain), other, marked)


def _folded_ascii(texts: pa.StringArray) -> pa.StringArray:
    _, offsets, data = texts.buffers()
    content = b"" if data is None else data.to_pybytes().translate(_ASCII)
    return pa.StringArray.from_buffers(len(texts), offsets, pa.py_buffer(content), None, 0, texts.offset)


def split(texts: pa.StringArray) -> tuple[pa.StringArray, NDArray[np.int64]]:
    """The words of folded texts.

    Returns:
        All words one after the other, with empty ones at the ends of a text; and (N + 1,) where each text's words start.
    """
    lists: Any = pc.utf8_split_whitespace(texts)
    return lists.values, np.asarray(lists.offsets, dtype=np.int64)


def words_of(text: str) -> list[str]:
    """The words of one text."""
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    return [str(word) for word in fold(pa.array([text], pa.string()))[0].as_py().split()]
