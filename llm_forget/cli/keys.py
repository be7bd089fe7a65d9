"""`llm-forget keys`: the keys that sign statements."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from llm_forget.errors import UserError
from llm_forget.utils.terminal import echo

keys_app = typer.Typer(
    help="Make, import or show the Ed25519 keys that sign statements. Keys in hardware (PKCS#11) or in a cloud service (KMS) are "
    "not supported.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
PassphraseFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="file with the passphrase in its first line; default: $LLM_FORGET_PASSPHRASE, or the terminal asks",
    ),
]
_Private = Annotated[
    Path, typer.Option("--to", metavar="FILE", help="file for the private key; FILE.pub gets the public one")
]
_Bare = Annotated[bool, typer.Option("--no-passphrase", help="leave the private key unencrypted")]


def passphrase(file: Path | None, *, new: bool = False, what: str = "the key") -> str:
    """The passphrase from a file, the environment or the terminal.

    Args:
        file: a file with the passphrase in its first line.
        new: ask twice.
        what: whose passphrase it is.

    Raises:
        UserError: there is none, and nobody to ask.
    """
    from llm_forget.certificates.keys import PASSPHRASE_VARIABLE

    if file is not None:
        try:
            found = file.read_text(encoding="utf-8").split("\n")[0].rstrip("\r")
        except (OSError, UnicodeDecodeError):
            raise UserError(f"{file} cannot be read; give a text file with the passphrase") from None
    elif os.environ.get(PASSPHRASE_VARIABLE):
        found = os.environ[PASSPHRASE_VARIABLE]
    elif sys.stdin.isatty():
        found = str(typer.prompt(f"passphrase of {what}", hide_input=True, confirmation_prompt=new, err=True))
    else:
        raise UserError(
            f"the passphrase of {what} is needed: give --passphrase-file FILE or set {PASSPHRASE_VARIABLE}"
            + (", or --no-passphrase for a key without one" if new else "")
        )
    if not found:
        raise UserError(f"the passphrase of {what} is empty; give one")
    return found


@keys_app.command()
def new(to: _Private, passphrase_file: PassphraseFile = None, no_passphrase: _Bare = False) -> None:
    """Make a key pair.

    \b
    Example:
      llm-forget keys new --to office.key
    """
    from llm_forget.certificates.keys import make_key

    secret = None if no_passphrase else passphrase(passphrase_file, new=True)
    _told(make_key(to, secret))


@keys_app.command("import")
def import_(
    key: Annotated[Path, typer.Argument(metavar="FILE", help="private Ed25519 key: PEM (PKCS #8) or OpenSSH")],
    to: _Private,
    passphrase_file: PassphraseFile = None,
    no_passphrase: _Bare = False,
) -> None:
    """Copy a key of OpenSSL or OpenSSH. An encrypted key keeps its passphrase.

    \b
    Example:
      llm-forget keys import ~/.ssh/id_ed25519 --to office.key
    """
    from llm_forget.certificates.keys import import_key, is_encrypted

    old = passphrase(passphrase_file, what=str(key)) if is_encrypted(key) else None
    fresh = None if no_passphrase else old or passphrase(passphrase_file, new=True)
    _told(import_key(key, to, old, fresh))


@keys_app.command()
def show(key: Annotated[Path, typer.Argument(metavar="FILE", help="public key")]) -> None:
    """Print a public key's id, as statements name it.

    \b
    Example:
      llm-forget keys show office.key.pub
    """
    from llm_forget.certificates.keys import key_id, load_public

    echo(key_id(load_public(key)))


def _told(public: Path) -> None:
    from llm_forget.certificates.keys import key_id, load_public

    echo(f"{public}: key {key_id(load_public(public))}")
