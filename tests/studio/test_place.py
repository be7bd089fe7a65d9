"""No path outside the root, and what the lists of the studio offer."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_run import write_things

from llm_forget.errors import UserError
from llm_forget.studio.desk import take_upload
from llm_forget.studio.place import Place

pytest.importorskip("gradio", reason="pip install 'llm-forget[studio]'")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    root = tmp_path / "root"
    root.mkdir()
    write_things(root)
    (tmp_path / "outside.jsonl").write_text("{}")
    (root / "link.jsonl").symlink_to(tmp_path / "outside.jsonl")
    (root / "way").symlink_to(tmp_path)
    return Place.at(root, ("owner/name",))


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../outside.jsonl", "/etc/passwd", "~/x", "a/../../outside.jsonl", "link.jsonl", "way/outside.jsonl",
     ".studio/jobs", "a\0b", "a\\..\\b", "x" * 5000, None],
)  # fmt: skip
def test_paths_that_lead_out_are_refused(place: Place, name: object) -> None:
    with pytest.raises(UserError, match="not inside the studio's folder"):
        place.inside(name)


def test_lists_hold_rows_and_models_of_the_root_only(place: Place) -> None:
    assert place.list_data() == ["forget.jsonl", "retain.jsonl"]
    assert place.list_models() == ["model", "owner/name"]
    assert place.model("owner/name") == "owner/name"
    for wrong in ("/etc", "../root/model", "other/name", None):
        with pytest.raises(UserError, match="choose a model from the list"):
            place.model(wrong)
    for wrong in ("../x", "a/b", ".hidden", "", None):
        with pytest.raises(UserError, match="name"):
            place.new_folder(wrong, "runs")


def test_an_upload_moves_to_a_private_file_and_leaves_nothing(place: Place, tmp_path: Path) -> None:
    folder = place.uploads / "digest"
    for expected in ("data/my-rows.csv", "data/my-rows-1.csv"):
        folder.mkdir()
        (folder / "my rows.csv").write_text("question,answer\na,b\n")
        taken = take_upload(place, folder / "my rows.csv")
        assert taken == expected
        assert oct((place.root / taken).stat().st_mode)[-3:] == "600"
        assert not list(place.uploads.iterdir())
    folder.mkdir()
    (folder / "model.pkl").write_text("no")
    for wrong in (folder / "model.pkl", tmp_path / "outside.jsonl", place.root / "forget.jsonl"):
        with pytest.raises(UserError, match=r"upload|end in"):
            take_upload(place, wrong)
    assert (place.root / "forget.jsonl").is_file()
