"""Ed25519 keys for statements: made, imported, protected by a passphrase. Keys in hardware or in a cloud are not supported."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from llm_forget.errors import UserError
from llm_forget.utils.extras import require_extra

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

PASSPHRASE_VARIABLE = "LLM_FORGET_PASSPHRASE"
_MOST = 64 << 10  # bytes of a key file


def make_key(path: Path, passphrase: str | None) -> Path:
    """Make a key pair.

    Args:
        path: the file for the private key, readable by its owner only. ``.pub`` is appended for the public key.
        passphrase: encrypts the private key; None to leave it unencrypted.

    Returns:
        The file of the public key.

    Raises:
        UserError: a file exists already, or cannot be written.
    """
    require_extra("cryptography", "a key", "evidence")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return _write(Ed25519PrivateKey.generate(), path, passphrase)


def import_key(source: Path, path: Path, old: str | None, new: str | None) -> Path:
    """Copy a private key from another program: PEM (PKCS #8), as OpenSSL writes it, or OpenSSH's format.

    Args:
        source: the file.
        path: the file for the private key; as in ``make_key``.
        old: the passphrase of the source, if it has one.
        new: the passphrase of the copy; None to leave it unencrypted.

    Raises:
        UserError: the file holds no Ed25519 key, or the passphrase is wrong or missing.
    """
    return _write(load_private(source, old), path, new)


def load_private(path: Path, passphrase: str | None = None) -> Ed25519PrivateKey:
    """Read a private key.

    Raises:
        UserError: the file holds no Ed25519 key, or the passphrase is wrong or missing.
    """
    require_extra("cryptography", "a key", "evidence")
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key

    content = _content(path)
    secret = passphrase.encode() if passphrase else None
    read = load_ssh_private_key if b"OPENSSH PRIVATE KEY" in content[:60] else load_pem_private_key
    try:
        key = read(content, secret)
    except TypeError:
        what = "is not encrypted, but a passphrase was given" if secret else "is encrypted"
        raise UserError(f"{path} {what}; {'leave it out' if secret else 'give its passphrase'}") from None
    except (ValueError, UnsupportedAlgorithm):
        why = "or the passphrase is wrong" if secret else "in PEM or in OpenSSH's format"
        raise UserError(
            f"{path} holds no private key that can be read, {why}; `llm-forget keys new` makes one"
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(f"{path} holds another kind of key; statements are signed with Ed25519 only")
    return key


def is_encrypted(path: Path) -> bool:
    """Whether reading a private key needs a passphrase.

    Raises:
        UserError: it is no private key.
    """
    content = _content(path)
    if b"OPENSSH PRIVATE KEY" not in content[:60]:
        return b"ENCRYPTED" in content[:60]
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    try:
        load_ssh_private_key(content, None)
    except TypeError:
        return True
    except ValueError:
        return False
    return False


def load_public(path: Path) -> Ed25519PublicKey:
    """Read a public key: PEM, or the line that OpenSSH writes.

    Raises:
        UserError: the file holds no public Ed25519 key.
    """
    require_extra("cryptography", "a key", "evidence")
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key, load_ssh_public_key

    content = _content(path)
    if b"PRIVATE KEY" in content:
        raise UserError(f"{path} is a private key, which must not leave its owner; give the public one, {path}.pub")
    try:
        key = load_ssh_public_key(content) if content.startswith(b"ssh-") else load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm):
        raise UserError(f"{path} holds no public key; give the .pub file of whoever signed") from None
    if not isinstance(key, Ed25519PublicKey):
        raise UserError(f"{path} holds another kind of key; statements are signed with Ed25519 only")
    return key


def key_id(key: Ed25519PublicKey) -> str:
    """SHA-256 of the key in DER (SubjectPublicKeyInfo), 64 hex digits."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _write(key: Ed25519PrivateKey, path: Path, passphrase: str | None) -> Path:
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        KeySerializationEncryption,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    public = path.with_name(path.name + ".pub")
    for file in (path, public):
        if file.exists():
            raise UserError(f"{file} exists; a key is never replaced: give another name")
    hidden: KeySerializationEncryption = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    write_private(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, hidden))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return public


def write_private(path: Path, content: bytes) -> None:
    """Write a new file that only its owner can read.

    Raises:
        UserError: it exists, or cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}; give another place") from None


def _content(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MOST:
            raise UserError(f"{path} is too large for a key")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; give the file of a key") from None
