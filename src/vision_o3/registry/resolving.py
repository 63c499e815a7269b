"""From a name, a number or a CID to a version, and what is kept of that in memory.

A published version never changes, but which one is a line's latest does, and any may be
blocked. So what is kept has a time-to-live, and is dropped as soon as this process is
told of a change to its line: by its own publisher, and by other gateways through the
database (``db/changes.py``). It is kept only while others do tell (ADR 13, ADR 16).
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from vision_o3.db import queries, withdrawals
from vision_o3.errors import NotFoundError
from vision_o3.naming import parse_name, parse_version
from vision_o3.registry.values import Version, to_version
from vision_o3.registry.watching import UNWATCHED, Event
from vision_o3.registry.withdrawn import withdrawn_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from vision_o3.content.cid import CID
    from vision_o3.db.engine import Database
    from vision_o3.db.models import Collection
    from vision_o3.registry.watching import Watcher

_CAPACITY = 32 << 20
"""Bytes, roughly, that all kept versions take."""
_PLAIN = 2048
"""Bytes, roughly, of a version without its texts, and of keeping it."""
_SPREAD = 8
"""How much larger facts are in memory than written out."""


class Question(NamedTuple):
    """What can be asked for: a line's latest, one of its versions, or a content."""

    collection: str
    name: str | None = None
    number: int | None = None
    cid: CID | None = None

    @property
    def group(self) -> tuple[str, str | None]:
        """What a change that touches the answer is told by.

        The version that a CID names depends on all lines of the collection.
        """
        return self.collection, self.name


@dataclass(eq=False, slots=True)
class _Query:
    """One that is under way. Equal to no other."""

    asked_at: float
    outdated: bool = False
    """The answer was, or may have been, changed meanwhile."""
    seen: int = 0
    """The highest number that a query of the same question found meanwhile."""


@dataclass(frozen=True, slots=True)
class _Kept:
    version: Version
    until: float
    weight: int


class MetadataCache:
    """Versions that were found, for the next who asks. Safe in any thread.

    Never keeps what was read before a change that it was told of, nor lets an older
    version of a line follow a newer one. That nothing is found is not kept.

    Args:
        ttl_s: How long an answer is kept at most, counted from the question.
        capacity: Bytes, roughly; what was not used for longest goes first.
        clock: Tells monotonic seconds.
        commits: Tells a number that is another one after each commit by whomever, for
            databases that are asked rather than tell. Looked at before each answer.
        watcher: Is told which questions were answered from memory.
    """

    def __init__(
        self,
        ttl_s: float,
        *,
        capacity: int = _CAPACITY,
        clock: Callable[[], float] = time.monotonic,
        commits: Callable[[], int] | None = None,
        watcher: Watcher = UNWATCHED,
    ) -> None:
        self._ttl_s = ttl_s
        self._watcher = watcher
        self._capacity = capacity
        self._clock = clock
        self._commits = commits
        self._seen_commits = -1
        self._told = commits is not None
        self._kept: OrderedDict[Question, _Kept] = OrderedDict()
        self._weight = 0
        self._groups: defaultdict[tuple[str, str | None], set[Question]]
        self._groups = defaultdict(set)
        self._under_way: defaultdict[Question, set[_Query]] = defaultdict(set)
        self._lock = threading.Lock()

    def find(self, question: Question) -> Version | None:
        """Return the answer if it is kept. Never blocks for long."""
        with self._lock:
            self._look_for_commits()
            kept = self._kept.get(question)
            if kept is None:
                return None
            if self._clock() >= kept.until:
                self._drop(question)
                return None
            self._kept.move_to_end(question)
        self._watcher.tell(Event.VERSION_KEPT)
        return kept.version

    def resolve(self, question: Question, ask: Callable[[], Version]) -> Version:
        """Return the kept answer, or ask for it and keep it if that is safe.

        Raises:
            Whatever ``ask`` raises; then nothing is kept.
        """
        found = self.find(question)
        if found is not None:
            return found
        self._watcher.tell(Event.VERSION_ASKED)
        query = _Query(self._clock())
        with self._lock:
            self._under_way[question].add(query)
        answer: Version | None = None
        try:
            answer = ask()
        finally:
            with self._lock:
                self._end(question, query)
                if answer is not None:
                    self._keep(question, query, answer)
        return answer

    def changed(self, collection: str, name: str) -> None:
        """Take note that a line was, or may have been, changed."""
        with self._lock:
            self._forget((collection, name))
            self._forget((collection, None))

    def reset(self, told: bool) -> None:  # noqa: FBT001 - as a listener calls it
        """Forget everything; from now on, changes by others are told, or are not."""
        with self._lock:
            self._told = told
            self._forget_all()

    # ------------------------------------------------------ all under the lock

    def _look_for_commits(self) -> None:
        if self._commits is None:
            return
        number = self._commits()
        if number != self._seen_commits:
            self._seen_commits = number
            self._forget_all()

    def _forget_all(self) -> None:
        for queries_under_way in self._under_way.values():
            for query in queries_under_way:
                query.outdated = True
        self._kept.clear()
        self._groups.clear()
        self._weight = 0

    def _end(self, question: Question, query: _Query) -> None:
        others = self._under_way[question]
        others.remove(query)
        if not others:
            del self._under_way[question]

    def _keep(self, question: Question, query: _Query, answer: Version) -> None:
        number = answer.version
        for other in self._under_way.get(question, ()):
            other.seen = max(other.seen, number)
        kept = self._kept.get(question)
        if kept is not None and kept.version.version < number:
            # Also if ours cannot be kept: having answered it, we do not go back.
            self._drop(question)
        if query.outdated or number < query.seen or not self._told:
            return
        self._drop(question)
        weight = _weigh(answer)
        self._kept[question] = _Kept(answer, query.asked_at + self._ttl_s, weight)
        self._groups[question.group].add(question)
        self._weight += weight
        while self._weight > self._capacity:
            self._drop(next(iter(self._kept)))

    def _forget(self, group: tuple[str, str | None]) -> None:
        for question in tuple(self._groups.get(group, ())):
            self._drop(question)
        for question, queries_under_way in self._under_way.items():
            if question.group == group:
                for query in queries_under_way:
                    query.outdated = True

    def _drop(self, question: Question) -> None:
        kept = self._kept.pop(question, None)
        if kept is None:
            return
        self._weight -= kept.weight
        group = self._groups[question.group]
        group.discard(question)
        if not group:
            del self._groups[question.group]


