"""The files of a run that a statement covers, with their digests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from llm_forget.utils.files import file_digest

FOLDER_NAME = "certificate"
STATEMENT_NAME, PERSON_NAME, AUDITOR_NAME = "statement.dsse.json", "person.html", "auditor.html"
CONTROLS = f"{FOLDER_NAME}/controls"
# Not covered: pages, which are made from these, logs, the cache of an evaluation, and the other files of the certificate.
COVERED = (
    *("result.json", "recipe.yaml", "env.json", "metrics.jsonl", "search.json", "shredded.json"),
    *("adapter/**/*", "model/**/*", "eval/*.json", "eval/*.parquet", "audit/audit.json", "audit/cells/*.json"),
    f"{CONTROLS}/**/*",
)
# What a server loads, of any model folder: these files are the subjects of a statement.
_LOADED = ("*.safetensors", "adapter_config.json", "config.json", "generation_config.json", "*.index.json")
_TOKENIZER = ("tokenizer*", "vocab.json", "merges.txt", "special_tokens_map.json", "chat_template.jinja", "*.model")


def covered_files(folder: Path) -> dict[str, str]:
    """Path below the folder → SHA-256 of each covered file that is there.

    Raises:
        OSError: a file cannot be read.
    """
    found = {path for pattern in COVERED for path in folder.glob(pattern) if path.is_file()}
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in sorted(found)}


def model_files(folder: Path) -> dict[str, str]:
    """Name → SHA-256 of each file of a model's or adapter's folder that a server loads."""
    found = {path for pattern in (*_LOADED, *_TOKENIZER) for path in folder.glob(pattern) if path.is_file()}
    return {path.name: file_digest(path) for path in sorted(found)}


def differences(stated: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """One line for each file that is missing, new or changed."""
    lines = []
    for name in sorted({*stated, *found}):
        if name not in found:
            lines.append(f"{name} is missing")
        elif name not in stated:
            lines.append(f"{name} is not one of the files that were certified")
        elif stated[name] != found[name]:
            lines.append(f"{name} was changed")
    return lines
