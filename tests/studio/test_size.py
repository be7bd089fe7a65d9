"""The studio stays small: it shows what other rooms do, and does little itself."""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "llm_forget" / "studio"
MOST = 1500
_NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
_WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def lines_of_code(text: str) -> int:
    """The lines with code on them: no blank line, comment or docstring, and every line of a text that is a value."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _NO_CODE:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, _WITH_DOCSTRING) and ast.get_docstring(node) is not None:
            lines -= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return len(lines)


def test_the_studio_has_at_most_1500_lines_of_code() -> None:
    assert lines_of_code('"""Doc."""\n\n# note\nx = """a\nb"""\n') == 2
    sizes = {one.name: lines_of_code(one.read_text(encoding="utf-8")) for one in FOLDER.rglob("*.py")}
    assert sum(sizes.values()) <= MOST, sizes
