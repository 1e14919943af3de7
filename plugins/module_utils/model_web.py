"""HTTP for the bytes of a model: redirects, proxy, certificates, and a token that stays with its host."""

from __future__ import annotations

import base64
import http.client
import ssl
import urllib.error
import urllib.request
from typing import Any

from ansible.module_utils import model_files as rules
from ansible.module_utils import model_hub as hub
from ansible.module_utils.model_wanted import StoreError, TemporaryError, Wanted

REDIRECTS = (301, 302, 303, 307, 308)


class RangeRefusedError(TemporaryError):
    """HTTP 416: what is kept is no part of what the server has."""


class Web:
    """HTTP with redirects that never carry the token or a password to another host."""

    def __init__(self, wanted: Wanted) -> None:
        context = ssl.create_default_context()
        if wanted.ca_bundle:
            try:
                context.load_verify_locations(cafile=wanted.ca_bundle)
            except OSError as error:
                raise StoreError(f"The CA bundle {wanted.ca_bundle} cannot be used: {error}, expected PEM.") from error
        proxies = {"http": wanted.proxy, "https": wanted.proxy} if wanted.proxy else None
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler(proxies), urllib.request.HTTPSHandler(context=context), _NoRedirect()
        )
        _, user = rules.user_of(wanted.endpoint)
        basic = f"Basic {base64.b64encode(user.encode()).decode()}" if user else ""
        self._authorization = f"Bearer {wanted.token}" if wanted.token else basic
        self._has_token = bool(wanted.token)
        self._timeout_s = wanted.stall_timeout_s

    def get(self, url: str, headers: dict[str, str], *, is_hub: bool) -> Any:
        """The answer with a body; only a request to the hub itself carries the token, or the password."""
        for _ in range(rules.REDIRECT_LIMIT):
            answer = self._open(url, headers, is_hub=is_hub)
            if answer.status not in REDIRECTS:
                return answer
            answer.close()
            try:
                url, same_host = rules.next_hop(url, answer.headers.get("Location") or "")
            except ValueError as error:
                raise StoreError(f"{rules.without_credentials(url)}: {error}.") from error
            is_hub = is_hub and same_host
        raise StoreError(f"{rules.without_credentials(url)}: more than {rules.REDIRECT_LIMIT} redirects.")

    def _open(self, url: str, headers: dict[str, str], *, is_hub: bool) -> Any:
        shown = rules.without_credentials(url)
        request = urllib.request.Request(rules.user_of(url)[0], headers=headers)  # noqa: S310  http(s): next_hop and the module check
        if is_hub and self._authorization:
            request.add_header("Authorization", self._authorization)
        try:
            return self._opener.open(request, timeout=self._timeout_s)
        except urllib.error.HTTPError as error:
            if error.status in REDIRECTS:
                return error
            raise self._refusal(error, url, is_hub=is_hub) from error
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                raise StoreError(hub.untrusted(shown, error.reason.verify_message)) from error
            raise TemporaryError(f"{shown}: {error.reason}", is_network=True) from error
        except (OSError, http.client.HTTPException) as error:
            raise TemporaryError(f"{shown}: {type(error).__name__} {error}", is_network=True) from error

    def _refusal(self, error: urllib.error.HTTPError, url: str, *, is_hub: bool) -> Exception:
        status = error.status or 0
        code, asked = error.headers.get("X-Error-Code") or "", error.headers.get("Retry-After")
        error.close()
        message = rules.explain_status(status, code, url, has_token=is_hub and self._has_token)
        if status == 416:
            return RangeRefusedError(message)
        if rules.status_is_temporary(status):
            return TemporaryError(message, rules.retry_after_s(asked))
        if is_hub:
            return StoreError(message)
        # The addresses that a hub gives out are signed for an hour or so: another one may serve.
        return TemporaryError(
            f"{rules.without_credentials(url)}: HTTP {status} from where the hub keeps its files", is_network=True
        )


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Redirects come back as answers: the library's own would send the token along, and knows no 308 before 3.11."""

    def redirect_request(self, *_args: Any, **_kwargs: Any) -> None:
        return None
