"""The client for ``asyncio``: the same methods, awaited, each run on a thread."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    AsyncIterator,
    BinaryIO,
    Callable,
    List,
    Optional,
    Sequence,
    Set,
    Type,
    TypeVar,
    Union,
)

from vision_o3.sdk.client import VisionO3Client
from vision_o3.sdk.versions import DatasetInfo, Info, ModelInfo

if TYPE_CHECKING:
    from types import TracebackType

    from vision_o3.content.manifest import Manifest
    from vision_o3.sdk.cache import CheckedFile
    from vision_o3.sdk.client import Filters
    from vision_o3.sdk.differences import DatasetDifference
    from vision_o3.sdk.session import SignIn
    from vision_o3.sdk.versions import VersionInfo

_T = TypeVar("_T")
_DEFAULT_WORKERS = 8


class AsyncVisionO3Client:
    """Does what ``VisionO3Client`` does, without blocking the event loop.

    A cancelled task ends its transfer within a fraction of a second; what had come by
    then is kept, and the next call goes on from there. For a deadline use
    ``asyncio.wait_for``. Use it in an ``async with`` block, or ``close`` it.

    Args:
        gateway_url: As for ``VisionO3Client``.
        api_token: As for ``VisionO3Client``.
        cache_dir: As for ``VisionO3Client``.
        workers: How many calls run at once; more wait.
        **options: The other arguments of ``VisionO3Client``. ``progress`` and
            ``credentials`` are called on the threads.

    Raises:
        InputError: As ``VisionO3Client`` says.
    """

    def __init__(
        self,
        gateway_url: str,
        api_token: Optional[str] = None,
        cache_dir: Union[str, Path] = "~/.vision-o3",
        *,
        workers: int = _DEFAULT_WORKERS,
        **options: Any,
    ) -> None:
        self._client = VisionO3Client(gateway_url, api_token, cache_dir, **options)
        self._threads = ThreadPoolExecutor(workers, "vision-o3")
        self._running: Set[threading.Event] = set()

    async def __aenter__(self) -> AsyncVisionO3Client:
        return self

    async def __aexit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the calls that still run, and close connections; the client is done."""
        self.cancel()
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, self._threads.shutdown)
        self._client.close()

    def cancel(self) -> None:
        """End the calls that other tasks wait for now, with a ``CancelledError``."""
        for cancelled in self._running:
            cancelled.set()

    def iter_models(
        self, filters: Optional[Filters] = None
    ) -> AsyncIterator[ModelInfo]:
        """Yield what ``list_models`` returns; a page is asked for when it is needed."""
        return self._iterate(ModelInfo, filters)

    def iter_datasets(
        self, filters: Optional[Filters] = None
    ) -> AsyncIterator[DatasetInfo]:
        """Yield the latest version of each dataset."""
        return self._iterate(DatasetInfo, filters)

    async def sign_in(self) -> SignIn:
        """Get a token for the credentials now; other calls do so by themselves."""
        return await self._run(self._client.sign_in)

    async def list_models(self, filters: Optional[Filters] = None) -> List[ModelInfo]:
        """Return the latest version of each model that passes all filters."""
        return await self._run(self._client.list_models, filters)

    async def get_model_info(
        self, name: str, version: Optional[int] = None
    ) -> ModelInfo:
        """Return what is known of a version, by default the latest."""
        return await self._run(self._client.get_model_info, name, version)

    async def download_model(
        self,
        name: str,
        version: Optional[int] = None,
        verify: bool = True,
        *,
        allow_blocked: bool = False,
    ) -> Path:
        """Return the path of a version's file, by default the latest's."""
        return await self._run(
            self._client.download_model,
            name,
            version,
            verify,
            allow_blocked=allow_blocked,
        )

    async def download_model_by_cid(
        self, cid: str, verify: bool = True, *, allow_blocked: bool = False
    ) -> Path:
        """Return the path of the file that a CID names."""
        return await self._run(
            self._client.download_model_by_cid,
            cid,
            verify,
            allow_blocked=allow_blocked,
        )

    async def upload_model(
        self,
        path: Union[str, Path],
        name: str,
        *,
        framework: Optional[str] = None,
        model_type: Optional[str] = None,
        file_format: Optional[str] = None,
        description: str = "",
        tags: Sequence[str] = (),
        cid: Optional[str] = None,
    ) -> ModelInfo:
        """Publish a file as the next version of a model; return that version."""
        return await self._run(
            self._client.upload_model,
            path,
            name,
            framework=framework,
            model_type=model_type,
            file_format=file_format,
            description=description,
            tags=tags,
            cid=cid,
        )

    async def deprecate_model(self, name: str, version: int, reason: str) -> ModelInfo:
        """Have devices warned of a version, which is served as before; return it."""
        return await self._run(self._client.deprecate_model, name, version, reason)

    async def block_model(self, name: str, version: int, reason: str) -> ModelInfo:
        """Have a version refused, to all who do not insist; return it."""
        return await self._run(self._client.block_model, name, version, reason)

    async def restore_model(self, name: str, version: int) -> None:
        """Undo ``deprecate_model`` or ``block_model``."""
        await self._run(self._client.restore_model, name, version)

    async def list_datasets(
        self, filters: Optional[Filters] = None
    ) -> List[DatasetInfo]:
        """Return the latest version of each dataset."""
        return await self._run(self._client.list_datasets, filters)

    async def get_dataset_info(
        self, name: str, version: Optional[int] = None
    ) -> DatasetInfo:
        """Return what is known of a version."""
        return await self._run(self._client.get_dataset_info, name, version)

    async def download_dataset(
        self,
        name: str,
        version: Optional[int] = None,
        verify: bool = True,
        *,
        allow_blocked: bool = False,
    ) -> Path:
        """Return the path of a version's file."""
        return await self._run(
            self._client.download_dataset,
            name,
            version,
            verify,
            allow_blocked=allow_blocked,
        )

    async def download_dataset_by_cid(
        self, cid: str, verify: bool = True, *, allow_blocked: bool = False
    ) -> Path:
        """Return the path of a CID's file."""
        return await self._run(
            self._client.download_dataset_by_cid,
            cid,
            verify,
            allow_blocked=allow_blocked,
        )

    async def upload_dataset(
        self,
        path: Union[str, Path],
        name: str,
        *,
        file_format: Optional[str] = None,
        description: str = "",
        tags: Sequence[str] = (),
        cid: Optional[str] = None,
    ) -> DatasetInfo:
        """Publish a file as the next version of a dataset."""
        return await self._run(
            self._client.upload_dataset,
            path,
            name,
            file_format=file_format,
            description=description,
            tags=tags,
            cid=cid,
        )

    async def deprecate_dataset(
        self, name: str, version: int, reason: str
    ) -> DatasetInfo:
        """Have devices warned of a version, which is served as before; return it."""
        return await self._run(self._client.deprecate_dataset, name, version, reason)

    async def block_dataset(self, name: str, version: int, reason: str) -> DatasetInfo:
        """Have a version refused, to all who do not insist; return it."""
        return await self._run(self._client.block_dataset, name, version, reason)

    async def restore_dataset(self, name: str, version: int) -> None:
        """Undo ``deprecate_dataset`` or ``block_dataset``."""
        await self._run(self._client.restore_dataset, name, version)

    async def get_dataset_manifest(
        self,
        name: str,
        version: Optional[int] = None,
        *,
        allow_blocked: bool = False,
    ) -> Manifest:
        """Return the list of an archive's files, verified."""
        return await self._run(
            self._client.get_dataset_manifest,
            name,
            version,
            allow_blocked=allow_blocked,
        )

    async def download_dataset_file(
        self,
        name: str,
        path: str,
        version: Optional[int] = None,
        *,
        allow_blocked: bool = False,
    ) -> Path:
        """Return the path of one file of an archive, verified."""
        return await self._run(
            self._client.download_dataset_file,
            name,
            path,
            version,
            allow_blocked=allow_blocked,
        )

    async def open_dataset_file(
        self,
        name: str,
        path: str,
        version: Optional[int] = None,
        *,
        allow_blocked: bool = False,
    ) -> BinaryIO:
        """Return one file of an archive, open for reading, verified; close it."""
        return await self._run(
            self._client.open_dataset_file,
            name,
            path,
            version,
            allow_blocked=allow_blocked,
        )

    async def extract_dataset(
        self,
        name: str,
        target: Union[str, Path],
        version: Optional[int] = None,
        paths: Optional[Sequence[str]] = None,
        *,
        overwrite: bool = False,
        allow_blocked: bool = False,
    ) -> List[Path]:
        """Put the files of an archive below a directory; return their paths, sorted."""
        return await self._run(
            self._client.extract_dataset,
            name,
            target,
            version,
            paths,
            overwrite=overwrite,
            allow_blocked=allow_blocked,
        )

    async def compare_datasets(
        self, name: str, before: int, after: int, *, allow_blocked: bool = False
    ) -> DatasetDifference:
        """Return what changed from one version to another: files and annotations."""
        return await self._run(
            self._client.compare_datasets,
            name,
            before,
            after,
            allow_blocked=allow_blocked,
        )

    async def pin_model(self, name: str, version: Optional[int] = None) -> ModelInfo:
        """Keep a version from being removed for want of room; return that version."""
        return await self._run(self._client.pin_model, name, version)

    async def unpin_model(
        self, name: str, version: Optional[int] = None
    ) -> List[ModelInfo]:
        """Undo ``pin_model``; return the versions that were pinned."""
        return await self._run(self._client.unpin_model, name, version)

    async def pin_dataset(
        self, name: str, version: Optional[int] = None
    ) -> DatasetInfo:
        """Keep a version's archive and manifest."""
        return await self._run(self._client.pin_dataset, name, version)

    async def unpin_dataset(
        self, name: str, version: Optional[int] = None
    ) -> List[DatasetInfo]:
        """Undo ``pin_dataset``."""
        return await self._run(self._client.unpin_dataset, name, version)

    async def pin(self, cid: str) -> None:
        """Keep a content from being removed for want of room."""
        await self._run(self._client.pin, cid)

    async def unpin(self, cid: str) -> bool:
        """Undo ``pin``; return whether it was pinned."""
        return await self._run(self._client.unpin, cid)

    async def verify_cache(self) -> List[CheckedFile]:
        """Read every file of the cache; return what each is found to be."""
        return await self._run(self._client.verify_cache)

    async def repair_cache(self) -> List[CheckedFile]:
        """Do what ``verify_cache`` does, and fetch anew what is not right."""
        return await self._run(self._client.repair_cache)

    async def prune_cache(self, max_bytes: Optional[int] = None) -> int:
        """Remove the least recently used files beyond a limit; return their bytes."""
        return await self._run(self._client.prune_cache, max_bytes)

    async def clear_cache(self) -> None:
        """Remove all files from the cache, all pins, and what is known of versions."""
        await self._run(self._client.clear_cache)

    async def get_cache_size(self) -> int:
        """Return the bytes of all files in the cache."""
        return await self._run(self._client.get_cache_size)

    async def download(
        self, info: VersionInfo, verify: bool = True, *, allow_blocked: bool = False
    ) -> Path:
        """Return the path of a version's file."""
        return await self._run(
            self._client.download, info, verify, allow_blocked=allow_blocked
        )

    async def _iterate(
        self, kind: Type[Info], filters: Optional[Filters]
    ) -> AsyncIterator[Info]:
        pages = self._client._pages(kind, filters)  # noqa: SLF001 - one a thread
        while True:
            page: Optional[List[Info]] = await self._run(next, pages, None)
            if page is None:
                return
            for info in page:
                yield info

    async def _run(
        self, method: Callable[..., _T], *arguments: Any, **options: Any
    ) -> _T:
        """Return what a method returns on a thread; cancelled, it ends there too."""
        cancelled = threading.Event()

        def call() -> _T:
            with self._client.bounded(cancelled=cancelled):
                return method(*arguments, **options)

        loop = asyncio.get_running_loop()
        self._running.add(cancelled)
        try:
            return await loop.run_in_executor(self._threads, call)
        finally:
            self._running.discard(cancelled)
            cancelled.set()
