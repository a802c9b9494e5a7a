"""Files of a demonstration store behind a URL: ``s3://``, ``gs://``, ``http://``, ``https://``; for reading only.

Requests go through obstore (https://developmentseed.org/obstore), which retries what fails for a moment. Credentials
come from the environment as its manual says: ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, ``AWS_REGION``,
``AWS_ENDPOINT_URL`` (MinIO and others), ``AWS_SKIP_SIGNATURE=true`` (public), ``GOOGLE_APPLICATION_CREDENTIALS``.
``VISUOMOTOR_TIMEOUT_S`` limits a request (60). A web server must list its folders, or the store's metadata must be
consolidated; a ``.zarr.zip`` needs neither: its directory is at its end, and its members are read by byte ranges.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path, PosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from visuomotor.data.errors import ConfigError, DataError, MissingExtraError

__all__ = ["RemoteFile", "RemoteFiles", "UrlPath", "as_path", "explain", "is_url"]

_URL = re.compile(r"(s3|gs|https?):/+(?=.)")
_PIECE_BYTES = 8 << 20  # larger reads are split into parallel ranges
_PAGE_BYTES = 16 << 20  # of an index page or a metadata file
_PARALLEL = 32


class UrlPath(PosixPath):
    """A URL where a path is expected: it prints as the URL, joins as one, and the file system knows nothing of it."""

    def __str__(self) -> str:
        return _URL.sub(r"\1://", super().__str__(), count=1)


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` is one of the URLs that this module reads."""
    return _URL.match(str(path)) is not None


def as_path(path: str | Path) -> Path:
    """A local path (``~`` expanded), or a :class:`UrlPath`."""
    return UrlPath(str(path)) if is_url(path) else Path(path).expanduser()


@dataclass(frozen=True)
class RemoteFile:
    """One object: name relative to the store, size [bytes], a stamp that changes with its content, and its ETag."""

    name: str
    size: int
    stamp: str
    etag: str | None


def _obstore() -> Any:
    try:
        return import_module("obstore")
    except ImportError:
        raise MissingExtraError(
            "stores on S3, GCS and HTTP need the package obstore: pip install 'visuomotor[remote]'"
        ) from None


def _timeout() -> float:
    text = os.environ.get("VISUOMOTOR_TIMEOUT_S", "60")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 86400:
        raise ConfigError(f"VISUOMOTOR_TIMEOUT_S={text!r}: expected seconds, more than 0")
    return seconds


def explain(url: object, error: Exception) -> DataError:
    """What a failed request means to the user, as one error."""
    kind, text = type(error).__name__, " ".join(str(error).split())
    if "NoSuchBucket" in text:
        reason = "there is no such bucket"
    elif kind == "PreconditionError":
        reason = "the object was replaced while it was read: start again"
    elif kind in ("PermissionDeniedError", "UnauthenticatedError") or "InvalidAccessKeyId" in text:
        reason = "no permission. Set the credentials in the environment (AWS_SKIP_SIGNATURE=true for a public bucket)"
    elif "169.254.169.254" in text or "metadata.google" in text:
        reason = "no credentials found. Set them in the environment (AWS_SKIP_SIGNATURE=true for a public bucket)"
    elif "onnection refused" in text or "tcp connect error" in text or "dns error" in text:
        reason = "the server cannot be reached"
    elif "timed out" in text or "TimedOut" in text:
        reason = f"no answer in time (VISUOMOTOR_TIMEOUT_S={_timeout():g})"
    elif isinstance(error, FileNotFoundError):
        reason = "nothing is there"
    else:
        reason = text[:300] or kind
    return DataError(f"{url} cannot be read: {reason}")


def connect(url: str) -> Any:
    """The obstore store whose root is ``url``."""
    seconds = timedelta(seconds=_timeout())
    endpoint = url if url.startswith("http") else os.environ.get("AWS_ENDPOINT_URL", os.environ.get("AWS_ENDPOINT", ""))
    client: dict[str, Any] = {"timeout": seconds, "connect_timeout": min(seconds, timedelta(seconds=10))}
    if endpoint.startswith("http://"):
        client["allow_http"] = True
    try:
        module = import_module("obstore.store") if _obstore() else None
        assert module is not None
        retry = {"max_retries": 4, "retry_timeout": 2 * seconds}
        return module.from_url(url, client_options=client, retry_config=retry)
    except MissingExtraError:
        raise
    except Exception as error:  # obstore has many types for URLs and settings that it cannot use
        raise explain(url, error) from None


