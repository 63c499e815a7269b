"""Rates, transfers at once, quotas; whose line it is, and permissions for one line."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import pytest

from tests.fakes.model_files import tflite
from tests.test_gateway.running import OpenGateway, Running, known_user, problem
from vision_o3.content.dag import cid_of_stream
from vision_o3.errors import TooManyTransfersError
from vision_o3.gateway.limits import Transfers
from vision_o3.registry.accounts import Changes
from vision_o3.registry.audit import OPERATOR

MIB = 1 << 20


def zip_of(files: dict[str, bytes]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return target.getvalue()


def publish(running: Running, token: str | None = "", **fields: Any) -> Any:
    content = fields.pop("content", tflite())
    collection = fields.pop("collection", "models")
    filename = "m.tflite" if collection == "models" else "d.zip"
    return running.request(
        "POST",
        f"/{collection}",
        token=token,
        data={"name": "m", **fields},
        files={"file": (filename, content)},
    )


# ----------------------------------------------------------------------------- rates


def test_requests_of_a_user_are_counted(open_gateway: OpenGateway) -> None:
    with open_gateway(max_requests_per_minute=5) as running:
        answers = [running.get("/models") for _ in range(12)]
        refused = [each for each in answers if each.status_code != 200]
        assert 1 <= len(refused) < 12  # a minute may end meanwhile
        assert problem(refused[0]) == (429, "rate_limited")
        assert 1 <= int(refused[0].headers["retry-after"]) <= 60
        assert "VISION_O3_MAX_REQUESTS_PER_MINUTE" in refused[0].json()["detail"]
        other = running.token("model:read", user="bob")
        assert running.get("/models", token=other).status_code == 200


def test_no_limit_is_no_limit(open_gateway: OpenGateway) -> None:
    with open_gateway(max_requests_per_minute=0, max_downloads_per_user=0) as running:
        assert all(running.get("/models").status_code == 200 for _ in range(20))


def test_transfers_of_a_user_are_counted_while_they_last() -> None:
    transfers = Transfers(2, "downloads", "X")
    with transfers.one_more("ann"), transfers.one_more("ann"):
        with pytest.raises(TooManyTransfersError), transfers.one_more("ann"):
            pytest.fail("not reached")
        with transfers.one_more("bob"):
            pass
    with transfers.one_more("ann"):
        assert transfers._under_way == {"ann": 1}
    assert not transfers._under_way


def test_downloads_at_once_are_limited(open_gateway: OpenGateway) -> None:
    with open_gateway(max_downloads_per_user=1, max_uploads_per_user=1) as running:
        assert publish(running).status_code == 201
        with running.gateway.limits.downloads.one_more("ann"):
            for path in ("/models/m/download", "/models/m/versions/1/download"):
                answer = running.get(path)
                assert problem(answer) == (429, "too_many_transfers")
                assert answer.headers["retry-after"] == "2"
            assert running.get("/models/m").status_code == 200
            for method in ("GET", "HEAD"):  # of an archive, a file is one too
                path = "/datasets/m/versions/1/files/a.txt"
                assert running.request(method, path).status_code == 429
        with running.gateway.limits.uploads.one_more("ann"):
            assert problem(publish(running)) == (429, "too_many_transfers")
            answer = running.get(f"/uploads/{'b' * 59}")
            assert problem(answer) == (429, "too_many_transfers")
        for _ in range(3):
            assert running.get("/models/m/download").status_code == 200


# ---------------------------------------------------------------------------- quotas


def test_versions_of_a_user_are_limited(open_gateway: OpenGateway) -> None:
    with open_gateway(max_versions_per_user=2) as running:
        for number in range(2):
            assert publish(running, content=tflite(number)).status_code == 201
        answer = publish(running, content=tflite(7))
        assert problem(answer) == (403, "quota_exceeded")
        assert answer.json()["limit"] == 2
        assert "Retry-After" not in answer.headers
        assert publish(running, content=tflite(1)).status_code == 200  # nothing new
        assert running.get("/models/m").json()["version"] == 2
        other = running.token(user="bob")
        assert publish(running, other, name="b").status_code == 201
        running.gateway.accounts.change(
            OPERATOR, "ann", Changes(quotas={"max_versions": 3})
        )
        assert publish(running, content=tflite(7)).status_code == 201
        assert problem(publish(running, content=tflite(8)))[1] == "quota_exceeded"
        running.gateway.accounts.change(
            OPERATOR, "ann", Changes(quotas={"max_versions": 0})
        )
        assert publish(running, content=tflite(8)).status_code == 201


def test_bytes_of_a_user_are_limited_in_both_collections(
    open_gateway: OpenGateway,
) -> None:
    model, archive = tflite(), zip_of({"a.txt": b"x"})
    limit = len(model) + len(archive)
    with open_gateway(max_bytes_per_user=limit) as running:
        assert publish(running, content=model).status_code == 201
        assert publish(running, content=archive, collection="datasets").is_success
        answer = publish(running, content=tflite(3))
        assert problem(answer) == (403, "quota_exceeded")
        assert not list(running.settings.spool_directory.iterdir())
        assert running.get("/models/m").json()["version"] == 1


def test_uploads_in_parts_of_a_user_are_limited(open_gateway: OpenGateway) -> None:
    def begin(running: Running, fill: bytes, token: str | None = "") -> Any:
        dag = cid_of_stream(io.BytesIO(fill * 2 * MIB))
        return running.request(
            "PUT", f"/uploads/{dag.root}", token=token, content=dag.sidecar()
        )

    with open_gateway(max_partial_uploads_per_user=2) as running:
        for fill in (b"a", b"b"):
            assert begin(running, fill).status_code == 201
        assert problem(begin(running, b"c")) == (403, "quota_exceeded")
        assert begin(running, b"a").status_code == 200
        assert begin(running, b"c", running.token(user="bob")).status_code == 201


# ------------------------------------------------------------------------- ownership


def test_line_is_its_owners(running: Running) -> None:
    assert publish(running).status_code == 201
    known_user(running.gateway, "bob", "model:read", "model:write")
    bob = running.token("model:read", "model:write", user="bob")
    answer = publish(running, bob, content=tflite(2))
    assert problem(answer) == (403, "permission_denied")
    assert "'m' is another's" in answer.json()["detail"]
    assert "ann" not in answer.text
    assert publish(running, bob, name="of-bob").status_code == 201
    assert running.get("/models/m").json()["version"] == 1
    # Told before any byte is sent.
    cid = running.get("/models/of-bob").json()["cid"]
    for named in (cid, "bafkrei" + "a" * 52):
        answer = running.request(
            "POST",
            "/models",
            token=bob,
            files={"name": (None, "m"), "cid": (None, named)},
        )
        assert answer.status_code == 403


def test_line_may_be_shared_by_permission(running: Running) -> None:
    assert publish(running).status_code == 201
    known_user(running.gateway, "bob", "model:write:m")
    bob = running.token("model:write:m", user="bob")
    assert publish(running, bob, content=tflite(2)).status_code == 201
    assert problem(publish(running, bob, name="n"))[1] == "permission_denied"
    # A token that was narrowed by its user to one line owns it no more than before.
    known_user(running.gateway, "eve", "model:write")
    eve = running.token("model:write:m", user="eve")
    assert problem(publish(running, eve, content=tflite(3)))[0] == 403


def test_admin_publishes_to_any_line(running: Running) -> None:
    assert publish(running).status_code == 201
    root = running.token("admin", "model:write", user="root")
    assert publish(running, root, content=tflite(2)).status_code == 201
    assert running.get("/models/m").json()["owner_id"] == "ann"


def test_operator_may_let_anybody_publish_anywhere(open_gateway: OpenGateway) -> None:
    with open_gateway(publish_to="any") as running:
        assert publish(running).status_code == 201
        known_user(running.gateway, "bob", "model:write")
        bob = running.token("model:write", user="bob")
        assert publish(running, bob, content=tflite(2)).status_code == 201


# ------------------------------------------------------------- permissions for a line


@pytest.fixture
def two(running: Running) -> Running:
    """A gateway with the models ``one`` and ``two``, and datasets likewise."""
    for number, name in enumerate(("one", "two")):
        assert publish(running, name=name, content=tflite(number)).status_code == 201
        archive = zip_of({f"{number}.txt": b"x"})
        assert publish(
            running, name=name, content=archive, collection="datasets"
        ).is_success
    return running


@pytest.mark.parametrize("collection", ["models", "datasets"])
def test_token_for_one_line_opens_that_alone(two: Running, collection: str) -> None:
    scope = f"{collection[:-1]}:read:one"
    token = two.token(scope)
    known = {name: two.get(f"/{collection}/{name}").json() for name in ("one", "two")}

    def status(path: str) -> int:
        return two.get(f"/{collection}{path}", token=token).status_code

    suffixes = ["", "/versions", "/versions/1", "/download", "/versions/1/download"]
    if collection == "datasets":
        suffixes += ["/versions/1/manifest", "/diff?from=1&to=1"]
    for suffix in suffixes:
        assert status(f"/one{suffix}") == 200
        assert status(f"/two{suffix}") == 403
    assert status(f"/cid/{known['one']['cid']}") == 200
    assert status(f"/cid/{known['one']['cid']}/download") == 200
    assert status(f"/cid/{known['two']['cid']}") == 404
    assert status(f"/cid/{known['two']['cid']}/download") == 404
    assert status(f"/cid/{known['two']['cid']}/dag") == 404
    listed = two.get(f"/{collection}", token=token).json()
    assert [item["name"] for item in listed["items"]] == ["one"]
    assert listed["total"] == 1
    other = "datasets" if collection == "models" else "models"
    assert two.get(f"/{other}/one", token=token).status_code == 403


def test_same_content_is_found_in_the_line_that_may_be_read(two: Running) -> None:
    cid = two.get("/models/one").json()["cid"]
    assert publish(two, name="three", content=tflite(0)).status_code == 201
    assert two.get(f"/models/cid/{cid}").json()["name"] == "three"
    answer = two.get(f"/models/cid/{cid}", token=two.token("model:read:one"))
    assert answer.json()["name"] == "one"


def test_content_of_other_lines_is_not_published_by_its_name(two: Running) -> None:
    cid = two.get("/models/two").json()["cid"]
    scopes = ("model:write:one", "model:read:one")
    form = {"name": (None, "one"), "cid": (None, cid), "filename": (None, "m.tflite")}
    answer = two.request("POST", "/models", token=two.token(*scopes), files=form)
    assert problem(answer) == (409, "content_needed")
    token = two.token("model:write:one", "model:read")
    assert two.request("POST", "/models", token=token, files=form).status_code == 201


def test_naming_a_cid_tells_nothing_of_what_was_withdrawn_elsewhere(
    two: Running,
) -> None:
    cids = {}
    for line in ("models/one", "datasets/two"):
        cids[line] = two.get(f"/{line}").json()["cid"]
        withdrawal = {"state": "blocked", "reason": "The reason is secret."}
        path = f"/{line}/versions/1/withdrawal"
        assert two.request("PUT", path, json=withdrawal).status_code == 200
    reads_all = two.token("model:write:new", "model:read")
    reads_own = two.token("model:write:new", "model:read:new")

    def attempt(token: str, cid: str) -> Any:
        fields = {"name": "new", "cid": cid, "filename": "m.tflite"}
        form = {name: (None, value) for name, value in fields.items()}
        return two.request("POST", "/models", token=token, files=form)

    told = attempt(reads_all, cids["models/one"])
    assert problem(told) == (403, "version_blocked")
    for answer in (
        attempt(reads_own, cids["models/one"]),
        attempt(reads_all, cids["datasets/two"]),
    ):
        assert problem(answer) == (409, "content_needed")
        assert "secret" not in answer.text
    # Who has the bytes is told.
    answer = publish(two, reads_own, name="new", content=tflite(0))
    assert problem(answer) == (403, "version_blocked")


def test_user_with_a_permission_for_one_line_gets_no_more(running: Running) -> None:
    known_user(running.gateway, "cam", "model:read:one")
    token = running.token("model:read", user="cam")
    assert running.get("/auth/me", token=token).json()["permissions"] == [
        "model:read:one"
    ]
    assert problem(running.get("/models/two", token=token)) == (
        403,
        "permission_denied",
    )
    assert running.get("/models/one", token=token).status_code == 404
