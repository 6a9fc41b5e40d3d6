"""Angel One's session: the real SDK against a small server on real sockets, in every shape an answer is known to take."""
from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from angel_fake import LOGIN, START, Fake, Reply, bad, config, gate, good
from realdata import realdata

pytest.importorskip("pyotp")

from scalp_nb.broker.angel_models import read_hint, read_limits, read_order, read_position, read_trade, state_of  # noqa: E402
from scalp_nb.broker.angel_sdk import (  # noqa: E402
    AngelAuth,
    AngelConfig,
    AngelError,
    AngelLogin,
    AngelLoginError,
    AngelSession,
    _code_now,
    judge,
    next_midnight,
)
from scalp_nb.broker.base import BrokerError  # noqa: E402
from scalp_nb.broker.httpcalls import Answer, json_of  # noqa: E402
from scalp_nb.feed.packet import FeedError  # noqa: E402
from scalp_nb.order.types import OrderState  # noqa: E402


@pytest.fixture
def fake() -> Iterator[Fake]:
    f = Fake()
    yield f
    f.server.shutdown()
    f.server.server_close()


def session(f: Fake, clock: Callable[[], int] = lambda: START, login: AngelLogin = LOGIN, **over: Any) -> AngelSession:
    return AngelSession(config(f, **over), login, clock)


def test_the_sdk_leaves_nothing_behind(tmp_path: Path) -> None:
    "In a process of its own: no folder, no module of the SDK, no log handler, no change to requests or warnings."
    code = """
import logging, os, sys, warnings, requests
from scalp_nb.broker.angel_sdk import AngelConfig, AngelLogin, AngelSession
from scalp_nb.broker.base import BrokerError
before = (requests.get, requests.request, list(warnings.filters), list(logging.root.handlers))
s = AngelSession(AngelConfig(url="http://127.0.0.1:1", connect_timeout_s=0.5), AngelLogin("k", "c", "1234", "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"))
try: s.open()
except BrokerError as e: print(type(e).__name__)
s.close()
assert os.listdir() == [], os.listdir()
assert not [m for m in sys.modules if m.startswith(("SmartApi", "logzero", "websocket"))]
assert before == (requests.get, requests.request, list(warnings.filters), list(logging.root.handlers))
"""
    root = str(Path(__file__).resolve().parents[1])
    out = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, env={"PYTHONPATH": root, "PATH": ""})
    assert (out.returncode, out.stdout, out.stderr) == (0, "AngelOffline\n", "")


def test_recorded_error_bodies(fake: Fake) -> None:
    seen = set()
    s = session(fake)
    s.open()
    for case in json.loads(realdata("fixtures/angel/rest_error_bodies_2024-12.json").read_text(encoding="utf-8")):
        raw = json.dumps(case["response"]).encode()
        fake.routes["getTradeBook"] = lambda b, t, raw=raw: (200, raw)
        with pytest.raises(AngelError) as e: s.ask("tradeBook", repeat=False)
        assert e.value.code == (case["response"].get("errorcode") or case["response"].get("errorCode"))
        seen.add((type(e.value).__name__, e.value.reason))
    assert seen == {("AngelAuth", "session"), ("AngelLoginError", "totp"), ("AngelAmbiguous", "unclear"), ("AngelRefused", "no_data")}


def test_recorded_answers() -> None:
    from datetime import date
    doc = json.loads(realdata("fixtures/angel/rest_responses_official_js_sdk_tests.json").read_text(encoding="utf-8"))
    def data(name: str) -> Any:
        raw = json.dumps(doc[name])
        return judge(Answer(200, json_of(raw), raw))
    (o,) = [read_order(d) for d in data("orderBook")]
    assert (o.id, o.side, o.limit, state_of(o)) == ("201020000000080", 1, 194, OrderState.CANCELED)
    rejected = read_order(data("indOrderDetails"))
    assert state_of(rejected) is OrderState.REJECTED and rejected.unique and "Insufficient" in rejected.text
    (t,) = [read_trade(d, date(2026, 11, 19)) for d in data("tradeBook")]
    assert (t.px, t.qty, t.fill_id) == (175, 1, "50005750")
    assert [read_position(d)[2:] for d in data("getPosition")][0][0] == 1
    assert read_limits(data("getRMS"), 1, t.qty * 0).cash == 0
    with pytest.raises(AngelError): data("generatingSession")   # status false with tokens in it: no login
    for m in json.loads(realdata("fixtures/angel/ws_order_update_2024-12-26.json").read_text(encoding="utf-8")):
        hint = read_hint(m)
        assert hint is not None and hint.order_id.startswith("2412") and state_of(read_order(m["orderData"])) is not OrderState.UNKNOWN


