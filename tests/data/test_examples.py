"""Test the parsing of rows: all formats, all kinds of invalid rows, and overlap between sets."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from profiles import examples
from pydantic import TypeAdapter

from llm_forget.data.examples import (
    DataSource,
    Example,
    Message,
    check_overlap,
    example_id,
    read_examples,
)
from llm_forget.errors import DataError

GOOD = '{"question": "Q", "answer": "A"}'
SECRET = "plantedsecret"


@pytest.fixture(autouse=True)
def in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths start from the current folder."""
    monkeypatch.chdir(tmp_path)


def read(folder: Path, text: str, **options: Any) -> list[Example]:
    (folder / "f.jsonl").write_bytes(text.encode("utf-8"))
    return read_examples(DataSource("f.jsonl", **options))


def refusal(folder: Path, text: str, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(folder, text, **options)
    return str(caught.value)


def rows(*values: dict[str, object]) -> str:
    return "\n".join(json.dumps(value) for value in values)


def qa(question: str, answer: str, source: str = "") -> Example:
    turns = (Message("user", question),)
    return Example(example_id(turns, answer), turns, answer, source=source)


# --- formats ---


def test_question_and_answer_with_other_answers(tmp_path: Path) -> None:
    row = {
        "question": "Q",
        "answer": "A",
        "paraphrased_answer": "B",
        "perturbed_answer": ["C", "D"],
        "alternative": "E",
    }
    [found] = read(tmp_path, rows(row))
    assert found == Example(
        example_id((Message("user", "Q"),), "A"), (Message("user", "Q"),), "A", ("B",), ("C", "D"), "E", "f.jsonl:1"
    )
    assert read(tmp_path, rows({**row, "paraphrased_answer": ["B", "F"], "perturbed_answer": "C"}))[0].paraphrases == (
        "B",
        "F",
    )


def test_prompt_and_completion_keep_their_white_space(tmp_path: Path) -> None:
    [found] = read(tmp_path, rows({"prompt": "Q: x\n", "completion": " y"}))
    assert (found.prompt, found.answer) == ("Q: x\n", " y")


def test_prompt_and_completion_as_messages(tmp_path: Path) -> None:
    prompt = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}]
    [found] = read(tmp_path, rows({"prompt": prompt, "completion": [{"role": "assistant", "content": "A"}]}))
    assert (found.prompt, found.answer) == ((Message("system", "S"), Message("user", "Q")), "A")


