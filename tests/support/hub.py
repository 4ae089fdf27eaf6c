"""A server that speaks the protocol of the Hugging Face hub, as far as huggingface_hub asks it: repositories with commits, Git LFS, resolve.
Loaded by conftest.py.

Regular files come in the commit, large ones by the LFS batch protocol, whose content lies at another host (localhost and not 127.0.0.1), as with
the hub's own storage. `fault(method, path)` says what goes wrong with a request.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from huggingface_hub import constants

OWNER, STRANGER = "hf_owner", "hf_stranger"
"""Tokens of two users, `me` and `you`."""
USERS = {OWNER: "me", STRANGER: "you"}
LFS = re.compile(r".*\.(safetensors|h5)|stores/.*/c/.*|.*\.big")
"""Files that are large ones here, whatever their size."""
PAGE = 100
"""Entries of a page of a listing: clients must follow the link to the next one."""


@dataclasses.dataclass
class Repository:
    """Commits, the newest last, each with all of its files."""

    private: bool = True
    gated: bool = False
    commits: list[tuple[str, dict[str, bytes]]] = dataclasses.field(default_factory=list)
    messages: list[str] = dataclasses.field(default_factory=list)
    tags: dict[str, str] = dataclasses.field(default_factory=dict)
    listed: dict[str, str] = dataclasses.field(default_factory=dict)
    """Path -> checksum that the listing says, where a file was damaged after it was listed."""

    @property
    def head(self) -> str:
        return self.commits[-1][0]

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1][1]

    def commit(self, files: dict[str, bytes], message: str) -> str:
        text = f"{len(self.commits)} {message} {sorted((k, hashlib.sha1(v).hexdigest()) for k, v in files.items())}"
        sha = hashlib.sha1(text.encode()).hexdigest()
        self.commits.append((sha, files))
        self.messages.append(message)
        return sha

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        sha = self.head if revision == "main" else self.tags.get(revision, revision)
        return next((each for each in self.commits if each[0] == sha), None)


def oid(path: str, data: bytes) -> str:
    if LFS.fullmatch(path):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class HubServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.blobs: dict[str, bytes] = {}
        """What was uploaded by LFS, committed or not."""
        self.uploads: list[str] = []
        """oid of every LFS upload that arrived whole."""
        self.seen: list[tuple[str, str]] = []
        self.fault: Callable[[str, str], int | str | None] = lambda method, path: None
        self.lock = threading.Lock()

    def handle_error(self, request, client_address):
        """Clients that are gone are part of the game."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def storage(self) -> str:
        return f"http://localhost:{self.server_address[1]}"

    def model(self, name: str) -> Repository:
        return self.repositories["model", name]

    def dataset(self, name: str) -> Repository:
        return self.repositories["dataset", name]

    def count(self, method: str, pattern: str) -> int:
        return sum(
            seen == method and re.search(pattern, path) is not None for seen, path in self.seen
        )


@contextmanager
def hub_server() -> Iterator[HubServer]:
    with HubServer() as server:
        thread = threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="session")
def running_hub() -> Iterator[HubServer]:
    with hub_server() as server:
        yield server


