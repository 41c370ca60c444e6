"""A small Hugging Face Hub on loopback: models, data, Spaces, pulls and pushes, tokens, and faults on demand."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from forks import share

USER, ORGANISATION = "alice", "lab"
WRITE_TOKEN, READ_TOKEN = "hf_canaryWriteToken0123456789", "hf_canaryReadToken0123456789"
FINE_TOKEN, RIGHTS = "hf_canaryFineToken0123456789", ["repo.content.read", "repo.write"]
LFS_SUFFIXES = (".safetensors", ".onnx", ".bin", ".parquet", ".arrow")
DATE = "2026-01-01T00:00:00.000Z"
ID = r"(?P<id>[\w.-]+/[\w.-]+)"
REST = r"(?:/(?P<rev>[^/?]+)(?:/(?P<path>.*))?)?"
# Ports of Hubs that have ended, each held by a socket that does not listen. The next Hub takes one of them: processes
# read its address while they import, and a fork server that has read it serves them all.
FREE_PORTS: list[socket.socket] = []


@dataclass
class Commit:
    """One commit: its id, its title and the whole tree after it."""

    sha: str
    title: str
    files: dict[str, bytes]


@dataclass
class Repo:
    """A repository: its commits, oldest first, and its branches by name."""

    id: str
    type: str
    private: bool = False
    commits: list[Commit] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], title: str, branch: str = "main") -> Commit:
        sha = hashlib.sha1(f"{self.type} {self.id} {len(self.commits)} {title}".encode()).hexdigest()
        self.commits.append(Commit(sha, title, files))
        self.branches[branch] = sha
        return self.commits[-1]

    def at(self, revision: str) -> Commit:
        sha = self.branches.get(revision, revision)
        for commit in self.commits:
            if commit.sha == sha:
                return commit
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")


@dataclass(frozen=True)
class Fault:
    """What goes wrong with a request; see `HubServer.fail_next`."""

    action: str
    how: str = "none"
    status: int = 200
    message: str = ""
    seconds: float = 0.0


class HubError(Exception):
    """An HTTP error the server answers with."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.code = status, code