SHAPES: dict[str, tuple[Reply, str, bool]] = {
    "refused": (bad("AB4008"), "AngelRefused", False), "string false": ((200, b'{"status": "false", "errorcode": "AB1009"}'), "AngelRefused", False),
    "amx": (bad("AB1007"), "AngelAmbiguous", True), "unknown code": (bad("ZZ999"), "AngelAmbiguous", True),
    "internal": (bad("AB2000"), "AngelAmbiguous", True), "gateway token": (gate("AG8001"), "AngelAuth", False),
    "session": (bad("AB1010"), "AngelAuth", False), "ip": (bad("AG7002"), "AngelIp", False), "rate code": (bad("AB1021"), "AngelRate", False),
    "rate text": ((403, b"Access denied because of exceeding access rate"), "AngelRate", False),
    "bare 403": ((403, b"Forbidden"), "AngelGateway", True),
    "html": ((200, b"<html>maintenance</html>"), "AngelGateway", True), "502": ((502, b"<html>"), "AngelGateway", True),
    "empty": ((200, b""), "AngelGateway", True), "cut short": ((200, b'{"status": true, "data": {"orderid": "1'), "AngelGateway", True),
    "redirect": ((302, b""), "AngelGateway", True), "no status": ((200, b'{"data": {"orderid": "1"}}'), "AngelGateway", True),
    "no message": ((200, b'{"status": false}'), "AngelAmbiguous", True), "500 with success": ((500, good({"orderid": "1"})[1]), "AngelGateway", True)}


@pytest.mark.parametrize("shape", SHAPES)
def test_an_order_is_sent_once_whatever_comes_back(fake: Fake, shape: str) -> None:
    reply, kind, ambiguous = SHAPES[shape]
    fake.routes["placeOrder"] = lambda b, t: reply
    s = session(fake)
    s.open()
    with pytest.raises(AngelError) as e: s.ask("placeOrderFullResponse", {"ordertag": "t"}, repeat=False)
    assert (type(e.value).__name__, e.value.ambiguous, fake.count("placeOrder")) == (kind, ambiguous, 1)


def test_a_mute_server_is_left_after_the_time_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        s = AngelSession(AngelConfig(url=f"http://127.0.0.1:{listening.getsockname()[1]}", read_timeout_s=0.3), LOGIN)
        began = time.monotonic()
        with pytest.raises(AngelError) as e: s.open()
        assert e.value.ambiguous and time.monotonic() - began < 3
        s.close()


def test_one_connection_serves_many_requests(fake: Fake) -> None:
    s = session(fake)
    accepted = []
    inner = fake.server.get_request
    fake.server.get_request = lambda: accepted.append(1) or inner()  # type: ignore[func-returns-value, method-assign]
    s.open()
    for _ in range(5): assert s.ask("orderBook") is None
    assert len(accepted) == 1
    s.close()


def test_no_secret_is_told(fake: Fake, caplog: pytest.LogCaptureFixture) -> None:
    "Not in a log at any level, an error, a repr, a URL; not even when the server repeats them."
    caplog.set_level(logging.DEBUG)
    s = session(fake)
    s.open()
    s.ask("orderBook")
    echo = " ".join((LOGIN.api_key, LOGIN.client_code, LOGIN.pin, LOGIN.totp_secret, "jwt1-HIDDEN4", "refresh1-HIDDEN5", "feed-HIDDEN6"))
    said = [repr(s), repr(LOGIN), repr(s.tokens()), repr(s.cfg)]
    for reply in (bad("AB1004", echo), (502, echo.encode()), bad("AB4008", echo), gate("AG8001")):
        fake.routes["getTradeBook"] = lambda b, t, reply=reply: reply
        with pytest.raises(AngelError) as e: s.ask("tradeBook")
        said += [str(e.value), repr(e.value), repr(e.value.__dict__)]
    s.close()
    said += [caplog.text, str(s.notes), *(path for path, _, _ in fake.asked)]
    for text in said:
        assert not [x for x in ("HIDDEN", LOGIN.pin) if x in text], text


def test_logs_out_at_the_end(fake: Fake) -> None:
    s = session(fake)
    s.open()
    assert s.tokens().jwt == "jwt1-HIDDEN4"
    s.close()
    s.close()
    assert fake.count("logout") == 1
    with pytest.raises(FeedError, match="not logged in"): s.tokens()


# ---- a session that ends
def test_an_expired_token_is_renewed_once_for_everybody(fake: Fake) -> None:
    now = [START]
    s = session(fake, lambda: now[0])
    s.open()
    fake.dead.add("jwt1-HIDDEN4")
    now[0] += 60 * 10**9
    done: list[Any] = []
    threads = [threading.Thread(target=lambda: done.append(s.ask("orderBook"))) for _ in range(8)]
    for t in threads: t.start()
    for t in threads: t.join(5)
    assert (done, fake.logins, s.tokens().jwt) == ([None] * 8, 2, "jwt2-HIDDEN4")
    assert any("logged in again" in n for n in s.notes)


