from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.fakes.model_files import tflite
from tests.test_integration.gateways import (
    Site,
    get_token,
    postgres_database,
    running,
)
from vision_o3.content.dag import cid_of_bytes

pytestmark = pytest.mark.integration


@contextmanager
def gateways(kind: str, home: Path) -> Iterator[tuple[list[str], str, Site]]:
    """Yield the URLs of one gateway on SQLite or two on PostgreSQL, and a token."""
    if kind == "sqlite":
        site = Site(home, f"sqlite:///{home}/registry.db")
        with running(site) as started:
            credentials = site.add_user("ann", "model:read", "model:write")
            yield [started[0].url], get_token(started[0].url, credentials), site
        return
    with postgres_database() as url:
        site = Site(home, url)
        with running(site, 2) as started:
            credentials = site.add_user("ann", "model:read", "model:write")
            urls = [gateway.url for gateway in started]
            yield urls, get_token(urls[0], credentials), site


def upload_all(
    urls: list[str], token: str, contents: list[bytes]
) -> list[httpx.Response]:
    def upload(numbered: tuple[int, bytes]) -> httpx.Response:
        number, content = numbered
        return httpx.post(
            f"{urls[number % len(urls)]}/models",
            headers={"Authorization": f"Bearer {token}"},
            data={"name": "shared"},
            files={"file": ("m.tflite", content)},
            timeout=90,
        )

    with ThreadPoolExecutor(len(contents)) as pool:
        return list(pool.map(upload, enumerate(contents)))


@pytest.mark.parametrize("kind", ["sqlite", "two gateways on postgresql"])
def test_sixteen_writers_at_once(tmp_path: Path, kind: str) -> None:
    with gateways(kind, tmp_path) as (urls, token, site):
        contents = [tflite(seed, 1 << 20) for seed in range(16)]
        answers = upload_all(urls, token, contents)
        assert Counter(a.status_code for a in answers) == {201: 16}
        documents = [a.json() for a in answers]
        assert sorted(d["version"] for d in documents) == list(range(1, 17))
        for content, document in zip(contents, documents, strict=True):
            assert document["cid"] == str(cid_of_bytes(content))
        for url in urls:
            history = httpx.get(
                f"{url}/models/shared/versions",
                headers={"Authorization": f"Bearer {token}"},
            ).json()
            assert history["total"] == 16
        assert len(site.keys()) == 32


@pytest.mark.parametrize("kind", ["sqlite", "two gateways on postgresql"])
def test_sixteen_writers_of_one_content(tmp_path: Path, kind: str) -> None:
    with gateways(kind, tmp_path) as (urls, token, site):
        answers = upload_all(urls, token, [tflite(1, 1 << 20)] * 16)
        assert Counter(a.status_code for a in answers) == {201: 1, 200: 15}
        assert {a.json()["version"] for a in answers} == {1}
        assert Counter(a.json()["created"] for a in answers) == {True: 1, False: 15}
        assert site.keys() == {
            "models/shared/v1.tflite",
            "models/shared/v1.record.json",
        }
