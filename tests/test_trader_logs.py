"""Logs: one line per event, ids that follow a trade, and no secret in any form."""
import base64
import json
import logging
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scalp_nb.feed.errors import ConfigError
from scalp_nb.order.types import Intent, OrderType, Purpose, Side, Tif
from scalp_nb.trader import logs as G

ROOT = str(Path(__file__).parents[1])


@pytest.fixture(autouse=True)
def clean():
    yield
    G.reset_logging()
    G.forget_secrets()
    logging.captureWarnings(False)


def lines(path: Path) -> list[dict]:
    return [json.loads(x) for x in path.read_text().splitlines()]


def test_importing_logs_nothing_and_writes_nothing(tmp_path):
    code = "import logging\nfrom scalp_nb.trader import logs\nlogs.get_logger('a').warning('hello', password='x')\nassert not logging.root.handlers"
    env = {**os.environ, "PYTHONPATH": ROOT}
    r = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert (r.returncode, r.stdout, r.stderr) == (0, "", "") and list(tmp_path.iterdir()) == []


def test_one_line_per_event_with_run_level_room_and_corr(tmp_path):
    path = G.configure_logging(tmp_path / "session.log", "r1")
    for _ in range(3):
        G.configure_logging(path, "r1")
    log = G.get_logger("order.manager")
    one = Decimal(1)
    intent = Intent("e1", 1, 1, "a", "s", "X", 0, Side.BUY, Purpose.ENTRY, one, OrderType.LIMIT, one, None, Tif.DAY, one)
    stop = Intent("s1", 1, 2, "a", "s", "X", 0, Side.SELL, Purpose.STOP, one, OrderType.STOP, None, one, Tif.DAY, one, parent="e1")
    for i in (intent, stop):
        with G.correlation(G.corr_id(i)):
            log.info("sent", client_id=i.id, qty=i.qty)
            logging.getLogger("library").warning("inside")
    log.info("after")
    log.debug("too fine")
    logging.getLogger("library").info("too chatty")
    got = lines(path)
    assert [(x["event"], x.get("corr")) for x in got] == [("sent", "e1"), ("inside", "e1")] * 2 + [("after", None)]
    assert got[0] | {"at": ""} == {"run": "r1", "event": "sent", "client_id": "e1", "qty": "1", "corr": "e1", "level": "info",
                                   "logger": "scalp_nb.order.manager", "at": ""}
    assert got[1]["logger"] == "library" and got[1]["level"] == "warning" and got[0]["at"].endswith("Z")


def test_reconfiguring_moves_the_log_and_the_level(tmp_path):
    G.configure_logging(tmp_path / "a", "r1")
    log = G.get_logger("x")
    log.info("one")
    G.configure_logging(tmp_path / "b", "r2", "DEBUG")
    log.debug("two")
    assert [x["event"] for x in lines(tmp_path / "a")] == ["one"]
    assert [(x["event"], x["run"]) for x in lines(tmp_path / "b")] == [("two", "r2")]
    assert sum(isinstance(h, G._SessionFile) for h in logging.getLogger().handlers) == 1


def test_rotation_keeps_every_line_whole(tmp_path):
    path = G.configure_logging(tmp_path / "session.log", "r", max_bytes=2000, keep=3)
    for k in range(100):
        G.get_logger("x").info("tick", k=k)
    files = sorted(tmp_path.iterdir(), key=lambda f: f.name, reverse=True)  # the oldest first
    got = [x["k"] for f in files for x in lines(f)]
    assert len(files) == 4 and path.stat().st_size <= 2000
    assert got == list(range(100 - len(got), 100)) and len(got) >= 30


def test_refusals(tmp_path):
    with pytest.raises(ConfigError, match="DEBUG, INFO"):
        G.configure_logging(tmp_path / "x", "r", "loud")
    with pytest.raises(ConfigError, match="another run folder"):
        G.configure_logging(tmp_path / "no" / "x", "r")
    with pytest.raises(ConfigError, match="at least 4") as e:
        G.register_secret("abc")
    assert "abc" not in str(e.value)


@dataclass
class Creds:
    name: str
    note: str


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF), min_size=6, max_size=24).filter(lambda s: "*" not in s), st.integers(0, 9))
def test_a_registered_secret_appears_nowhere(tmp_path, secret, where):
    "Every place a value can hide in a record, in every common encoding."
    G.forget_secrets()
    G.register_secret(secret)
    path = tmp_path / "session.log"
    path.unlink(missing_ok=True)
    G.configure_logging(path, "r1")
    log, lib = G.get_logger("broker"), logging.getLogger("lib")
    places = [
        lambda: log.info(f"answer {secret}"), lambda: log.info("x", note=[{"a": (secret, 1)}]), lambda: log.info("x", **{"k": {secret: 1}}),
        lambda: log.info("x", o=Creds("bot", secret)), lambda: lib.error("got %s", secret), lambda: lib.error({"body": secret}),
        lambda: log.info("x", url=f"https://h/?q={quote(secret, safe='')}"),
        lambda: log.info("x", body=json.dumps({"p": secret}, ensure_ascii=False)),
        lambda: log.info("x", basic=base64.b64encode(secret.encode()).decode()),
    ]
    if where < len(places):
        places[where]()
    else:
        try:
            raise ValueError(f"login {secret}") from KeyError(secret)
        except ValueError:
            log.exception("failed")
            lib.exception("failed")
    G.reset_logging()
    text = path.read_text()
    assert text and json.loads(text.splitlines()[0])
    decoded = [json.loads(line) for line in text.splitlines()]
    for form in (secret, quote(secret, safe=""), base64.b64encode(secret.encode()).decode().rstrip("=")):
        assert form not in json.dumps(decoded, ensure_ascii=False).replace("\\\\", "\\").replace('\\"', '"'), form


