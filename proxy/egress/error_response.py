"""What the app is told when its call gets no answer from the upstream: every code and status in one place."""

from __future__ import annotations

from collections.abc import Iterable

from proxy.errors import AttemptFailed, CallRefused
from proxy.http.retry_after import round_retry_after


def upstream_unavailable(upstream: str, retry_after: float, *, held: bool = False) -> CallRefused:
    """The breaker is open; `held` if an operator holds it so. `retry_after` is in seconds."""
    if held:
        text = f"An operator holds the breaker of {upstream} open, so it gets no calls for now."
        return CallRefused("upstream_unavailable", 503, text, retry_after=retry_after)
    seconds = round_retry_after(retry_after)
    text = f"{upstream} has been failing, so it gets no calls for now; a probe may pass in {seconds} s."
    return CallRefused("upstream_unavailable", 503, text, retry_after=max(1.0, retry_after))


def upstream_timeout(upstream: str, reason: str, seconds: float) -> CallRefused:
    """The call's deadline passed, `seconds` after it began; `reason` is the Deadline's."""
    said = {
        "total": "timeout.total",
        "patience": "the caller's own read time-out",
        "first_byte": "timeout.first_byte",
        "idle": "timeout.idle",
        "request": "the request that it came from has no more time",
    }[reason]
    return CallRefused("upstream_timeout", 504, f"{upstream} did not answer within {seconds:.1f} s ({said}).")


def upstream_unreachable(upstream: str, failure: AttemptFailed, attempts: int, *, again: bool = False) -> CallRefused:
    """The last attempt had no answer; `again` if the caller may try once more."""
    tries = "1 attempt" if attempts == 1 else f"{attempts} attempts"
    if failure.reason == "first_byte":
        text = f"{upstream} gave no first byte in time, after {tries}: {failure}"
        return CallRefused("upstream_timeout", 504, text, retryable=again)
    text = f"{upstream} could not be reached, after {tries}: {failure}"
    return CallRefused("upstream_unreachable", 502, text, retryable=again)


def rate_limit_exceeded(upstream: str, reason: str, retry_after: float) -> CallRefused:
    text = f"No place for this call to {upstream} in time: {reason}; come again in {round_retry_after(retry_after)} s."
    return CallRefused("rate_limit_exceeded", 429, text, retry_after=retry_after, retryable=True)


def invalid_api_key(upstream: str, variable: str) -> CallRefused:
    """The call does not show the key that the app has in `variable`."""
    text = (
        f"{upstream} is called with a key of the gateway's own (upstreams.{upstream}.api_key);"
        f" show the one that it set for the app, {variable}."
    )
    return CallRefused("invalid_api_key", 401, text)


def misdirected_call() -> CallRefused:
    """The call's Host is none that leads here (RFC 9110 section 15.5.20)."""
    text = (
        "Calls out are taken for a loopback Host alone, such as 127.0.0.1, or at an address that listen.egress opens."
    )
    return CallRefused("misdirected", 421, text)


def cross_site_call() -> CallRefused:
    """A browser sent the call for another site's page."""
    text = "Calls out are the app's: none is taken from a page of another site (its Origin, or Sec-Fetch-Site)."
    return CallRefused("cross_site", 403, text)


def unknown_upstream(name: str, known: Iterable[str]) -> CallRefused:
    text = f"No upstream is called {name!r}; the policy names: {', '.join(known) or 'none'}."
    return CallRefused("unknown_upstream", 404, text)


def unreadable_call(status: int, most: int) -> CallRefused:
    """The refusal of what is no HTTP request, by the status that it deserves; `most` is how long a head may be."""
    if status == 431:
        text = f"The call's head is longer than the {most // 1024} KiB that are read."
        return CallRefused("header_too_large", 431, text)
    return CallRefused("bad_request", 400, "The call is no sound HTTP/1.1 request.")


def cost_cap_exceeded(upstream: str, reason: str) -> CallRefused:
    return CallRefused("cost_cap_exceeded", 429, f"This call to {upstream} would pass a cap. {reason}")


def unknown_price(upstream: str, model: str | None) -> CallRefused:
    named = repr(model) if model else "no model"
    mend = f"write its price under upstreams.{upstream}.prices, or unknown_price: highest"
    return CallRefused("unknown_price", 400, f"Nobody knows what {named} costs (unknown_price: refuse); {mend}.")


def ledger_unavailable() -> CallRefused:
    text = "What calls cost cannot be written down now, and without that none is made (ledger.on_error: deny)."
    return CallRefused("ledger_unavailable", 503, text)


def store_unavailable(upstream: str) -> CallRefused:
    text = (
        f"The store that holds the caps of {upstream} does not answer, and without it no call is made"
        " (store.on_error: deny)."
    )
    return CallRefused("store_unavailable", 503, text, retry_after=1.0)


def gateway_fault() -> CallRefused:
    return CallRefused("gateway_fault", 500, "The gateway met a fault of its own; the log has it.")
