"""A remote demonstration store as Zarr sees it: a folder of objects, or the members of one zip archive."""

from __future__ import annotations

import asyncio
import struct
import zipfile
import zlib
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import IO, cast

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype

from visuomotor.data.errors import DataError
from visuomotor.data.remote import RemoteFile, RemoteFiles, explain

__all__ = ["RemoteStore", "RemoteTree", "ZippedFiles", "open_files"]

_DEFLATE_RATIO = 1100  # the most that deflate can shrink is 1032 to 1
_HEADER = struct.Struct("<4s5H3L2H")  # local file header of a zip archive (APPNOTE 4.3.7)


class ZippedFiles(RemoteFiles):
    """The members of a zip archive behind a URL, each read by byte ranges of the archive."""

    def __init__(self, url: str) -> None:
        parent, _, self._archive = url.rstrip("/").rpartition("/")
        super().__init__(parent)
        self.url = url.rstrip("/")
        if self._web:  # what follows asks for members, which no web server lists
            self._web = False
        whole = super().head(self._archive)
        if whole is None:
            raise DataError(f"{url} cannot be read: nothing is there")
        try:
            self._obs.get_range(self._store, self._archive, start=max(0, whole.size - 22), end=whole.size)
            with zipfile.ZipFile(cast(IO[bytes], self._obs.open_reader(self._store, self._archive))) as archive:
                self._members = {i.filename: i for i in archive.infolist() if not i.is_dir()}
        except zipfile.BadZipFile:
            raise DataError(f"{url} is an object of {whole.size} bytes, but no zip archive") from None
        except Exception as error:
            if type(error).__name__ == "NotSupportedError":
                raise DataError(f"{url}: the server gives no byte ranges, which reading an archive needs") from None
            raise explain(url, error) from None
        self._data_at: dict[str, int] = {}

    def head(self, name: str) -> RemoteFile | None:
        """Size and checksum of one member."""
        info = self._members.get(name)
        return None if info is None else RemoteFile(name, info.file_size, f"{info.CRC}", None)

    def children(self, folder: str) -> dict[str, bool]:
        """As in the base class."""
        prefix = f"{folder}/" if folder else ""
        rest = [n[len(prefix) :] for n in self._members if n.startswith(prefix)]
        return {r.split("/", 1)[0]: "/" in r for r in rest}

    def files(self, folder: str) -> list[RemoteFile]:
        """As in the base class."""
        found = (self.head(n) for n in sorted(self._members) if n.startswith(f"{folder}/"))
        return [f for f in found if f is not None]

    def text(self, name: str) -> str:
        """As in the base class."""
        from zarr.core.sync import sync

        content = sync(self.read(name))
        if content is None:
            raise DataError(f"{self.url} has no member {name}")
        return content.decode("utf-8", "replace")

    async def read(self, name: str, start: int = 0, stop: int | None = None) -> bytes | None:
        """As in the base class."""
        info = self._members.get(name)
        if info is None:
            return None
        start = max(0, info.file_size + start) if start < 0 else start
        stop = info.file_size if stop is None else min(stop, info.file_size)
        at = await self._offset(info)
        if info.compress_type == zipfile.ZIP_STORED:
            return await super().read(self._archive, at + start, at + stop)
        if info.compress_type != zipfile.ZIP_DEFLATED or info.file_size > _DEFLATE_RATIO * (info.compress_size + 16):
            raise DataError(
                f"{self.url}: member {name} declares {info.file_size} bytes in {info.compress_size}, compression "
                f"{info.compress_type}: expected stored or deflated members"
            )
        packed = await super().read(self._archive, at, at + info.compress_size)
        try:
            content = zlib.decompressobj(-15).decompress(packed or b"", max(1, info.file_size))
        except zlib.error as error:
            raise DataError(f"{self.url}: member {name} is damaged: {error}") from None
        if len(content) != info.file_size or zlib.crc32(content) != info.CRC:
            raise DataError(f"{self.url}: member {name} is damaged: its checksum or its length is another")
        return content[start:stop]

    async def _offset(self, info: zipfile.ZipInfo) -> int:
        """Where the bytes of a member begin: after its local header, whose length the directory does not tell."""
        if info.filename not in self._data_at:
            at = info.header_offset
            head = await super().read(self._archive, at, at + _HEADER.size) or b""
            if len(head) != _HEADER.size or head[:4] != b"PK\x03\x04":
                raise DataError(f"{self.url}: member {info.filename} is damaged: it has no header at byte {at}")
            fields = _HEADER.unpack(head)
            self._data_at[info.filename] = at + _HEADER.size + fields[-2] + fields[-1]
        return self._data_at[info.filename]


def open_files(url: str) -> RemoteFiles:
    """The files of the store at ``url``; one whose name ends in ``.zip`` is an archive."""
    return ZippedFiles(url) if url.split("?", 1)[0].endswith(".zip") else RemoteFiles(url)


class RemoteTree:
    """The part of ``pathlib.Path`` that finding a store's arrays needs."""

    def __init__(self, files: RemoteFiles, at: str = "") -> None:
        self._files, self.at = files, at

    @property
    def name(self) -> str:
        """Last part of the name."""
        return self.at.rsplit("/", 1)[-1]

    def __truediv__(self, name: str) -> RemoteTree:
        return RemoteTree(self._files, f"{self.at}/{name}" if self.at else name)

    def exists(self) -> bool:
        """Whether there is such an object."""
        return self._files.head(self.at) is not None

    def is_dir(self) -> bool:
        """Whether there is anything below this name."""
        above, _, name = self.at.rpartition("/")
        return not self.at or self._files.children(above).get(name, False)

    def iterdir(self) -> Iterator[RemoteTree]:
        """What is directly in this folder."""
        yield from (self / name for name in self._files.children(self.at))

    def read_text(self) -> str:
        """The whole content."""
        return self._files.text(self.at)


class RemoteStore(Store):
    """Read-only Zarr store over :class:`RemoteFiles`."""

    def __init__(self, files: RemoteFiles) -> None:
        super().__init__(read_only=True)
        self.files = files

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemoteStore) and other.files is self.files

    def __str__(self) -> str:
        return self.files.url

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:  # fmt: skip
        """Bytes of one object, None where there is none."""
        content = await self.files.read(key, *_span(byte_range))
        return None if content is None else prototype.buffer.from_bytes(content)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """As :meth:`get`, for several at once."""
        return list(await asyncio.gather(*(self.get(k, prototype, r) for k, r in key_ranges)))

    async def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        return await self.files.read(key) is not None

    supports_writes = False
    supports_deletes = False
    supports_listing = False

    async def set(self, key: str, value: Buffer) -> None:
        """Refused: see :meth:`visuomotor.data.store.DemoStore.open`."""
        raise DataError(f"{self} is for reading only")

    async def delete(self, key: str) -> None:
        """Refused."""
        raise DataError(f"{self} is for reading only")

    async def list(self) -> AsyncIterator[str]:
        """Nothing: arrays are found by :class:`RemoteTree`."""
        names: tuple[str, ...] = ()
        for name in names:
            yield name

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Nothing."""
        names: tuple[str, ...] = ()
        for name in names:
            yield name

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Nothing."""
        names: tuple[str, ...] = ()
        for name in names:
            yield name


def _span(request: ByteRequest | None) -> tuple[int, int | None]:
    if isinstance(request, RangeByteRequest):
        return request.start, request.end
    if isinstance(request, OffsetByteRequest):
        return request.offset, None
    return (-request.suffix, None) if isinstance(request, SuffixByteRequest) else (0, None)
