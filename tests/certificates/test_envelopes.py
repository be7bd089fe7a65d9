"""Keys and DSSE envelopes: other programs read ours, and not one byte can be changed."""

from __future__ import annotations

import base64
import json
import stat
from pathlib import Path
from typing import Any

import pytest
from commands import command

from llm_forget.certificates.envelope import (
    PAYLOAD_TYPE,
    Envelope,
    authenticated,
    read_envelope,
    sign,
    signature_problem,
)
from llm_forget.errors import UserError
from llm_forget.utils.safe_json import NotPlainJson

pytest.importorskip("cryptography", reason="pip install 'llm-forget[evidence]'")

from llm_forget.certificates.keys import import_key, is_encrypted, key_id, load_private, load_public, make_key


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "office.key"
    make_key(path, "correct horse")
    return path


def test_the_bytes_that_are_signed_are_those_of_the_specification() -> None:
    assert authenticated(b"hello world", "http://example.com/HelloWorld") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_a_private_key_is_encrypted_and_private(key: Path) -> None:
    assert is_encrypted(key)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert key_id(load_private(key, "correct horse").public_key()) == key_id(load_public(Path(f"{key}.pub")))
    for wrong, words in (("x", "wrong"), (None, "is encrypted")):
        with pytest.raises(UserError, match=words):
            load_private(key, wrong)
    with pytest.raises(UserError, match="never replaced"):
        make_key(key, None)
    with pytest.raises(UserError, match=r"give the public one, .*office.key.pub"):
        load_public(key)


def test_keys_of_openssh_and_openssl_can_be_imported(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    given = Ed25519PrivateKey.generate()
    hidden = BestAvailableEncryption(b"old")
    for name, form, secret in (("ssh", PrivateFormat.OpenSSH, None), ("pem", PrivateFormat.PKCS8, "old")):
        file = tmp_path / name
        file.write_bytes(given.private_bytes(Encoding.PEM, form, hidden if secret else NoEncryption()))
        public = import_key(file, tmp_path / f"{name}.key", secret, None)
        assert key_id(load_public(public)) == key_id(given.public_key())
    other = generate_private_key(SECP256R1())
    (tmp_path / "ec").write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(UserError, match="Ed25519 only"):
        load_private(tmp_path / "ec")


def test_keys_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLM_FORGET_PASSPHRASE", raising=False)
    refused = command("keys", "new", "--to", tmp_path / "a.key")
    assert refused.status == 2
    assert "--no-passphrase" in refused.err
    (tmp_path / "word").write_text("hush\nnot read\n")
    made = command("keys", "new", "--to", tmp_path / "a.key", "--passphrase-file", tmp_path / "word")
    shown = command("keys", "show", tmp_path / "a.key.pub")
    assert (made.status, shown.status) == (0, 0)
    assert shown.out.strip() in made.out
    assert load_private(tmp_path / "a.key", "hush")
    copied = command(
        "keys", "import", tmp_path / "a.key", "--to", tmp_path / "b.key", "--passphrase-file", tmp_path / "word"
    )
    assert copied.status == 0
    assert is_encrypted(tmp_path / "b.key")


def test_securesystemslib_verifies_our_envelope(key: Path) -> None:
    """Another implementation of DSSE, and one changed byte of what it is given."""
    pytest.importorskip("securesystemslib", reason="pip install 'llm-forget[dev]'")
    from securesystemslib.dsse import Envelope as Other
    from securesystemslib.exceptions import VerificationError
    from securesystemslib.signer import SSlibKey

    public = load_public(Path(f"{key}.pub"))
    made = sign(b'{"_type":"https://in-toto.io/Statement/v1"}', load_private(key, "correct horse"))
    theirs = SSlibKey.from_crypto(public, keyid=key_id(public))
    assert Other.from_dict(json.loads(made.content())).verify([theirs], 1).keys() == {key_id(public)}
    values = json.loads(made.content())
    values["payload"] = base64.b64encode(made.payload.replace(b"v1", b"v2")).decode()
    with pytest.raises(VerificationError):
        Other.from_dict(values).verify([theirs], 1)


def test_every_byte_of_an_envelope_counts(key: Path) -> None:
    made = sign(b'{"a":"' + b"x" * 40 + b'"}', load_private(key, "correct horse"))
    public, content = load_public(Path(f"{key}.pub")), made.content()
    assert signature_problem(read_envelope(content), [public]) == ""
    assert PAYLOAD_TYPE.encode() in content
    for place in range(len(content)):
        for flipped in (1, 32):
            changed = content[:place] + bytes([content[place] ^ flipped]) + content[place + 1 :]
            assert _refused(changed, public), changed


def _refused(content: bytes, public: Any) -> bool:
    try:
        return bool(signature_problem(read_envelope(content), [public]))
    except NotPlainJson:
        return True


def test_each_signature_must_be_of_a_known_key(key: Path, tmp_path: Path) -> None:
    mine = load_private(key, "correct horse")
    make_key(tmp_path / "other", None)
    other = load_private(tmp_path / "other")
    made, theirs = sign(b"{}", mine), sign(b"{}", other)
    both = Envelope(b"{}", (*made.signatures, *theirs.signatures))
    assert "another key" in signature_problem(both, [mine.public_key()])
    assert signature_problem(both, [mine.public_key(), other.public_key()]) == ""
    assert "two signatures" in signature_problem(Envelope(b"{}", made.signatures * 2), [mine.public_key()])