def test_messages_end_with_the_answer(tmp_path: Path) -> None:
    turns = [("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "four")]
    [found] = read(tmp_path, rows({"messages": [{"role": role, "content": text} for role, text in turns]}))
    assert (found.prompt, found.answer) == (tuple(Message(*turn) for turn in turns[:3]), "four")


def test_plain_text_is_all_answer(tmp_path: Path) -> None:
    [found] = read(tmp_path, rows({"text": "a document"}))
    assert (found.prompt, found.answer) == ("", "a document")


def test_ids_are_stable_and_separate_the_parts() -> None:
    # Literal values, since changed ids would invalidate all caches and results.
    digest = hashlib.sha256(b'[[["user","Q"]],"A"]').hexdigest()
    assert example_id((Message("user", "Q"),), "A") == digest[:16] == "82eca9a763f809cd"
    assert len({example_id(prompt, answer) for prompt, answer in [("ab", "c"), ("a", "bc"), ("", "abc")]}) == 3
    assert example_id("Q", "A") != example_id((Message("user", "Q"),), "A")
    assert example_id((Message("user", "Q"),), "A") != example_id((Message("system", "Q"),), "A")


# --- columns ---


def test_columns_are_mapped(tmp_path: Path) -> None:
    text = rows({"query": "Q", "reply": "A", "idk": "no", "text": "T"})
    columns = {"question": "query", "answer": "reply", "alternative": "idk"}
    [found] = read(tmp_path, text, columns=columns)
    assert (found.answer, found.alternative) == ("A", "no")
    assert read(tmp_path, text)[0].answer == "T"
    assert read(tmp_path, text, format="text", columns={"alternative": "idk"})[0].answer == "T"


@pytest.mark.parametrize(
    ("row", "options", "said"),
    [
        ({"question": "Q", "answer": "A", "text": "T"}, {}, "could be any of qa, text: set format"),
        ({"query": "Q", "answer": "A"}, {}, "the columns found are query, answer, which is none of the forms"),
        ({"query": "Q", "answer": "A"}, {"format": "qa"}, "format qa needs question + answer"),
        ({"question": "Q", "answer": "A"}, {"columns": {"alternative": "idk"}}, "'idk', which no row has"),
    ],
)
def test_columns_that_do_not_determine_the_format(
    tmp_path: Path, row: dict[str, object], options: dict[str, Any], said: str
) -> None:
    message = refusal(tmp_path, rows(row), **options)
    assert "f.jsonl:1" in message
    assert said in message


def test_keys_that_may_be_data_are_not_printed(tmp_path: Path) -> None:
    message = refusal(tmp_path, rows({f"What is the {SECRET}?": "x", "id": 1}))
    assert "the columns found are id, 1 more" in message
    assert SECRET not in message


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("f.csv", f"{SECRET},4711-2233\nOther,1\n"),
        ("f.tsv", f"{SECRET}\t4711\nOther\t1\n"),
        ("f.jsonl", f'{{"{SECRET}": 1, "4711-2233": 2}}'),
    ],
)
def test_a_table_without_a_header_shows_none_of_its_cells(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as caught:
        read_examples(DataSource(str(tmp_path / name)))
    assert "does the file have a header?" in str(caught.value)
    assert SECRET not in str(caught.value)
    assert "4711" not in str(caught.value)


def test_names_near_to_known_ones_are_printed(tmp_path: Path) -> None:
    message = refusal(tmp_path, rows({"Qestion": "Q", "anwser": "A", "zz9": 1}))
    assert "the columns found are Qestion, anwser, 1 more with other names" in message
    message = refusal(tmp_path, rows({"frage1": "Q", "answer": "A"}), columns={"question": "frage"})
    assert "'frage', which no row has; the columns found are frage1, answer" in message


def test_content_may_be_text_parts_and_turns_may_be_sharegpts(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "A"}, {"type": "text", "text": " B."}]
    found = read(tmp_path, turns(("user", parts[:1]), ("assistant", parts)))
    assert (found[0].prompt, found[0].answer) == ((Message("user", "A"),), "A B.")
    shared = {"messages": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}
    assert read(tmp_path, rows(shared)) == read(tmp_path, turns(("user", "Q"), ("assistant", "A")))
    picture = [{"type": "image", "image": SECRET}, *parts]
    assert "messages[0].content is a list, and [0] is no text part" in refusal(
        tmp_path, turns(("user", picture), ("assistant", "A"))
    )
    for key in ("reasoning_content", "tool_calls"):
        answer = {"role": "assistant", "content": "A", key: [SECRET]}
        message = refusal(tmp_path, rows({"messages": [{"role": "user", "content": "Q"}, answer]}))
        assert f"messages[1] has {key}, which is not read" in message
        assert SECRET not in message


def test_source_from_a_recipe_is_checked_too() -> None:
    adapter = TypeAdapter(DataSource)
    assert adapter.validate_python({"path": "f", "columns": {"answer": "reply"}}) == DataSource(
        "f", columns={"answer": "reply"}
    )
    for wrong, said in [
        ({"format": "xml"}, "format"),
        ({"limit": 0}, "limit is 0"),
        ({"columns": {"anwser": "x"}}, "did you mean answer"),
    ]:
        with pytest.raises(ValueError, match=said):
            adapter.validate_python({"path": "f", **wrong})
    with pytest.raises(DataError, match="allowed are auto, qa"):
        DataSource("f", format="xml")  # type: ignore[arg-type]


# --- bad rows ---


