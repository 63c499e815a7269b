from __future__ import annotations

import asyncio
import gc
import inspect
import threading
from pathlib import Path
from typing import Any, Awaitable, Callable, Dict, List, TypeVar

import pytest

from tests.fakes.fake_gateway import Answer, FakeGateway, InMemoryTransport
from tests.test_sdk.conftest import MIB, content_of
from vision_o3 import errors
from vision_o3.sdk.aio import AsyncVisionO3Client
from vision_o3.sdk.client import VisionO3Client

T = TypeVar("T")
CONTENT = content_of(2 * MIB + 7)
BY_THREAD = {"bounded"}
"""Binds the calls of a thread, which a task does not have: asyncio has wait_for."""
NOT_AWAITED = {"cancel", "iter_models", "iter_datasets"}


def public_methods(cls: type) -> Dict[str, Any]:
    return {
        name: member
        for name, member in vars(cls).items()
        if not name.startswith("_") and inspect.isfunction(member)
    }


def test_both_clients_have_the_same_methods_and_signatures() -> None:
    blocking = public_methods(VisionO3Client)
    awaited = public_methods(AsyncVisionO3Client)
    assert set(awaited) == set(blocking) - BY_THREAD
    for name, method in awaited.items():
        found, expected = inspect.signature(method), inspect.signature(blocking[name])
        assert found.parameters == expected.parameters, name
        assert inspect.iscoroutinefunction(method) == (name not in NOT_AWAITED), name
        if not name.startswith("iter_"):
            assert found.return_annotation == expected.return_annotation, name


def run(
    work: Callable[[AsyncVisionO3Client], Awaitable[T]],
    gateway: FakeGateway,
    tmp_path: Path,
    **options: Any,
) -> T:
    """Return what work with a client returns, in an event loop of its own."""

    async def main() -> T:
        values: Dict[str, Any] = {
            "cache_dir": tmp_path / "cache",
            "transport": InMemoryTransport({gateway.url: gateway}),
            **options,
        }
        async with AsyncVisionO3Client(gateway.url, **values) as client:
            return await asyncio.wait_for(work(client), 20)

    return asyncio.run(main())


def test_downloads_are_the_right_bytes(gateway: FakeGateway, tmp_path: Path) -> None:
    for number in range(5):
        gateway.publish(f"m{number}", CONTENT + bytes([number]))

    async def work(client: AsyncVisionO3Client) -> List[Path]:
        names = [f"m{number}" for number in range(5)]
        return list(await asyncio.gather(*map(client.download_model, names)))

    paths = run(work, gateway, tmp_path, workers=3)
    assert [path.read_bytes()[-1] for path in paths] == list(range(5))
    assert all(path.read_bytes()[:-1] == CONTENT for path in paths)


def recording(method: Any, seen: Dict[str, Any]) -> Callable[..., str]:
    """Return what notes its arguments, by the names that a method gives them."""

    def record(*arguments: Any, **options: Any) -> str:
        bound = inspect.signature(method).bind(None, *arguments, **options)
        seen.update(bound.arguments)
        return "answered"

    return record


def test_every_method_hands_its_arguments_on(
    gateway: FakeGateway, tmp_path: Path
) -> None:
    """Each is called with a value of its own for each parameter."""
    blocking = public_methods(VisionO3Client)
    called: List[str] = []

    async def work(client: AsyncVisionO3Client) -> None:
        for name, method in public_methods(AsyncVisionO3Client).items():
            if name in NOT_AWAITED | {"close"}:
                continue
            parameters = list(inspect.signature(method).parameters.values())[1:]
            given = {each.name: object() for each in parameters}
            seen: Dict[str, Any] = {}
            setattr(client._client, name, recording(blocking[name], seen))
            positional = [
                given[each.name]
                for each in parameters
                if each.kind is not inspect.Parameter.KEYWORD_ONLY
            ]
            named = {
                each.name: given[each.name]
                for each in parameters
                if each.kind is inspect.Parameter.KEYWORD_ONLY
            }
            answer = await getattr(client, name)(*positional, **named)
            assert answer in ("answered", None), name
            assert {**seen, "self": None} == {**given, "self": None}, name
            called.append(name)

    run(work, gateway, tmp_path)
    assert len(called) >= 18


def test_pages_are_asked_for_as_they_are_needed(
    gateway: FakeGateway, tmp_path: Path
) -> None:
    gateway.page_size = 2
    for name in "abcde":
        gateway.publish(name, name.encode())
        gateway.publish(name, name.encode(), "datasets")

    async def work(client: AsyncVisionO3Client) -> None:
        models = client.iter_models({"framework": "onnx"})
        assert [(await models.__anext__()).name for _ in range(2)] == ["a", "b"]
        assert gateway.count("/models") == 1
        assert [model.name async for model in models] == ["c", "d", "e"]
        assert [each.name async for each in client.iter_datasets()] == list("abcde")

    run(work, gateway, tmp_path)


def test_errors_are_those_of_the_client(gateway: FakeGateway, tmp_path: Path) -> None:
    async def work(client: AsyncVisionO3Client) -> None:
        with pytest.raises(errors.NotFoundError):
            await client.get_model_info("none")

    run(work, gateway, tmp_path)


class Held:
    """A lie that holds an answer back until it is let go."""

    def __init__(self) -> None:
        self.reached, self.let_go = threading.Event(), threading.Event()

    def __call__(self, _: Answer) -> None:
        self.reached.set()
        assert self.let_go.wait(20)


async def reached(event: threading.Event) -> None:
    loop = asyncio.get_running_loop()
    assert await loop.run_in_executor(None, event.wait, 20)


def test_cancelled_task_ends_its_transfer(gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.publish("m", CONTENT)
    held = Held()
    gateway.lie("/download", held)

    async def work(client: AsyncVisionO3Client) -> None:
        ended: List[BaseException] = []
        original = client._client.download_model

        def watched(*arguments: Any, **options: Any) -> Path:
            try:
                return original(*arguments, **options)
            except BaseException as error:
                ended.append(error)
                raise

        client._client.download_model = watched  # type: ignore[method-assign] # to see
        task = asyncio.ensure_future(client.download_model("m"))
        await reached(held.reached)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        held.let_go.set()
        await client.close()
        assert [type(error) for error in ended] == [errors.CancelledError]

    run(work, gateway, tmp_path)
    gc.collect()  # "exception was never retrieved" would be a warning, so an error


def test_cancelling_the_client_ends_what_others_wait_for(
    gateway: FakeGateway, tmp_path: Path
) -> None:
    gateway.publish("m", CONTENT)
    held = Held()
    gateway.lie("/download", held)

    async def work(client: AsyncVisionO3Client) -> None:
        task = asyncio.ensure_future(client.download_model("m"))
        await reached(held.reached)
        client.cancel()
        held.let_go.set()
        with pytest.raises(errors.CancelledError):
            await task
        assert (await client.download_model("m")).read_bytes() == CONTENT

    run(work, gateway, tmp_path)
