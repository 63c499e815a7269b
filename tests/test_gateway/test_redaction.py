from __future__ import annotations

import json
import logging
import re
import sys
import threading
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import SecretStr

from tests.test_gateway.test_logs import process_logging
from vision_o3.gateway.logs import log_to_stderr, log_uncaught
from vision_o3.gateway.redaction import MASK, SHORTEST, Redaction, secrets_of
from vision_o3.settings import Settings

Capture = pytest.CaptureFixture[str]
pytestmark = pytest.mark.plants_secrets

JWT = "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJhbm4ifQ.c2lnbmF0dXJlLW9mLWl0"
KEY = "canary+of/the=signing%key-0123456789"
PEM = (
    Ed25519PrivateKey.generate()
    .private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    .decode()
)


def fail() -> None:
    raise ValueError(KEY)


@pytest.mark.parametrize(
    ("said", "hidden"),
    [
        (f"token {JWT} was refused", JWT),
        (f"GET /models?access_token={JWT}&page=1", JWT),
        ("a secret: vo3_ab12cd_R4nd0m-Text_of-it", "R4nd0m"),
        ("vo3_R4nd0mTextOfIt", "R4nd0m"),
        ("Authorization: Bearer opaque-token", "opaque-token"),
        ("{'authorization': 'Basic YW5uOnNlY3JldA=='}", "YW5u"),
        ("[(b'Authorization', b'Bearer opaque'), (b'host', b'x')]", "opaque"),
        ('{"Proxy-Authorization": "Basic YW5uOnNlY3JldA=="}', "YW5u"),
        (
            "authorization:AWS4-HMAC-SHA256 Credential=AKIDCANARY/r, Signature=0a1b2c",
            "0a1b2c",
        ),
        ("Bearer sent-in-a-sentence-as-such", "sent-in"),
        ("postgresql://ann:p%40ss@db.example/registry", "p%40ss"),
        ("cannot reach https://key:pass@h:443/x?y, http://a@b", "key:pass"),
        ("http://h/b/k?X-Amz-Signature=0a1b&X-Amz-Expires=9", "0a1b"),
        ("http://h/b/k?X-Amz-Credential=AKIDCANARY%2F2026&x=1", "AKIDCANARY"),
        ("{'x-amz-security-token': 'canary-token'}", "canary-token"),
        ("http://h/b/k?AWSAccessKeyId=AKIDCANARY&Expires=1", "AKIDCANARY"),
        ("http://h/b/k?Expires=1&Signature=ab%2Fcd%3D", "ab%2Fcd"),
        ("url=http%3A%2F%2Fh%3FX-Amz-Signature%3D0a1b2c", "0a1b2c"),
        ("grant_type=password&password=hush-hush&scope=x", "hush-hush"),
        ("client_id=ann&client_secret=hush-hush", "hush-hush"),
        ('{"password": "hush-hush"}', "hush-hush"),
        ("host=db password=hush-hush user=ann", "hush-hush"),
        ("aws_secret_access_key = hush-hush", "hush-hush"),
        ('password="hush-hush"', "hush-hush"),
        ("authorization was basic YW5uOnNlY3JldA==", "YW5u"),
        ('["x-authorization", "hush-hush"]', "hush-hush"),
    ],
)
def test_what_looks_like_a_secret_is_masked(said: str, hidden: str) -> None:
    for line in (
        json.dumps({"event": said}),
        json.dumps({"event": json.dumps({"inner": said})}),
        json.dumps({"event": repr([said])}),
    ):
        shown = Redaction()(line)
        assert hidden not in shown
        assert MASK in shown
        json.loads(shown)


@pytest.mark.parametrize(
    "said",
    [
        "request.answered",
        "Check the password, or ask the operator.",
        'Bearer error="invalid_token"',
        "password authentication failed for user ann",
        "see basic authentication",
        "a key of the signature is missing: signature",
        "http://gateway/models?page=2#ann@example.org",
        "bafkreihnoabliopjvscf6irvpwbcxlauirzq7pnwaf7v2zrcqyzgxlxkhq",
        "key.eyed.keyed.monkey",
        "eyeglasses-detector.v1.onnx has no eye-tracking.tar.gz",
        "sent as 'Authorization: Bearer …'. Get one at POST /auth/token.",
        json.dumps("sent as 'Authorization: Bearer …'. Get one"),
        '{"where": "body.password", "message": "Field required"}',
        '{"password": null, "client_secret": 5, "authorization": true, "next": 1}',
        '{"is": "authorization:", "and": "password=", "or": "client_secret"}',
        '{"authorization:":1,"password=":"x","password\\\\": 5}',
    ],
)
def test_what_is_no_secret_is_left(said: str) -> None:
    assert Redaction([KEY])(said) == said