class RemoteFiles:
    """The files below a URL: listed, asked for, read. Listings are kept, so one object is one view of the store."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._obs, self._store = _obstore(), connect(self.url)
        self._web = self.url.startswith("http")
        self._ranges = True  # whether the server gives parts of an object
        self._folders: dict[str, dict[str, bool]] = {}
        self._files: dict[str, list[RemoteFile]] = {}
        self._heads: dict[str, RemoteFile | None] = {}

    # ---------------------------------------------------------------- what there is

    def head(self, name: str) -> RemoteFile | None:
        """Size and stamp of one object, None where there is none."""
        if name not in self._heads:
            try:
                meta: Any = self._obs.head(self._store, name)
            except FileNotFoundError:
                self._heads[name] = None
            except Exception as error:
                raise explain(f"{self.url}/{name}", error) from None
            else:
                self._heads[name] = _as_file(meta, name)
        return self._heads[name]

    def children(self, folder: str) -> dict[str, bool]:
        """Names directly in ``folder`` (empty: the top), each with whether it is a folder."""
        if folder not in self._folders:
            self._folders[folder] = self._web_children(folder) if self._web else self._listed(folder)
        return self._folders[folder]

    def files(self, folder: str) -> list[RemoteFile]:
        """Every object below ``folder``, sorted by name."""
        if folder not in self._files:
            if self._web:
                found = self._heads_of(list(self._web_walk(folder)))
            else:
                found = self._ask(lambda: [_as_file(m, m["path"]) for page in self._obs.list(self._store, f"{folder}/")
                                           for m in page])  # fmt: skip
            self._files[folder] = sorted(found, key=lambda f: f.name)
            self._heads |= {f.name: f for f in found}
        return self._files[folder]

    def _ask(self, request: Callable[[], Any]) -> Any:
        try:
            return request()
        except DataError:
            raise
        except Exception as error:  # obstore has a type for every kind of failure
            raise explain(self.url, error) from None

    def _listed(self, folder: str) -> dict[str, bool]:
        listing = self._ask(lambda: self._obs.list_with_delimiter(self._store, f"{folder}/" if folder else None))
        folders = {p.rstrip("/").rsplit("/", 1)[-1]: True for p in listing["common_prefixes"]}
        return {m["path"].rsplit("/", 1)[-1]: False for m in listing["objects"]} | folders

    def _web_children(self, folder: str) -> dict[str, bool]:
        known = [n for n in self._consolidated if not folder or n.startswith(f"{folder}/")]
        if known:
            depth = folder.count("/") + 1 if folder else 0
            parts = [n.split("/") for n in known]
            return {p[depth]: len(p) > depth + 1 for p in sorted(parts, key=len)}
        page = self._page(f"{folder}/" if folder else "")
        return {} if page is None else _links(page, urlsplit(self.url).path.rstrip("/") + f"/{folder}".rstrip("/"))

    @cached_property
    def _consolidated(self) -> list[str]:
        """Metadata files that the store's consolidated metadata names (Zarr 2: .zmetadata, Zarr 3: in zarr.json)."""
        try:
            if text := self._page(".zmetadata"):
                return list(json.loads(text)["metadata"])
            if text := self._page("zarr.json"):
                nodes = (json.loads(text).get("consolidated_metadata") or {}).get("metadata", {})
                return ["zarr.json", *(f"{n}/zarr.json" for n in nodes)] if nodes else []
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DataError(f"{self.url} has damaged consolidated metadata") from None
        return []

    def _web_walk(self, folder: str) -> Iterator[str]:
        if self._consolidated:
            yield from _chunk_names(self, folder)
            return
        for name, is_folder in self.children(folder).items():
            if is_folder:
                yield from self._web_walk(f"{folder}/{name}")
            else:
                yield f"{folder}/{name}"

    def _heads_of(self, names: list[str]) -> list[RemoteFile]:
        async def one(name: str, gate: asyncio.Semaphore) -> RemoteFile | None:
            async with gate:
                try:
                    return _as_file(await self._obs.head_async(self._store, name), name)
                except FileNotFoundError:
                    return None

        async def every() -> list[RemoteFile | None]:
            gate = asyncio.Semaphore(_PARALLEL)
            return list(await asyncio.gather(*(one(n, gate) for n in names)))

        found = self._ask(lambda: asyncio.run(every()))
        return [f for f in found if f is not None]

    def _page(self, name: str) -> str | None:
        """A small text, None where there is none."""
        try:
            answer = self._obs.get(self._store, name)
            if answer.meta["size"] > _PAGE_BYTES:
                raise DataError(f"{self.url}/{name} has {answer.meta['size']} bytes: expected a small text")
            return bytes(answer.bytes()).decode("utf-8", "replace")
        except DataError:
            raise
        except (FileNotFoundError, IsADirectoryError):
            return None
        except Exception as error:
            raise explain(f"{self.url}/{name}", error) from None

    def text(self, name: str) -> str:
        """Content of a small text file.

        Raises:
            DataError: there is none.
        """
        text = self._page(name)
        if text is None:
            raise DataError(f"{self.url}/{name} cannot be read: nothing is there")
        return text

    # ---------------------------------------------------------------- reading

    async def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes | None:
        """Bytes ``[start, stop)`` of an object (negative ``start``: that many at the end); None where there is none.

        Large reads go in parallel pieces. An object that was listed must still be the one that was listed.
        """
        seen = self._heads.get(name)
        if stop is None and seen is not None:
            stop = seen.size
            start = max(0, stop + start) if start < 0 else start
        etag = {} if seen is None or seen.etag is None else {"if_match": seen.etag}
        try:
            if stop is None and self._ranges:
                span = {} if start == 0 else {"range": {"suffix": -start} if start < 0 else {"offset": start}}
                return await self._get(name, etag | span)
            if stop is None:
                return (await self._get(name, etag))[start:]
            if not self._ranges or (seen is not None and start == 0 and stop == seen.size <= _PIECE_BYTES):
                return (await self._get(name, etag))[start:stop]
            bounds = range(start, stop, _PIECE_BYTES)
            pieces = [self._get(name, etag | {"range": (a, min(a + _PIECE_BYTES, stop))}) for a in bounds]
            return b"".join(await asyncio.gather(*pieces))
        except FileNotFoundError:
            return None
        except Exception as error:
            if self._ranges and type(error).__name__ == "NotSupportedError":  # a simple web server: whole objects
                self._ranges = False
                return await self.read(name, start, stop)
            raise explain(f"{self.url}/{name}", error) from None

    async def _get(self, name: str, options: dict[str, Any]) -> bytes:
        answer = await self._obs.get_async(self._store, name, options=options or None)
        return bytes(await answer.bytes_async())


