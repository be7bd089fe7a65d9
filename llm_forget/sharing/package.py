"""The files of a run that may be shared, and where they lie in a repository. No file with a row or an answer is among them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from llm_forget.adapters.lora import load_adapter
from llm_forget.errors import UserError
from llm_forget.report.comparison import load_around
from llm_forget.report.page import write_report_of
from llm_forget.runs import load_run
from llm_forget.sharing.card import is_local, shared_card
from llm_forget.utils.files import edits
from llm_forget.utils.safe_json import NotPlainJson, read_json
from llm_forget.utils.safe_yaml import NotPlainYaml, read_yaml

EVIDENCE = "evidence"
ENVIRONMENT = "env.json"  # versions, which no checksum protects
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
# In the run folder → in the repository. Parquet files are left out: they may hold answers.
_EVIDENCE = ("result.json", ENVIRONMENT, "metrics.jsonl", "audit/audit.json", "eval/*.json")
_TEXTS = {
    "text",
    "texts",
    "generated",
    "answers_text",
    "question",
    "prompt",
}  # keys under which a result would hold text
_PATHS = {"path", "name", "adapter", "output_dir", "search", "data_dir", "base"}


def package(run: Path, *, base: str | None = None, report: bool = True) -> dict[str, bytes | Path]:
    """The files to share: path in the repository → a file, or its content.

    Args:
        run: the run folder.
        base: hub id of the base, for the card; None for the one in the card, unless it is a path of this machine.
        report: write the report anew, without text, and include it.

    Raises:
        UserError: it is no unlearning run with an adapter, or a file of it was edited or holds text of the data.
    """
    found = load_run(run)
    if found.kind != "unlearn" or not (run / "adapter").is_dir():
        raise UserError(f"{run} has no adapter to share; give the folder of an unlearning run that trained one")
    load_adapter(run / "adapter")  # refuses what is not plain safetensors
    files: dict[str, bytes | Path] = {name: run / "adapter" / name for name in ADAPTER_FILES}
    for pattern in _EVIDENCE:
        for path in sorted(run.glob(pattern)):
            name = path.relative_to(run).as_posix()
            if path.suffix == ".json":
                _check(path, name)
            files[f"{EVIDENCE}/{name}"] = path
    files[f"{EVIDENCE}/recipe.yaml"] = _recipe(run)
    if report:
        files["report.html"] = _report(run)
    files["README.md"] = shared_card(run, found, base, report=report).encode("utf-8")
    return files


def _check(path: Path, name: str) -> None:
    try:
        content = read_json(path)
    except NotPlainJson as error:
        raise UserError(f"{path} {error}; it is not shared: run or evaluate again") from None
    if name != ENVIRONMENT and isinstance(content, Mapping) and (edited := edits(content)):
        raise UserError(f"{path} {edited}; it is not shared: run or evaluate again")
    if _holds_text(content):
        raise UserError(f"{name} holds text of the data (keep_text); evaluate again without it, and share that")


def _holds_text(content: Any) -> bool:
    if isinstance(content, Mapping):
        return any((key in _TEXTS and bool(value)) or _holds_text(value) for key, value in content.items())
    return isinstance(content, list) and any(_holds_text(one) for one in content)


def _recipe(run: Path) -> bytes:
    """The recipe without folders of this machine: each path becomes its last part."""
    try:
        values = read_yaml(run / "recipe.yaml")
    except NotPlainYaml as error:
        raise UserError(f"{run / 'recipe.yaml'} {error}; run the recipe again") from None
    return yaml.safe_dump(_without_folders(values), sort_keys=False, allow_unicode=True).encode("utf-8")


def _without_folders(value: Any, key: str = "") -> Any:
    if isinstance(value, Mapping):
        return {name: _without_folders(one, str(name)) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_folders(one, key) for one in value]
    if isinstance(value, str) and key in _PATHS and is_local(value):
        return PurePosixPath(value).name
    return value


def _report(run: Path) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return write_report_of(load_around(run), Path(folder) / "report.html", redact=True).read_bytes()


def size_of(content: bytes | Path) -> int:
    """Bytes of a file to share."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size
