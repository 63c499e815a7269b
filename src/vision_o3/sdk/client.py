"""The device's and the publisher's handle on a registry."""

from __future__ import annotations

import functools
import threading
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    BinaryIO,
    Callable,
    ContextManager,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    Optional,
    Sequence,
    Set,
    Tuple,
    Type,
    TypeVar,
    Union,
    cast,
)

from vision_o3.content.cid import CID
from vision_o3.errors import (
    CacheError,
)
from vision_o3.naming import parse_name
from vision_o3.sdk.bounds import AnyOf, Bounds
from vision_o3.sdk.cache import DEFAULT_MAX_BYTES, Cache
from vision_o3.sdk.download import DEFAULT_CONNECTIONS, fetch, plan
from vision_o3.sdk.logs import logger
from vision_o3.sdk.mending import repair
from vision_o3.sdk.partials import resume
from vision_o3.sdk.problems import not_understood
from vision_o3.sdk.resolving import Resolver, expect_online
from vision_o3.sdk.session import Session
from vision_o3.sdk.sources import Mirror, sources_of
from vision_o3.sdk.transport import HTTPTransport
from vision_o3.sdk.upload import publish
from vision_o3.sdk.versions import (
    BLOCKED,
    DEPRECATED,
    DatasetInfo,
    Info,
    ModelInfo,
    VersionInfo,
    parse_info,
    refuse_withdrawn,
)

if TYPE_CHECKING:
    from types import TracebackType

    from vision_o3.content.leaves import LeafTable
    from vision_o3.content.manifest import Manifest
    from vision_o3.sdk.bounds import Flag
    from vision_o3.sdk.cache import CheckedFile, PartialFile
    from vision_o3.sdk.dataset_files import DatasetFiles
    from vision_o3.sdk.differences import DatasetDifference
    from vision_o3.sdk.download import Progress
    from vision_o3.sdk.retry import Clock, RetryPolicy
    from vision_o3.sdk.session import Credentials, SignIn
    from vision_o3.sdk.sources import Source
    from vision_o3.sdk.transport import Transport
    from vision_o3.sdk.versions import Withdrawal

Filters = Mapping[str, Union[str, Iterable[str]]]
"""Of a list: ``framework model_type format owner q sort``; ``tags``, all of them."""

_PAGE_SIZE = 200
_SHARED_ATTEMPTS = 10
_BETWEEN_ATTEMPTS_S = 0.02
_log = logger(__name__)

_Method = TypeVar("_Method", bound=Callable[..., Any])


def _call(method: _Method) -> _Method:
    """Hold a method to the client's bounds, unless the caller has set others."""

    @functools.wraps(method)
    def bounded(client: VisionO3Client, *arguments: Any, **options: Any) -> Any:
        if client._session.is_bounded:  # noqa: SLF001 - its own
            return method(client, *arguments, **options)
        with client.bounded():
            return method(client, *arguments, **options)

    return cast(_Method, bounded)


