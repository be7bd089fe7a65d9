"""A commitment to rows: a Merkle tree over salted rows, so that one row can be shown to be covered without the others.

The tree is that of RFC 9162 (section 2.1) with SHA-256. A leaf is SHA-256(0x00 ‖ salt ‖ row). Each row has a salt of 32 bytes, so
nobody can find a row by trying texts against the root or against the leaves of other rows.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_forget.certificates.canonical import canonical
from llm_forget.data.examples import Example
from llm_forget.errors import UserError
from llm_forget.utils.safe_json import NotPlainJson, read_json

SCHEME = "salted-sha256-merkle-v1"
_SALT_BYTES = 32


@dataclass(frozen=True)
class Commitment:
    """What may be published about the rows.

    Attributes:
        count: number of rows.
        root: the root of the tree, 64 hex digits.
    """

    count: int
    root: str

    def as_dict(self) -> dict[str, Any]:
        """The commitment for a statement."""
        return {"scheme": SCHEME, "count": self.count, "root": self.root}


@dataclass(frozen=True)
class Proof:
    """The proof that one row is covered. It holds the row's salt, so only the person concerned and the auditor should get it.

    Attributes:
        index: number of the row.
        count: number of rows.
        salt: the row's salt.
        path: digests of the other branches, from the leaf to the root.
    """

    index: int
    count: int
    salt: bytes = field(repr=False)
    path: tuple[bytes, ...] = field(repr=False)

    def root(self, row: bytes) -> str:
        """The root that this proof gives for a row; of the right row, it is the commitment's."""
        node, place, last = _leaf(self.salt, row), self.index, self.count - 1
        for other in self.path:
            if last == 0:
                return ""
            if place % 2 or place == last:
                node = _node(other, node)
                while not place % 2 and place:
                    place, last = place >> 1, last >> 1
            else:
                node = _node(node, other)
            place, last = place >> 1, last >> 1
        return node.hex() if last == 0 else ""

    def as_dict(self) -> dict[str, Any]:
        """The proof for a file."""
        path = [one.hex() for one in self.path]
        return {"scheme": SCHEME, "index": self.index, "count": self.count, "salt": self.salt.hex(), "path": path}


@dataclass(frozen=True)
class Openings:
    """What opens a commitment: the secret of the salts, and the leaves. It holds no text. Keep it as private as the rows.

    Attributes:
        secret: 32 random bytes, from which each row's salt is computed.
        leaves: one digest per row.
    """

    secret: bytes = field(repr=False)
    leaves: tuple[bytes, ...] = field(repr=False)

    @property
    def commitment(self) -> Commitment:
        """What may be published."""
        return Commitment(len(self.leaves), _root(self.leaves).hex())

    def proof(self, row: bytes) -> Proof | None:
        """The proof for a row; None if it is not covered."""
        for index, leaf in enumerate(self.leaves):
            salt = _salt(self.secret, index)
            if hmac.compare_digest(leaf, _leaf(salt, row)):
                return Proof(index, len(self.leaves), salt, tuple(_path(self.leaves, index)))
        return None

    def as_dict(self) -> dict[str, Any]:
        """The openings for a file."""
        return {"scheme": SCHEME, "secret": self.secret.hex(), "leaves": [one.hex() for one in self.leaves]}


def commit(rows: Sequence[bytes], secret: bytes | None = None) -> Openings:
    """Commit to rows.

    Args:
        rows: from ``row_bytes``; at least one.
        secret: 32 random bytes; new ones by default. The same rows with the same secret have the same root.
    """
    if not rows:
        raise UserError("there are no rows to commit to; give at least one")
    secret = secrets.token_bytes(_SALT_BYTES) if secret is None else secret
    return Openings(secret, tuple(_leaf(_salt(secret, index), row) for index, row in enumerate(rows)))


def row_bytes(example: Example) -> bytes:
    """A row as it is committed to: canonical JSON of its turns and its answer. File, place and further columns do not count."""
    turns = (
        example.prompt if isinstance(example.prompt, str) else [[turn.role, turn.content] for turn in example.prompt]
    )
    return canonical([turns, example.answer])


def read_openings(path: Path) -> Openings | Proof:
    """Read a file of openings, or of the proof for one row.

    Raises:
        UserError: it is neither.
    """
    try:
        found = read_json(path)
        if found["scheme"] != SCHEME:
            raise ValueError
        if "secret" in found:
            return Openings(bytes.fromhex(found["secret"]), tuple(map(bytes.fromhex, found["leaves"])))
        index, count = int(found["index"]), int(found["count"])
        if not 0 <= index < count or len(found["path"]) > 64:
            raise ValueError
        return Proof(index, count, bytes.fromhex(found["salt"]), tuple(map(bytes.fromhex, found["path"])))
    except NotPlainJson as error:
        raise UserError(f"{path} {error}; give the .openings.json of the run, or a proof for one row") from None
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path} holds neither openings nor a proof; give the .openings.json of the run") from None


def _salt(secret: bytes, index: int) -> bytes:
    return hmac.digest(secret, b"row %d" % index, "sha256")


def _leaf(salt: bytes, row: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + salt + row).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def _split(count: int) -> int:
    """The largest power of two below a count of two or more."""
    return 1 << (count - 1).bit_length() - 1


def _root(leaves: Sequence[bytes]) -> bytes:
    if len(leaves) == 1:
        return leaves[0]
    at = _split(len(leaves))
    return _node(_root(leaves[:at]), _root(leaves[at:]))


def _path(leaves: Sequence[bytes], index: int) -> list[bytes]:
    if len(leaves) == 1:
        return []
    at = _split(len(leaves))
    if index < at:
        return [*_path(leaves[:at], index), _root(leaves[at:])]
    return [*_path(leaves[at:], index - at), _root(leaves[:at])]