@pytest.mark.parametrize("secret", [KEY, 'pass"word\\with/all', "geheim-für-alle-ß"])
def test_known_secrets_are_masked_in_every_form(secret: str) -> None:
    redact = Redaction([secret])
    lower = re.sub("%..", lambda found: found[0].lower(), quote(secret, safe=""))
    for form in (
        secret,
        quote(secret),
        quote(secret, safe=""),
        quote_plus(secret),
        lower,
        repr(secret.encode()),
    ):
        for said in (form, repr(form), repr({"k": form}), json.dumps({"k": form})):
            line = json.dumps({"event": f"x {said} y"})
            shown = redact(line)
            assert MASK in shown
            assert json.loads(shown)["event"].startswith("x ")
            for hidden in (form, json.dumps(form)[1:-1]):
                assert hidden not in shown


@given(st.text(min_size=SHORTEST), st.text(), st.text())
@example("\n\r\u2028 \x00\x1b[31m", "", "")
@example('"' * SHORTEST, "", "")
def test_known_secret_never_breaks_a_line_or_shows(
    secret: str, before: str, after: str
) -> None:
    line = json.dumps({"a": before, "event": f"{before} {secret} {after}", "n": 1})
    shown = Redaction([secret])(line)
    assert "\n" not in shown
    assert "\r" not in shown
    # What the mask stands next to is part of the word that is hidden, or of no word.
    assert f" {secret} " not in json.loads(shown)["event"] or secret.isspace()


NAMES = ["authorization", "password", "client_secret", "X-Amz-Signature", "Basic "]
TEXTS = st.lists(
    st.sampled_from(
        [*NAMES, *"\"'\\:=,.@ ([{}])…\n", "://", "null", "eyJ", "a1B2c3D4e5F6"]
    ),
    max_size=6,
).map("".join)
DOCUMENTS = st.recursive(
    TEXTS | st.none() | st.booleans() | st.integers(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3)
    ),
    max_leaves=8,
)


def shape(line: str) -> str:
    """Return what a JSON text is made of, without what its texts say."""
    found = json.loads(
        line, object_pairs_hook=lambda pairs: [each for _, each in pairs]
    )
    return re.sub(r'"(?:[^"\\]|\\.)*"', '""', json.dumps(found))


@given(DOCUMENTS, st.booleans(), st.sampled_from([(", ", ": "), (",", ":")]))
@example({"authorization": None, "said": "authorization:"}, True, (", ", ": "))
@example({"password\\": 5}, True, (",", ":"))
def test_any_line_of_json_stays_one(
    document: object, ascii_only: bool, separators: tuple[str, str]
) -> None:
    line = json.dumps(document, ensure_ascii=ascii_only, separators=separators)
    assert shape(Redaction()(line)) == shape(line)


def test_secret_within_another_leaves_nothing_of_either() -> None:
    redact = Redaction(["canary-inner-part", "outer-canary-inner-part-outer"])
    assert redact("x outer-canary-inner-part-outer y") == f"x {MASK} y"


def test_short_password_does_not_mask_half_of_what_is_said() -> None:
    redact = Redaction(["event", "database"])
    said = '{"event": "the databases are lost", "url": "postgresql://a:event@h/x"}'
    assert redact(said) == said.replace("a:event", MASK)
    assert redact("user=a database=x") == f"user=a {MASK}=x"


