"""A hub in memory behind huggingface_hub's own client: the library is the real one, only the wire is not."""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path
from urllib.parse import unquote


class Hub:
    """Repositories as `{repo_id: {revision: {path: bytes}}}`; answers what huggingface_hub asks of the hub.

    Attributes:
        gated: repositories that only answer with access.
        down: whether there is no network.
        asked: method and path of every request.
    """

    def __init__(self):
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}
        self.gated: set[str] = set()
        self.down = False
        self.asked: list[str] = []

    def put(self, repo_id: str, folder: Path, inside: str = "", revision: str = "main") -> None:
        """Add a folder's files to a revision."""
        files = self.repos.setdefault(repo_id, {}).setdefault(revision, {})
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                files[f"{inside}/{path.relative_to(folder).as_posix()}".lstrip("/")] = path.read_bytes()

    @staticmethod
    def commit(files: dict[str, bytes]) -> str:
        return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()

    def client(self, make):
        """huggingface_hub's client with this hub at the other end."""
        real = make()
        self.http = sys.modules[type(real).__module__.partition(".")[0]]  # httpx, by whichever name the library has it
        transport = self.http.MockTransport(self.answer)
        return self.http.Client(transport=transport, event_hooks=real.event_hooks, follow_redirects=True)

    def answer(self, request):
        if self.down:
            raise self.http.ConnectError("Name or service not known")
        path = unquote(request.url.path)
        self.asked.append(f"{request.method} {path}")
        found = re.fullmatch(
            r"/(?:api/models/)?([^/]+/[^/]+)(?:/(revision|tree|resolve)/(refs/pr/\d+|[^/]+)(?:/(.*))?)?", path
        )
        repo_id, what, revision, file = found.groups()
        if repo_id not in self.repos:
            return self._error(404, "RepoNotFound")
        if repo_id in self.gated:
            return self._error(403, "GatedRepo")
        revisions = self.repos[repo_id]
        named = {**revisions, **{self.commit(files): files for files in revisions.values()}}
        if (revision or "main") not in named:
            return self._error(404, "RevisionNotFound")
        files = named[revision or "main"]
        if what == "resolve":
            return self._file(files, file, request.method == "HEAD")
        if what == "tree":
            listed = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in files.items()
            ]
            return self.http.Response(200, json=listed)
        siblings = [{"rfilename": name} for name in files]
        return self.http.Response(200, json={"id": repo_id, "sha": self.commit(files), "siblings": siblings})

    def _file(self, files, name, head):
        headers = {
            "X-Repo-Commit": self.commit(files),
            "ETag": f'"{hashlib.sha1(files[name]).hexdigest()}"',
            "Content-Length": str(len(files[name])),
        }
        return self.http.Response(200, headers=headers, content=b"" if head else files[name])

    def _error(self, status, code):
        return self.http.Response(status, headers={"X-Error-Code": code, "X-Error-Message": code})
