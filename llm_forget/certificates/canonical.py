"""JSON in exactly one form: the canonicalisation of RFC 8785 (JCS), so that equal values have equal bytes."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from typing import Any

from llm_forget.errors import UserError
from llm_forget.utils.safe_json import NotPlainJson, parse_json

_LARGEST = 1 << 53  # integers beyond it are not exact in all JSON readers


def canonical(value: Any) -> bytes:
    """The canonical JSON of a value, in UTF-8: keys in the order of their UTF-16 units, numbers as ECMAScript writes them.

    Args:
        value: texts, finite numbers, booleans, None, lists and mappings with texts as keys.

    Raises:
        UserError: JSON cannot hold the value exactly.
    """
    try:
        return _written(value).encode("utf-8")
    except UnicodeEncodeError:
        raise UserError("a text has half of a surrogate pair, so it has no UTF-8; correct it") from None


def parse_canonical(content: bytes) -> Any:
    """The value of canonical JSON. Any other bytes for the same value are refused: other spaces, order, or a key twice.

    Raises:
        NotPlainJson: the content is not canonical JSON; the message continues a sentence.
    """
    try:
        value = parse_json(content.decode("utf-8"))
        same = canonical(value) == content
    except UnicodeDecodeError:
        raise NotPlainJson("is not text in UTF-8") from None
    except UserError as error:
        raise error if isinstance(error, NotPlainJson) else NotPlainJson("is not canonical JSON") from None
    if not same:
        raise NotPlainJson("is not canonical JSON: it was changed or written again")
    return value


def _written(value: Any) -> str:
    if value is None or isinstance(value, bool | str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, int):
        if abs(value) <= _LARGEST:
            return str(value)
        if abs(value) < 1e300 and _number(float(value)) == str(value):
            return str(value)
        raise UserError(f"the number {value} is not exact in JSON; integers up to 2**53 are")
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_written, value)) + "]"
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise UserError("a key of a mapping is no text; JSON has texts as keys only")
        keys = sorted(value, key=lambda key: key.encode("utf-16-be", "surrogatepass"))
        return "{" + ",".join(f"{_written(key)}:{_written(value[key])}" for key in keys) + "}"
    raise UserError(f"a {type(value).__name__} cannot be written as JSON; convert it first")


def _number(value: float) -> str:
    """A float as ECMAScript's Number::toString writes it: the shortest digits that read as the same float."""
    if not math.isfinite(value):
        raise UserError(f"{value} is no number that JSON can hold")
    if value == 0:
        return "0"
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    text, point = "".join(map(str, digits)), len(digits) + int(exponent)
    if len(text) <= point <= 21:
        shown = text + "0" * (point - len(text))
    elif 0 < point <= 21:
        shown = f"{text[:point]}.{text[point:]}"
    elif -6 < point <= 0:
        shown = f"0.{'0' * -point}{text}"
    else:
        fraction = f".{text[1:]}" if len(text) > 1 else ""
        shown = f"{text[0]}{fraction}e{'+' if point > 0 else '-'}{abs(point - 1)}"
    return ("-" if sign else "") + shown
