"""One dictionary's folder from the Hugging Face hub: which files, and one clear error where it cannot be had."""

from __future__ import annotations

import errno
import glob
import re
from collections.abc import Sequence
from fnmatch import filter as matching
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from vlsae.dictionaries.checkpoint import CheckpointError

WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".npz", ".bin", ".ckpt")
ABOVE = ("config.json", "cfg.json")  # of the folder above, for checkpoints/STEP.pt
HUB_ID = re.compile(r"(?:hf:)?([^/@\s]+/[^/@\s]+)(?:@(refs/pr/\d+|[^/@\s]+))?((?:/[^/@]+)*)")
FORMS = "'user/repo', 'user/repo/sub/folder' or 'user/repo@revision/sub/folder', with or without 'hf:' before it"
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES}
ELSEWHERE = "or download it on another machine, copy the folder here and give its path"


class HubId(NamedTuple):
    """A repository, a folder in it ("" for its root), and a branch, tag or commit (None for the default branch)."""

    repo_id: str
    subfolder: str = ""
    revision: str | None = None

    def __str__(self) -> str:
        pinned = "" if self.revision is None else f"@{self.revision}"
        return f"{self.repo_id}{pinned}" + (f"/{self.subfolder}" if self.subfolder else "")


def parse_hub_id(text: str) -> HubId:
    """Take a hub id apart: `[hf:]user/repo[@revision][/sub/folder]`.

    Args:
        text: the id. A revision is a branch, tag or commit without a slash, or `refs/pr/3`.

    Returns:
        `(repo_id, subfolder, revision)`; the subfolder is "" and the revision None where they are not given.

    Raises:
        CheckpointError: for anything else, saying which forms there are.

    Example:
        >>> tuple(parse_hub_id("hf:user/repo@v2/layer_11/topk"))
        ('user/repo', 'layer_11/topk', 'v2')
        >>> tuple(parse_hub_id("user/repo"))
        ('user/repo', '', None)
    """
    found = HUB_ID.fullmatch(text)
    if found is None:
        raise CheckpointError(f"{text!r} is no hub id; give {FORMS}.")
    repo_id, revision, inner = found.groups()
    return checked(repo_id, inner[1:], revision)


def checked(repo_id: str, subfolder: str = "", revision: str | None = None) -> HubId:
    """The same as one `HubId`; raises CheckpointError for what can be no repository or no folder of one."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise CheckpointError(f"{repo_id!r} is no hub repository ({first_line(error)}); give {FORMS}.") from error
    if subfolder and not all(part.strip() and part not in (".", "..") for part in subfolder.split("/")):
        raise CheckpointError(f"{subfolder!r} is no folder of a repository; give its path from the root: 'sub/folder'.")
    return HubId(repo_id, subfolder, revision)


def fetch(name_or_path: str | Path, *, subfolder: str = "", revision: str | None = None, **options: Any) -> Path:
    """Where a dictionary lies on this machine: a folder or file is itself, a hub id is downloaded.

    Args:
        name_or_path: a local folder or file, or a hub id as `parse_hub_id` reads it, which may end with the name of a weight
            file. Where both could be meant it is the local one; "hf:" before it means the hub.
        subfolder: within it.
        revision: branch, tag or commit; what lies on this machine has none.
        options: further arguments of `download`.

    Returns:
        The folder, or the file where one was named.

    Raises:
        CheckpointError: for what is not there, a revision or sub-folder of what cannot have one, and as `parse_hub_id` and
            `download`.
    """
    text, local = str(name_or_path), Path(name_or_path).expanduser()
    if not text.startswith("hf:") and _exists(local):
        return _on_this_machine(local, subfolder, revision)
    if isinstance(name_or_path, Path) or _looks_local(text):
        raise CheckpointError(f"{text} does not exist; give the folder or file of a dictionary, or a hub id: {FORMS}.")
    asked = parse_hub_id(text)
    if (asked.subfolder and subfolder) or (asked.revision and revision):
        given = f"subfolder={subfolder!r}, revision={revision!r}"
        raise CheckpointError(f"{text!r} names a folder or revision, and so does {given}; give each of them once.")
    inner, name = PurePosixPath(asked.subfolder or subfolder), ""
    if inner.suffix in WEIGHT_SUFFIXES:
        inner, name = inner.parent, inner.name
        options["names"] = [name]
    folder = "" if str(inner) == "." else str(inner)
    try:
        return download(asked.repo_id, folder, revision=asked.revision or revision, **options) / name
    except CheckpointError as error:
        if text.startswith("hf:"):
            raise
        raise CheckpointError(f"{error} (There is nothing called {text!r} on this machine either.)") from error


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long for any file
        return False


def _looks_local(text: str) -> bool:
    """Whether a text that names nothing here was meant as a path: a hub id has two parts and no drive."""
    marked = text.startswith(("/", ".", "~")) or "\\" in text or re.match(r"[A-Za-z]:", text)
    return bool(marked) or (text.count("/") < 2 and text.endswith(WEIGHT_SUFFIXES))


def _on_this_machine(path: Path, subfolder: str, revision: str | None) -> Path:
    if revision is not None:
        raise CheckpointError(
            f"{path} lies on this machine and has no revision {revision!r}; leave it out, or write hf: before a hub id."
        )
    inside = path / subfolder
    if not subfolder or inside.is_dir():
        return inside if subfolder else path
    folders = sorted(entry.name for entry in path.iterdir() if entry.is_dir()) if path.is_dir() else []
    raise CheckpointError(f"{path} has no folder {subfolder!r}; its folders: {_few(folders)}.")


def download(
    repo_id: str,
    subfolder: str = "",
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    names: Sequence[str] | None = None,
) -> Path:
    """Fetch the files of one dictionary, those directly in one folder of a repository, into the hub's cache.

    Without a network the cache is used, if it has what is asked for.

    Args:
        repo_id: "user/repo".
        subfolder: the folder, "" for the root of the repository.
        revision: branch, tag or commit; the default branch where None.
        token: for private and gated repositories; the one of `hf auth login` where None, none where False.
        cache_dir: the hub's own cache where None.
        local_files_only: look at nothing but the cache.
        force_download: fetch again what is in the cache.
        names: names of files, or patterns of them, all of which must be there; JSON beside them comes along. Where None:
            JSON and weights (.safetensors, .pt, .pth, .npz, .bin, .ckpt), of which there must be some.

    Returns:
        The local folder that holds the files; it may also hold others from earlier calls.

    Raises:
        CheckpointError: for an unknown or gated repository, an unknown revision, a folder without weights (names those
            that have some), or without a network a cache that lacks them.
        ValueError: for `force_download` with `local_files_only`.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError

    if force_download and local_files_only:
        raise ValueError("force_download=True fetches again and local_files_only=True fetches nothing; give only one.")
    asked = checked(repo_id, subfolder, revision)
    folder = f"{glob.escape(subfolder)}/" if subfolder else ""
    wanted = ("*.json", *(names or [f"*{suffix}" for suffix in WEIGHT_SUFFIXES]))
    above = [f"{glob.escape(str(PurePosixPath(subfolder).parent))}/{name}" for name in ABOVE] if subfolder else []
    try:
        root = snapshot_download(
            repo_id,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
            allow_patterns=[*(folder + name for name in wanted), *(name.removeprefix("./") for name in above)],
            ignore_patterns=[folder + "*/*"],  # a star also matches slashes, so the folder's own folders come along
        )
    except (OSError, HTTPError) as error:
        message = (
            f"{asked} is not in the cache, or not all of it, and {no_answer(error, local_files_only)}, {ELSEWHERE}."
        )
        raise CheckpointError(refusal(error, asked) or message) from error
    local = Path(root, subfolder)
    if local.is_dir() and _holds([file.name for file in local.iterdir()], names):
        return local
    raise CheckpointError(_nothing_there(asked, Path(root), names, token, local_files_only))


