"""Publishing a file: ask whether it is known, and if not send it, in parts if large.

Nothing is noted on this side. An upload is found again by its CID, and the gateway
says what it has: so a link may break, and either side be killed, at any moment.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Dict,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

from vision_o3.content.cid import CID
from vision_o3.content.dag import Dag, cid_of_stream
from vision_o3.content.leaves import LeafTable
from vision_o3.content.profile import UNIXFS_V1_2025
from vision_o3.errors import (
    CIDMismatchError,
    ContentNeededError,
    InputError,
    IntegrityError,
    NotFoundError,
    TransportError,
    VisionO3Error,
)
from vision_o3.sdk.problems import not_understood
from vision_o3.sdk.session import read_object

if TYPE_CHECKING:
    from typing import BinaryIO

    from _typeshed import ReadableBuffer

    from vision_o3.sdk.download import Progress
    from vision_o3.sdk.session import Session

PART_SIZE = 8 << 20
"""Bytes of a part at first, and of the largest file that is sent whole."""
LARGEST_PART = 64 << 20
"""Bytes of a part on a link that does not break: parts double up to this."""
_ROUNDS = 2
"""Times that a gateway lacks no less than before, until the file is sent by a form."""
_NO_PARTS = (404, 405, 501)
"""Statuses of what knows no uploads in parts: a gateway, or a proxy before it."""
_PIECE_SIZE = 1 << 20

_Range = Tuple[int, int]


class Uploaded(NamedTuple):
    """What was published: the file's CID, and the gateway's answer."""

    cid: CID
    document: Dict[str, Any]


def publish(
    session: Session,
    collection: str,
    path: Path,
    fields: Sequence[Tuple[str, str]],
    expected: Optional[CID] = None,
    progress: Optional[Progress] = None,
) -> Uploaded:
    """Publish a file with these fields, having sent what the gateway lacks of it.

    Args:
        session: The gateway's.
        collection: ``models`` or ``datasets``.
        path: The file.
        fields: Of the form; empty ones are left out.
        expected: What the file must be.
        progress: Called with the file's bytes that the gateway has, and in all.

    Raises:
        CIDMismatchError: The file is not what ``expected`` names.
        InputError: The file cannot be read, or changed meanwhile.
        VisionO3Error: The gateway could not be asked, or refused.
    """
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is not a file: give the path of one.")
        with path.open("rb", buffering=0) as file:
            dag = cid_of_stream(_Bounded(file, session))
    except OSError as error:
        raise _unreadable(path, error) from error
    if expected not in (None, dag.root):
        raise CIDMismatchError(
            f"{path} is {dag.root}, not {expected}.",
            expected=str(expected),
            actual=str(dag.root),
        )
    upload = _Upload(session, path, dag, progress or _tell_nobody)
    given = [(name, value) for name, value in fields if value]
    given += [("cid", str(dag.root)), ("filename", path.name)]
    return Uploaded(dag.root, upload.publish(f"/{collection}", given))


class FormBody:
    """A multipart form (RFC 7578), streamed; can be sent again.

    Attributes:
        content_type: With the boundary.
        size: Bytes of the whole form.

    Args:
        fields: Names and values, in order.
        path: The one file, which comes last; read anew each time that the form is
            sent. Default: there is none.
        file_size: Its length, which must not change.
        progress: Called with the file's bytes sent, and in all.
    """

    def __init__(
        self,
        fields: Sequence[Tuple[str, str]],
        path: Optional[Path] = None,
        file_size: int = 0,
        progress: Optional[Progress] = None,
    ) -> None:
        boundary = os.urandom(24).hex()
        self.content_type = f"multipart/form-data; boundary={boundary}"
        parts = [
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'
            f"{value}\r\n"
            for name, value in fields
        ]
        end = f"--{boundary}--\r\n"
        if path is not None:
            filename = path.name.replace('"', "%22").replace("\r", "").replace("\n", "")
            parts.append(
                f'--{boundary}\r\nContent-Disposition: form-data; name="file"; '
                f'filename="{filename}"\r\nContent-Type: application/octet-stream'
                "\r\n\r\n"
            )
            end = f"\r\n{end}"
        self._head = "".join(parts).encode(errors="replace")
        self._tail = end.encode()
        self._path = path
        self._file_size = file_size
        self._progress = progress or _tell_nobody
        self.size = len(self._head) + file_size + len(self._tail)

    def __iter__(self) -> Iterator[ReadableBuffer]:
        """Yield the form from its start, a view of one buffer for each piece.

        Raises:
            InputError: The file changed its length, or cannot be read.
        """
        yield self._head
        if self._path is not None:
            size = self._file_size
            yield from _FilePart(
                self._path, 0, size, lambda sent: self._progress(sent, size)
            )
        yield self._tail


class _FilePart:
    """The bytes ``[start, end)`` of a file; read anew each time.

    Args:
        tell: Called with the bytes of it that were sent.
    """

    def __init__(
        self, path: Path, start: int, end: int, tell: Callable[[int], None]
    ) -> None:
        self._path = path
        self._start = start
        self._size = end - start
        self._tell = tell

    def __iter__(self) -> Iterator[ReadableBuffer]:
        sent = 0
        buffer = memoryview(bytearray(min(_PIECE_SIZE, self._size)))
        try:
            with self._path.open("rb", buffering=0) as file:
                file.seek(self._start)
                while sent < self._size:
                    count = file.readinto(buffer[: self._size - sent])
                    if not count:
                        raise InputError(f"{self._path} became shorter meanwhile.")
                    yield buffer[:count]
                    sent += count
                    self._tell(sent)
        except OSError as error:
            raise _unreadable(self._path, error) from error


class _Upload:
    """One file on its way to one gateway."""

    def __init__(
        self, session: Session, path: Path, dag: Dag, progress: Progress
    ) -> None:
        self._session = session
        self._path = path
        self._dag = dag
        self._progress = progress
        self._page = f"/uploads/{dag.root}"
        self._told = -1
        self._missing: List[_Range] = []

    def publish(self, page: str, fields: Sequence[Tuple[str, str]]) -> Dict[str, Any]:
        """Return the answer of the page to the form, having sent what it lacks."""
        sidecar = self._dag.sidecar()
        size = self._dag.size
        rounds = _ROUNDS if sidecar is not None and size > PART_SIZE else 0
        least = size + 1
        while True:
            with suppress(ContentNeededError):
                document = self._send_form(page, FormBody(fields))
                self._missing = []
                self._tell(0)
                return document
            if sidecar is None or not rounds or not self._begin(sidecar):
                break
            missing = _total(self._missing)
            rounds = _ROUNDS if missing < least else rounds - 1
            least = min(least, missing)
            self._send_missing()
        form = FormBody(fields, self._path, size, self._progress)
        return self._send_form(page, form)

    def _send_form(self, page: str, form: FormBody) -> Dict[str, Any]:
        headers = {
            "Content-Type": form.content_type,
            "Content-Length": str(form.size),
            **self._headers,
        }
        return self._session.send_for_object("POST", page, headers, form)

    @property
    def _headers(self) -> Dict[str, str]:
        """What lets a load balancer send all of an upload to one gateway."""
        return {"X-Vision-O3-CID": str(self._dag.root)}

    def _begin(self, sidecar: bytes) -> bool:
        """Ask what is missing; return whether the gateway takes parts at all."""
        headers = {
            "Content-Type": "application/vnd.ipld.car",
            "Content-Length": str(len(sidecar)),
            **self._headers,
        }
        # Not as bytes: the gateway hashes what it has first, which may take a while.
        try:
            answer = self._session.send_for_object(
                "PUT", self._page, headers, [sidecar]
            )
        except VisionO3Error as error:
            if error.values.get("status") in _NO_PARTS:
                return False
            raise
        self._missing = _ranges(answer, 0, self._dag.size)
        self._tell(0)
        return True

    def _send_missing(self) -> None:
        """Send all that is missing; end early if the gateway knows nothing of it."""
        attempts = self._session.attempts()
        size = PART_SIZE
        unsure: Optional[_Range] = None
        while self._missing or unsure:
            try:
                if unsure is not None:
                    still = self._ask(unsure)
                    if _total(still) < unsure[1] - unsure[0]:
                        attempts.progressed()
                    self._missing[:0] = still
                    unsure = None
                    self._tell(0)
                    continue
                start, end = self._missing.pop(0)
                if end - start > size:
                    self._missing.insert(0, (start + size, end))
                    end = start + size
                unsure = (start, end)
                self._send_part(start, end)
                unsure = None
                attempts.progressed()
                size = min(2 * size, LARGEST_PART)
            except NotFoundError:
                return  # expired, or another gateway answers now
            except VisionO3Error as error:
                size = PART_SIZE
                attempts.failed(self._judged(error, unsure))

    def _send_part(self, start: int, end: int) -> None:
        left = end - start

        def tell(sent: int) -> None:
            self._tell(left - sent)

        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(end - start),
            **self._headers,
        }
        part = _FilePart(self._path, start, end, tell)
        with self._session.exchange(
            "PUT", f"{self._page}/parts/{start}", headers, part
        ):
            pass

    def _ask(self, span: _Range) -> List[_Range]:
        """Return what is missing of a part that broke off."""
        start, end = span
        page = f"{self._page}?start={start}&end={end}"
        with self._session.exchange("GET", page, self._headers) as response:
            return _ranges(read_object(response), start, end)

    def _judged(self, error: VisionO3Error, part: Optional[_Range]) -> VisionO3Error:
        """Return the error; if the gateway got a wrong leaf, whose fault that is.

        Raises:
            InputError: The file changed.
        """
        if part is None or not isinstance(error, CIDMismatchError):
            return error
        table = LeafTable.from_sidecar(self._dag.root, self._dag.sidecar() or b"")
        try:
            with self._path.open("rb", buffering=0) as file:
                file.seek(part[0])
                for index in table.covering(*part):
                    start, end = table.span(index)
                    table.verify(index, file.read(end - start) or b"")
        except IntegrityError as changed:
            raise InputError(
                f"{self._path} changed while it was uploaded. Upload it again."
            ) from changed
        except OSError as failed:
            raise _unreadable(self._path, failed) from failed
        return TransportError("A part was damaged on the way to the gateway.")

    def _tell(self, left: int) -> None:
        """Tell how much is in, when ``left`` bytes of the part at work are not."""
        size = self._dag.size
        done = size - left - _total(self._missing)
        if done > self._told:
            self._told = done
            self._progress(done, size)


class _Bounded:
    """A file that is read as long as the call may go on."""

    def __init__(self, file: BinaryIO, session: Session) -> None:
        self._file = file
        self._bounds = session.bounds

    def readinto(self, buffer: bytearray) -> Optional[int]:
        self._bounds.check()
        count: Optional[int] = self._file.readinto(buffer)  # type: ignore[attr-defined] # raw
        return count


def _ranges(answer: Dict[str, Any], start: int, end: int) -> List[_Range]:
    """Return what an answer says to be missing of a range: whole leaves, in order."""
    missing = answer.get("missing")
    chunk_size = UNIXFS_V1_2025.chunk_size
    found: List[_Range] = []
    for each in missing if isinstance(missing, list) else [None]:
        if not (
            isinstance(each, list)
            and [type(bound) for bound in each] == [int, int]
            and start <= each[0] < each[1] <= end
            and each[0] % chunk_size == 0
            and (each[1] % chunk_size == 0 or each[1] == end)
        ):
            raise not_understood("it does not say what is missing")
        start = each[1]
        found.append((each[0], each[1]))
    return found


def _total(ranges: Sequence[_Range]) -> int:
    return sum(end - start for start, end in ranges)


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(f"{path} cannot be read: {error.strerror}.")


def _tell_nobody(_: int, __: int) -> None:
    """Where there is no callback for progress."""
