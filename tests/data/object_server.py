"""A small object server for tests: S3's list, get and head with byte ranges and ETags, and index pages for browsers.

It can break on purpose: ``fail`` maps the end of an object's name to a status, ``delay_s`` makes every answer late,
``ranges`` and ``index`` switch off what simple web servers lack.
"""

from __future__ import annotations

import hashlib
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


class ObjectServer:
    """Serves the files below ``root``: ``s3://bucket/...`` is ``root/bucket/...``."""

    def __init__(self, root: Path) -> None:
        self.root, self.delay_s = root, 0.0
        self.fail: dict[str, int] = {}
        self.ranges, self.index = True, True
        self.requests: list[tuple[str, str, str | None]] = []
        server = self

        class Handler(_Handler):
            state = server

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: ObjectServer

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self._object(body=False)

    def do_GET(self):
        parts = urlsplit(self.path)
        query = parse_qs(parts.query)
        if "list-type" in query:
            self._list(unquote(parts.path).strip("/"), query)
        elif (self.state.root / unquote(parts.path).strip("/")).is_dir() and self.state.index:
            names = sorted(
                p.name + "/" * p.is_dir() for p in (self.state.root / unquote(parts.path).strip("/")).iterdir()
            )
            self._send(200, "".join(f'<a href="{n}">{n}</a>' for n in ["../", *names]).encode(), "text/html")
        else:
            self._object(body=True)

    def _object(self, *, body):
        name = unquote(urlsplit(self.path).path).strip("/")
        self.state.requests.append((self.command, name, self.headers.get("Range")))
        time.sleep(self.state.delay_s)
        for end, status in self.state.fail.items():
            if name.endswith(end):
                return self._send(status, b"<Error><Code>AccessDenied</Code></Error>" if status == 403 else b"")
        path = self.state.root / name
        if not path.is_file():
            return self._send(404, b"")
        data = path.read_bytes()
        etag = '"' + hashlib.md5(data).hexdigest() + '"'
        if self.headers.get("If-Match", etag) != etag:
            return self._send(412, b"")
        status, extra, wanted = 200, {}, self.headers.get("Range")
        if wanted and self.state.ranges:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start = int(first) if first else len(data) - int(last)
            stop = min(int(last) + 1, len(data)) if first and last else len(data)
            status, extra = 206, {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
            data = data[start:stop]
        return self._send(status, data, body=body, ETag=etag, **extra)

    def _list(self, bucket, query):
        if not (self.state.root / bucket).is_dir():
            return self._send(404, b"<Error><Code>NoSuchBucket</Code><Message>no such bucket</Message></Error>")
        prefix, top = query.get("prefix", [""])[0], self.state.root / bucket
        names = [str(p.relative_to(top)) for p in sorted(top.rglob("*")) if p.is_file()]
        names = [n for n in names if n.startswith(prefix)]
        folders = set()
        if "delimiter" in query:
            folders = {n[: n.index("/", len(prefix)) + 1] for n in names if "/" in n[len(prefix) :]}
            names = [n for n in names if "/" not in n[len(prefix) :]]
        rows = []
        for n in names:
            data = (self.state.root / bucket / n).read_bytes()
            rows.append(
                f"<Contents><Key>{escape(n)}</Key><Size>{len(data)}</Size><ETag>&quot;{hashlib.md5(data).hexdigest()}"
                "&quot;</ETag><LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            )
        rows += [f"<CommonPrefixes><Prefix>{escape(f)}</Prefix></CommonPrefixes>" for f in sorted(folders)]
        head = f"<Name>{bucket}</Name><KeyCount>{len(rows)}</KeyCount><IsTruncated>false</IsTruncated>"
        return self._send(200, f"<ListBucketResult>{head}{''.join(rows)}</ListBucketResult>".encode(), "text/xml")

    def _send(self, status, data, kind="application/octet-stream", *, body=True, **headers):
        self.send_response(status)
        for k, v in {"Content-Type": kind, "Content-Length": len(data), "Last-Modified": formatdate(0, usegmt=True),
                     **{k.replace("_", "-"): v for k, v in headers.items()}}.items():  # fmt: skip
            self.send_header(k, str(v))
        self.end_headers()
        if body:
            self.wfile.write(data)