@pytest.fixture
def hub(running_hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """An empty hub, and a user `me` who is logged in."""
    hub = running_hub
    for kept in (hub.repositories, hub.blobs, hub.uploads, hub.seen):
        kept.clear()
    hub.fault = lambda method, path: None
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("HF_TOKEN", OWNER)
    return hub


API = re.compile(
    r"/api/(model|dataset)s/([^/]+/[^/]+)(?:/(revision|tree|preupload|commit)/([^/]+))?"
)
RESOLVE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
BATCH = re.compile(r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: HubServer

    def log_message(self, *arguments):
        """Quiet."""

    def _any(self) -> None:
        url = urlsplit(self.path)
        self.path_only, self.query = url.path, parse_qs(url.query)
        with self.server.lock:
            self.server.seen.append((self.command, self.path_only))
            fault = self.server.fault(self.command, self.path_only)
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
            return
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if isinstance(fault, int):
            self._say(fault, {"error": "trouble"})
            return
        for pattern, answer in (
            (r"/api/repos/create", self._create),
            (r"/api/validate-yaml", self._validate),
            (API.pattern, self._api),
            (BATCH.pattern, self._batch),
            (r"/upload/([0-9a-f]+)", self._upload),
            (r"/verify", self._verify),
            (r"/stored/([0-9a-f]+)", self._stored),
            (RESOLVE.pattern, self._resolve),
        ):
            if found := re.fullmatch(pattern, self.path_only):
                answer(found)
                return
        self._say(404, {"error": f"no such path {self.path_only}"})

    do_GET = do_HEAD = do_POST = do_PUT = _any

    # Who may do what

    @property
    def user(self) -> str | None:
        return USERS.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def _opened(self, kind: str, name: str, write: bool = False) -> Repository | None:
        """The repository, or None once the refusal is said."""
        if "Authorization" in self.headers and self.user is None:
            self._say(
                401,
                {"error": "Invalid credentials"},
                {"X-Error-Message": "Invalid credentials in Authorization header"},
            )
            return None
        found = self.server.repositories.get((kind, name))
        is_owner = self.user == name.partition("/")[0]
        if found is None or (found.private and not is_owner):
            self._say(
                404 if self.user else 401,
                {"error": "Repository not found"},
                {"X-Error-Code": "RepoNotFound"},
            )
            return None
        if write and not is_owner:
            self._say(403, {"error": "You don't have the rights to write here"})
            return None
        return found

    def _create(self, _: re.Match[str]) -> None:
        asked = json.loads(self.body)
        kind = asked.get("type") or "model"
        if self.user is None:
            self._say(
                401,
                {"error": "Invalid credentials"},
                {"X-Error-Message": "Invalid credentials in Authorization header"},
            )
            return
        if asked["organization"] != self.user:
            self._say(
                403,
                {
                    "error": f'You don\'t have the rights to create a {kind} under the namespace "{asked["organization"]}"'
                },
            )
            return
        name = f"{asked['organization']}/{asked['name']}"
        url = f"{self.server.url}/{'datasets/' if kind == 'dataset' else ''}{name}"
        if (kind, name) in self.server.repositories:
            self._say(409, {"error": "You already created this repo", "url": url})
            return
        private = asked.get("visibility") == "private" or asked.get("private") is True
        made = self.server.repositories[kind, name] = Repository(private)
        made.commit({".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        self._say(200, {"url": url, "id": name, "name": name})

    def _validate(self, _: re.Match[str]) -> None:
        content = json.loads(self.body)["content"]
        whole = re.match(r"---\n.*\n---\n", content, re.DOTALL)
        self._say(
            200 if whole else 400,
            {"errors": [] if whole else [{"message": "no metadata"}], "warnings": []},
        )

    # A repository

    def _api(self, found: re.Match[str]) -> None:
        kind, name, what, revision = found.groups()
        repository = self._opened(kind, name, write=what in ("preupload", "commit"))
        if repository is None:
            return
        at = repository.at(unquote(revision or "main"))
        if at is None:
            self._say(404, {"error": "Revision not found"}, {"X-Error-Code": "RevisionNotFound"})
            return
        if what == "tree":
            self._tree(repository, at)
        elif what == "preupload":
            files = json.loads(self.body)["files"]
            self._say(200, {"files": [self._mode(at[1], each["path"]) for each in files]})
        elif what == "commit":
            self._commit(repository, kind, name)
        else:
            siblings = [{"rfilename": path} for path in at[1]]
            self._say(
                200,
                {
                    "id": name,
                    "sha": at[0],
                    "private": repository.private,
                    "gated": repository.gated,
                    "siblings": siblings,
                    "tags": [],
                },
            )

    def _mode(self, files: dict[str, bytes], path: str) -> dict[str, Any]:
        known = {"oid": oid(path, files[path])} if path in files else {}
        return {
            "path": path,
            "uploadMode": "lfs" if LFS.fullmatch(path) else "regular",
            "shouldIgnore": False,
            **known,
        }

    def _tree(self, repository: Repository, at: tuple[str, dict[str, bytes]]) -> None:
        entries: list[dict[str, Any]] = []
        folders: set[str] = set()
        for path, data in sorted(at[1].items()):
            for end in [index for index, letter in enumerate(path) if letter == "/"]:
                if path[:end] not in folders:
                    folders.add(path[:end])
                    entries.append(
                        {"type": "directory", "oid": "0" * 40, "size": 0, "path": path[:end]}
                    )
            said = repository.listed.get(path, oid(path, data))
            entry = {"type": "file", "path": path, "size": len(data), "oid": said[:40]}
            if LFS.fullmatch(path):
                entry["lfs"] = {"oid": said, "size": len(data), "pointerSize": 134}
            entries.append(entry)
        start = int(self.query.get("cursor", ["0"])[0])
        more = {}
        if start + PAGE < len(entries):
            more["Link"] = (
                f'<{self.server.url}{self.path_only}?recursive=True&cursor={start + PAGE}>; rel="next"'
            )
        self._say(200, entries[start : start + PAGE], more)

    def _commit(self, repository: Repository, kind: str, name: str) -> None:
        lines = [json.loads(line) for line in self.body.splitlines()]
        files, header = dict(repository.files), lines[0]["value"]
        if header.get("parentCommit", repository.head) != repository.head:
            self._say(412, {"error": "A commit has happened since. Please refresh and try again."})
            return
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        sha = repository.commit(files, header["summary"])
        self._say(
            200,
            {
                "success": True,
                "commitOid": sha,
                "commitUrl": f"{self.server.url}/{name}/commit/{sha}",
            },
        )

    # Large files

    def _batch(self, found: re.Match[str]) -> None:
        if self._opened("dataset" if found[1] else "model", found[2], write=True) is None:
            return
        objects = []
        for each in json.loads(self.body)["objects"]:
            entry = dict(each)
            if each["oid"] not in self.server.blobs:
                upload, verify = (
                    f"{self.server.storage}/upload/{each['oid']}",
                    f"{self.server.url}/verify",
                )
                entry["actions"] = {"upload": {"href": upload}, "verify": {"href": verify}}
            objects.append(entry)
        self._say(200, {"transfer": "basic", "objects": objects})

    def _upload(self, found: re.Match[str]) -> None:
        if hashlib.sha256(self.body).hexdigest() != found[1]:
            self._say(400, {"error": "other content than its oid"})
            return
        with self.server.lock:
            self.server.blobs[found[1]] = self.body
            self.server.uploads.append(found[1])
        self._say(200, {})

    def _verify(self, _: re.Match[str]) -> None:
        asked = json.loads(self.body)
        there = len(self.server.blobs.get(asked["oid"], b"")) == asked["size"]
        self._say(200 if there else 404, {})

    def _resolve(self, found: re.Match[str]) -> None:
        prefix, name, revision, path = found.groups()
        repository = self._opened("dataset" if prefix else "model", name)
        if repository is None:
            return
        if repository.gated and self.user != name.partition("/")[0]:
            self._say(
                403,
                {"error": "Access to this repository is restricted"},
                {"X-Error-Code": "GatedRepo"},
            )
            return
        at = repository.at(unquote(revision))
        if at is None or unquote(path) not in at[1]:
            code = "RevisionNotFound" if at is None else "EntryNotFound"
            self._say(404, {"error": "not found"}, {"X-Error-Code": code})
            return
        path = unquote(path)
        data = at[1][path]
        said = repository.listed.get(path, oid(path, data))
        headers = {"X-Repo-Commit": at[0], "ETag": f'"{said}"'}
        if LFS.fullmatch(path):
            key = hashlib.sha256(data).hexdigest()
            self.server.blobs[key] = data
            headers |= {
                "X-Linked-Etag": f'"{said}"',
                "X-Linked-Size": str(len(data)),
                "Location": f"{self.server.storage}/stored/{key}",
            }
            self._raw(302, b"", headers)
            return
        self._raw(200, data, headers)

    def _stored(self, found: re.Match[str]) -> None:
        assert "Authorization" not in self.headers, "a token went to the storage"
        data = self.server.blobs[found[1]]
        if part := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(part[1])
            self._raw(
                206, data[start:], {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
            )
            return
        self._raw(200, data, {})

    # Answers

    def _say(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        self._raw(
            status,
            json.dumps(value).encode(),
            {"Content-Type": "application/json", **(headers or {})},
        )

    def _raw(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
