"""What is kept of resolved versions, and for how long it may be wrong."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.fakes.model_files import tflite
from tests.test_registry.conftest import Registry
from vision_o3.content.dag import cid_of_bytes
from vision_o3.db.changes import CommitCounter
from vision_o3.db.models import DATASETS, MODELS
from vision_o3.errors import NotFoundError
from vision_o3.registry.resolving import MetadataCache, Question, Resolver
from vision_o3.registry.values import Version

TTL_S = 10.0
CID = cid_of_bytes(b"content")
LATEST = Question("models", "m")
PINNED = Question("models", "m", 1)
CONTENT = Question("models", cid=CID)


def version(number: int = 1, name: str = "m", description: str = "") -> Version:
    return Version(
        collection="models",
        id=f"{name}-{number}",
        name=name,
        version=number,
        cid=CID,
        file_format="tflite",
        file_size=1,
        description=description,
        tags=(),
        owner_id="ann",
        publisher="ann",
        created_at=datetime(2026, 11, 26, tzinfo=UTC),
        facts={},
        object_key="k",
        sidecar_key=None,
    )


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cache(clock: Clock) -> MetadataCache:
    """A cache that is told of changes."""
    cache = MetadataCache(TTL_S, clock=clock)
    cache.reset(True)
    return cache


def never() -> Version:
    raise AssertionError("The answer was kept: nobody is asked.")


@pytest.mark.parametrize("question", [LATEST, PINNED, CONTENT])
def test_an_answer_is_kept_until_its_time_is_over(
    cache: MetadataCache, clock: Clock, question: Question
) -> None:
    def ask_slowly() -> Version:
        clock.now += 2
        return version()

    assert cache.resolve(question, ask_slowly) == version()
    clock.now = TTL_S - 0.1  # counted from the question, not from the answer
    assert cache.resolve(question, never) == version()
    clock.now = TTL_S
    assert cache.find(question) is None
    assert cache.resolve(question, lambda: version(2)) == version(2)


@pytest.mark.parametrize("question", [LATEST, PINNED, CONTENT])
def test_what_may_change_is_kept_only_while_changes_are_told(
    clock: Clock, question: Question
) -> None:
    cache = MetadataCache(TTL_S, clock=clock)
    cache.resolve(question, version)
    assert cache.find(question) is None
    cache.reset(True)
    cache.resolve(question, version)
    assert cache.find(question) == version()
    cache.reset(False)
    cache.resolve(question, version)
    assert cache.find(question) is None


def test_a_change_drops_what_it_may_concern_and_nothing_else(
    cache: MetadataCache,
) -> None:
    concerned = [LATEST, PINNED, Question("models", "m", 2), CONTENT]
    others = [
        Question("models", "n"),
        Question("models", "n", 1),
        Question("datasets", "m"),
        Question("datasets", "m", 1),
        Question("datasets", cid=CID),
    ]
    for question in [*concerned, *others]:
        cache.resolve(question, version)
    cache.changed("models", "m")
    assert [q for q in concerned if cache.find(q) is not None] == []
    assert [q for q in others if cache.find(q) is None] == []


@pytest.mark.parametrize("told", [True, False])
def test_a_reset_drops_everything(cache: MetadataCache, told: bool) -> None:
    for question in (LATEST, PINNED, CONTENT):
        cache.resolve(question, version)
    cache.reset(told)
    assert [cache.find(q) for q in (LATEST, PINNED, CONTENT)] == [None] * 3


@pytest.mark.parametrize("question", [LATEST, PINNED, CONTENT])
@pytest.mark.parametrize("how", ["changed", "reset"])
def test_what_was_read_before_a_change_is_answered_but_not_kept(
    cache: MetadataCache, question: Question, how: str
) -> None:
    def ask_while_it_changes() -> Version:
        read = version()
        if how == "changed":
            cache.changed("models", "m")
        else:
            cache.reset(True)
        return read

    assert cache.resolve(question, ask_while_it_changes) == version()
    assert cache.find(question) is None


def test_another_lines_change_is_no_reason_not_to_keep(cache: MetadataCache) -> None:
    def ask_while_another_changes() -> Version:
        cache.changed("models", "n")
        cache.changed("datasets", "m")
        return version()

    cache.resolve(LATEST, ask_while_another_changes)
    assert cache.find(LATEST) == version()


def test_the_newer_of_two_answers_at_once_is_kept(cache: MetadataCache) -> None:
    def read_old_then_let_another_read_new() -> Version:
        read = version(1)
        assert cache.resolve(LATEST, lambda: version(2)).version == 2
        return read

    assert cache.resolve(LATEST, read_old_then_let_another_read_new).version == 1
    assert cache.resolve(LATEST, never).version == 2


def test_having_answered_a_newer_one_we_do_not_go_back(cache: MetadataCache) -> None:
    def read_new_while_another_change_is_told() -> Version:
        read = version(2)
        cache.changed("models", "m")  # of version 1, late
        assert cache.resolve(LATEST, lambda: version(1)).version == 1
        return read

    assert cache.resolve(LATEST, read_new_while_another_change_is_told).version == 2
    assert cache.find(LATEST) is None


def test_a_latest_that_was_withdrawn_gives_way_to_an_older_one(
    cache: MetadataCache,
) -> None:
    cache.resolve(LATEST, lambda: version(2))
    cache.changed("models", "m")
    assert cache.resolve(LATEST, lambda: version(1)).version == 1
    assert cache.resolve(LATEST, never).version == 1


def test_errors_are_not_kept_and_leave_nothing_behind(cache: MetadataCache) -> None:
    def fail() -> Version:
        raise NotFoundError("Not there yet.", name="m")

    with pytest.raises(NotFoundError):
        cache.resolve(LATEST, fail)
    assert cache.resolve(LATEST, version) == version()
    cache.changed("models", "m")
    assert (cache._under_way, cache._groups, cache._weight) == ({}, {}, 0)


def test_what_was_used_least_recently_goes_first(clock: Clock) -> None:
    cache = MetadataCache(TTL_S, capacity=3 * 5000, clock=clock)
    cache.reset(True)
    questions = [Question("models", "m", number) for number in range(1, 5)]

    def heavy() -> Version:
        return version(description="x" * 2500)

    for question in questions[:3]:
        cache.resolve(question, heavy)
    assert cache.find(questions[0]) is not None
    cache.resolve(questions[3], heavy)
    kept = [q for q in questions if cache.find(q) is not None]
    assert kept == [questions[0], questions[2], questions[3]]


def test_facts_weigh_and_what_is_too_heavy_is_not_kept(clock: Clock) -> None:
    cache = MetadataCache(TTL_S, capacity=20_000, clock=clock)
    cache.reset(True)
    heavy = replace(version(), facts={"operators": {str(n): n for n in range(1000)}})
    cache.resolve(PINNED, lambda: heavy)
    assert cache.find(PINNED) is None
    assert cache._weight == 0
    cache.resolve(PINNED, version)
    assert cache.find(PINNED) == version()


class Asking(threading.Thread):
    """One who asks, and is answered by the database when the test says so."""

    def __init__(self, cache: MetadataCache, machine: CacheMachine) -> None:
        super().__init__(daemon=True)
        self.read: int | None = None
        self.answer: int | None = None
        self.at_least = machine.floor
        self.not_before = machine.number_at(machine.clock.now - TTL_S)
        self.had_to_ask = False
        self._cache = cache
        self._arrived = threading.Event()
        self._go_on = threading.Event()
        self.start()
        assert self._arrived.wait(60)

    def run(self) -> None:
        try:
            self.answer = self._cache.resolve(LATEST, self._ask).version
        finally:
            self._arrived.set()

    def _ask(self) -> Version:
        self.had_to_ask = True
        self._arrived.set()
        assert self._go_on.wait(60)
        assert self.read is not None
        return version(self.read)

    def finish(self) -> None:
        self._go_on.set()
        self.join(60)
        assert self.answer is not None


class CacheMachine(RuleBasedStateMachine):
    """Any order of publishing, telling, reading and answering of one line.

    ``floor`` is what whoever asks now must be answered at least.
    """

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.cache = MetadataCache(TTL_S, clock=self.clock)
        self.told = True
        self.cache.reset(True)
        self.numbers = [(0.0, 1)]
        self.messages: list[int] = []
        self.floor = 1
        self.asking: list[Asking] = []

    def number_at(self, moment: float) -> int:
        return max((n for at, n in self.numbers if at <= moment), default=1)

    @property
    def number(self) -> int:
        return self.numbers[-1][1]

    @rule()
    def others_publish(self) -> None:
        self.numbers.append((self.clock.now, self.number + 1))
        if self.told:
            self.messages.append(self.number)

    @rule()
    def this_gateway_publishes(self) -> None:
        self.others_publish()
        self.cache.changed("models", "m")
        self.floor = self.number

    @precondition(lambda self: self.messages)
    @rule()
    def a_message_arrives(self) -> None:
        number = self.messages.pop(0)
        self.cache.changed("models", "m")
        self.floor = max(self.floor, number)

    @precondition(lambda self: self.messages)
    @rule()
    def a_message_is_lost(self) -> None:
        self.messages.pop(0)

    @rule(chance=st.integers(0, 3))
    def listening_ends_or_begins_again(self, chance: int) -> None:
        if self.told and chance:
            return  # rarely, or little is ever kept
        self.told = not self.told
        self.messages.clear()
        self.cache.reset(self.told)
        self.floor = self.number

    @rule(seconds=st.sampled_from([1.0, 1.0, 1.0, TTL_S / 2, TTL_S]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @precondition(lambda self: len(self.asking) < 4)
    @rule(read_at_once=st.booleans())
    def somebody_asks(self, read_at_once: bool) -> None:
        asking = Asking(self.cache, self)
        if asking.had_to_ask:
            asking.read = self.number if read_at_once else None
            self.asking.append(asking)
        else:
            asking.finish()
            self._check(asking)

    @precondition(lambda self: self.asking)
    @rule(chance=st.randoms(use_true_random=False))
    def the_database_reads_or_answers(self, chance: Random) -> None:
        asking = chance.choice(self.asking)
        if asking.read is None:
            asking.read = self.number
            return
        self.asking.remove(asking)
        asking.finish()
        assert asking.answer == asking.read
        self._check(asking)

    def _check(self, done: Asking) -> None:
        assert done.answer is not None
        assert done.answer >= done.at_least, "an older one followed a newer one"
        assert done.answer >= done.not_before, "older than the time-to-live allows"
        self.floor = max(self.floor, done.answer)

    @invariant()
    def not_told_not_kept(self) -> None:
        assert self.told or self.cache.find(LATEST) is None

    def teardown(self) -> None:
        for asking in self.asking:
            asking.read = self.number
            asking.finish()
        assert not self.cache._under_way


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(
    max_examples=150, stateful_step_count=50, deadline=None
)


@pytest.fixture
def resolvers(registry: Registry, cache: MetadataCache) -> list[Resolver]:
    return [Resolver(kind, registry.database, cache) for kind in (MODELS, DATASETS)]


def test_all_three_questions_are_answered_from_memory_the_second_time(
    registry: Registry, resolvers: list[Resolver]
) -> None:
    published = registry.publish(tflite(1)).version
    models, datasets = resolvers
    questions: list[Callable[[], Version]] = [
        lambda: models.latest("m"),
        lambda: models.version("m", 1),
        lambda: models.by_cid(published.cid),
    ]
    assert [ask() for ask in questions] == [published] * 3
    # Others publish, and tell nobody.
    registry.publish(tflite(2))
    registry.publish(tflite(1), name="n")
    assert [ask() for ask in questions] == [published] * 3
    models.changed("m")
    assert [ask().name for ask in questions] == ["m", "m", "n"]
    assert models.latest("m").version == 2
    with pytest.raises(NotFoundError, match="in datasets"):
        datasets.latest("m")


def test_what_is_not_there_is_found_once_it_is(
    registry: Registry, resolvers: list[Resolver]
) -> None:
    models = resolvers[0]
    for ask in (models.latest, lambda name: models.version(name, 1)):
        with pytest.raises(NotFoundError, match="Nothing is published"):
            ask("m")
    registry.publish(tflite(1))
    assert models.latest("m").version == models.version("m", 1).version == 1


def test_commit_by_whomever_is_noticed_before_an_answer() -> None:
    commits = [1]
    cache = MetadataCache(TTL_S, commits=lambda: commits[0])
    answers = iter([version(1), version(2)])
    for _ in range(2):
        assert cache.resolve(LATEST, lambda: next(answers)).version == 1
    commits[0] = 2
    assert cache.find(LATEST) is None
    for _ in range(2):
        assert cache.resolve(LATEST, lambda: next(answers)).version == 2


def test_commit_during_a_question_outdates_its_answer() -> None:
    commits = [1]
    cache = MetadataCache(TTL_S, commits=lambda: commits[0])

    def ask() -> Version:
        commits[0] = 2
        return version(1)

    assert cache.resolve(LATEST, ask).version == 1
    assert cache.find(LATEST) is None


def test_other_process_on_sqlite_is_seen_at_once(
    registry: Registry, tmp_path: Path
) -> None:
    """Its commits come by connections that this process knows nothing of."""
    counter = CommitCounter(f"sqlite:///{tmp_path}/registry.db")
    cache = MetadataCache(TTL_S, commits=counter)
    resolver = Resolver(MODELS, registry.database, cache)
    try:
        for number in range(1, 4):
            registry.publish(tflite(number, 100))
            assert resolver.latest("m").version == number
            assert resolver.kept("m") == resolver.latest("m")
    finally:
        counter.close()


def test_what_is_kept_is_found_without_asking(
    registry: Registry, resolvers: list[Resolver]
) -> None:
    published = registry.publish(tflite(1)).version
    models, datasets = resolvers
    assert models.kept("m") is None
    models.latest("m")
    assert (models.kept("m"), models.kept("m", 1)) == (published, None)
    models.version("m", 1)
    models.by_cid(published.cid)
    assert models.kept("m", 1) == models.kept(cid=published.cid) == published
    assert models.kept("../x") is datasets.kept("m") is None
    assert Resolver(MODELS, registry.database).kept("m") is None