class VisionO3Client:
    """Finds, fetches and publishes; no path leads to a byte that was not verified.

    Safe for several threads, and several processes may share a cache. Use it in a
    ``with`` block, or ``close`` it.

    Args:
        gateway_url: For example ``https://models.example.com``.
        api_token: A token; it is not renewed.
        cache_dir: Where verified files are kept.
        credentials: Client id and secret, with which tokens are got and renewed; or a
            function that returns these two, or a token, each time one is needed.
        mirrors: URLs of other servers that have the bytes, asked in this order and
            before the gateway: of a store's root, whose layout they follow, or with
            ``{cid}`` in the place of the CID. They need not be trusted, and never
            get the token.
        connections: With how many a large file is fetched; fewer when the link or the
            servers do not like it.
        max_cache_bytes: The least recently used files are removed beyond this.
        timeout: Longest wait for the next bytes from a server, in seconds.
        deadline: Longest time for one call, in seconds; default: none.
        retries: When failed exchanges are tried again.
        offline: Use no network: only what is cached is found.
        progress: Called with bytes done and bytes in all, by downloads and uploads.
        transport: What carries requests; default: ``HTTPTransport``.
        clock: Time; default: the ``time`` module.

    Raises:
        InputError: Not a gateway's or mirror's URL, or both token and credentials.
    """

    def __init__(  # noqa: PLR0913 - each by keyword, each with a default
        self,
        gateway_url: str,
        api_token: Optional[str] = None,
        cache_dir: Union[str, Path] = "~/.vision-o3",
        *,
        credentials: Optional[Credentials] = None,
        mirrors: Sequence[str] = (),
        connections: int = DEFAULT_CONNECTIONS,
        max_cache_bytes: int = DEFAULT_MAX_BYTES,
        timeout: float = 30.0,
        deadline: Optional[float] = None,
        retries: Optional[RetryPolicy] = None,
        offline: bool = False,
        progress: Optional[Progress] = None,
        transport: Optional[Transport] = None,
        clock: Optional[Clock] = None,
    ) -> None:
        self._session = Session(
            gateway_url,
            api_token=api_token,
            credentials=credentials,
            transport=transport
            or HTTPTransport(
                read_timeout_s=timeout, connect_timeout_s=min(timeout, 10.0)
            ),
            policy=retries,
            clock=clock,
            offline=offline,
        )
        self._mirrors = [Mirror(url) for url in mirrors]
        self._connections = connections
        self._deadline = deadline
        self._cancelled = threading.Event()
        self._cache = Cache(cache_dir, max_cache_bytes)
        self._resolver = Resolver(self._session, self._cache)
        self._progress = progress
        self._dataset_files: Dict[bool, DatasetFiles] = {}
        self._warned: Set[Tuple[str, Withdrawal]] = set()

    def __enter__(self) -> VisionO3Client:
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close idle connections."""
        self._session.close()

    @contextmanager
    def bounded(
        self, deadline: Optional[float] = None, cancelled: Optional[Flag] = None
    ) -> Iterator[None]:
        """Bound the calls of this thread in a ``with`` block, all together.

        Args:
            deadline: Seconds; default: the client's.
            cancelled: Such as a ``threading.Event``; when it is set, a running call
                ends within a fraction of a second.

        Raises:
            DeadlineExceededError, CancelledError: Raised by the calls. What had come
                by then is kept: the next call goes on from there.
        """
        flag = AnyOf(self._cancelled, cancelled)
        seconds = self._deadline if deadline is None else deadline
        with self._session.bounded(Bounds(self._session.clock, seconds, flag)):
            yield

    def cancel(self) -> None:
        """End the calls that run in other threads now, with a ``CancelledError``."""
        ended, self._cancelled = self._cancelled, threading.Event()
        ended.set()

    @_call
    def sign_in(self) -> SignIn:
        """Get a token for the credentials now; other calls do so by themselves.

        Raises:
            UnauthenticatedError: There are no credentials, or they are refused.
            VisionO3Error: The gateway could not be asked.
        """
        return self._session.sign_in()

    # Models

    @_call
    def list_models(self, filters: Optional[Filters] = None) -> List[ModelInfo]:
        """Return the latest version of each model that passes all filters.

        Raises:
            InputError: A filter is not known.
            VisionO3Error: The gateway could not be asked, or refused.
        """
        return list(self.iter_models(filters))

    def iter_models(self, filters: Optional[Filters] = None) -> Iterator[ModelInfo]:
        """Yield what ``list_models`` returns; a page is asked for when it is needed.

        A model that is published or retired meanwhile may be missed or come twice.

        Raises:
            VisionO3Error: As ``list_models`` says, while it is iterated.
        """
        return chain.from_iterable(self._pages(ModelInfo, filters))

    @_call
    def get_model_info(self, name: str, version: Optional[int] = None) -> ModelInfo:
        """Return what is known of a version, by default the latest.

        A version that was seen before needs no network: versions never change. Only
        their ``withdrawal`` does: where there is a network, the gateway is asked for it
        again after five minutes. If it cannot be asked for the latest, its last known
        answer is returned, marked ``stale``, with a warning in the log.

        Raises:
            NotFoundError: There is no such model or version.
            WithdrawnError: The latest is asked for, and all versions are withdrawn.
            InvalidNameError, InvalidVersionError: Neither can there be.
            IntegrityError: A version is now said to have other content than before.
            VisionO3Error: The gateway could not be asked, or refused.
        """
        return self._resolver.resolve(ModelInfo, name, version)

    @_call
    def download_model(
        self,
        name: str,
        version: Optional[int] = None,
        verify: bool = True,
        *,
        allow_blocked: bool = False,
    ) -> Path:
        """Return the path of a version's file, by default the latest's.

        It is fetched unless the cache has it. What is fetched is always verified,
        each 1 MiB before it is written.

        Args:
            name: The model.
            version: Default: the latest, resolved as ``get_model_info`` does.
            verify: Verify a cached copy again, and fetch it anew if it has rotted.
            allow_blocked: Return it also if it is blocked. A version that is only
                deprecated is returned in any case; each has a warning in the log.

        Raises:
            VersionBlockedError: The version is not to be used (``reason``), as the
                gateway says, or said when it was last asked; also if it is cached.
            VersionPurgedError: It was deleted for good (``reason``); likewise.
            IntegrityError: The gateway gave other bytes than the CID names. Nothing of
                them was kept.
            StorageFullError, CacheError: There is no room, or no permission.
            VisionO3Error: As ``get_model_info`` says.
        """
        info = self._resolver.resolve(ModelInfo, name, version)
        return self.download(info, verify, allow_blocked=allow_blocked)

    @_call
    def download_model_by_cid(
        self, cid: str, verify: bool = True, *, allow_blocked: bool = False
    ) -> Path:
        """Return the path of the file that a CID names; see ``download_model``.

        It is refused as withdrawn only if all versions that have it are.

        Raises:
            InvalidCIDError: Not a CID of the accepted kind.
            NotFoundError: No model has this content.
            VisionO3Error: As ``download_model`` says.
        """
        return self._download_by_cid(
            ModelInfo, cid, verify, allow_blocked=allow_blocked
        )

    @_call
    def upload_model(
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
        """Publish a file as the next version of a model; return that version.

        The file is hashed first, and nothing is sent if the gateway has this content.
        What is larger than 8 MiB goes in parts: after a broken link, or when this is
        called again after a failure, only what is missing is sent. If the latest
        version has this content, it is answered and nothing is published.

        Args:
            path: The file.
            name: The model; made with its first version.
            framework: For example ``onnx``.
            model_type: For example ``detection``.
            file_format: ``pt``, ``onnx``, ``tflite`` or ``h5``; default: the file's
                extension.
            description: For people.
            tags: For filters.
            cid: What the file is believed to be; checked before anything is sent.

        Raises:
            CIDMismatchError: The file is not what ``cid`` names, or it changed.
            InputError: The file, the name or a field is not acceptable, or it changed.
            PermissionDeniedError: The principal may not publish, or not here.
            UploadInProgressError: Somebody else publishes here just now.
            VisionO3Error: The gateway could not be asked, or failed.
        """
        fields = [
            ("name", name),
            ("framework", framework or ""),
            ("model_type", model_type or ""),
            ("file_format", file_format or ""),
            ("description", description),
            *(("tags", tag) for tag in tags),
        ]
        return self._upload(ModelInfo, Path(path), fields, cid)

    @_call
    def deprecate_model(self, name: str, version: int, reason: str) -> ModelInfo:
        """Have devices warned of a version, which is served as before; return it.

        Args:
            name: The model.
            version: Which one.
            reason: For people, on one line.

        Raises:
            NotFoundError: There is no such model or version.
            PermissionDeniedError: The principal may not do this here.
            WithdrawnError: The version was deleted for good.
            InputError: The reason is not acceptable.
            VisionO3Error: The gateway could not be asked, or failed.
        """
        return self._withdraw(ModelInfo, name, version, DEPRECATED, reason)

    @_call
    def block_model(self, name: str, version: int, reason: str) -> ModelInfo:
        """Have a version refused, to all who do not insist; return it.

        It is never the latest again, and devices refuse it, once they know, also where
        it is cached; see ``deprecate_model``.
        """
        return self._withdraw(ModelInfo, name, version, BLOCKED, reason)

    @_call
    def restore_model(self, name: str, version: int) -> None:
        """Undo ``deprecate_model`` or ``block_model``; see there.

        What an administrator blocked only an administrator restores.
        """
        self._restore(ModelInfo, name, version)

    # Datasets

    @_call
    def list_datasets(self, filters: Optional[Filters] = None) -> List[DatasetInfo]:
        """Return the latest version of each dataset; see ``list_models``."""
        return list(self.iter_datasets(filters))

    def iter_datasets(self, filters: Optional[Filters] = None) -> Iterator[DatasetInfo]:
        """Yield the latest version of each dataset; see ``iter_models``."""
        return chain.from_iterable(self._pages(DatasetInfo, filters))

    @_call
    def get_dataset_info(self, name: str, version: Optional[int] = None) -> DatasetInfo:
        """Return what is known of a version; see ``get_model_info``."""
        return self._resolver.resolve(DatasetInfo, name, version)

    @_call
    def download_dataset(
        self,
        name: str,
        version: Optional[int] = None,
        verify: bool = True,
        *,
        allow_blocked: bool = False,
    ) -> Path:
        """Return the path of a version's file; see ``download_model``."""
        info = self._resolver.resolve(DatasetInfo, name, version)
        return self.download(info, verify, allow_blocked=allow_blocked)

    @_call
    def download_dataset_by_cid(
        self, cid: str, verify: bool = True, *, allow_blocked: bool = False
    ) -> Path:
        """Return the path of a CID's file; see ``download_model_by_cid``."""
        return self._download_by_cid(
            DatasetInfo, cid, verify, allow_blocked=allow_blocked
        )

    @_call
    def upload_dataset(
        self,
        path: Union[str, Path],
        name: str,
        *,
        file_format: Optional[str] = None,
        description: str = "",
        tags: Sequence[str] = (),
        cid: Optional[str] = None,
    ) -> DatasetInfo:
        """Publish a file as the next version of a dataset; see ``upload_model``.

        ``file_format`` is ``zip``, ``tar.gz``, ``json`` or ``xml``.
        """
        fields = [
            ("name", name),
            ("format", file_format or ""),
            ("description", description),
            *(("tags", tag) for tag in tags),
        ]
        return self._upload(DatasetInfo, Path(path), fields, cid)

    @_call
    def deprecate_dataset(self, name: str, version: int, reason: str) -> DatasetInfo:
        """Have devices warned of a version; see ``deprecate_model``."""
        return self._withdraw(DatasetInfo, name, version, DEPRECATED, reason)

    @_call
    def block_dataset(self, name: str, version: int, reason: str) -> DatasetInfo:
        """Have a version refused, and its files; see ``block_model``."""
        return self._withdraw(DatasetInfo, name, version, BLOCKED, reason)

    @_call
    def restore_dataset(self, name: str, version: int) -> None:
        """Undo ``deprecate_dataset`` or ``block_dataset``; see ``restore_model``."""
        self._restore(DatasetInfo, name, version)

    # Files of datasets

    @_call
    def get_dataset_manifest(
        self,
        name: str,
        version: Optional[int] = None,
        *,
        allow_blocked: bool = False,
    ) -> Manifest:
        """Return the list of an archive's files, verified.

        A manifest that was fetched before needs no network.

        Raises:
            NotFoundError: There is no such version, or it is not an archive.
            IntegrityError: The gateway gave other bytes than the CID names.
            MalformedBlockError: They are no manifest, or one with an unsafe path.
            LimitExceededError: It is longer than 256 MiB.
            WithdrawnError: As ``download_model`` says.
            VisionO3Error: As ``get_model_info`` says.
        """
        info = self._usable_dataset(name, version, allow_blocked=allow_blocked)
        return self._files(allow_blocked=allow_blocked).manifest(info)

    @_call
    def download_dataset_file(
        self,
        name: str,
        path: str,
        version: Optional[int] = None,
        *,
        allow_blocked: bool = False,
    ) -> Path:
        """Return the path of one file of an archive, verified; see ``download_model``.

        Nothing else of the archive is fetched. Name the version when many files are
        wanted: the latest is asked for each time.

        Args:
            name: The dataset.
            path: The file's, as the manifest lists it.
            version: Default: the latest.
            allow_blocked: As for ``download_model``.

        Raises:
            InvalidPathError: No file can have this path.
            NotFoundError: There is no such file.
            VisionO3Error: As ``get_dataset_manifest`` and ``download_model`` say.
        """
        info = self._usable_dataset(name, version, allow_blocked=allow_blocked)
        return self._files(allow_blocked=allow_blocked).download(info, path)

    @_call
    def open_dataset_file(
        self,
        name: str,
        path: str,
        version: Optional[int] = None,
        *,
        allow_blocked: bool = False,
    ) -> BinaryIO:
        """Return one file of an archive, open for reading, verified; close it.

        Raises:
            VisionO3Error: As ``download_dataset_file`` says.
        """
        info = self._usable_dataset(name, version, allow_blocked=allow_blocked)
        return self._files(allow_blocked=allow_blocked).open(info, path)

    @_call
    def extract_dataset(
        self,
        name: str,
        target: Union[str, Path],
        version: Optional[int] = None,
        paths: Optional[Sequence[str]] = None,
        *,
        overwrite: bool = False,
        allow_blocked: bool = False,
    ) -> List[Path]:
        """Put the files of an archive below a directory; return their paths, sorted.

        A file is visible once its bytes are what the manifest's CID names. Right files
        that are there already are kept. Nothing is written outside the directory, and
        no link below it is followed. Memory does not grow with the files' sizes.

        Args:
            name: The dataset.
            target: The directory; made if it is not there.
            version: Default: the latest.
            paths: Only these: paths of files or folders, or with the wildcards of
                ``fnmatch``. They are fetched one by one, unless the cache has the
                archive. Default: all, out of the archive, which is kept in the cache.
            overwrite: Replace other files that are in the way.
            allow_blocked: As for ``download_model``.

        Raises:
            AlreadyExistsError: Something else stands where a file belongs; if it was
                there before, nothing has been written.
            NotFoundError: One of the paths is of no file.
            IntegrityError: The archive is not as its manifest says; of it, nothing is
                left. Or a file is not; it is not there, but those before it are.
            StorageFullError, CacheError: There is no room, or no permission.
            VisionO3Error: As ``get_dataset_manifest`` and ``download_model`` say.
        """
        info = self._usable_dataset(name, version, allow_blocked=allow_blocked)
        files = self._files(allow_blocked=allow_blocked)
        return files.extract(info, Path(target), paths, overwrite=overwrite)

    @_call
    def compare_datasets(
        self, name: str, before: int, after: int, *, allow_blocked: bool = False
    ) -> DatasetDifference:
        """Return what changed from one version to another: files and annotations.

        Found on the device. It needs no network for versions that were seen before
        and manifests that were fetched before.

        Raises:
            VisionO3Error: As ``get_dataset_manifest`` says; versions that are not
                archives have no files to compare.
        """
        from vision_o3.content.manifest import compare  # noqa: PLC0415 - seldom
        from vision_o3.sdk.differences import (  # noqa: PLC0415 - seldom
            DatasetDifference,
            compare_annotations,
        )

        old, new = (
            self._usable_dataset(name, version, allow_blocked=allow_blocked)
            for version in (before, after)
        )
        files = None
        if old.manifest_cid is not None and new.manifest_cid is not None:
            reader = self._files(allow_blocked=allow_blocked)
            files = compare(reader.manifest(old), reader.manifest(new))
        annotations = compare_annotations(old.facts, new.facts)
        return DatasetDifference(old, new, files, annotations)

    # Cache

    @_call
    def pin_model(self, name: str, version: Optional[int] = None) -> ModelInfo:
        """Keep a version from being removed for want of room; return that version.

        It need not be in the cache yet. All processes that use the cache heed it.

        Args:
            name: The model.
            version: Default: what is the latest now, resolved as ``get_model_info``
                does.

        Raises:
            CacheError: The cache cannot be written.
            VisionO3Error: As ``get_model_info`` says.
        """
        return self._pin(ModelInfo, name, version)

    @_call
    def unpin_model(self, name: str, version: Optional[int] = None) -> List[ModelInfo]:
        """Undo ``pin_model``; return the versions that were pinned.

        Args:
            name: The model.
            version: Default: all of its versions that this device has asked for.

        Raises:
            CacheError: The cache cannot be written.
            VisionO3Error: As ``get_model_info`` says.
        """
        return self._unpin(ModelInfo, name, version)

    @_call
    def pin_dataset(self, name: str, version: Optional[int] = None) -> DatasetInfo:
        """Keep a version's archive and manifest; see ``pin_model``.

        Files that were fetched one by one are not kept by it: pin their CIDs.
        """
        return self._pin(DatasetInfo, name, version)

    @_call
    def unpin_dataset(
        self, name: str, version: Optional[int] = None
    ) -> List[DatasetInfo]:
        """Undo ``pin_dataset``; see ``unpin_model``."""
        return self._unpin(DatasetInfo, name, version)

    def pin(self, cid: str) -> None:
        """Keep a content from being removed for want of room; see ``pin_model``.

        Raises:
            InvalidCIDError: Not a CID of the accepted kind.
            CacheError: The cache cannot be written.
        """
        self._cache.pin(CID.parse(cid))

    def unpin(self, cid: str) -> bool:
        """Undo ``pin``; return whether it was pinned.

        Raises:
            InvalidCIDError: Not a CID of the accepted kind.
            CacheError: The cache cannot be written.
        """
        return self._cache.unpin(CID.parse(cid))

    @_call
    def verify_cache(self) -> List[CheckedFile]:
        """Read every file of the cache; return what each is found to be.

        What is rotten is never returned again, and the next download of it fetches
        only its wrong leaves.

        Raises:
            CancelledError, DeadlineExceededError: The call ended.
        """
        return list(self._cache.verify(self._reading()))

    @_call
    def repair_cache(self) -> List[CheckedFile]:
        """Do what ``verify_cache`` does, and fetch anew what is not right.

        Of each file only the wrong leaves are fetched, also of those that were found
        rotten before. A file of a dataset that was fetched by itself is removed. What
        could not be mended has its ``error``.

        Raises:
            CancelledError, DeadlineExceededError: The call ended; what was mended is.
        """
        return repair(self._cache, self._resolver, self.download, self._reading())

    def prune_cache(self, max_bytes: Optional[int] = None) -> int:
        """Remove the least recently used files beyond a limit; return their bytes.

        What is pinned stays, and counts. So go downloads that were not gone on with
        for a week.

        Args:
            max_bytes: Default: the client's ``max_cache_bytes``.

        Raises:
            CacheError: Something cannot be removed.
        """
        return self._cache.prune(max_bytes)

    def clear_cache(self) -> None:
        """Remove all files from the cache, all pins, and what is known of versions.

        Raises:
            CacheError: Something cannot be removed.
        """
        self._resolver.forget_unwritten()
        self._cache.clear()

    def get_cache_size(self) -> int:
        """Return the bytes of all files in the cache."""
        return self._cache.size()

    def _files(self, *, allow_blocked: bool) -> DatasetFiles:
        files = self._dataset_files.get(allow_blocked)
        if files is None:
            from vision_o3.sdk.dataset_files import (  # noqa: PLC0415 - seldom
                DatasetFiles,
            )

            download = functools.partial(self.download, allow_blocked=allow_blocked)
            files = self._dataset_files[allow_blocked] = DatasetFiles(
                self._session,
                self._cache,
                download,
                self._progress,
                allow_blocked=allow_blocked,
            )
        return files

    def _usable_dataset(
        self, name: str, version: Optional[int], *, allow_blocked: bool
    ) -> DatasetInfo:
        """Return a version whose bytes may be used."""
        info = self._resolver.resolve(DatasetInfo, name, version)
        self._expect_usable(info, allow_blocked=allow_blocked)
        return info

    # What models and datasets share

    @_call
    def download(
        self, info: VersionInfo, verify: bool = True, *, allow_blocked: bool = False
    ) -> Path:
        """Return the path of a version's file; see ``download_model``."""
        self._expect_usable(info, allow_blocked=allow_blocked)
        cid = CID.parse(info.cid)
        cached = self._cache.find(cid, info.filename, verify=verify)
        if cached is not None:
            return cached
        expect_online(self._session, f"Version {info.version} of {info.name} ({cid})")
        sources = sources_of(
            self._session, info, self._mirrors, allow_blocked=allow_blocked
        )
        table = plan(self._session, sources, info)
        path: Optional[Path] = None
        attempts = 0
        while path is None:
            if attempts:
                self._session.bounds.sleep(_BETWEEN_ATTEMPTS_S)
            # A file of our own, where the shared one always turns out another's.
            shared = table.count > 1 and attempts < _SHARED_ATTEMPTS
            attempts += 1
            with self._receiving(cid, table, shared=shared) as partial:
                if partial is not None:
                    path = self._fetch(info, sources, table, partial)
            if path is None:  # another process has completed it
                path = self._cache.find(cid, info.filename, verify=verify)
        self._cache.evict(keep=cid)
        return path

    def _receiving(
        self, cid: CID, table: LeafTable, *, shared: bool
    ) -> ContextManager[Optional[PartialFile]]:
        """Return a file to fetch into, which outlives a failure if that is worth it."""
        if not shared:
            return self._cache.write(table.size)
        progress = self._progress
        watch = None
        if progress is not None:
            size = table.size
            watch = lambda done: progress(min(done, size), size)  # noqa: E731
        return resume(self._cache, cid, table.size, self._session.bounds, watch)

    def _fetch(
        self,
        info: VersionInfo,
        sources: Sequence[Source],
        table: LeafTable,
        partial: PartialFile,
    ) -> Optional[Path]:
        """Fetch a file and keep it; return its path, or none if another was faster."""
        fetch(
            self._session,
            sources,
            table,
            partial.descriptor,
            self._progress,
            connections=self._connections,
        )
        try:
            return self._cache.keep(partial, table.root, info.filename)
        except CacheError:
            if partial.path.exists():
                raise
            return None

    def _download_by_cid(
        self, kind: Type[Info], text: str, verify: bool, *, allow_blocked: bool
    ) -> Path:
        cid = CID.parse(text)
        cached = self._cache.find(cid, verify=verify)
        if cached is None:
            info = self._resolver.resolve_cid(kind, text, allow_blocked=allow_blocked)
            return self.download(info, verify, allow_blocked=allow_blocked)
        known = self._resolver.look_at_cid(kind, text, allow_blocked=allow_blocked)
        if known is not None:
            self._expect_usable(known, allow_blocked=allow_blocked)
        return cached

    def _expect_usable(self, info: VersionInfo, *, allow_blocked: bool) -> None:
        """Return if a version may be used; warn once if it should not be.

        Raises:
            WithdrawnError: It may not.
        """
        refuse_withdrawn(info, allow_blocked=allow_blocked)
        withdrawal = info.withdrawal
        if withdrawal is None or (info.id, withdrawal) in self._warned:
            return
        self._warned.add((info.id, withdrawal))
        from vision_o3.sdk.output import printable  # noqa: PLC0415 - seldom

        _log.warning(
            "version.withdrawn: Version %d of %s is %s Use another version.",
            info.version,
            info.name,
            printable(withdrawal.sentence),
            extra={"cid": info.cid},
        )

    def _withdraw(
        self, kind: Type[Info], name: str, version: int, state: str, reason: str
    ) -> Info:
        from vision_o3.sdk.withdrawing import withdraw  # noqa: PLC0415 - seldom

        document = withdraw(
            self._session, kind, name, version, state=state, reason=reason
        )
        return self._resolver.remember(parse_info(kind, document), name, version)

    def _restore(self, kind: Type[Info], name: str, version: int) -> None:
        from vision_o3.sdk.withdrawing import restore  # noqa: PLC0415 - seldom

        restore(self._session, kind, name, version)
        self._resolver.forget_withdrawal(kind, name, version)

    def _pin(self, kind: Type[Info], name: str, version: Optional[int]) -> Info:
        info = self._resolver.resolve(kind, name, version)
        for cid in _contents(info):
            self._cache.pin(cid)
        return info

    def _unpin(self, kind: Type[Info], name: str, version: Optional[int]) -> List[Info]:
        known: List[Info] = []
        if version is None:
            known = self._resolver.known_versions(kind, parse_name(name))
        infos = known or [self._resolver.resolve(kind, name, version)]
        return [
            info for info in infos if any([*map(self._cache.unpin, _contents(info))])
        ]

    def _reading(self) -> Progress:
        """Return what tells of files that are read, and ends with the call."""
        bounds = self._session.bounds

        def watch(done: int, total: int) -> None:
            bounds.check()
            if self._progress is not None:
                self._progress(done, total)

        return watch

    @_call
    def _page(
        self, kind: Type[Info], query: Sequence[Tuple[str, str]]
    ) -> Tuple[List[Any], int]:
        """Return a page of a list, and how long the whole list is."""
        query = [*query, ("page_size", str(_PAGE_SIZE))]
        answer = self._session.get_object(f"/{kind.collection}", query)
        items, total = answer.get("items"), answer.get("total")
        if not isinstance(items, list) or not isinstance(total, int):
            raise not_understood("it is not a list")
        return items, total

    def _pages(
        self, kind: Type[Info], filters: Optional[Filters]
    ) -> Iterator[List[Info]]:
        query: List[Tuple[str, str]] = []
        for name, value in (filters or {}).items():
            values = [value] if isinstance(value, (str, int)) else value
            query += [(name, str(each)) for each in values]
        page, seen, total = 1, 0, 1
        while seen < total:
            items, total = self._page(kind, [*query, ("page", str(page))])
            if not items:
                return
            yield [parse_info(kind, item) for item in items]
            seen += len(items)
            page += 1

    def _upload(
        self,
        kind: Type[Info],
        path: Path,
        fields: Sequence[Tuple[str, str]],
        expected: Optional[str],
    ) -> Info:
        parse_name(dict(fields)["name"])
        cid, document = publish(
            self._session,
            kind.collection,
            path,
            fields,
            None if expected is None else CID.parse(expected),
            self._progress,
        )
        info = parse_info(kind, document)
        if info.cid != str(cid):
            raise not_understood(f"it is about {info.cid}, not {cid}")
        return info


def _contents(info: VersionInfo) -> List[CID]:
    """Return what a version consists of: its file, and the list of an archive."""
    texts = info.cid, getattr(info, "manifest_cid", None)
    return [CID.parse(text) for text in texts if text is not None]
