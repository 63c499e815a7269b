from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes.s3_servers import S3Server, running


@pytest.fixture(scope="session")
def swift() -> Iterator[S3Server]:
    with running("swift") as server:
        yield server


@pytest.fixture(scope="session")
def moto() -> Iterator[S3Server]:
    with running("moto") as server:
        yield server


@pytest.fixture(scope="session")
def localbucket() -> Iterator[S3Server]:
    with running("localbucket") as server:
        yield server
