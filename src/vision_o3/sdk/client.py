"""The device's and the publisher's handle on a registry."""

from __future__ import annotations

from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    BinaryIO,
    Dict,
    Iterable,
    Iterator,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    Type,
    Union,
)

from vision_o3.content.cid import CID
from vision_o3.content.manifest import Manifest, compare
from vision_o3.errors import (
    CIDMismatchError,
    InputError,
)
from vision_o3.naming import parse_name
from vision_o3.sdk.cache import DEFAULT_MAX_BYTES, Cache
from vision_o3.sdk.dataset_files import DatasetFiles
from vision_o3.sdk.differences import DatasetDifference, compare_annotations
from vision_o3.sdk.download import fetch, plan
from vision_o3.sdk.problems import not_understood
from vision_o3.sdk.resolving import Resolver
from vision_o3.sdk.session import Session
from vision_o3.sdk.transport import HTTPTransport
from vision_o3.sdk.upload import FormBody
from vision_o3.sdk.verifier import CIDVerifier
from vision_o3.sdk.versions import DatasetInfo, Info, ModelInfo, VersionInfo, parse_info

if TYPE_CHECKING:
    from types import TracebackType

    from vision_o3.sdk.download import Progress
    from vision_o3.sdk.retry import Clock, RetryPolicy
    from vision_o3.sdk.session import SignIn
    from vision_o3.sdk.transport import Transport

Filters = Mapping[str, Union[str, Iterable[str]]]
"""Of a list: ``framework model_type format owner q sort``; ``tags``, all of them."""

_PAGE_SIZE = 200


