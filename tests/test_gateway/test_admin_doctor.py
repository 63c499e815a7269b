from __future__ import annotations

import json
import os
import resource
import tempfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
from sqlalchemy import text

from tests.canaries import CANARIES
from tests.fakes.certificates import make_certificate
from tests.fakes.s3_servers import free_ports
from tests.test_gateway.running import SECRET
from vision_o3.__main__ import main
from vision_o3.db.engine import Database
from vision_o3.db.migrate import migrate
from vision_o3.gateway.admin_doctor import Finding, Status, examine
from vision_o3.registry.accounts import Accounts
from vision_o3.registry.audit import OPERATOR
from vision_o3.settings import Settings, variable_of

OK, WARN, FAIL = Status.OK, Status.WARN, Status.FAIL
Capture = pytest.CaptureFixture[str]
Make = Callable[..., Settings]


@pytest.fixture
def healthy(make_settings: Make) -> Iterator[Settings]:
    """Settings of a gateway that lacks nothing."""
    settings = make_settings(max_upload_bytes=1000)
    database = Database(settings.database_url.get_secret_value())
    Accounts(database).add(OPERATOR, "root", roles=["admin"])
    yield settings
    database.close()


def changed(settings: Settings, **changes: Any) -> Settings:
    given = {name: getattr(settings, name) for name in settings.model_fields_set}
    return Settings(**{**given, **changes})


def found_in(settings: Settings, check: str) -> list[Finding]:
    return [finding for finding in examine(settings) if finding.check == check]


def one(settings: Settings, check: str) -> Finding:
    [finding] = found_in(settings, check)
    return finding


def test_gateway_that_lacks_nothing_is_ok(healthy: Settings) -> None:
    findings = {finding.check: finding for finding in examine(healthy)}
    statuses = {check: finding.status for check, finding in findings.items()}
    statuses.pop("descriptors")  # as the machine has them
    assert statuses == dict.fromkeys(
        [
            "keys",
            "tls",
            "spool",
            "store",
            "migrations",
            "database",
            "clock",
            "users",
            "audit",
            "index",
        ],
        OK,
    )
    assert not list(Path(healthy.store).rglob("probe*/*"))
    assert not healthy.spool_directory.exists()  # it is only looked at


def test_weak_key_is_told(healthy: Settings) -> None:
    found = one(changed(healthy, jwt_secret="abab" * 10), "keys")
    assert found.status is WARN
    assert "abab" not in found.sentence
    found = found_in(changed(healthy, metrics_token="short"), "keys")[1]
    assert found.status is WARN
    assert "VISION_O3_METRICS_TOKEN" in found.sentence


@pytest.mark.parametrize(
    ("days", "status", "said"),
    [(90, OK, "valid until"), (7, WARN, "Renew it"), (-1, FAIL, "expired")],
)
def test_certificate_that_ends_is_told_in_time(
    healthy: Settings, tmp_path: Path, days: int, status: Status, said: str
) -> None:
    made = make_certificate(tmp_path, lasts=timedelta(days=days))
    settings = changed(healthy, tls_cert_file=made.certificate, tls_key_file=made.key)
    found = one(settings, "tls")
    assert found.status is status
    assert said in found.sentence


def test_certificate_that_is_not_there_is_told(
    healthy: Settings, tmp_path: Path
) -> None:
    absent = tmp_path / "absent.pem"
    found = one(changed(healthy, tls_cert_file=absent, tls_key_file=absent), "tls")
    assert found.status is FAIL
    assert "absent.pem" in found.sentence


def test_full_disk_is_told(healthy: Settings) -> None:
    found = one(changed(healthy, min_free_bytes=1 << 60), "spool")
    assert found.status is FAIL
    assert "VISION_O3_MIN_FREE_BYTES" in found.sentence
    found = one(changed(healthy, max_upload_bytes=1 << 60), "spool")
    assert found.status is WARN
    assert "VISION_O3_MAX_UPLOAD_BYTES" in found.sentence


def test_spool_on_another_file_system_is_told(healthy: Settings) -> None:
    memory = Path("/dev/shm")  # noqa: S108 - the other file system
    if not memory.is_dir():
        pytest.skip("There is no second file system here (/dev/shm).")
    with tempfile.TemporaryDirectory(dir=memory) as directory:
        found = found_in(changed(healthy, spool_dir=Path(directory)), "spool")[-1]
    assert found.status is WARN
    assert "different file systems" in found.sentence


