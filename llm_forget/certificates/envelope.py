"""DSSE envelopes: a payload with signatures over it (https://github.com/secure-systems-lab/dsse, protocol v1.0)."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llm_forget.certificates.canonical import canonical, parse_canonical
from llm_forget.certificates.keys import key_id
from llm_forget.utils.safe_json import NotPlainJson

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

PAYLOAD_TYPE = "application/vnd.in-toto+json"
_KEYS = {"payload", "payloadType", "signatures"}


@dataclass(frozen=True)
class Envelope:
    """A signed payload.

    Attributes:
        payload: the bytes that were signed, a JSON statement.
        signatures: (key id, signature) of each signer.
    """

    payload: bytes
    signatures: tuple[tuple[str, bytes], ...]

    def content(self) -> bytes:
        """The envelope as canonical JSON, without a line end."""
        signed = [{"keyid": name, "sig": _text(signature)} for name, signature in self.signatures]
        return canonical({"payload": _text(self.payload), "payloadType": PAYLOAD_TYPE, "signatures": signed})

    @property
    def digest(self) -> str:
        """SHA-256 of the content, by which the next statement names this one."""
        return hashlib.sha256(self.content()).hexdigest()


def sign(payload: bytes, key: Ed25519PrivateKey) -> Envelope:
    """Sign a payload with one key."""
    return Envelope(payload, ((key_id(key.public_key()), key.sign(authenticated(payload))),))


def authenticated(payload: bytes, kind: str = PAYLOAD_TYPE) -> bytes:
    """The bytes under a signature: DSSE's pre-authentication encoding of type and payload."""
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload)


def read_envelope(content: bytes) -> Envelope:
    """Read an envelope in the one form that ``Envelope.content`` writes. Every byte of it counts.

    Raises:
        NotPlainJson: it is no such envelope; the message continues a sentence.
    """
    found = parse_canonical(content)
    if not isinstance(found, dict) or found.keys() != _KEYS or found["payloadType"] != PAYLOAD_TYPE:
        raise NotPlainJson("is not a DSSE envelope of an in-toto statement")
    signed = found["signatures"]
    if not isinstance(signed, list) or not signed or not all(_is_signature(one) for one in signed):
        raise NotPlainJson("has no signatures that can be read")
    return Envelope(_bytes(found["payload"]), tuple((one["keyid"], _bytes(one["sig"])) for one in signed))


def signature_problem(envelope: Envelope, keys: Sequence[Ed25519PublicKey]) -> str:
    """What is wrong with the signatures: the end of a sentence, or nothing if every one is valid and of a known key."""
    from cryptography.exceptions import InvalidSignature

    known = {key_id(key): key for key in keys}
    signed = authenticated(envelope.payload)
    names = [name for name, _ in envelope.signatures]
    if len(set(names)) < len(names):
        return "has two signatures of one key"
    for name, signature in envelope.signatures:
        if name not in known:
            return f"is signed with another key ({name[:12]}) than {', '.join(one[:12] for one in known)}"
        try:
            known[name].verify(signature, signed)
        except InvalidSignature:
            return "has a signature that does not fit: it was changed after it was signed"
    return ""


def _is_signature(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"keyid", "sig"} and isinstance(value["keyid"], str)


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _bytes(text: Any) -> bytes:
    """Decode standard base64 with padding; two texts never give the same bytes."""
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise NotPlainJson("holds a part that is not base64") from None
    if _text(content) != text:
        raise NotPlainJson("holds a part that is not base64 in its usual form")
    return content
