"""What `hub_server.HubServer` answers to each request of the huggingface_hub client, and how it fails on demand."""

import base64
import hashlib
import json
import re
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    from hub_server import Blob, HubServer, Repo

LFS = (".safetensors", ".bin", ".png")


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


class Refused(Exception):
    """Ends an answer with a status and the Hub's code for the reason."""

    def __init__(self, status: int, code: str, headers: Mapping[str, str] = {}) -> None:
        super().__init__(status, code)
        self.status, self.code, self.headers = status, code, headers


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: "HubServer"

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
        try:
            if fault is not None and fault.status is not None:
                raise Refused(fault.status, "Injected", fault.headers)
            self._route()
        except Refused as refused:
            code = refused.code
            headers = {"X-Error-Code": code, "X-Error-Message": code, **refused.headers}
            self._send(refused.status, {"error": code}, headers)

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def _route(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        for pattern, answer in _ROUTES:
            match = re.fullmatch(pattern, unquote(url.path))
            if match:
                return answer(self, *match.groups())
        raise Refused(404, "NotFound")

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
        with suppress(OSError):  # the client has gone first
            self.connection.shutdown(socket.SHUT_RDWR)  # closing is not enough: forked processes have it, too
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

    @property
    def _user(self) -> str | None:
        return self.hub.tokens.get(self.request_.token or "")

    def _repo(self, repo_id: str, write: bool = False) -> "Repo":
        """Refused if there is no such repository or the token doesn't open it."""
        repo = self.hub.repos.get(repo_id)
        if repo is None or ((repo.private or write) and self._user is None):
            raise Refused(401 if self._user is None else 404, "RepoNotFound")
        return repo

    def _at(self, repo: "Repo", revision: str) -> "tuple[str, dict[str, Blob]]":
        """Commit of a branch, a tag or itself, and its files; refused if there is none."""
        commit = repo.refs.get(revision, revision)
        if commit not in repo.commits:
            raise Refused(404, "RevisionNotFound")
        return commit, repo.commits[commit]

    # ------------------------------------------------------------------------------------------ answers

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

    def _model(self, repo_id: str, revision: str | None = None) -> None:
        repo = self._repo(repo_id)
        commit, files = self._at(repo, revision or "main")
        blobs = "blobs" in self.query
        siblings = [{"rfilename": p, **(blob.describe() if blobs else {})} for p, blob in sorted(files.items())]
        info = {"id": repo_id, "sha": commit, "private": repo.private, "tags": [], "downloads": 0, "likes": 0}
        self._send(200, info | {"siblings": siblings})

    def _tree(self, repo_id: str, revision: str, folder: str | None) -> None:
        _, files = self._at(self._repo(repo_id), revision)
        prefix = f"{folder.strip('/')}/" if folder else ""
        recursive = self.query.get("recursive", ["false"])[0].lower() == "true"
        entries: dict[str, dict] = {}
        for path, blob in sorted(files.items()):
            if not path.startswith(prefix):
                continue
            inner = path.removeprefix(prefix).split("/")
            for depth in range(1, len(inner) if recursive else min(2, len(inner))):
                name = prefix + "/".join(inner[:depth])
                entries.setdefault(name, {"type": "directory", "path": name, "oid": "0" * 40, "size": 0})
            if recursive or len(inner) == 1:
                entries[path] = {"type": "file", "path": path, **blob.describe()}
        if prefix and not entries:
            raise Refused(404, "EntryNotFound")
        self._send(200, list(entries.values()))

    def _preupload(self, repo_id: str, revision: str) -> None:
        _, tree = self._at(self._repo(repo_id, write=True), revision)
        files = []
        for asked in json.loads(self.body)["files"]:
            path = asked["path"]
            mode = "lfs" if path.endswith(LFS) else "regular"
            known = {"oid": tree[path].etag} if path in tree else {}
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **known})
        self._send(200, {"files": files})

    def _lfs_batch(self, repo_id: str) -> None:
        self._repo(repo_id, write=True)
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
            raise Refused(400, "WrongHash")
        self.hub.uploads[oid] = self.body
        self._send(200)

    def _lfs_verify(self, oid: str) -> None:
        self._send(200 if oid in self.hub.uploads else 404, {})

    def _settings(self, repo_id: str) -> None:
        asked = json.loads(self.body)
        self._repo(repo_id, write=True).private = asked.get("private", asked.get("visibility") == "private")
        self._send(200, {})

    def _commit(self, repo_id: str, revision: str) -> None:
        self._at(self._repo(repo_id, write=True), revision)
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
        commit = self.hub.commit(repo_id, changes, revision)
        url = f"{self.hub.url}/{repo_id}/commit/{commit}"
        self._send(200, {"success": True, "commitOid": commit, "commitUrl": url})

    def _resolve(self, repo_id: str, revision: str, path: str) -> None:
        commit, files = self._at(self._repo(repo_id), revision)
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        blob = files.get(path)
        if blob is None:
            raise Refused(404, "EntryNotFound", headers)
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
    (r"/api/validate-yaml", Handler._validate_yaml),
    (r"/api/repos/create", Handler._create),
    (rf"/{_REPO}\.git/info/lfs/objects/batch", Handler._lfs_batch),
    (r"/lfs/([0-9a-f]{64})", Handler._lfs_upload),
    (r"/lfs/([0-9a-f]{64})/verify", Handler._lfs_verify),
    (rf"{_READ}{_REPO}", Handler._model),
    (rf"{_READ}{_REPO}/revision/(.+)", Handler._model),
    (rf"{_READ}{_REPO}/tree/([^/]+)(/.+)?", Handler._tree),
    (rf"/api/models/{_REPO}/preupload/(.+)", Handler._preupload),
    (rf"/api/models/{_REPO}/settings", Handler._settings),
    (rf"/api/models/{_REPO}/commit/(.+)", Handler._commit),
    (rf"(?:/datasets)?/{_REPO}/resolve/([^/]+)/(.+)", Handler._resolve),
]