def _as_file(meta: Any, name: str) -> RemoteFile:
    etag = meta.get("e_tag")
    return RemoteFile(name, int(meta["size"]), str(etag or meta["last_modified"]), etag)


def _chunk_names(files: RemoteFiles, folder: str) -> Iterator[str]:
    """Names that the chunks of the array ``folder`` have by its metadata; those that are absent were never written."""
    if (folder_meta := files.head(f"{folder}/zarr.json")) is not None:
        meta = json.loads(files.text(folder_meta.name))
        shape, size = meta["shape"], meta["chunk_grid"]["configuration"]["chunk_shape"]
        encoding = meta["chunk_key_encoding"]
        separator = encoding.get("configuration", {}).get("separator", "/" if encoding["name"] == "default" else ".")
        prefix = ["c"] if encoding["name"] == "default" else []
        yield folder_meta.name
    else:
        meta = json.loads(files.text(f"{folder}/.zarray"))
        shape, size, prefix = meta["shape"], meta["chunks"], []
        separator = meta.get("dimension_separator", ".")
        yield f"{folder}/.zarray"
    for index in itertools.product(*(range(-(-n // c)) for n, c in zip(shape, size, strict=True))):
        yield f"{folder}/" + separator.join([*prefix, *map(str, index)])


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [v for k, v in attrs if tag == "a" and k == "href" and v]


def _links(page: str, here: str) -> dict[str, bool]:
    """Children that an index page of a web server links to; ``here`` is the path of the page."""
    parser = _Links()
    parser.feed(page)
    out = {}
    for link in parser.found:
        name = unquote(urlsplit(link).path).removeprefix("./").removeprefix(f"{here}/")
        if name and name.strip("/") not in ("", ".", "..") and "/" not in name.rstrip("/"):
            out[name.rstrip("/")] = name.endswith("/")
    return out