@pytest.mark.parametrize("key", ["token", "feedToken", "refresh_token", "api_key", "apiKey", "X-API-KEY", "APCA-API-SECRET-KEY",
                                 "client_secret", "password", "PIN", "mpin", "totp", "otp", "jwtToken", "Authorization",
                                 "private-key", "access_key", "cookie"])
def test_values_under_secret_names_are_hidden(tmp_path, key):
    path = G.configure_logging(tmp_path / "l", "r")
    G.get_logger("x").info("e", **{key: "v4lue"}, deep=[{key: {"x": "v4lue"}}])
    G.reset_logging()
    assert "v4lue" not in path.read_text() and path.read_text().count("***") == 2


@pytest.mark.parametrize("key", ["ping", "spin", "pinned", "opinion", "key", "keyboard", "stop", "symbol", "author", "notional", "access"])
def test_ordinary_names_stay(key):
    assert not G.secret_key(key)


@pytest.mark.parametrize(("text", "want"), [
    ("eyJhbGciOiJIUzUxMiJ9.eyJ1c2VybmFtZSI6.ab_-9 x", "*** x"),
    ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
    ("postgresql://bot:pa55@db/x", "postgresql://bot:***@db/x"),
    ("?api_key=k1&x=1", "?api_key=***&x=1"),
    ("{'totp': '123456', 'n': 1}", "{'totp': '***', 'n': 1}"),
    ('"jwtToken":"abc"', '"jwtToken":"***"'),
    ("pin: 1234", "pin: ***"),
    ("spin: 3, pinned at 10:15 http://127.0.0.1:80/a@b", "spin: 3, pinned at 10:15 http://127.0.0.1:80/a@b"),
])
def test_forms_that_are_always_secret(text, want):
    assert G.redact_text(text) == want and G.redact_text(want) == want


def test_longer_secret_leaves_no_tail_and_odd_values_do_not_break_logging():
    G.register_secret("abcd")
    G.register_secret("abcdefgh")
    assert G.redact_text("x abcdefgh abcd") == "x *** ***"
    class Bad:
        def __str__(self): raise ZeroDivisionError
    shown = {"b": "<Bad that cannot be shown: ZeroDivisionError>", "1": [2.5], "n": None, "t": True}
    assert G.redact({"b": Bad(), 1: {2.5}, "n": None, "t": True}) == shown


def test_lost_line_is_reported_without_its_content(tmp_path, capsys, monkeypatch):
    G.configure_logging(tmp_path / "l", "r")
    def full(self, record): raise OSError(28, "No space left on device")
    monkeypatch.setattr(G._SessionFile, "shouldRollover", full)
    G.get_logger("x").info("order", password="p4ss")
    logging.getLogger("lib").error("password=%s", "p4ss")
    err = capsys.readouterr().err
    assert err.count("a log line was lost: OSError") == 2 and "p4ss" not in err


def test_uncaught_exceptions_of_any_thread_are_logged_and_clean(tmp_path, capsys, monkeypatch):
    path = G.configure_logging(tmp_path / "l", "r")
    G.register_secret("hunter22")
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    G.log_uncaught("trader.session")
    def boom(): raise ValueError("hunter22")
    t = threading.Thread(target=boom, name="worker")
    t.start()
    t.join()
    threading.excepthook(threading.ExceptHookArgs((ValueError, ValueError("hunter22"), None, None)))
    try:
        boom()
    except ValueError as e:
        sys.excepthook(ValueError, e, e.__traceback__)
    sys.excepthook(KeyboardInterrupt, KeyboardInterrupt(), None)
    G.reset_logging()
    got, err = lines(path), capsys.readouterr().err
    assert [(x["event"], x["thread"]) for x in got] == [("uncaught", "worker"), ("uncaught", "?"), ("uncaught", "main")]
    assert "ValueError: ***" in got[0]["exception"] and "ValueError: ***" in err and "hunter22" not in err + path.read_text()


def test_foreign_handlers_get_clean_records(caplog):
    G.register_secret("hunter22")
    with caplog.at_level("INFO"):
        G.get_logger("x").info("login", note="hunter22", password="p4ss")
    assert caplog.records and "hunter22" not in caplog.text and "p4ss" not in caplog.text
