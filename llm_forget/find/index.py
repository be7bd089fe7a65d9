"""An index on disk, for several searches of the same data: written only into a folder that is asked for.

It holds the words and texts of the rows in clear: names with typing errors are found by comparing words, and digests of words
cannot be compared. So it is as private as the data. It is kept under the names of the files, with their digests inside: when the
data change, the next search replaces it, and no copy of removed rows stays behind.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from scipy import sparse

from llm_forget.errors import UserError
from llm_forget.find.corpus import Corpus, SearchedFile
from llm_forget.find.sources import files_in
from llm_forget.utils.disk import explained_if_full
from llm_forget.utils.files import file_digest, new_file

_VERSION = 1  # another one is not read


def read_indexed(data: Sequence[str | Path], folder: Path) -> Corpus:
    """Read files from their index, or read them and write it.

    Args:
        data: as for ``Corpus.read``.
        folder: where the index is; created, readable by its owner only.

    Raises:
        DataError: a file cannot be read.
        UserError: the folder cannot be written.
    """
    files = files_in(data)
    paths = [Path(file).expanduser() for file in files]
    if not all(path.is_file() for path in paths):
        corpus = Corpus.read(files)
        corpus.notes.append("folders of save_to_disk have no index; files have")
        return corpus
    state = {"version": _VERSION, "files": [[file, file_digest(path)] for file, path in zip(files, paths, strict=True)]}
    place = (
        folder
        / hashlib.sha256("\n".join(str(path.resolve()) for path in paths).encode("utf-8", "replace")).hexdigest()[:16]
    )
    found = _load(place, state)
    if found is not None:
        return found
    corpus = Corpus.read(files)
    try:
        with explained_if_full(folder, "run the search again"):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _save(corpus, place, state)
    except OSError as error:
        raise UserError(
            f"--index: {folder} cannot be written: {error.strerror or error}; give another folder"
        ) from error
    return corpus


def _save(corpus: Corpus, place: Path, state: dict[str, Any]) -> None:
    """Write texts and places as Arrow, words and counts as safetensors."""
    head = json.dumps({**state, "searched": [asdict(file) for file in corpus.files], "notes": corpus.notes})
    columns = {
        "line": pa.array(np.asarray(corpus.lines, np.int32)),
        "subject": pa.array(corpus.subjects),
        "record": pa.array(corpus.records),
        "length": pa.array(corpus.lengths),
        "text": pa.chunked_array(corpus.texts, pa.string()),
    }
    table = pa.table(columns).replace_schema_metadata({"index": head})
    with new_file(place.with_suffix(".arrow")) as partial:
        partial.touch(0o600)
        with pa.OSFile(str(partial), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    words = "\n".join(corpus.words).encode("utf-8")
    arrays = {
        "words": np.frombuffer(words, np.uint8),
        "data": corpus.counts.data,
        "indices": corpus.counts.indices,
        "indptr": np.asarray(corpus.counts.indptr, np.int64),
    }
    with new_file(place.with_suffix(".safetensors")) as partial:
        partial.touch(0o600)
        save_file(arrays, partial, metadata={"index": head})


def _load(place: Path, state: dict[str, Any]) -> Corpus | None:
    """The corpus of an index; None if there is none, it is damaged, or it is of other data."""
    try:
        with safe_open(place.with_suffix(".safetensors"), framework="np") as file:
            head = (file.metadata() or {}).get("index", "")
            arrays = {name: file.get_tensor(name) for name in ("words", "data", "indices", "indptr")}
        with pa.memory_map(str(place.with_suffix(".arrow"))) as mapped:
            table = pa.ipc.open_file(mapped).read_all()
        known = json.loads(head)
        same = {name: known.get(name) for name in state} == state
        if not same or (table.schema.metadata or {}).get(b"index", b"").decode() != head:
            return None
        words = bytes(arrays["words"]).decode("utf-8").split("\n")
        shape = (table.num_rows, len(words))
        counts = sparse.csc_array((arrays["data"], arrays["indices"], arrays["indptr"]), shape=shape)
        files = [SearchedFile(**{**one, "unreadable": tuple(one["unreadable"])}) for one in known["searched"]]
        return Corpus.restored(
            files=files,
            words=words,
            counts=counts,
            texts=table["text"].chunks,
            lines=array("i", table["line"].to_numpy().tolist()),
            subjects=table["subject"].to_numpy(),
            records=table["record"].to_numpy(),
            lengths=table["length"].to_numpy(),
            notes=list(known["notes"]),
        )
    except (OSError, SafetensorError, pa.ArrowException, ValueError, KeyError, TypeError):
        return None