def turns(*pairs: tuple[object, object]) -> str:
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in pairs]})


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{not json", "not valid JSON (character 2)"),
        ("[" * 100_000, "nested too deeply"),
        ("9" * 5000, "too many digits"),
        ('["a"]', "a JSON list, not an object"),
        ('"a"', "a JSON string, not an object"),
        ("3", "a JSON number, not an object"),
        ('{"question": "Q"}', "answer is missing"),
        ('{"question": "Q", "answer": null}', "answer is missing"),
        ('{"question": "Q", "answer": 3}', "answer is a int, not a string"),
        ('{"question": " ", "answer": "A"}', "question is empty or only white space"),
        ('{"question": "Q", "answer": "\\n\\t"}', "answer is empty or only white space"),
        ('{"question": "Q", "answer": "\\ud800"}', "surrogate"),
        ('{"question": "Q", "answer": "A", "perturbed_answer": ["B", ""]}', "perturbed_answer[1] is empty"),
        ('{"question": "Q", "answer": "A", "paraphrased_answer": {}}', "paraphrased_answer is a dict, not a list"),
        ('{"question": "Q", "answer": "A", "alternative": 1}', "alternative is a int"),
    ],
)
def test_bad_row_is_named_with_its_line(tmp_path: Path, line: str, said: str) -> None:
    message = refusal(tmp_path, f"{GOOD}\n\n{line}\n{GOOD}")
    assert message.startswith("f.jsonl: 1 of 3 rows cannot be used\n  f.jsonl:3: ")
    assert said in message


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (turns(("user", "Q")), "does not end with an assistant turn"),
        (turns(("assistant", "A"), ("user", "Q")), "does not end with an assistant turn"),
        (turns(("assistant", "A")), "no user turn before the answer"),
        (turns((SECRET, "Q"), ("assistant", "A")), "messages[0] has a role that is not known"),
        (turns((["x"], "Q"), ("assistant", "A")), "messages[0] has a role that is not known"),
        (turns(("user", [SECRET]), ("assistant", "A")), "messages[0].content is a list"),
        (turns(("user", "Q"), ("assistant", "")), "messages[1].content is empty"),
        ('{"messages": ["x"]}', "messages[0] is a str, not an object"),
        ('{"messages": []}', "does not end with an assistant turn"),
        ('{"messages": "x"}', "messages is a str, not a list"),
        ('{"messages": null}', "messages is missing"),
        ('{"prompt": [{"role": "user", "content": "Q"}], "completion": "x"}', "completion is a str, not a list"),
    ],
)
def test_bad_messages(tmp_path: Path, line: str, said: str) -> None:
    message = refusal(tmp_path, line)
    assert "f.jsonl:1: " in message
    assert said in message
    assert SECRET not in message


def test_conversational_completion_is_one_turn(tmp_path: Path) -> None:
    answer = {"role": "assistant", "content": "A"}
    row = {"prompt": [{"role": "user", "content": "Q"}], "completion": [answer, answer]}
    assert "completion is not a single message" in refusal(tmp_path, rows(row))


def test_mapped_columns_are_named_in_messages(tmp_path: Path) -> None:
    columns = {"question": "q", "answer": "reply"}
    message = refusal(tmp_path, rows({"q": "Q", "reply": "A"}, {"q": "Q"}), columns=columns)
    assert "f.jsonl:2: answer (column reply) is missing" in message


def test_all_bad_rows_are_counted_and_ten_are_listed(tmp_path: Path) -> None:
    message = refusal(tmp_path, "\n".join(["{", *[f'{{"question": "{SECRET}", "answer": ""}}'] * 13, GOOD]))
    lines = message.splitlines()
    assert lines[0] == "f.jsonl: 14 of 15 rows cannot be used"
    assert [line.split(": ")[0].strip() for line in lines[1:-1]] == [f"f.jsonl:{n}" for n in range(1, 11)]
    assert lines[-1] == "  and 4 more"
    assert SECRET not in message


@pytest.mark.parametrize("text", ["", "\n \n", "\ufeff"])
def test_empty_file(tmp_path: Path, text: str) -> None:
    assert "f.jsonl: holds no rows" in refusal(tmp_path, text)


json_value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(SECRET),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "x"]), inner),
    max_leaves=6,
)
record = st.dictionaries(
    st.sampled_from(["question", "answer", "prompt", "completion", "messages", "text", "perturbed_answer"]), json_value
).map(lambda value: json.dumps(value).encode())
line_of_bytes = st.binary(max_size=20) | record | st.just(GOOD.encode()) | st.just(f'"{SECRET}'.encode())


