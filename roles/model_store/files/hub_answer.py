"""Where a hub has a file, said by huggingface_hub: a program for the virtual environment that holds it.

Reads one question as JSON from its input, writes one answer as JSON. Nothing of a question is on a command line.
"""

from __future__ import annotations

import base64
import json
import ssl
import sys
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

PORTS = {"http": 80, "https": 443}


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of an address."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or PORTS.get(parts.scheme, 0)


def keep_login_at(endpoint: str) -> Callable[[Any], None]:
    """What takes token and password out of every request that goes elsewhere than to this hub.

    The library follows a redirect of a mirror to the hubs that it knows by name, and would hand them both.
    """

    def keep(request: Any) -> None:
        if origin(str(request.url)) != origin(endpoint):
            request.headers.pop("Authorization", None)

    return keep


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """Location, digest and size of a file; or the hub's refusal; or why the hub could not be asked.

    `question` has endpoint, repo, commit, path and timeout_s, and token, user (name:password), proxy and ca_bundle, of
    which each may be empty.
    """
    # Only the virtual environment has these: whoever copies this program there loads it without them.
    import httpx2  # noqa: PLC0415
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, set_client_factory  # noqa: PLC0415
    from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415

    context = ssl.create_default_context()
    if question["ca_bundle"]:
        try:
            context.load_verify_locations(cafile=question["ca_bundle"])
        except OSError as error:
            return {"refused": f"the CA bundle {question['ca_bundle']} cannot be used: {error}, expected PEM"}
    named = [""]

    def note(response: httpx2.Response) -> None:
        # The library falls back to the entity tag, which elsewhere may be as long and another digest.
        named.append(response.headers.get("X-Linked-Etag") or named[-1])

    endpoint = question["endpoint"].rstrip("/")
    hooks: dict[str, list[Callable[..., Any]]] = {"request": [keep_login_at(endpoint)], "response": [note]}
    set_client_factory(lambda: httpx2.Client(verify=context, proxy=question["proxy"] or None, event_hooks=hooks))
    url = hf_hub_url(question["repo"], question["path"], revision=question["commit"], endpoint=endpoint)
    basic = base64.b64encode(question["user"].encode()).decode()
    try:
        found = get_hf_file_metadata(
            url,
            token=question["token"] or False,  # none at all, rather than that of whoever runs this
            timeout=question["timeout_s"],
            headers={"Authorization": f"Basic {basic}"} if basic and not question["token"] else None,
            endpoint=endpoint,
        )
    except HfHubHTTPError as error:
        headers = error.response.headers
        return {
            "status": error.response.status_code,
            "code": headers.get("X-Error-Code", ""),
            "retry_after": headers.get("Retry-After", ""),
        }
    except ValueError as error:
        return {"refused": str(error)}
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        return {"problem": f"{type(error).__name__} {error}".strip(), "is_certificate": certificate_failed(error)}
    return {"location": found.location, "digest": named[-1], "size_b": found.size}


def certificate_failed(error: BaseException | None) -> bool:
    """Whether a certificate that is not trusted lies at the bottom of an error."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


if __name__ == "__main__":
    json.dump(answer(json.load(sys.stdin)), sys.stdout)