def test_an_order_of_an_expired_session_is_not_sent_again(fake: Fake) -> None:
    fake.routes["placeOrder"] = lambda b, t: gate("AG8002") if t == "jwt1-HIDDEN4" else good({"orderid": "1"})
    now = [START]
    s = session(fake, lambda: now[0])
    s.open()
    now[0] += 60 * 10**9
    with pytest.raises(AngelAuth, match="AG8002"): s.ask("placeOrderFullResponse", {"ordertag": "t"}, repeat=False)
    assert (fake.count("placeOrder"), fake.logins) == (1, 2)
    assert s.ask("placeOrderFullResponse", {"ordertag": "t2"}, repeat=False)["orderid"] == "1"


def test_logins_never_loop(fake: Fake) -> None:
    fake.routes["getOrderBook"] = lambda b, t: gate("AG8001")
    now = [START]
    s = session(fake, lambda: now[0])
    s.open()
    now[0] += 60 * 10**9
    for _ in range(5):
        with pytest.raises(AngelAuth): s.ask("orderBook")
    assert fake.logins == 2   # one renewal; the next not before relogin_s
    now[0] += 31 * 10**9
    with pytest.raises(AngelAuth): s.ask("orderBook")
    assert fake.logins == 3


def test_the_login_ends_at_midnight_in_india(fake: Fake) -> None:
    now = [START]
    s = session(fake, lambda: now[0])
    s.open()
    now[0] = next_midnight(START) - 1
    assert s.tokens().jwt == "jwt1-HIDDEN4"
    now[0] += 1
    with pytest.raises(FeedError, match="midnight"): s.tokens()
    s.ask("orderBook")
    assert (s.tokens().jwt, fake.logins) == ("jwt2-HIDDEN4", 2)


# ---- a login that fails, each with its own words
@pytest.mark.parametrize("reply, skew, reason, words", [
    (bad("AB1007", "LoginID or password is invalid"), 0, "pin", "ANGEL_PIN"), (bad("AB1000", "Invalid login"), 0, "pin", "client code or PIN"),
    (bad("AB1050", "Invalid totp"), 0, "totp", "ANGEL_TOTP_SECRET"), (bad("AB1050", "Invalid totp"), 95, "clock_drift", "95 s behind"),
    (bad("AB1050", "Invalid totp"), -120, "clock_drift", "120 s ahead"), (bad("AB1006", "Client blocked"), 0, "blocked", "unblock"),
    (bad("AG8004", "Invalid API Key"), 0, "api_key", "ANGEL_API_KEY"), (gate("AG8001"), 0, "api_key", "ANGEL_API_KEY")])
def test_a_refused_login_says_why_and_is_not_repeated(fake: Fake, reply: Reply, skew: float, reason: str, words: str) -> None:
    fake.routes["loginByPassword"], fake.skew = lambda b, t: reply, skew
    s = session(fake)
    for _ in range(3):
        with pytest.raises(AngelLoginError, match=words) as e: s.open()
        assert e.value.reason == reason and LOGIN.pin not in str(e.value)
    assert fake.count("loginByPassword") == 1


def test_a_login_without_an_answer_may_be_repeated(fake: Fake) -> None:
    now = [START]
    s = session(fake, lambda: now[0])
    inner, fake.routes["loginByPassword"] = fake.routes["loginByPassword"], lambda b, t: (502, b"<html>")
    with pytest.raises(AngelError, match="502"): s.open()
    fake.routes["loginByPassword"] = inner
    now[0] += 10**9
    s.open()
    assert s.valid


def test_a_drifting_clock_is_told_though_the_login_worked(fake: Fake) -> None:
    fake.skew = 12
    s = session(fake)
    s.open()
    assert any("12 s behind" in n for n in s.notes)


def test_the_login_counts_though_the_profile_fails(fake: Fake) -> None:
    "generateSession raises KeyError or TypeError here."
    fake.routes["getProfile"] = lambda b, t: gate("AG8001")
    s = session(fake)
    s.open()
    assert s.valid and s.notes == ["profile after login: session"] and s.ask("orderBook") is None


@pytest.mark.parametrize("data", [None, {}, [], {"jwtToken": "", "feedToken": "f"}, {"jwtToken": "j"}])
def test_a_login_without_tokens_is_none(fake: Fake, data: Any) -> None:
    fake.routes["loginByPassword"] = lambda b, t: good(data)
    s = session(fake)
    with pytest.raises(AngelError, match="without tokens"): s.open()
    assert not s.valid


def test_a_code_is_not_sent_twice(fake: Fake) -> None:
    s = session(fake, totp_once=True)
    s._used_step = int(time.time()) // 30 + 1   # as after a login with the code of this moment
    threading.Timer(0.3, s._closing.set).start()
    began = time.monotonic()
    with pytest.raises(AngelAuth, match="closing"): _code_now(s)
    assert time.monotonic() - began > 0.25


def test_wrong_looking_credentials_are_refused_before_anything_is_sent(fake: Fake) -> None:
    for name, value in (("pin", ""), ("api_key", " k"), ("totp_secret", "nope!")):
        with pytest.raises(BrokerError, match=f"ANGEL_{name.upper()}"): session(fake, login=replace(LOGIN, **{name: value}))
    assert not fake.asked