def test_folders_that_cannot_be_written_are_told(
    healthy: Settings, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    settings = changed(healthy, spool_dir=file / "spool", cache_dir=file)
    assert one(settings, "spool").status is FAIL
    assert one(settings, "cache").status is FAIL


def test_cache_larger_than_its_disk_is_told(healthy: Settings, tmp_path: Path) -> None:
    settings = changed(healthy, cache_dir=tmp_path / "cache", cache_bytes=1 << 60)
    assert one(settings, "cache").status is WARN
    assert one(changed(settings, cache_bytes=1000), "cache").status is OK


def test_too_few_descriptors_are_told(healthy: Settings) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert one(changed(healthy, max_connections=most * 2), "descriptors").status is WARN
    assert one(changed(healthy, max_connections=1), "descriptors").status is OK


def test_lost_store_is_told_and_the_rest_looked_at(healthy: Settings) -> None:
    keys = {"aws_access_key_id": "k" * 16, "aws_secret_access_key": "s" * 16}
    [port] = free_ports(1)
    settings = changed(
        healthy,
        store="s3://bucket",
        s3_endpoint=f"http://127.0.0.1:{port}",
        s3_region="r",
        s3_timeout_s=1,
        **keys,
    )
    found = found_in(settings, "store")
    assert any(finding.status is FAIL for finding in found)
    assert one(settings, "users").status is OK
    assert one(settings, "index").status is FAIL


def test_store_that_is_no_folder_is_named(healthy: Settings, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for setting, check in (("store", "store"), ("second_store", "second store")):
        found = one(changed(healthy, **{setting: str(file)}), check)
        assert found.status is FAIL
        assert f"{variable_of(setting)} ({file})" in found.sentence


def test_second_store_is_looked_at_too(healthy: Settings, tmp_path: Path) -> None:
    settings = changed(healthy, second_store=str(tmp_path / "second"))
    assert one(settings, "second store").status is OK


def test_lost_database_is_told_and_the_rest_looked_at(healthy: Settings) -> None:
    [port] = free_ports(1)
    password = CANARIES.add("canary-password-of-it", "the database's password")
    url = f"postgresql://ann:{password}@127.0.0.1:{port}/registry"
    settings = changed(healthy, database_url=url)
    found = one(settings, "database")
    assert found.status is FAIL
    assert "VISION_O3_DATABASE_URL" in found.sentence
    for finding in examine(settings):
        CANARIES.see("the doctor's words", finding.sentence)
    assert one(settings, "store").status is OK
    assert not found_in(settings, "users")


def test_old_database_is_told(healthy: Settings, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'new.db'}"
    found = one(changed(healthy, database_url=url), "migrations")
    assert found.status is FAIL
    assert "admin migrate" in found.sentence
    assert not (tmp_path / "new.db").exists()


def test_index_of_another_store_is_told(healthy: Settings, tmp_path: Path) -> None:
    key = tmp_path / "objects" / "models" / "m" / "v1.record.json"
    key.parent.mkdir(parents=True)
    key.write_bytes(b"{}")
    found = one(healthy, "index")
    assert found.status is FAIL
    assert "rebuild-index" in found.sentence


def test_gateway_without_users_or_admin_is_told(make_settings: Make) -> None:
    settings = make_settings()
    found = one(settings, "users")
    assert found.status is WARN
    assert "nobody can sign in" in found.sentence
    database = Database(settings.database_url.get_secret_value())
    Accounts(database).add(OPERATOR, "ann", roles=["reader"])
    database.close()
    found = one(settings, "users")
    assert found.status is WARN
    assert "no admin" in found.sentence


@pytest.mark.parametrize(
    ("statement", "status"),
    [
        ("UPDATE audit_head SET hash = 'x'", FAIL),
        ("UPDATE audit_head SET seq = seq - 1", FAIL),
        ("UPDATE audit_head SET seq = seq + 1", FAIL),
        ("DELETE FROM audit_head", WARN),
    ],
)
def test_end_of_the_audit_trail_that_was_changed_is_told(
    healthy: Settings, statement: str, status: Status
) -> None:
    database = Database(healthy.database_url.get_secret_value())
    with database.write() as session:
        session.execute(text(statement))
    database.close()
    found = one(healthy, "audit")
    assert found.status is status
    assert "admin audit verify" in found.sentence


def test_tracing_without_its_library_is_told(
    healthy: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = changed(healthy, tracing=True)
    assert one(settings, "tracing").status is OK
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "0")
    assert one(settings, "tracing").status is FAIL


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for field in Settings.model_fields:
        monkeypatch.delenv(variable_of(field), raising=False)
    monkeypatch.setenv("VISION_O3_DATABASE_URL", f"sqlite:///{tmp_path}/registry.db")
    monkeypatch.setenv("VISION_O3_STORE", str(tmp_path / "objects"))
    monkeypatch.setenv("VISION_O3_JWT_SECRET", SECRET)
    yield
    structlog.reset_defaults()


@pytest.mark.usefixtures("environment")
def test_command_says_it_in_lines_or_as_json(capsys: Capture) -> None:
    migrate(os.environ["VISION_O3_DATABASE_URL"])
    assert main(["admin", "doctor"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("ok    settings")
    assert "warn  users" in said
    # But for a path that is longer, nothing is.
    assert all(len(line) <= 88 or "/" in line for line in said.splitlines())
    assert main(["admin", "doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is True
    assert {finding["status"] for finding in document["findings"]} == {"ok", "warn"}


@pytest.mark.usefixtures("environment")
def test_command_ends_with_1_if_something_fails(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["admin", "doctor"]) == 1  # no tables
    assert "FAIL  migrations" in capsys.readouterr().out
    monkeypatch.setenv("VISION_O3_LEASE_S", "canary-value")
    assert main(["admin", "doctor", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    [finding] = document["findings"]
    assert finding["check"] == "settings"
    assert "VISION_O3_LEASE_S" in finding["sentence"]
    assert "canary" not in finding["sentence"]