def test_every_secret_of_the_settings_is_known() -> None:
    values: dict[str, Any] = {
        "jwt_private_key": PEM.replace("\n", "\\n"),
        "jwt_verify_keys": f"{'first-canary-' * 3},{'second-canary-' * 3}",
        "database_url": "postgresql://ann:canary%40pass@h/d?sslpassword=canary-ssl",
        "store": "s3://bucket",
    }
    for name, field in Settings.model_fields.items():
        if "SecretStr" in str(field.annotation) and name not in {*values, "jwt_secret"}:
            values[name] = f"canary-of-{name}"
    values |= {"second_store": "s3://other", "tls_key_file": "k", "tls_cert_file": "c"}
    settings = Settings(**values)
    redact = Redaction(secrets_of(settings))
    said = [value for value in values.values() if "canary" in value]
    said += ["canary@pass", "canary-ssl", "first-canary-" * 3, "second-canary-" * 3]
    said += [PEM, *PEM.splitlines()[1:-1]]
    for secret in said:
        assert "canary" not in redact(json.dumps({"event": secret}))
    key = "".join(PEM.splitlines()[1:-1])
    assert key not in redact(json.dumps({"event": PEM})).replace("\\n", "")
    for shown in (repr(settings), str(settings), repr(redact)):
        assert "canary" not in shown
        assert key not in shown


def test_where_the_database_is_may_be_told() -> None:
    settings = Settings(jwt_secret=SecretStr("x" * 40))
    url = settings.database_url.get_secret_value()
    assert Redaction(secrets_of(settings))(f"at {url}") == f"at {url}"


def test_each_value_of_a_line_is_masked_whatever_it_is(capsys: Capture) -> None:
    class Odd:
        def __repr__(self) -> str:
            return f"<{KEY}>"

    with process_logging(secrets=[KEY]):
        log = structlog.get_logger("test")
        log.warning("x", value=KEY, deep={"a": [{"b": (KEY,)}], KEY: 1}, odd=Odd())
        logging.getLogger("library").warning("about %s", Odd())
        try:
            fail()
        except ValueError:
            log.exception("failed")
            logging.getLogger("library").exception("failed %r", {"k": KEY})
    output = capsys.readouterr().out
    lines = [json.loads(line) for line in output.splitlines()]
    assert len(lines) == 4
    assert "ValueError" in lines[2]["exception"]
    assert "canary" not in output
    assert output.count(MASK) >= 8


def test_line_stays_one_line_whatever_is_in_it(capsys: Capture) -> None:
    hostile = "a\nb\r\nc\x00\x1b[2J\u2028\u2029\x85\x0b\x0c\ud800"
    with process_logging():
        structlog.get_logger("test").warning(hostile, value=hostile, **{hostile: 1})
        logging.getLogger("library").warning(hostile)
    output = capsys.readouterr().out
    assert len(output.splitlines()) == 2
    assert output.isascii()
    assert json.loads(output.splitlines()[0])["value"] == hostile


def test_commands_lines_are_masked_too(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISION_O3_JWT_SECRET", KEY)
    root = logging.getLogger()
    before = root.handlers[:]
    try:
        log_to_stderr()
        log_to_stderr()  # twice, and yet each line once
        structlog.get_logger("test").info("x", value=KEY)
        logging.getLogger("library").warning("about\n%s", KEY)
        logging.getLogger("library").info("not told")
    finally:
        structlog.reset_defaults()
        root.handlers[:] = before
    captured = capsys.readouterr()
    lines = [json.loads(line) for line in captured.err.splitlines()]
    assert [line["event"] for line in lines] == ["x", f"about\n{MASK}"]
    assert not captured.out
    assert KEY not in captured.err


@pytest.mark.filterwarnings("default")
def test_what_a_thread_dies_of_is_a_line_too(capsys: Capture) -> None:
    hooks = sys.excepthook, sys.unraisablehook, threading.excepthook

    try:
        with process_logging(secrets=[KEY]):
            log_uncaught()
            thread = threading.Thread(target=fail)
            thread.start()
            thread.join()
            sys.excepthook(ValueError, ValueError(KEY), None)
    finally:
        sys.excepthook, sys.unraisablehook, threading.excepthook = hooks
    captured = capsys.readouterr()
    events = [json.loads(line)["event"] for line in captured.out.splitlines()]
    assert events == ["thread.failed", "process.failed"]
    assert "ValueError" in captured.out
    assert KEY not in captured.out + captured.err
