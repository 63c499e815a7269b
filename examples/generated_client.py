"""Use the HTTP API by a client that was generated from its OpenAPI document.

For languages and programs that the SDK does not suit. Any generator of clients should
do; this one's client is in Python (the extra file tells it that a sidecar is bytes):

    echo 'content_type_overrides:
      application/vnd.ipld.car: application/octet-stream
      application/vnd.ipld.car; version=1: application/octet-stream
      application/x-ndjson: application/octet-stream' > generator.yaml
    openapi-python-client generate --url $VISION_O3_URL/openapi.json \\
        --config generator.yaml --output-path client
    PYTHONPATH=client python examples/generated_client.py m.tflite text-detector

Unlike the SDK's, a generated client's downloads are not verified: compare the CID.
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

from vision_o3_client import AuthenticatedClient, Client
from vision_o3_client.api.models import (
    models_download_get,
    models_latest,
    models_list,
    models_publish,
)
from vision_o3_client.api.sign_in import sign_in
from vision_o3_client.models import (
    ModelPage,
    ModelPublished,
    ModelsPublishBody,
    NotFoundProblem,
    SignInBody,
    SignInBodyGrantType,
    Token,
)
from vision_o3_client.types import File


def signed_in(url: str) -> AuthenticatedClient:
    """Return a client with a token."""
    form = SignInBody(
        grant_type=SignInBodyGrantType.CLIENT_CREDENTIALS,
        client_id=os.environ["VISION_O3_CLIENT_ID"],
        client_secret=os.environ["VISION_O3_CLIENT_SECRET"],
    )
    token = sign_in.sync(client=Client(base_url=url), body=form)
    if not isinstance(token, Token):  # a problem, with what to do
        sys.exit(f"{token.code}: {token.detail}")
    return AuthenticatedClient(base_url=url, token=token.access_token)


def main(path: Path, name: str) -> None:
    """Publish a model, find it in the list, fetch it."""
    with signed_in(os.environ["VISION_O3_URL"]) as client:
        file = File(payload=io.BytesIO(path.read_bytes()), file_name=path.name)
        body = ModelsPublishBody(name=name, file=file, tags=["generated"])
        published = models_publish.sync(client=client, body=body)
        if not isinstance(published, ModelPublished):
            sys.exit(f"{published.code}: {published.detail}")
        print(f"{name} version {published.version}: {published.cid}")

        page = models_list.sync(client=client, q=name)
        assert isinstance(page, ModelPage)
        print(f"The list has {[found.name for found in page.items]}")

        fetched = models_download_get.sync(name, client=client)
        assert isinstance(fetched, File)
        content = fetched.payload.read()
        print(f"Fetched {len(content)} bytes, {content == path.read_bytes()}")

        missing = models_latest.sync("no-such-model", client=client)
        assert isinstance(missing, NotFoundProblem)
        print(f"{missing.code}: {missing.detail}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