class VisionO3Client:
    """Finds, fetches and publishes; no path leads to a byte that was not verified.

    Safe for several threads, and several processes may share a cache. Use it in a
    ``with`` block, or ``close`` it.

    Args:
        gateway_url: For example ``https://models.example.com``.
        api_token: A token; it is not renewed.
        cache_dir: Where verified files are kept.
        credentials: Client id and secret; tokens are got and renewed with them.
        max_cache_bytes: The least recently used files are removed beyond this.
        timeout: Longest wait for the next bytes from the gateway, in seconds.
        retries: When failed exchanges are tried again.
        progress: Called with bytes done and bytes in all, by downloads and uploads.
        transport: What carries requests; default: ``HTTPTransport``.
        clock: Time; default: the ``time`` module.

    Raises:
        InputError: Not a gateway's URL, or both token and credentials.
    """

    def __init__(  # noqa: PLR0913 - each by keyword, each with a default
        self,
        gateway_url: str,
        api_token: Optional[str] = None,
        cache_dir: Union[str, Path] = "~/.vision-o3",
        *,
        credentials: Optional[Tuple[str, str]] = None,
        max_cache_bytes: int = DEFAULT_MAX_BYTES,
        timeout: float = 30.0,
        retries: Optional[RetryPolicy] = None,
        progress: Optional[Progress] = None,
        transport: Optional[Transport] = None,
        clock: Optional[Clock] = None,
    ) -> None:
        self._session = Session(
            gateway_url,
            api_token=api_token,
            credentials=credentials,
            transport=transport or HTTPTransport(read_timeout_s=timeout),
            policy=retries,
            clock=clock,
        )
        self._cache = Cache(cache_dir, max_cache_bytes)
        self._resolver = Resolver(self._session, self._cache)
        self._files = DatasetFiles(self._session, self._cache, self.download, progress)
        self._progress = progress

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

    def sign_in(self) -> SignIn:
        """Get a token for the credentials now; other calls do so by themselves.

        Raises:
            UnauthenticatedError: There are no credentials, or they are refused.
            VisionO3Error: The gateway could not be asked.
        """
        return self._session.sign_in()

    # Models

    def list_models(self, filters: Optional[Filters] = None) -> List[ModelInfo]:
        """Return the latest version of each model that passes all filters.

        Raises:
            InputError: A filter is not known.
            VisionO3Error: The gateway could not be asked, or refused.
        """
        return list(self._list(ModelInfo, filters))

    def get_model_info(self, name: str, version: Optional[int] = None) -> ModelInfo:
        """Return what is known of a version, by default the latest.

        A version that was seen before needs no network: versions never change. If the
        gateway cannot be asked for the latest, its last known answer is returned,
        marked ``stale``, with a warning in the log.

        Raises:
            NotFoundError: There is no such model or version.
            InvalidNameError, InvalidVersionError: Neither can there be.
            IntegrityError: A version is now said to have other content than before.
            VisionO3Error: The gateway could not be asked, or refused.
        """
        return self._resolver.resolve(ModelInfo, name, version)

    def download_model(
        self, name: str, version: Optional[int] = None, verify: bool = True
    ) -> Path:
        """Return the path of a version's file, by default the latest's.

        It is fetched unless the cache has it. What is fetched is always verified,
        each 1 MiB before it is written.

        Args:
            name: The model.
            version: Default: the latest, resolved as ``get_model_info`` does.
            verify: Verify a cached copy again, and fetch it anew if it has rotted.

        Raises:
            IntegrityError: The gateway gave other bytes than the CID names. Nothing of
                them was kept.
            StorageFullError, CacheError: There is no room, or no permission.
            VisionO3Error: As ``get_model_info`` says.
        """
        return self.download(self._resolver.resolve(ModelInfo, name, version), verify)

    def download_model_by_cid(self, cid: str, verify: bool = True) -> Path:
        """Return the path of the file that a CID names; see ``download_model``.

        Raises:
            InvalidCIDError: Not a CID of the accepted kind.
            NotFoundError: No model has this content.
            VisionO3Error: As ``download_model`` says.
        """
        return self._download_by_cid(ModelInfo, cid, verify)

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

        The file is hashed first, and the gateway refuses bytes that are not the same.
        So it may be sent again after a failure: if the latest version has this content,
        it is answered and nothing is published.

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
            InputError: The file, the name or a field is not acceptable.
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

    # Datasets

    def list_datasets(self, filters: Optional[Filters] = None) -> List[DatasetInfo]:
        """Return the latest version of each dataset; see ``list_models``."""
        return list(self._list(DatasetInfo, filters))

    def get_dataset_info(self, name: str, version: Optional[int] = None) -> DatasetInfo:
        """Return what is known of a version; see ``get_model_info``."""
        return self._resolver.resolve(DatasetInfo, name, version)

    def download_dataset(
        self, name: str, version: Optional[int] = None, verify: bool = True
    ) -> Path:
        """Return the path of a version's file; see ``download_model``."""
        return self.download(self._resolver.resolve(DatasetInfo, name, version), verify)

    def download_dataset_by_cid(self, cid: str, verify: bool = True) -> Path:
        """Return the path of a CID's file; see ``download_model_by_cid``."""
        return self._download_by_cid(DatasetInfo, cid, verify)

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

    # Files of datasets

    def get_dataset_manifest(
        self, name: str, version: Optional[int] = None
    ) -> Manifest:
        """Return the list of an archive's files, verified.

        A manifest that was fetched before needs no network.

        Raises:
            NotFoundError: There is no such version, or it is not an archive.
            IntegrityError: The gateway gave other bytes than the CID names.
            MalformedBlockError: They are no manifest, or one with an unsafe path.
            LimitExceededError: It is longer than 256 MiB.
            VisionO3Error: As ``get_model_info`` says.
        """
        return self._files.manifest(self.get_dataset_info(name, version))

    def download_dataset_file(
        self, name: str, path: str, version: Optional[int] = None
    ) -> Path:
        """Return the path of one file of an archive, verified; see ``download_model``.

        Nothing else of the archive is fetched. Name the version when many files are
        wanted: the latest is asked for each time.

        Args:
            name: The dataset.
            path: The file's, as the manifest lists it.
            version: Default: the latest.

        Raises:
            InvalidPathError: No file can have this path.
            NotFoundError: There is no such file.
            VisionO3Error: As ``get_dataset_manifest`` and ``download_model`` say.
        """
        return self._files.download(self.get_dataset_info(name, version), path)

    def open_dataset_file(
        self, name: str, path: str, version: Optional[int] = None
    ) -> BinaryIO:
        """Return one file of an archive, open for reading, verified; close it.

        Raises:
            VisionO3Error: As ``download_dataset_file`` says.
        """
        return self._files.open(self.get_dataset_info(name, version), path)

    def extract_dataset(
        self,
        name: str,
        target: Union[str, Path],
        version: Optional[int] = None,
        paths: Optional[Sequence[str]] = None,
        *,
        overwrite: bool = False,
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

        Raises:
            AlreadyExistsError: Something else stands where a file belongs; if it was
                there before, nothing has been written.
            NotFoundError: One of the paths is of no file.
            IntegrityError: The archive is not as its manifest says; of it, nothing is
                left. Or a file is not; it is not there, but those before it are.
            StorageFullError, CacheError: There is no room, or no permission.
            VisionO3Error: As ``get_dataset_manifest`` and ``download_model`` say.
        """
        info = self.get_dataset_info(name, version)
        return self._files.extract(info, Path(target), paths, overwrite=overwrite)

    def compare_datasets(self, name: str, before: int, after: int) -> DatasetDifference:
        """Return what changed from one version to another: files and annotations.

        Found on the device. It needs no network for versions that were seen before
        and manifests that were fetched before.

        Raises:
            VisionO3Error: As ``get_dataset_manifest`` says; versions that are not
                archives have no files to compare.
        """
        old = self.get_dataset_info(name, before)
        new = self.get_dataset_info(name, after)
        files = None
        if old.manifest_cid is not None and new.manifest_cid is not None:
            files = compare(self._files.manifest(old), self._files.manifest(new))
        annotations = compare_annotations(old.facts, new.facts)
        return DatasetDifference(old, new, files, annotations)

    # Cache

    def clear_cache(self) -> None:
        """Remove all files from the cache, and what is known of versions.

        Raises:
            CacheError: Something cannot be removed.
        """
        self._cache.clear()

    def get_cache_size(self) -> int:
        """Return the bytes of all files in the cache."""
        return self._cache.size()

    # What models and datasets share

    def download(self, info: VersionInfo, verify: bool = True) -> Path:
        """Return the path of a version's file; see ``download_model``."""
        cid = CID.parse(info.cid)
        cached = self._cache.find(cid, info.filename, verify=verify)
        if cached is not None:
            return cached
        table = plan(self._session, info)
        path = f"/{info.collection}/cid/{cid}/download"
        with self._cache.write(table.size) as partial:
            fetch(self._session, path, table, partial.descriptor, self._progress)
            kept = self._cache.keep(partial, cid, info.filename)
        self._cache.evict(keep=cid)
        return kept

    def _download_by_cid(self, kind: Type[Info], text: str, verify: bool) -> Path:
        cid = CID.parse(text)
        cached = self._cache.find(cid, verify=verify)
        if cached is not None:
            return cached
        return self.download(self._resolver.resolve_cid(kind, text), verify)

    def _list(self, kind: Type[Info], filters: Optional[Filters]) -> Iterator[Info]:
        query: List[Tuple[str, str]] = []
        for name, value in (filters or {}).items():
            values = [value] if isinstance(value, (str, int)) else value
            query += [(name, str(each)) for each in values]
        page, seen, total = 1, 0, 1
        while seen < total:
            answer = self._session.get_object(
                f"/{kind.collection}",
                [*query, ("page", str(page)), ("page_size", str(_PAGE_SIZE))],
            )
            items, total = _page(answer)
            if not items:
                return
            yield from (parse_info(kind, item) for item in items)
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
        if expected is not None:
            CID.parse(expected)
        try:
            size = path.stat().st_size
            cid = CIDVerifier.compute_cid(path)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}.") from error
        if expected not in (None, cid):
            raise CIDMismatchError(
                f"{path} is {cid}, not {expected}.", expected=expected, actual=cid
            )
        given = [(name, value) for name, value in (*fields, ("cid", cid)) if value]
        form = FormBody(given, path, size, self._progress)
        headers = {
            "Content-Type": form.content_type,
            "Content-Length": str(form.size),
        }
        document = self._session.send_for_object(
            "POST", f"/{kind.collection}", headers, form
        )
        info = parse_info(kind, document)
        if info.cid != cid:
            raise not_understood(f"it is about {info.cid}, not {cid}")
        return info


def _page(answer: Dict[str, Any]) -> Tuple[List[Any], int]:
    items, total = answer.get("items"), answer.get("total")
    if not isinstance(items, list) or not isinstance(total, int):
        raise not_understood("it is not a list")
    return items, total