def _holds(files: Sequence[str], names: Sequence[str] | None) -> bool:
    """Whether a folder with these files has what is asked for."""
    if names is None:
        return any(file.endswith(WEIGHT_SUFFIXES) for file in files)
    return all(matching(files, name) for name in names)


def _nothing_there(asked: HubId, root: Path, names, token, local_files_only: bool) -> str:
    """The message for a folder that lacks what is asked for: which folders of the repository, or the cache, have it."""
    files = None if local_files_only else _files_on_the_hub(asked.repo_id, root.name, token)
    cached = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
    by_folder: dict[str, list[str]] = {}
    for file in map(PurePosixPath, cached if files is None else files):
        by_folder.setdefault(str(file.parent), []).append(file.name)
    there = _few(sorted(folder for folder, inside in by_folder.items() if _holds(inside, names)))
    what = f"no weights ({', '.join(WEIGHT_SUFFIXES)})" if names is None else f"not all of {', '.join(names)}"
    place = f"The folder {asked.subfolder!r}" if asked.subfolder else "The root"
    if files is None:
        return (
            f"{place} of {asked.repo_id} has {what} in the cache (folders of the cache that have: {there}), and "
            f"{no_answer(None, local_files_only)}, {ELSEWHERE}."
        )
    return f"{place} of {asked.repo_id} has {what}; folders that have: {there}. Give one of them as subfolder."


def _files_on_the_hub(repo_id: str, commit: str, token) -> list[str] | None:
    """All files of a commit, None where the hub does not answer."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    try:
        return HfApi(token=token).list_repo_files(repo_id, revision=commit)
    except (OSError, HTTPError):
        return None


def _few(folders: Sequence[str]) -> str:
    """The first 20, and how many there are."""
    shown = ", ".join("the root" if folder == "." else folder for folder in folders[:20])
    return f"{shown or 'none'}{', ...' if len(folders) > 20 else ''} ({len(folders)} in all)"


def refusal(error: Exception, asked: HubId) -> str | None:
    """What the hub has against it, with the way out; None where it gave no answer."""
    from huggingface_hub import constants, errors

    login = "log in with `hf auth login` or give token="
    if isinstance(error, errors.GatedRepoError):
        page = f"{constants.ENDPOINT}/{asked.repo_id}"
        return f"{asked.repo_id} is gated: ask for access at {page}, then {login}."
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"The hub has no repository {asked.repo_id}, or it is private; check the name, or {login}."
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f"{asked.repo_id} has no revision {asked.revision!r}; give a branch, tag or commit that it has, or none for "
            "its default branch."
        )
    if isinstance(error, errors.HfHubHTTPError):
        return f"The hub refused {asked}: {first_line(error)} If this is about access, {login}."
    if isinstance(error, OSError) and error.errno in DISK:
        return f"{asked} cannot be written to this disk: {first_line(error)}; make room, or give another cache_dir."
    return None


def no_answer(error: Exception | None, local_files_only: bool = False) -> str:
    """Why the hub gave no answer, and what to do about it."""
    from huggingface_hub import constants

    if local_files_only:
        return "local_files_only=True keeps from asking the hub; leave it out"
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE keeps from asking the hub; unset it"
    return (
        f"the hub gives no answer ({first_line(error)}); try again with a network"
        if error
        else "the hub gives no answer"
    )


def first_line(error: Exception) -> str:
    """What a library said, without its advice."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
