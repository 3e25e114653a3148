"""Zarr's arrays in object storage, with our errors.

zarr lets obstore's errors through as they are, and they quote the signed request.
"""

from functools import partial

import obstore.store
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import ObjectStore

from pipeline.storage.objects.folder import ObjectFolder
from pipeline.storage.objects.requests import until_whole_async
from pipeline.storage.open import Folder


class ObjectArrays(ObjectStore[obstore.store.ObjectStore]):
    """zarr's own store over obstore; raises `ObjectStorageError` where a request fails."""

    def __init__(self, folder: Folder, *, read_only: bool = False):
        assert isinstance(folder, ObjectFolder)
        super().__init__(folder.objects, read_only=read_only)
        self._folder = folder

    def with_read_only(self, read_only: bool = False) -> "ObjectArrays":
        """Return a store of the same objects that refuses to write, or one that does not."""
        return ObjectArrays(self._folder, read_only=read_only)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        get = partial(super().get, key, prototype, byte_range)
        return await until_whole_async(f"{self._folder}/{key}", get)

    async def exists(self, key: str) -> bool:
        return await until_whole_async(f"{self._folder}/{key}", partial(super().exists, key))

    async def set(self, key: str, value: Buffer) -> None:
        await until_whole_async(f"{self._folder}/{key}", partial(super().set, key, value))

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        # Sent again after its answer broke off, it meets itself, which zarr takes for done.
        create = partial(super().set_if_not_exists, key, value)
        await until_whole_async(f"{self._folder}/{key}", create)

    async def delete(self, key: str) -> None:
        await until_whole_async(f"{self._folder}/{key}", partial(super().delete, key))
