"""
A small Hub on 127.0.0.1 for the real huggingface_hub client: model repositories with branches, tags, private
repositories and tokens, downloads with ranges, uploads by commit and by LFS, and errors on demand. All of them can be
read as datasets, too.

    hub = HubServer()
    os.environ.update(hub.environment(tmp_path))     # before the first Hugging Face import of the process
    hub.add("user/model", {"config.json": b"{}"})    # or a folder; private=True asks for a token
    hub.fail("GET", r"weights\\.safetensors$", cut=1000)       # the next such answer stops after 1000 bytes
    hub.fail("POST", "/commit/", status=500, times=2)         # the next two fail; pop them with hub.faults.clear()
    ...
    hub.asked("user/model")      # what was downloaded; hub.log has every request
    hub.files("user/model")      # what the repository holds now, as bytes
"""

import hashlib
import json
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hub_answers import LFS, Fault, Handler, Request

TOKEN = "hf_tester"  # of the user "tester", who may read and write everything


@dataclass
class Blob:
    """A file's content. Its ETag is the SHA-256 for LFS files and git's SHA-1 for others, as on the Hub."""

    content: bytes
    lfs: bool
    oid: str = field(init=False)
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        self.oid = hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()
        self.sha256 = hashlib.sha256(self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid

    def describe(self) -> dict[str, Any]:
        lfs = {"oid": self.sha256, "sha256": self.sha256, "size": len(self.content), "pointerSize": 130}
        return {"size": len(self.content), "oid": self.oid, "blobId": self.oid} | ({"lfs": lfs} if self.lfs else {})


@dataclass
class Repo:
    private: bool = False
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)  # branch or tag -> commit


class HubServer:
    """See the module. Attributes: `url`, `log` (every request in order), `faults` (those still to come), `repos`."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.uploads: dict[str, bytes] = {}
        self.log: list[Request] = []
        self.faults: list[Fault] = []
        self.tokens = {TOKEN: "tester"}
        self.lock = threading.RLock()
        handler = type("Handler", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def environment(self, home: Path) -> dict[str, str]:
        """What a process needs to talk to this Hub and to no other, logged out, with its cache in `home`."""
        if "huggingface_hub" in sys.modules:
            raise RuntimeError("huggingface_hub reads its settings when it is imported: set them in a new process.")
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
            "NO_PROXY": "127.0.0.1",
        }

    def clear(self) -> None:
        """Forget everything."""
        for kept in (self.repos, self.uploads, self.log, self.faults):
            kept.clear()

    def add(self, repo_id: str, files: Mapping[str, bytes] | Path = {}, private: bool = False) -> str:  # noqa: B006
        """Creates a repository, or replaces it; returns the commit of its branch main."""
        with self.lock:
            self.repos[repo_id] = Repo(private)
        return self.commit(repo_id, files)

    def commit(
        self,
        repo_id: str,
        files: Mapping[str, bytes | None] | Path,
        revision: str = "main",
    ) -> str:
        """Adds and replaces files (None deletes one) on a branch; returns the commit."""
        if isinstance(files, Path):
            files = {str(p.relative_to(files).as_posix()): p.read_bytes() for p in files.rglob("*") if p.is_file()}
        with self.lock:
            repo = self.repos[repo_id]
            tree = dict(repo.commits.get(repo.refs.get(revision, ""), {}))
            for path, content in files.items():
                if content is None:
                    tree.pop(path, None)
                else:
                    tree[path] = Blob(content, path.endswith(LFS))
            names = sorted((path, blob.oid) for path, blob in tree.items())
            commit = hashlib.sha1(json.dumps([repo_id, len(repo.commits), names]).encode()).hexdigest()
            repo.commits[commit] = tree
            repo.refs[revision] = commit
            return commit

    def tag(self, repo_id: str, name: str, revision: str = "main") -> None:
        """A tag or a branch that starts at `revision`."""
        repo = self.repos[repo_id]
        repo.refs[name] = repo.refs.get(revision, revision)

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        repo = self.repos[repo_id]
        return {path: blob.content for path, blob in repo.commits[repo.refs.get(revision, revision)].items()}

    def fail(
        self,
        method: str,
        pattern: str,
        status: int | None = None,
        cut: int | None = None,
        times: int = 1,
        headers: Mapping[str, str] = {},
    ) -> None:
        """
        The next `times` requests whose path matches `pattern` (searched, with the query) get an error `status`, or
        lose their connection: a download after `cut` bytes of its body, an upload after `cut` bytes were read.
        """
        self.faults.append(Fault(method, pattern, status, cut, times, headers))

    def asked(self, repo_id: str) -> list[str]:
        """Files of the repository that were asked for (HEAD or GET, found or not), in order, each once."""
        prefix = f"/{repo_id}/resolve/"
        paths = [urlsplit(r.path).path for r in self.log if r.path.startswith(prefix)]
        return list(dict.fromkeys(path.removeprefix(prefix).split("/", 1)[1] for path in paths))