class Resolver:
    """Finds the versions of one collection. Safe in any thread; blocks.

    Args:
        cache: Kept answers, shared by all collections; ``None`` asks every time.
    """

    def __init__(
        self,
        collection: Collection,
        database: Database,
        cache: MetadataCache | None = None,
    ) -> None:
        self._collection = collection
        self._database = database
        self._cache = cache

    def latest(self, name: str) -> Version:
        """Return a line's latest version that is neither blocked nor purged.

        Raises:
            InvalidNameError: Not a name.
            NotFoundError: Nothing is published under it.
            VersionBlockedError, VersionPurgedError: All its versions are withdrawn.
        """
        parse_name(name)
        question = Question(self._collection.name, name)
        return self._resolve(question, lambda: self._find_latest(name))

    def version(self, name: str, number: int) -> Version:
        """Return one version of a line, withdrawn or not.

        Raises:
            InvalidNameError, InvalidVersionError: Not a name or number.
            NotFoundError: No such line, or it has no such version.
        """
        parse_name(name)
        parse_version(number)
        question = Question(self._collection.name, name, number)
        return self._resolve(question, lambda: self._find_version(name, number))

    def by_cid(self, cid: CID, lines: frozenset[str] | None = None) -> Version:
        """Return the newest published version that has this content.

        One that is withdrawn only if all are; of these, one that was not purged.

        Args:
            cid: The content's.
            lines: Only of these lines.

        Raises:
            NotFoundError: There is none in this collection, or among these lines.
        """
        if lines is not None:
            return self._find_by_cid(cid, lines)
        question = Question(self._collection.name, cid=cid)
        return self._resolve(question, lambda: self._find_by_cid(cid))

    def kept(
        self,
        name: str | None = None,
        number: int | None = None,
        cid: CID | None = None,
    ) -> Version | None:
        """Return what ``latest``, ``version`` or ``by_cid`` would, if it is kept.

        Does not block, so that an event loop may ask before it goes to a thread.
        """
        if self._cache is None:
            return None
        return self._cache.find(Question(self._collection.name, name, number, cid))

    def changed(self, name: str) -> None:
        """Forget what is kept of a line that this process changed."""
        if self._cache is not None:
            self._cache.changed(self._collection.name, name)

    def no_line(self, name: str) -> NotFoundError:
        """Return the error that says that a line is not there."""
        return NotFoundError(
            f"Nothing is published as {name!r} in {self._collection.name}. "
            f"GET /{self._collection.name} lists what is.",
            name=name,
        )

    def _resolve(self, question: Question, ask: Callable[[], Version]) -> Version:
        return ask() if self._cache is None else self._cache.resolve(question, ask)

    def _find_latest(self, name: str) -> Version:
        with self._database.read() as session:
            found = queries.find_latest(session, self._collection, name)
            if found is not None:
                return to_version(self._collection, *found)
            last = withdrawals.find_last(session, self._collection, name)
        if last is None:
            raise self.no_line(name)
        raise withdrawn_error(to_version(self._collection, *last))

    def _find_version(self, name: str, number: int) -> Version:
        with self._database.read() as session:
            found = queries.find_version(session, self._collection, name, number)
            if found is not None:
                return to_version(self._collection, *found)
            line = queries.find_line(session, self._collection, name)
        if line is None or not line.current_version:
            raise self.no_line(name)
        raise NotFoundError(
            f"{name!r} has no version {number}. Its latest is {line.current_version}.",
            name=name,
        )

    def _find_by_cid(self, cid: CID, lines: frozenset[str] | None = None) -> Version:
        with self._database.read() as session:
            found = queries.find_by_cid(session, self._collection, cid, lines)
            if found is None:
                raise NotFoundError(
                    f"No version in {self._collection.name} has the CID {cid}.",
                    cid=str(cid),
                )
            return to_version(self._collection, *found)


def _weigh(version: Version) -> int:
    """Return roughly the bytes that a version takes in memory."""
    texts = len(version.description) + sum(map(len, version.tags))
    return _PLAIN + texts + _SPREAD * len(repr(version.facts))
