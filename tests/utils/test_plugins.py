"""Test methods by name, by module and by file: custom files work like shipped ones, and errors are clear."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llm_forget
from llm_forget.errors import RecipeError
from llm_forget.methods import Method
from llm_forget.methods.npo import NPO
from llm_forget.utils.build import build
from llm_forget.utils.plugins import find_class, names_in, with_defaults

PACKAGE = "llm_forget.methods"
MINE = '''
from dataclasses import dataclass
from typing import ClassVar

from llm_forget.methods import Needs
from llm_forget.methods.npo import NPO  # imported, and so not a second method of this file


@dataclass(frozen=True)
class Mine:
    push: float = 2.0
    needs: ClassVar[Needs] = Needs()

    def forget_loss(self, forget):
        return self.push * forget.logps


class Helper:
    def forget_loss(self):
        """Not a dataclass, and so not a method."""
'''


def test_shipped_methods_are_the_files_of_the_package() -> None:
    files = {path.stem for path in Path(llm_forget.__path__[0], "methods").glob("*.py")} - {"__init__"}
    assert names_in(PACKAGE) == sorted(files)
    assert {"npo", "grad_ascent", "grad_diff", "adapter_subtraction"} <= files
    for name in files:
        assert find_class(PACKAGE, name, "forget_loss").__module__ == f"{PACKAGE}.{name}"


def test_a_custom_file_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    for name in (str(tmp_path / "mine.py"), "mine.py", "./mine.py"):
        cls = find_class(PACKAGE, name, "forget_loss")
        assert cls.__name__ == "Mine"
        assert build(cls, {"push": 3}, "mine").push == 3
        with pytest.raises(RecipeError, match="did you mean 'push'"):
            build(cls, {"pushh": 3}, "mine")


def test_a_custom_module_by_its_dotted_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_package").mkdir()
    (tmp_path / "their_package" / "mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("their_package.mine", "their_package.mine:Mine"):
        assert find_class(PACKAGE, name, "forget_loss").__name__ == "Mine"
    with pytest.raises(RecipeError, match="0 dataclasses"):
        find_class(PACKAGE, "their_package.mine:Other", "forget_loss")


def test_a_class_that_does_not_derive_from_the_base_gets_its_defaults(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE.replace("    push:", "    bounded: ClassVar[bool] = False\n    push:"))
    cls = find_class(PACKAGE, str(tmp_path / "mine.py"), "forget_loss")
    assert not issubclass(cls, Method)
    method = build(with_defaults(cls, Method), {"push": 3}, "mine")
    assert isinstance(method, Method)
    assert (type(method).__name__, method.push, method.bounded) == ("Mine", 3, False)
    assert (method.default_retain, method.towards, method.finish, method.trained_layers) == (None, False, None, None)
    with pytest.raises(FrozenInstanceError):
        method.push = 4
    with pytest.raises(RecipeError, match="did you mean 'push'"):
        build(with_defaults(cls, Method), {"pushh": 3}, "mine")
    assert with_defaults(NPO, Method) is NPO


def test_two_files_of_the_same_name_are_distinct(tmp_path: Path) -> None:
    for folder, push in (("one", 1.0), ("two", 9.0)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(MINE.replace("2.0", str(push)))
    found = [find_class(PACKAGE, str(tmp_path / folder / "mine.py"), "forget_loss")().push for folder in ("one", "two")]
    assert found == [1.0, 9.0]


@pytest.mark.parametrize(
    ("name", "nearest"), [("npoo", "npo"), ("grad_acsent", "grad_ascent"), ("graddiff", "grad_diff")]
)
def test_an_unknown_name_suggests_the_nearest_and_lists_all(name: str, nearest: str) -> None:
    with pytest.raises(RecipeError, match=f"unknown method '{name}'; did you mean '{nearest}'") as caught:
        find_class(PACKAGE, name, "forget_loss")
    assert all(known in str(caught.value) for known in names_in(PACKAGE))


def test_none_or_several_methods_in_a_file_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "several.py"
    file.write_text(MINE + MINE.replace("class Mine", "class Other"))
    with pytest.raises(RecipeError, match=r"2 dataclasses with a `forget_loss`.*several\.py.*exactly one"):
        find_class(PACKAGE, str(file), "forget_loss")
    file.write_text("pass\n")
    with pytest.raises(RecipeError, match="0 dataclasses with a `forget_loss`"):
        find_class(PACKAGE, str(file), "forget_loss")
    with pytest.raises(RecipeError, match="npo is no method that can be named: it has no class with a `retain_loss`"):
        find_class(PACKAGE, "npo", "retain_loss")


def test_missing_files_and_modules_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"gone\.py does not exist"):
        find_class(PACKAGE, str(tmp_path / "gone.py"), "forget_loss")
    with pytest.raises(RecipeError, match=r"module not_there_at_all\.mine cannot be found; is it installed"):
        find_class(PACKAGE, "not_there_at_all.mine", "forget_loss")


@pytest.mark.parametrize("name", ["./mine", "../mine", ".", "..", ".mine", "a/b", "a..b", "mine.", ""])
def test_a_path_without_its_extension_gives_a_message(name: str) -> None:
    with pytest.raises(RecipeError, match="method"):
        find_class(PACKAGE, name, "forget_loss")


@pytest.mark.parametrize("text", ["def broken(:\n", "import not_there_at_all\n", "raise OSError('no')\n"])
def test_a_file_that_cannot_be_imported_gives_a_message(tmp_path: Path, text: str) -> None:
    file = tmp_path / "faulty.py"
    file.write_text(text + (MINE if "def" not in text else ""))
    with pytest.raises(RecipeError, match=r"faulty\.py cannot be imported.*(line|not_there_at_all|no)"):
        find_class(PACKAGE, str(file), "forget_loss")


@given(st.text(st.sampled_from("abz_./-0 \n"), max_size=8))
@settings(deadline=None)
def test_no_name_raises_anything_else(name: str) -> None:
    with suppress(RecipeError):
        find_class(PACKAGE, name, "forget_loss")