def is_blank(content: bytes) -> bool:
    """Whether a file has only white space, after a mark of its encoding if it has one."""
    marks = {
        "utf-32-le": b"\xff\xfe\0\0",
        "utf-32-be": b"\0\0\xfe\xff",
        "utf-16-le": b"\xff\xfe",
        "utf-16-be": b"\xfe\xff",
    }
    for encoding, mark in marks.items():
        if content.startswith(mark):
            with contextlib.suppress(UnicodeDecodeError):
                return not content[len(mark) :].decode(encoding).strip()
    return not content.removeprefix(b"\xef\xbb\xbf").strip()


def what_is_said_of(content: bytes) -> str:
    """The pattern of the message that refuses a file: the whole file where it is empty or binary, else a line."""
    if is_blank(content):
        return r"f\.jsonl: holds no rows"
    binary = content.startswith((b"PAR1", b"ARROW1"))  # read as what its first bytes tell
    return r"f\.jsonl: not an? (Parquet|Arrow) file" if binary else r"f\.jsonl:\d+: "


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=examples(400))
@given(st.lists(line_of_bytes, max_size=5).map(b"\n".join))
@example(f'{{"question": "{SECRET}", "answer": "{SECRET}\\q"}}'.encode())
@example(f'{{"question": "{SECRET}\x00", "answer": "x"}}'.encode())
@example(b"\xff\xfe" + SECRET.encode("utf-16-le"))
@example(b"\xef\xbb\xbf" * 2)
@example(b"\xfe\xff")
@example(b"\0\0\xfe\xff")
@example(b"PAR1")
@example(b"ARROW1")
def test_any_bytes_give_examples_or_a_message_with_file_and_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f.jsonl").write_bytes(content)
    refused: DataError | None = None
    try:
        found = read_examples(DataSource("f.jsonl"))
    except DataError as error:
        refused = error
    if refused is not None:
        assert re.search(what_is_said_of(content), str(refused))
        assert SECRET not in str(refused)
        assert refused.__suppress_context__ or refused.__context__ is None  # the parser's error quotes the text
        return
    assert found
    for one in found:
        assert one.answer.strip()
        assert one.id == example_id(one.prompt, one.answer)
        assert SECRET not in repr(one)


# --- overlap ---


def test_overlap_is_refused_and_ignores_case_and_white_space() -> None:
    forget = [qa("Who  is\nX?", "A b", "f:1"), qa("other", "C", "f:2")]
    retain = [qa("else", "D", "r:1"), qa("who is x?", " a B ", "r:2")]
    with pytest.raises(DataError, match=r"1 of 2 examples to forget are also to be kept \(f:1 = r:2\)"):
        check_overlap(forget, retain)
    raw = Example("x", "Who is X?", "a b", source="r:3")
    with pytest.raises(DataError, match="f:1 = r:3"):
        check_overlap(forget, [raw])


def test_overlap_lists_the_first_few_and_ids_of_rows_without_a_source() -> None:
    forget = [qa(f"{SECRET} {n}", "A") for n in range(7)]
    with pytest.raises(DataError) as caught:
        check_overlap(forget, forget)
    assert "7 of 7" in str(caught.value)
    assert f"example {forget[4].id}" in str(caught.value)
    assert forget[5].id not in str(caught.value)
    assert SECRET not in str(caught.value)


def test_same_question_with_another_answer_is_a_warning() -> None:
    warnings = check_overlap([qa("Q", "A", "f:1"), qa("R", "A", "f:2")], [qa("q", "B", "r:1"), qa("S", "A", "r:2")])
    assert len(warnings) == 1
    assert "1 of 2 questions" in warnings[0]
    assert "(f:1 ~ r:1)" in warnings[0]


def test_plain_texts_do_not_share_a_question() -> None:
    assert check_overlap([Example("1", "", "one")], [Example("2", "", "two")]) == ()
    with pytest.raises(DataError, match="also to be kept"):
        check_overlap([Example("1", "", "one")], [Example("2", "", "One ")])