class HubServer:
    """The server, used as a context manager; `requests` lists what it was asked, as (method, path)."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.tokens = {WRITE_TOKEN: "write", READ_TOKEN: "read", FINE_TOKEN: "fineGrained"}
        self.requests: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        # Where large files lie for those who have hf_xet.
        self.xet_storage = ""
        self.lock = threading.RLock()
        self._held = FREE_PORTS.pop() if FREE_PORTS else _hold_a_port()
        self._homes: dict[str, Path] = {}
        self._http = ThreadingHTTPServer(self._held.getsockname(), type("Handler", (HubHandler,), {"hub": self}))
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self.storage_url = f"http://localhost:{self._http.server_port}"

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
        FREE_PORTS.append(self._held)

    def home(self, folder: str | Path) -> str:
        """Return a link to a folder, made if it is missing, that has the same name for each Hub on this port."""
        if str(folder) not in self._homes:
            Path(folder).mkdir(parents=True, exist_ok=True)
            link = share()[1] / f"home-{self._http.server_port}-{len(self._homes)}"
            link.unlink(missing_ok=True)
            link.symlink_to(folder)
            self._homes[str(folder)] = link
        return str(self._homes[str(folder)])

    def add_repo(self, repo_id: str, folder: str | Path, repo_type: str = "model", private: bool = False) -> str:
        """Publish a local folder as `owner/name`, or commit it on top of what is there; return the commit's id."""
        if not re.fullmatch(ID, repo_id):
            raise ValueError(f"a repository is called owner/name here, not {repo_id!r}")
        found = [path for path in Path(folder).rglob("*") if path.is_file()]
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}
        repo = self.repos.setdefault((repo_type, repo_id), Repo(repo_id, repo_type, private))
        return repo.commit(files, "added by the test").sha

    def files(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> dict[str, bytes]:
        """Return the files of a branch or commit, by path."""
        return dict(self.repos[repo_type, repo_id].at(revision).files)

    def commits(self, repo_id: str, repo_type: str = "model") -> list[Commit]:
        """Return the commits, oldest first; the first one is the empty one of the creation."""
        return list(self.repos[repo_type, repo_id].commits)

    def fail_next(
        self,
        action: str,
        how: str = "status",
        *,
        status: int = 500,
        times: int = 1,
        message: str = "",
        seconds: float = 1.0,
    ) -> None:
        """Let the next requests of one kind fail.

        Args:
            action: "create", "preupload", "lfs", "put", "commit", "info", "resolve", ...: an `action_*` method below.
            how: "status" answers with `status`, "drop" closes the connection before, "lose" after the work is done,
                "slow" does the work after `seconds`, "page" answers with a web page.
            status: The HTTP status.
            times: How many requests fail.
            message: What the server says beside the status.
            seconds: How long a slow request waits.
        """
        said = message or f"injected fault {status}"
        self.faults += [Fault(action, how, status, said, seconds)] * times

    def take_fault(self, action: str) -> Fault:
        with self.lock:
            for fault in self.faults:
                if fault.action == action:
                    self.faults.remove(fault)
                    return fault
        return Fault(action)


class HubHandler(BaseHTTPRequestHandler):
    """Routes a request to the `action_*` method of its name."""

    hub: HubServer
    protocol_version = "HTTP/1.1"
    routes = [
        (re.compile(r"/api/whoami-v2"), "whoami"),
        (re.compile(r"/api/repos/create"), "create"),
        (re.compile(r"/api/validate-yaml"), "validate"),
        (re.compile(rf"/api/(?P<type>model|dataset|space)s/{ID}(?:/(?P<action>[\w-]+){REST})?"), None),
        (re.compile(rf"/(?:(?P<type>dataset|space)s/)?{ID}\.git/info/lfs/objects/batch"), "lfs"),
        (re.compile(r"/lfs/(?P<path>[0-9a-f]{64})"), "put"),
        (re.compile(rf"/(?:(?P<type>dataset|space)s/)?{ID}/resolve{REST}"), "resolve"),
    ]

    def do_GET(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(url.query).items()}
        self.hub.requests.append((self.command, unquote(url.path)))
        try:
            action = self.route(url.path)
            fault = self.hub.take_fault(action)
            self.lost = fault.how == "lose"
            if fault.how == "drop":
                self.close_connection = True
            elif fault.how == "page":
                self.reply(200, b"<!doctype html><title>Log in</title>", {"Content-Type": "text/html"})
            elif fault.how == "status":
                raise HubError(fault.status, fault.message)
            else:
                time.sleep(fault.seconds if fault.how == "slow" else 0)
                with self.hub.lock:
                    getattr(self, f"action_{action}")()
        except HubError as error:
            codes = {"X-Error-Code": error.code} if error.code else {}
            self.json({"error": str(error)}, error.status, {**codes, "X-Error-Message": str(error)})

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def route(self, path: str) -> str:
        for pattern, action in self.routes:
            if match := pattern.fullmatch(path):
                groups = match.groupdict()
                self.type, self.id = groups.get("type") or "model", groups.get("id") or ""
                self.rev, self.file = unquote(groups.get("rev") or "main"), unquote(groups.get("path") or "")
                action = action or (groups.get("action") or "info").replace("-", "_")
                action = "info" if action == "revision" else action
                if hasattr(self, f"action_{action}"):
                    return action
        raise HubError(404, f"this small Hub does not answer {self.command} {path}")

    def reply(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        if self.lost:
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    lost = False

    def json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.reply(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def role(self) -> str | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in self.hub.tokens:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.hub.tokens.get(token)

    def demand_write(self, owner: str) -> None:
        role = self.role()
        if role is None:
            raise HubError(401, "Invalid username or password.")
        if role == "read":
            raise HubError(403, "you must use a write token to upload to a repository.")
        if owner not in (USER, ORGANISATION):
            raise HubError(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')

    def readable(self) -> Repo:
        repo = self.hub.repos.get((self.type, self.id))
        if repo is None or (repo.private and self.role() is None):
            raise HubError(404 if self.role() else 401, "Repository not found", "RepoNotFound")
        return repo

    def writable(self) -> Repo:
        self.demand_write(self.id.split("/")[0])
        return self.readable()

    def action_whoami(self) -> None:
        role = self.role()
        if role is None:
            raise HubError(401, "Invalid username or password.")
        token: dict[str, Any] = {"displayName": "test", "role": role}
        if role == "fineGrained":
            scope = {"entity": {"_id": "0" * 24, "type": "user", "name": USER}, "permissions": RIGHTS}
            token["fineGrained"] = {"canReadGatedRepos": False, "global": [], "scoped": [scope]}
        self.json({"type": "user", "name": USER, "orgs": [{"name": ORGANISATION}], "auth": {"accessToken": token}})

    def action_validate(self) -> None:
        self.json({"errors": [], "warnings": []})

    def action_create(self) -> None:
        wanted = json.loads(self.body)
        owner, repo_type = wanted.get("organization") or USER, wanted.get("type") or "model"
        self.demand_write(owner)
        repo_id = f"{owner}/{wanted['name']}"
        if repo_type == "space" and wanted.get("sdk") != "gradio":
            raise HubError(400, "a Space of this small Hub has the SDK gradio")
        below = "" if repo_type == "model" else f"{repo_type}s/"
        answer = {"url": f"{self.hub.url}/{below}{repo_id}", "name": repo_id}
        if (repo_type, repo_id) in self.hub.repos:
            self.json({"error": "You already created this model repo", **answer}, 409)
            return
        repo = Repo(repo_id, repo_type, wanted.get("visibility") == "private")
        repo.commit({".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        self.hub.repos[repo_type, repo_id] = repo
        self.json(answer)

    def action_info(self) -> None:
        repo = self.readable()
        commit = repo.at(self.rev)
        siblings = [{"rfilename": path, "size": len(content)} for path, content in sorted(commit.files.items())]
        state = {"private": repo.private, "gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": []}
        names = {"_id": "0" * 24, "id": repo.id, "modelId": repo.id, "author": repo.id.split("/")[0]}
        self.json(names | state | {"sha": commit.sha, "siblings": siblings, "createdAt": DATE, "lastModified": DATE})

    def action_xet_read_token(self) -> None:
        headers = {
            "X-Xet-Cas-Url": self.hub.xet_storage,
            "X-Xet-Access-Token": "x",
            "X-Xet-Token-Expiration": "9" * 10,
        }
        self.json({}, headers=headers)

    def action_branch(self) -> None:
        repo = self.writable()
        if self.rev in repo.branches:
            raise HubError(409, "Reference already exists")
        repo.branches[self.rev] = repo.at((json.loads(self.body) or {}).get("startingPoint") or "main").sha
        self.json({"success": True})

    def action_tree(self) -> None:
        files = self.readable().at(self.rev).files
        start = f"{self.file}/" if self.file else ""
        inside = [path for path in files if path.startswith(start)]
        if self.file and not inside:
            raise HubError(404, f"{self.file} does not exist on {self.rev}", "EntryNotFound")
        deep = self.query.get("recursive", "false").lower() in ("true", "1")
        folders = {path[: path.index("/", len(start))] for path in inside if "/" in path[len(start) :]}
        shown = [path for path in inside if deep or "/" not in path[len(start) :]]
        self.json([_entry(path, files.get(path)) for path in [*sorted(folders), *shown]])

    def action_paths_info(self) -> None:
        files = self.readable().at(self.rev).files
        kind = self.headers.get("Content-Type") or ""
        asked = json.loads(self.body)["paths"] if "json" in kind else parse_qs(self.body.decode()).get("paths", [])
        folders = {path for path in asked if any(name.startswith(f"{path}/") for name in files)}
        self.json([_entry(path, files.get(path)) for path in asked if path in files or path in folders])

    def action_preupload(self) -> None:
        files = self.writable().at(self.rev).files
        asked = [file["path"] for file in json.loads(self.body)["files"]]
        ignored = files.get(".gitignore", b"").decode().split()
        self.json({"files": [
            {
                "path": path,
                "oid": _etag(path, files[path]) if path in files else None,
                "uploadMode": _mode(path),
                "shouldIgnore": any(fnmatch(each, pattern) for each in path.split("/") for pattern in ignored),
            }
            for path in asked
        ]})  # fmt: skip

    def action_lfs(self) -> None:
        self.writable()
        wanted = json.loads(self.body)["objects"]
        for item in wanted:
            if item["oid"] not in self.hub.lfs:
                item["actions"] = {"upload": {"href": f"{self.hub.storage_url}/lfs/{item['oid']}", "header": {}}}
        self.json({"transfer": "basic", "objects": wanted})

    def action_put(self) -> None:
        if hashlib.sha256(self.body).hexdigest() != self.file:
            raise HubError(400, "the content does not have the checksum it was announced with")
        self.hub.lfs[self.file] = self.body
        self.json({})

    def action_commit(self) -> None:
        repo = self.writable()
        parent = repo.at(self.rev)
        files, title, branch, pull_request = dict(parent.files), "", self.rev, None
        for line in self.body.splitlines():
            key, value = (item := json.loads(line))["key"], item["value"]
            if key == "header":
                title = value["summary"]
                if value.get("parentCommit") not in (None, parent.sha):
                    raise HubError(412, "A commit has happened since. Please refresh and try again.")
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.lfs[value["oid"]]
            elif key == "deletedFile":
                if files.pop(value["path"], None) is None:
                    raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
            else:
                raise HubError(400, f"unknown operation {key}")
        if self.query.get("create_pr"):
            number = 1 + sum(name.startswith("refs/pr/") for name in repo.branches)
            branch, pull_request = f"refs/pr/{number}", f"{self.hub.url}/{repo.id}/discussions/{number}"
        sha = repo.commit(files, title, branch).sha
        url = f"{self.hub.url}/{repo.id}/commit/{sha}"
        self.json({"success": True, "commitOid": sha, "commitUrl": url, "pullRequestUrl": pull_request})

    def action_resolve(self) -> None:
        commit = self.readable().at(self.rev)
        if self.file not in commit.files:
            raise HubError(404, "Entry not found", "EntryNotFound")
        content = commit.files[self.file]
        headers = {"X-Repo-Commit": commit.sha, "ETag": f'"{_etag(self.file, content)}"', "Accept-Ranges": "bytes"}
        if self.hub.xet_storage and _mode(self.file) == "lfs":
            route = f"{self.hub.url}/api/models/{self.id}/xet-read-token/{commit.sha}"
            headers |= {"X-Xet-Hash": "b" * 64, "Link": f'<{route}>; rel="xet-auth"'}
        if span := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(span[1]), min(int(span[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            self.reply(206, content[first : last + 1], headers)
        else:
            self.reply(200, content, headers)


def _hold_a_port() -> socket.socket:
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    return held


def _mode(path: str) -> str:
    return "lfs" if path.endswith(LFS_SUFFIXES) else "regular"


def _etag(path: str, content: bytes) -> str:
    if _mode(path) == "lfs":
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(path: str, content: bytes | None) -> dict[str, Any]:
    if content is None:
        return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}
    entry = {"type": "file", "path": path, "size": len(content), "oid": _etag(path, content)[:40]}
    if _mode(path) == "lfs":
        entry["lfs"] = {"oid": _etag(path, content), "size": len(content), "pointerSize": 134}
    return entry


def hub_environment(server: HubServer, home: str | Path, token: str | None = None) -> dict[str, str]:
    """Return the environment of a process whose Hub is `server`: HF_ENDPOINT is read at import."""
    hidden = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "HF_HUB_CACHE")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    home = server.home(home) if isinstance(server, HubServer) else str(home)
    environment |= {"HF_ENDPOINT": server.url, "HF_HOME": home, "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1"}
    return environment | ({"HF_TOKEN": token} if token else {})


@pytest.fixture(name="hub")
def hub_fixture() -> Iterator[HubServer]:
    """Give a running, empty Hub."""
    with HubServer() as server:
        yield server
