"""Push a run to the Hugging Face Hub, and pull one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError

from llm_forget.adapters.lora import load_adapter
from llm_forget.errors import UserError
from llm_forget.sharing.package import ADAPTER_FILES, EVIDENCE, package
from llm_forget.utils.files import folder_digest, new_folder
from llm_forget.utils.output import writing
from llm_forget.utils.safe_json import NotPlainJson, read_json

_WANTED = (*ADAPTER_FILES, "README.md", "report.html", f"{EVIDENCE}/*.json", f"{EVIDENCE}/*/*.json",
           f"{EVIDENCE}/*.jsonl", f"{EVIDENCE}/recipe.yaml")  # fmt: skip


def push(
    run: Path,
    repo: str,
    *,
    base: str | None = None,
    public: bool = False,
    report: bool = True,
    message: str = "Forget adapter with its evidence",
    endpoint: str | None = None,
) -> str:
    """Share a run: create the repository if it is not there, and write all files in one commit.

    Args:
        run: the run folder.
        repo: ``owner/name``.
        base: hub id of the base, for the card.
        public: make a new repository public.
        report: include the report.
        message: of the commit.
        endpoint: of another hub.

    Returns:
        The address of the commit.

    Raises:
        UserError: the run cannot be shared, or the hub refuses.
    """
    files = package(run, base=base, report=report)
    api = HfApi(endpoint=endpoint)
    with _explained(repo):
        api.create_repo(repo, private=not public, exist_ok=True)
        operations = [
            CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
            for name, content in sorted(files.items())
        ]
        done = api.create_commit(repo, operations, commit_message=message)
    return str(done.commit_url)


def pull(repo: str, to: Path, *, revision: str | None = None, endpoint: str | None = None) -> Path:
    """Fetch a shared run into a run folder, and check that its adapter is the one that was measured.

    Args:
        repo: ``owner/name``.
        to: folder to create.
        revision: branch, tag or commit.
        endpoint: of another hub.

    Raises:
        UserError: it is not there, is no shared run, or its adapter is not the one that was measured.
    """
    api = HfApi(endpoint=endpoint)
    with writing(to, "TO"):
        if to.exists():
            raise UserError(f"{to} exists; give another folder")
        with new_folder(to) as folder:
            with _explained(repo):
                names = api.list_repo_files(repo, revision=revision)
                missing = [name for name in ADAPTER_FILES if name not in names]
                if missing:
                    raise UserError(f"{repo} has no {missing[0]}, so it is no adapter that was shared with push")
                for name in names:
                    if any(fnmatch(name, pattern) for pattern in _WANTED):
                        _fetch(api, repo, revision, name, folder)
            shutil.rmtree(folder / ".cache", ignore_errors=True)
            _check(repo, folder)
    return to


def _fetch(api: HfApi, repo: str, revision: str | None, name: str, folder: Path) -> None:
    """Put a file where a run folder has it."""
    found = Path(api.hf_hub_download(repo, name, revision=revision, local_dir=folder))
    inside = name.removeprefix(f"{EVIDENCE}/") if name.startswith(f"{EVIDENCE}/") else name
    if name in (*ADAPTER_FILES, "README.md"):
        inside = f"adapter/{name}"
    target = folder / inside
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(found, target)
    if (folder / EVIDENCE).is_dir() and not any((folder / EVIDENCE).rglob("*.*")):
        shutil.rmtree(folder / EVIDENCE)


def _check(repo: str, folder: Path) -> None:
    load_adapter(folder / "adapter")
    try:
        result: Any = read_json(folder / "result.json")
        measured = result.get("adapter_digest") if isinstance(result, dict) else None
    except NotPlainJson:
        raise UserError(f"{repo} has no readable evidence (result.json); nothing shows what it was") from None
    if measured != folder_digest(folder / "adapter"):
        raise UserError(
            f"{repo}: the adapter is not the one that was measured (its digest differs from the one in result.json); ask who "
            "shared it"
        )


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    try:
        yield
    except HFValidationError as error:
        raise UserError(f"{repo} is no name of a repository; give OWNER/NAME ({str(error).splitlines()[0]})") from error
    except OfflineModeIsEnabled as error:
        raise UserError("the hub cannot be reached in offline mode; unset HF_HUB_OFFLINE") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{repo} is not on the hub, or you may not see it; check the name, and log in: hf auth login"
        ) from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        how = "log in with a token that may write: hf auth login" if status in (401, 403) else "try again later"
        raise UserError(f"the hub refused {repo} (status {status}); {how}") from error
    except (ConnectionError, TimeoutError) as error:
        raise UserError(
            f"the hub cannot be reached: {type(error).__name__}; check the network, and try again"
        ) from error
    except Exception as error:
        if type(error).__module__.split(".")[0] in ("httpx", "httpcore", "requests"):
            raise UserError(
                f"the hub cannot be reached: {type(error).__name__}; check the network, and try again"
            ) from error
        raise
