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

import base64
import hashlib
import json
import re
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LFS = (".safetensors", ".bin", ".png")
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

    def find(self, revision: str) -> str | None:
        commit = self.refs.get(revision, revision)
        return commit if commit in self.commits else None


@dataclass
class Request:
    method: str
    path: str  # with the query
    status: int = 0  # 0 as long as nothing is answered, so also for one that was cut off
    token: str | None = None
    sent: int = 0  # bytes of the answer's body


@dataclass
class Fault:
    method: str
    pattern: str
    status: int | None
    cut: int | None
    times: int
    headers: Mapping[str, str]


class HubServer:
    """See the module. Attributes: `url`, `log` (every request in order), `faults` (those still to come), `repos`."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.uploads: dict[str, bytes] = {}
        self.log: list[Request] = []
        self.faults: list[Fault] = []
        self.tokens = {TOKEN: "tester"}
        self.lock = threading.RLock()
        handler = type("Handler", (_Handler,), {"hub": self})
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

    def asked(self, repo_id: str, method: str | None = None) -> list[str]:
        """Files of the repository that were asked for (HEAD or GET, found or not), in order, each once."""
        prefix = f"/{repo_id}/resolve/"
        requests = [r for r in self.log if r.path.startswith(prefix) and method in (None, r.method)]
        return list(dict.fromkeys(urlsplit(r.path).path.removeprefix(prefix).split("/", 1)[1] for r in requests))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, *args: Any) -> None:
        pass

    def _handle(self) -> None:
        authorization = self.headers.get("Authorization", "")
        self.request_ = Request(self.command, self.path, token=authorization.removeprefix("Bearer ") or None)
        with self.hub.lock:
            self.hub.log.append(self.request_)
            fault = next((f for f in self.hub.faults if self._matches(f)), None)
            if fault is not None:
                fault.times -= 1
                if not fault.times:
                    self.hub.faults.remove(fault)
        self.cut = fault.cut if fault else None
        if self.cut is not None and self.command in ("POST", "PUT"):
            self.rfile.read(self.cut)
            return self._drop()
        self.body = self._read_body()
        if fault is not None and fault.status is not None:
            return self._error(fault.status, "Injected", fault.headers)
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        path = unquote(url.path)
        for pattern, answer in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match:
                return answer(self, *match.groups())
        return self._error(404, "NotFound")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle

    def _matches(self, fault: Fault) -> bool:
        return fault.method == self.command and re.search(fault.pattern, unquote(self.path)) is not None

    def _read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _drop(self) -> None:
        self.close_connection = True
        self.connection.close()

    def _send(self, status: int, data: Any = b"", headers: Mapping[str, str] = {}) -> None:
        if not isinstance(data, bytes):
            data, headers = json.dumps(data).encode(), {"Content-Type": "application/json", **headers}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            whole = self.cut is None
            self.wfile.write(data if whole else data[: self.cut])
            self.wfile.flush()
            self.request_.sent = len(data) if whole else min(len(data), self.cut)
            if not whole:
                return self._drop()
        self.request_.status = status

    def _error(self, status: int, code: str, headers: Mapping[str, str] = {}) -> None:
        self._send(status, {"error": code}, {"X-Error-Code": code, "X-Error-Message": code, **headers})

    @property
    def _user(self) -> str | None:
        return self.hub.tokens.get(self.request_.token or "")

    def _repo(self, repo_id: str, write: bool = False) -> Repo | None:
        """None, and the error is sent, if there is no such repository or the token doesn't open it."""
        repo = self.hub.repos.get(repo_id)
        if repo is None or ((repo.private or write) and self._user is None):
            self._error(401 if self._user is None else 404, "RepoNotFound")
            return None
        return repo

    # ------------------------------------------------------------------------------------------ answers

    def _whoami(self) -> None:
        if self._user is None:
            return self._send(401, {"error": "Invalid username or password."})
        token = {"displayName": "test", "role": "write"}
        auth = {"type": "access_token", "accessToken": token}
        self._send(200, {"type": "user", "name": self._user, "fullname": self._user, "orgs": [], "auth": auth})

    def _validate_yaml(self) -> None:
        self._send(200, {"errors": [], "warnings": []})

    def _create(self) -> None:
        asked = json.loads(self.body)
        if self._user is None:
            return self._send(401, {"error": "Invalid username or password."})
        repo_id = f"{asked.get('organization') or self._user}/{asked['name']}"
        url = f"{self.hub.url}/{repo_id}"
        if repo_id in self.hub.repos:
            return self._send(409, {"error": "You already created this model repo", "url": url})
        visibility = asked.get("visibility")
        self.hub.add(repo_id, {".gitattributes": b""}, bool(asked.get("private")) or visibility == "private")
        self._send(200, {"url": url, "name": repo_id, "id": repo_id})

    def _ref(self, repo_id: str, kind: str, name: str) -> None:
        repo = self._repo(repo_id, write=True)
        if repo is None:
            return None
        asked = json.loads(self.body or b"{}")
        name, start = (asked["tag"], name) if kind == "tag" else (name, asked.get("startingPoint") or "main")
        if name in repo.refs:
            return self._error(409, "ReferenceExists")
        commit = repo.find(start)
        if commit is None:
            return self._error(404, "RevisionNotFound")
        repo.refs[name] = commit
        self._send(200, {})

    def _model(self, repo_id: str, revision: str | None = None) -> None:
        repo = self._repo(repo_id)
        if repo is None:
            return None
        commit = repo.find(revision or "main")
        if commit is None:
            return self._error(404, "RevisionNotFound")
        blobs = "blobs" in self.query
        tree = sorted(repo.commits[commit].items())
        siblings = [{"rfilename": path, **(blob.describe() if blobs else {})} for path, blob in tree]
        info = {"id": repo_id, "sha": commit, "private": repo.private, "tags": [], "downloads": 0, "likes": 0}
        self._send(200, info | {"siblings": siblings})

    def _tree(self, repo_id: str, revision: str, folder: str | None) -> None:
        repo = self._repo(repo_id)
        if repo is None:
            return None
        commit = repo.find(revision)
        if commit is None:
            return self._error(404, "RevisionNotFound")
        prefix = f"{folder.strip('/')}/" if folder else ""
        recursive = self.query.get("recursive", ["false"])[0].lower() == "true"
        entries: dict[str, dict] = {}
        for path, blob in sorted(repo.commits[commit].items()):
            if not path.startswith(prefix):
                continue
            inner = path.removeprefix(prefix).split("/")
            for depth in range(1, len(inner) if recursive else min(2, len(inner))):
                name = prefix + "/".join(inner[:depth])
                entries.setdefault(name, {"type": "directory", "path": name, "oid": "0" * 40, "size": 0})
            if recursive or len(inner) == 1:
                entries[path] = {"type": "file", "path": path, **blob.describe()}
        if prefix and not entries:
            return self._error(404, "EntryNotFound")
        self._send(200, list(entries.values()))

    def _paths_info(self, repo_id: str, revision: str) -> None:
        repo = self._repo(repo_id)
        if repo is None:
            return None
        commit = repo.find(revision)
        if commit is None:
            return self._error(404, "RevisionNotFound")
        is_json = "json" in self.headers.get("Content-Type", "")
        paths = json.loads(self.body)["paths"] if is_json else parse_qs(self.body.decode()).get("paths", [])
        tree = repo.commits[commit]
        self._send(200, [{"type": "file", "path": p, **tree[p].describe()} for p in paths if p in tree])

    def _preupload(self, repo_id: str, revision: str) -> None:
        repo = self._repo(repo_id, write=True)
        if repo is None:
            return None
        commit = repo.find(revision)
        if commit is None:
            return self._error(404, "RevisionNotFound")
        tree, files = repo.commits[commit], []
        for asked in json.loads(self.body)["files"]:
            path = asked["path"]
            mode = "lfs" if path.endswith(LFS) else "regular"
            known = {"oid": tree[path].etag} if path in tree else {}
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **known})
        self._send(200, {"files": files})

    def _lfs_batch(self, repo_id: str) -> None:
        if self._repo(repo_id, write=True) is None:
            return
        objects = []
        for asked in json.loads(self.body)["objects"]:
            entry = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.uploads:
                href = f"{self.hub.url}/lfs/{asked['oid']}"
                entry["actions"] = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
            objects.append(entry)
        self._send(200, {"transfer": "basic", "objects": objects})

    def _lfs_upload(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self._error(400, "WrongHash")
        self.hub.uploads[oid] = self.body
        self._send(200)

    def _lfs_verify(self, oid: str) -> None:
        self._send(200 if oid in self.hub.uploads else 404, {})

    def _settings(self, repo_id: str) -> None:
        repo = self._repo(repo_id, write=True)
        if repo is not None:
            asked = json.loads(self.body)
            repo.private = asked.get("private", asked.get("visibility") == "private")
            self._send(200, {})

    def _commit(self, repo_id: str, revision: str) -> None:
        repo = self._repo(repo_id, write=True)
        if repo is None:
            return None
        if revision not in repo.refs:
            return self._error(404, "RevisionNotFound")
        changes: dict[str, bytes | None] = {}
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                changes[value["path"]] = self.hub.uploads[value["oid"]]
            elif operation["key"] == "deletedFile":
                changes[value["path"]] = None
            elif operation["key"] == "deletedFolder":
                inside = value["path"].rstrip("/") + "/"
                changes |= {p: None for p in repo.commits[repo.refs[revision]] if p.startswith(inside)}
        commit = self.hub.commit(repo_id, changes, revision)
        url = f"{self.hub.url}/{repo_id}/commit/{commit}"
        self._send(200, {"success": True, "commitOid": commit, "commitUrl": url})

    def _resolve(self, repo_id: str, revision: str, path: str) -> None:
        repo = self._repo(repo_id)
        if repo is None:
            return None
        commit = repo.find(revision)
        if commit is None:
            return self._error(404, "RevisionNotFound")
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        blob = repo.commits[commit].get(path)
        if blob is None:
            return self._error(404, "EntryNotFound", headers)
        headers["ETag"] = f'"{blob.etag}"'
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None or self.command == "HEAD":
            return self._send(200, blob.content, headers)
        start, end = int(asked[1]), int(asked[2] or len(blob.content) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(blob.content)}"
        return self._send(206, blob.content[start : end + 1], headers)


_REPO = r"([^/]+/[^/]+)"
_READ = "/api/(?:models|datasets)/"
_ROUTES = [
    (r"/api/whoami-v2", _Handler._whoami),
    (r"/api/validate-yaml", _Handler._validate_yaml),
    (r"/api/repos/create", _Handler._create),
    (rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler._lfs_batch),
    (r"/lfs/([0-9a-f]{64})", _Handler._lfs_upload),
    (r"/lfs/([0-9a-f]{64})/verify", _Handler._lfs_verify),
    (rf"{_READ}{_REPO}", _Handler._model),
    (rf"{_READ}{_REPO}/revision/(.+)", _Handler._model),
    (rf"/api/models/{_REPO}/(branch|tag)/(.+)", _Handler._ref),
    (rf"{_READ}{_REPO}/tree/([^/]+)(/.+)?", _Handler._tree),
    (rf"{_READ}{_REPO}/paths-info/(.+)", _Handler._paths_info),
    (rf"/api/models/{_REPO}/preupload/(.+)", _Handler._preupload),
    (rf"/api/models/{_REPO}/settings", _Handler._settings),
    (rf"/api/models/{_REPO}/commit/(.+)", _Handler._commit),
    (rf"(?:/datasets)?/{_REPO}/resolve/([^/]+)/(.+)", _Handler._resolve),
]
