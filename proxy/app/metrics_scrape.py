"""`metrics.app`: the app's own metrics, fetched from the app at each scrape of the gateway. The request goes straight
to the app and not through the ingress, since it is no user's request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import aiohttp

from proxy.app import AppController
from proxy.observe.emit import EmitEvent
from proxy.observe.exposition_merge import AppExposition, InvalidExposition, parse_exposition

SCRAPE_TIMEOUT = 2.0  # seconds for all of it; a scraper has 10 by default
MAX_BODY_BYTES = 8 * 1024 * 1024  # bytes, unpacked
ACCEPT_TEXT = "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
ACCEPT_OPENMETRICS = "application/openmetrics-text;version=1.0.0," + ACCEPT_TEXT

NO_METRICS = AppExposition(None)


class UnusableMetrics(Exception):
    """Why there are no metrics of the app."""


class AppMetricsScraper:
    """Fetches the app's metrics. `path` gives the policy's `metrics.app`. A failure is logged once, and so is its
    end."""

    def __init__(self, app: AppController, path: Callable[[], str | None], *, emit: EmitEvent) -> None:
        self._app = app
        self._path = path
        self._emit = emit
        self._last_failure = ""

    async def fetch_metrics(self, openmetrics: bool) -> AppExposition | None:
        """The app's exposition, empty if it cannot be had; None if the policy names no path."""
        path = self._path()
        if path is None:
            return None
        try:
            if not self._app.is_ready:
                raise UnusableMetrics(f"the app is {self._app.state}")
            async with asyncio.timeout(SCRAPE_TIMEOUT):
                found = await self._request_metrics(path, openmetrics)
        except TimeoutError:
            return self._report_failure(path, f"no whole answer within {SCRAPE_TIMEOUT:g} s")
        except (aiohttp.ClientError, OSError) as error:
            return self._report_failure(path, f"it could not be asked ({type(error).__name__})")
        except (UnusableMetrics, InvalidExposition) as error:
            return self._report_failure(path, str(error))
        if self._last_failure:
            self._last_failure = ""
            self._emit("metrics.app", f"The app's own metrics ({path}) are there again.")
        return found

    async def _request_metrics(self, path: str, openmetrics: bool) -> AppExposition:
        host, port = self._app.address
        shown = f"[{host}]" if ":" in host else host
        # Not compressed, so that MAX_BODY_BYTES bounds what is read; not kept alive, since it is one request a scrape.
        headers = {
            "Host": "localhost",
            "Accept": ACCEPT_OPENMETRICS if openmetrics else ACCEPT_TEXT,
            "Accept-Encoding": "identity",
            "User-Agent": "outrigger-scrape",
            "Connection": "close",
        }
        async with (
            aiohttp.ClientSession(trust_env=False, cookie_jar=aiohttp.DummyCookieJar()) as session,
            session.get(f"http://{shown}:{port}{path}", headers=headers, allow_redirects=False) as answer,
        ):
            if answer.status != 200:
                raise UnusableMetrics(f"it answered {answer.status}")
            kind = answer.content_type
            if kind not in ("text/plain", "application/openmetrics-text"):
                raise UnusableMetrics(
                    f"its Content-Type is {kind[:60]}, not text/plain or application/openmetrics-text"
                )
            body = bytearray()
            async for data in answer.content.iter_any():
                body += data
                if len(body) > MAX_BODY_BYTES:
                    raise UnusableMetrics(f"it is larger than {MAX_BODY_BYTES // 1024 // 1024} MiB")
        # The exposition is one document in one format: what cannot be appended to ours is left out.
        spoken = kind == "application/openmetrics-text"
        if spoken and not openmetrics:
            raise UnusableMetrics("it answered OpenMetrics where text was asked for")
        return await parse_exposition(bytes(body), openmetrics=spoken)

    def _report_failure(self, path: str, why: str) -> AppExposition:
        if why != self._last_failure:
            self._last_failure = why
            text = f"The app's own metrics ({path}, metrics.app) are left out: {why}."
            self._emit("metrics.app", text, level="warning")
        return NO_METRICS
