"""The store keeps its three promises: durable before sent, a consistent prefix after any crash, shut after a failure."""
import contextlib
import importlib.util
import json
import os
import pwd
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scalp_nb.order.types import Fill, Intent, Order, OrderState, OrderType, Purpose, Side, Tif
from scalp_nb.trader import store as S
from scalp_nb.trader.events import Note, Submit
from scalp_nb.trader.journal import GENESIS, JournalError, payload, read_jsonl, verify
from scalp_nb.trader.store import AccountBusy, Store, StoreError, crash_hook_from_env

BUY = Intent("i1", 1, 1, "paper", "pressure", "INFY", 0, Side.BUY, Purpose.ENTRY, Decimal("10"), OrderType.LIMIT, Decimal("1500.50"), None,
             Tif.DAY, Decimal("1500.25"), reason="PRESSURE")
FILL = Fill(2, "i1", "e1", "INFY", 0, Side.BUY, Purpose.ENTRY, Decimal("10"), Decimal("1500.40"), Decimal("1500.25"))
ORDER = Order(BUY, OrderState.FILLED, 2, 3, "v1", Decimal("10"), Decimal("15004.00"), frozenset({"e1", "e0"}), 9, "x")


# ---- databases

@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    "URL of a temporary PostgreSQL server, run by a user other than root."
    tools = next((d for d in ("/usr/local/bin", *sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")), reverse=True),
                              os.path.dirname(shutil.which("initdb") or "")) if d and os.path.exists(f"{d}/initdb")), None)
    if not tools: pytest.skip("no PostgreSQL server (initdb) on this machine")
    if not importlib.util.find_spec("psycopg"): pytest.skip("psycopg is not installed: pip install 'psycopg[binary]'")
    top = Path(tempfile.mkdtemp(prefix="pg"))
    who: dict[str, Any] = {}
    if os.geteuid() == 0:
        user = next((u for u in ("postgres", "nobody") if u in {p.pw_name for p in pwd.getpwall()}), None)
        if not user: pytest.skip("running as root and no user to run PostgreSQL as")
        who = {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}
        os.chown(top, pwd.getpwnam(user).pw_uid, -1)

    def run(tool: str, *args: str) -> None:
        subprocess.run([f"{tools}/{tool}", *args], check=True, capture_output=True, cwd=top, env={"PATH": "/usr/bin:/bin"}, **who)
    try:
        run("initdb", "-D", f"{top}/data", "-U", "scalp", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        run("pg_ctl", "-D", f"{top}/data", "-w", "-l", f"{top}/log", "-o", f"-k {top} -c listen_addresses=''", "start")
        yield f"postgresql://scalp@/postgres?host={top}"
        run("pg_ctl", "-D", f"{top}/data", "-m", "immediate", "stop")
    finally: shutil.rmtree(top, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    "An empty database of each kind."
    if request.param == "sqlite":
        yield str(tmp_path / "store.db")
        return
    url = request.getfixturevalue("postgres")
    import psycopg
    name = f"t{time.time_ns()}"
    with psycopg.connect(url, autocommit=True) as con: con.execute(f"CREATE DATABASE {name}")
    yield url.replace("/postgres?", f"/{name}?")
    with psycopg.connect(url, autocommit=True) as con: con.execute(f"DROP DATABASE {name} WITH (FORCE)")


def fill_up(store: Store) -> None:
    "A bit of everything."
    store.append("run:begin", 1, {"account": "paper"})
    store.put_intent(BUY)
    store.append("command:Submit", 1, Submit(BUY), cursor=5, corr=BUY.id)
    store.commit(True)
    store.put_order(replace(ORDER, state=OrderState.OPEN))
    store.put_order(ORDER)
    store.put_fill(FILL, Decimal("0.30"), {"pnl": Decimal("1.10"), "n": float("inf")})
    store.put_equity(3, Decimal("100.00"), Decimal("90.5"), Decimal("-0.1"))
    store.put_positions(3, [("INFY", Decimal("-3"), Decimal("9.50")), ("TCS", Decimal(1), Decimal(2))])
    store.put_positions(4, [])
    store.put_bar("INFY", 60, 60, (1, 2, 0.5, 1.5, 100))
    store.put_bar("INFY", 60, 60, (1, 2, 0.5, 1.75, 110), 1.25, 9)
    store.set_state("trader", {"n": 1})
    store.set_state("trader", {"n": 2, "cash": Decimal("100.10"), "set": frozenset({"a"})})
    store.append("note:fill", 3, Note("fill", {"text": "naïve \u0000 \ud800"}), corr=BUY.id)
    store.commit(False)


def test_everything_reads_back(where: str) -> None:
    with Store.open(where, "paper", run="r1") as store:
        fill_up(store)
        head = store.head()
    with Store.open(where, "paper", exclusive=False) as store:
        assert store.intents() == [BUY] and str(store.intents()[0].limit) == "1500.50"
        assert store.orders() == [ORDER]
        assert store.fills() == [(FILL, Decimal("0.30"), {"pnl": Decimal("1.10"), "n": float("inf")})]
        assert store.rows(S.EQUITY)[0]["unrealised"] == "-0.1"
        assert [(r["ts"], r["symbol"], r["qty"], r["avg_px"]) for r in store.rows(S.POSITIONS)] == [
            (3, "INFY", "-3", "9.50"), (3, "TCS", "1", "2"), (4, "", "0", "0")]
        assert [(r["close"], r["volume"], r["trades"]) for r in store.rows(S.BARS)] == [(1.75, 110, 9)]
        assert store.get_state("trader") == {"n": 2, "cash": Decimal("100.10"), "set": frozenset({"a"})}
        assert store.get_state("none") is None
        assert [r.kind for r in store.records()] == ["run:begin", "command:Submit", "note:fill"]
        assert payload(list(store.records(3))[0]).data["text"] == "naïve \u0000 \ud800"
        assert (store.count(), store.head(), store.verify().ok) == (3, head, True)
        assert store.rows(S.LOCK) == []


def test_the_chain_goes_on_over_restarts_and_accounts_are_apart(where: str) -> None:
    for i in range(3):
        with Store.open(where, "paper") as store:
            assert store.took_over is None
            assert store.append("run:begin", i, {"i": i}) == i + 1
    with Store.open(where, "other") as store:
        assert (store.count(), store.head(), list(store.records())) == (0, GENESIS, [])
        store.append("run:begin", 1, {})
    with Store.open(where, "paper", exclusive=False) as store:
        v = store.verify()
        assert (v.ok, v.count) == (True, 3)


def test_an_order_without_a_state_is_an_intent(where: str) -> None:
    with Store.open(where, "paper") as store:
        store.put_intent(BUY)
        store.commit(True)
        assert store.orders() == [Order(BUY, OrderState.INTENT)]


def test_the_second_trader_is_refused_and_told_who(where: str, tmp_path: Path) -> None:
    with Store.open(where, "paper", run="first"):
        with pytest.raises(AccountBusy, match=rf"'paper' is being traded.*run 'first', pid {os.getpid()}"):
            Store.open(where, "paper", run="second")
        Store.open(where, "paper", exclusive=False).close()
        Store.open(where, "other").close()
    Store.open(where, "paper").close()


def patient(where: str, run: str) -> Store:
    "Open an account whose holder was just killed: a server needs a moment to notice."
    until = time.monotonic() + 10
    while True:
        try: return Store.open(where, "paper", run=run)
        except AccountBusy:
            if time.monotonic() > until: raise
            time.sleep(0.02)


def test_the_second_process_is_refused_until_the_first_is_killed(where: str) -> None:
    code = ("import sys, time; from scalp_nb.trader.store import Store\n"
            "s = Store.open(sys.argv[1], 'paper', run='child'); print('up', flush=True); time.sleep(60)")
    with subprocess.Popen([sys.executable, "-c", code, where], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout and child.stdout.readline() == "up\n"
        with pytest.raises(AccountBusy, match=f"run 'child', pid {child.pid}"): Store.open(where, "paper")
        child.kill()
        child.wait()
    store = patient(where, "next")
    assert store.took_over and (store.took_over.run, store.took_over.pid) == ("child", child.pid)
    store.close()


def test_a_lock_for_the_whole_machine(tmp_path: Path) -> None:
    with Store.open(tmp_path / "a.db", "live/1", run="a", lock_dir=tmp_path / "locks"):
        with pytest.raises(AccountBusy, match="run 'a'"): Store.open(tmp_path / "b.db", "live/1", lock_dir=tmp_path / "locks")
        Store.open(tmp_path / "b.db", "live 1", lock_dir=tmp_path / "locks").close()
    Store.open(tmp_path / "b.db", "live/1", lock_dir=tmp_path / "locks").close()


def test_a_holder_without_a_name(tmp_path: Path) -> None:
    p = S.lock_path(tmp_path / "s.db", "paper")
    os.close(S.hold_file(p, "paper", S.Holder("r", 1, "h", 1)))
    fd = S.hold_file(p, "paper", S.Holder("r", 1, "h", 1))
    os.ftruncate(fd, 0)
    with pytest.raises(AccountBusy, match="not written its name"): Store.open(tmp_path / "s.db", "paper")
    os.close(fd)


# ---- append-only, once only

def test_the_journal_cannot_be_changed(where: str) -> None:
    with Store.open(where, "paper") as store:
        fill_up(store)
        evil = ["UPDATE journal SET data='{}' WHERE seq=1", "DELETE FROM journal WHERE seq=3"]
        evil += ["TRUNCATE journal"] if store.db.pg else [
            "INSERT OR REPLACE INTO journal SELECT account,seq,0,cursor,kind,corr,data,prev,hash FROM journal"]
        for sql in evil:
            with pytest.raises(StoreError, match="append-only"): store.query(sql)
        assert store.verify().ok and store.count() == 3


def test_the_same_intent_twice_shuts_the_store(where: str) -> None:
    with Store.open(where, "paper") as store:
        fill_up(store)
        store.append("note:decision", 9, {})
        store.put_intent(BUY)
        with pytest.raises(StoreError, match="already stored"): store.commit(True)
        with pytest.raises(StoreError, match="shut after an earlier failure"): store.put_equity(1, Decimal(1), Decimal(1), Decimal(0))
        with pytest.raises(StoreError, match="shut after an earlier failure"): store.commit(False)
    with Store.open(where, "paper") as store: assert (store.count(), store.verify().ok) == (3, True)


def test_the_same_fill_twice_is_one_fill(where: str) -> None:
    with Store.open(where, "paper") as store:
        fill_up(store)
        store.put_fill(replace(FILL, ts=77))
        store.put_fill(replace(FILL, exec_id="e2"))
        store.put_fill(replace(FILL, exec_id="e2"))
        store.commit(True)
        assert sorted(f.exec_id for f, _, _ in store.fills()) == ["e1", "e2"]
        store.put_fill(replace(FILL, exec_id="e2", px=Decimal("1500.400")))
        with pytest.raises(StoreError, match="stored differently"): store.commit(True)


def test_an_intent_of_another_account_is_refused(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s.db", "other") as store, pytest.raises(StoreError, match="another account"): store.put_intent(BUY)


def test_a_bad_record_does_not_disturb_the_chain(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s.db", "paper") as store:
        assert store.append("run:a", 1, {}) == 1
        with pytest.raises(JournalError): store.append("run:b", 1, {"x": object()})
        assert store.append("run:c", 1, {}) == 2
        store.commit(True)
        assert store.verify().count == 2


def test_a_number_beyond_the_database_is_a_store_error(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s.db", "paper") as store:
        store.put_equity(2**64, Decimal(1), Decimal(1), Decimal(1))
        with pytest.raises(StoreError, match="commit to"): store.commit(True)


def test_tampering_below_the_triggers_is_found(tmp_path: Path) -> None:
    p = tmp_path / "s.db"
    with Store.open(p, "paper") as store:
        for i in range(9): store.append("run:x", i, {"i": i})
    for sql, bad in (("UPDATE journal SET ts=99 WHERE seq=4", 4), ("DELETE FROM journal WHERE seq=7", 7), ("DELETE FROM journal WHERE seq>7", 8)):
        q = tmp_path / "t.db"
        shutil.copy(p, q)
        con = sqlite3.connect(q)
        for name in ("update", "delete"): con.execute(f"DROP TRIGGER journal_no_{name}")
        con.execute(sql)
        con.commit()
        con.close()
        with Store.open(q, "paper", exclusive=False) as store:
            v = store.verify()
            assert (v.ok, v.first_bad_seq) == (False, bad)
    with pytest.raises(StoreError, match="does not end at its stated head"): Store.open(q, "paper")
    Store.open(q, "other").close()  # the refused one let go of everything


# ---- the buffer

def test_the_buffer_flushes_itself(tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []
    with Store.open(tmp_path / "s.db", "paper", flush_at=4, hook=lambda p, n: seen.append((p, n))) as store:
        for i in range(9): store.append("run:x", i, {})
        assert (store.count(), len(list(store.records()))) == (8, 8)
        store.commit(False)
        store.commit(False)  # nothing to do, no boundary
        assert seen == [(p, 2 * i + j + 1) for i in range(3) for j, p in enumerate(("before", "after"))]
        store.commit(True)   # nothing new, but what is there must reach the disk
        assert len(seen) == 8
        store.commit(True)
        assert len(seen) == 8
        store.checkpoint()


def modes(store: Store) -> int:
    return int(store.query("PRAGMA synchronous")[0][0])


def test_synchronous_is_full_when_it_must_be(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s.db", "paper") as store:
        assert store.query("PRAGMA journal_mode") == [("wal",)]
        for put, want in ((lambda: store.append("run:x", 1, {}), 1), (lambda: store.put_intent(BUY), 2), (lambda: store.set_state("a", {}), 1),
                          (lambda: store.put_fill(FILL), 2), (lambda: store.put_order(ORDER), 1)):
            put()
            store.commit(False)
            assert modes(store) == want
        store.set_state("a", {})
        store.commit(True)
        assert modes(store) == 2


def test_synchronous_commit_on_postgres(postgres: str) -> None:
    with Store.open(postgres, "sync") as store:
        for sync, want in ((True, "on"), (False, "off")):
            cur = S._begin(store.db, sync)
            assert cur.execute("SHOW synchronous_commit").fetchone() == (want,)
            S._rollback(store.db)
        store.checkpoint()


def test_threads_may_queue_while_one_commits(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s.db", "paper", flush_at=10**9) as store:
        stop = threading.Event()

        def commits() -> None:
            while not stop.is_set(): store.commit(True)
        t = threading.Thread(target=commits)
        t.start()
        for i in range(3000):
            store.append("run:x", i, {"i": i})
            store.set_state("n", {"n": i})
        stop.set()
        t.join()
        store.commit(True)
        assert store.verify().count == 3000 and store.get_state("n") == {"n": 2999}


def test_a_failing_hook_shuts_the_store(tmp_path: Path) -> None:
    def hook(phase: str, n: int) -> None: raise KeyboardInterrupt
    store = Store.open(tmp_path / "s.db", "paper", hook=hook)
    store.append("run:x", 1, {})
    with pytest.raises(KeyboardInterrupt): store.commit(True)
    with pytest.raises(StoreError, match="shut"): store.commit(True)
    store.close()
    store.close()
    with Store.open(tmp_path / "s.db", "paper", exclusive=False) as store: assert store.count() == 0


def test_a_reader_cannot_write(where: str) -> None:
    Store.open(where, "paper").close()
    with Store.open(where, "paper", exclusive=False) as store:
        for f in (lambda: store.append("run:x", 1, {}), lambda: store.commit(True), lambda: store.put_order(ORDER), store.checkpoint):
            with pytest.raises(StoreError, match="reading only"): f()
        with pytest.raises(StoreError, match="read-only|readonly"): store.query("DELETE FROM bars")


def test_a_reader_follows_a_writer(where: str) -> None:
    with Store.open(where, "paper") as store, Store.open(where, "paper", exclusive=False) as reader:
        for i in range(5000): store.append("run:x", i, {})
        store.commit(False)
        it = reader.records()
        first = [next(it) for _ in range(3)]
        store.append("run:x", 5000, {})
        store.commit(False)
        assert [r.seq for r in first + list(it)] == list(range(1, 5002))


def test_memory() -> None:
    with Store.open(":memory:", "paper") as store:
        fill_up(store)
        assert store.verify().count == 3


def test_export(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s.db", "paper") as store:
        fill_up(store)
        assert store.export_jsonl(tmp_path / "j.jsonl") == 3
        assert list(read_jsonl(tmp_path / "j.jsonl")) == list(store.records())
        assert verify(read_jsonl(tmp_path / "j.jsonl"), store.head(), store.count()).ok
        with pytest.raises(StoreError, match="folder does not exist"): store.export_jsonl(tmp_path / "none" / "j.jsonl")
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".db", ".jsonl", ".lock"]
    for bad in (tmp_path / "none" / "s.db", tmp_path):
        with pytest.raises(StoreError, match="folder"): Store.open(bad, "paper")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(st.sampled_from(["append", "state", "sync", "async", "reopen"]), max_size=30))
def test_any_order_of_calls_leaves_a_whole_journal(tmp_path: Path, calls: list[str]) -> None:
    p = tmp_path / f"{time.time_ns()}.db"
    store, n = Store.open(p, "paper", flush_at=3), 0
    for c in calls:
        if c == "append": n = store.append("run:x", n, {"n": n})
        elif c == "state": store.set_state("n", {"n": n})
        elif c == "reopen":
            store.close()
            store = Store.open(p, "paper", flush_at=3)
        else: store.commit(c == "sync")
    store.close()
    with Store.open(p, "paper", exclusive=False) as store:
        v = store.verify()
        assert (v.ok, v.count) == (True, n)


# ---- kill -9

WRITER = """
import sys
from dataclasses import replace
from decimal import Decimal
sys.path.insert(0, sys.argv[2])
from test_trader_store import BUY, FILL, ORDER
from scalp_nb.trader.events import Submit
from scalp_nb.trader.store import Store, crash_hook_from_env
hook, last = crash_hook_from_env(), [0]
def watch(phase, n):
    last[0] = n
    if hook: hook(phase, n)
with Store.open(sys.argv[1], "paper", run="writer", hook=watch) as s:
    for i in range(5):
        b = replace(BUY, id=f"i{i}", seq=i)
        s.append("note:signal", i, {"i": i}, corr=b.id)
        s.put_intent(b)
        n = s.append("command:Submit", i, Submit(b), corr=b.id)
        s.set_state("trader", {"seq": n, "sent": i + 1, "filled": i})
        s.commit(True)
        print("durable", n, flush=True)
        s.put_order(replace(ORDER, intent=b))
        s.put_fill(replace(FILL, client_id=b.id, exec_id=f"e{i}"))
        n = s.append("note:fill", i, {"i": i}, corr=b.id)
        s.set_state("trader", {"seq": n, "sent": i + 1, "filled": i + 1})
        s.commit(False)
        s.append("note:decision", i, {"i": i})
        n = s.append("note:decision", i, {"i": i})
        s.set_state("trader", {"seq": n, "sent": i + 1, "filled": i + 1})
        s.commit(False)
print("boundaries", last[0], flush=True)
"""


def writer(path: str, crash_at: int | None) -> tuple[int, list[list[str]]]:
    env = {k: v for k, v in os.environ.items() if k != "SCALP_CRASH_AT"} | ({"SCALP_CRASH_AT": str(crash_at)} if crash_at else {})
    out = subprocess.run([sys.executable, "-c", WRITER, path, str(Path(__file__).parent)], env=env, capture_output=True, text=True, timeout=60)
    assert out.returncode in (0, -signal.SIGKILL), out.stderr
    return out.returncode, [line.split() for line in out.stdout.splitlines()]


def consistent(path: str) -> tuple[int, dict[str, Any] | None]:
    "Journal, tables and state are of one and the same moment."
    with patient(path, "after") as store:
        v, state = store.verify(), store.get_state("trader")
        assert v.ok, v
        kinds = [r.kind for r in store.records()]
        want = state or {"seq": 0, "sent": 0, "filled": 0}
        assert v.count == want["seq"] == len(kinds)
        assert len(store.intents()) == kinds.count("command:Submit") == want["sent"]
        assert len(store.fills()) == kinds.count("note:fill") == want["filled"] == sum(o.state is OrderState.FILLED for o in store.orders())
        assert [payload(r).intent for r in store.records() if r.kind == "command:Submit"] == store.intents()
        n = store.append("run:begin", 1, {})  # the chain goes on
        store.commit(True)
        assert n == v.count + 1 and store.verify().ok
        return v.count, state


def test_kill_at_every_boundary(tmp_path: Path) -> None:
    code, said = writer(str(tmp_path / "whole.db"), None)
    last = int(said[-1][1])
    assert code == 0 and last == 2 * (3 * 5 + 1)  # the closing commit makes the rest durable
    whole, _ = consistent(str(tmp_path / "whole.db"))
    for n in range(1, last + 1):
        path = str(tmp_path / f"{n}.db")
        code, said = writer(path, n)
        assert code == -signal.SIGKILL, n
        commits = min(n // 2, 15)  # those whose "after" boundary was reached
        count, _ = consistent(path)
        assert count == commits // 3 * 5 + (0, 2, 3)[commits % 3], n
        assert count >= max((int(s[1]) for s in said), default=0)
        assert count <= whole


@pytest.mark.parametrize("n", [1, 2, 5, 6, 31])
def test_kill_on_either_database(where: str, n: int) -> None:
    code, _ = writer(where, n)
    assert code == -signal.SIGKILL
    count, _ = consistent(where)
    assert count == min(n // 2, 15) // 3 * 5 + (0, 2, 3)[min(n // 2, 15) % 3]


def forked(work: Callable[[], None]) -> int:
    "Exit status of `work` in a child; a signal is negative."
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException as e:
            os.write(2, f"{type(e).__name__}: {e}\n".encode())
            os._exit(9)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_kill_at_any_moment_keeps_what_was_durable(tmp_path: Path) -> None:
    for k in range(12):
        path, (r, w) = str(tmp_path / f"{k}.db"), os.pipe()

        def work(path: str = path, w: int = w, k: int = k) -> None:
            signal.setitimer(signal.ITIMER_REAL, 0)
            threading.Timer(0.03 + 0.007 * k, os.kill, (os.getpid(), signal.SIGKILL)).start()
            with Store.open(path, "paper") as s:
                for i in range(10**6):
                    s.put_intent(replace(BUY, id=f"i{i}", seq=i))
                    n = s.append("command:Submit", i, Submit(BUY))
                    s.commit(True)
                    os.write(w, f"{n}\n".encode())
        assert forked(work) == -signal.SIGKILL
        os.close(w)
        with os.fdopen(r) as f: said = [int(x) for x in f.read().split()]
        with Store.open(path, "paper") as store:
            v = store.verify()
            assert v.ok and max(said, default=0) <= v.count <= max(said, default=0) + 1
            assert len(store.intents()) == v.count


def test_crash_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCALP_CRASH_AT", raising=False)
    assert crash_hook_from_env() is None
    for bad in ("0", "x", "-1", "1.0"):
        monkeypatch.setenv("SCALP_CRASH_AT", bad)
        with pytest.raises(StoreError, match="boundary number"): crash_hook_from_env()
    monkeypatch.setenv("SCALP_CRASH_AT", "2")
    hook = crash_hook_from_env()
    assert hook
    hook("before", 1)
    assert forked(lambda: hook("after", 2)) == -signal.SIGKILL


# ---- disks

def until_failure(path: Path | str, limit: Callable[[Store], None] = lambda s: None) -> None:
    "Write until it fails; then it stays shut, and what was committed is whole."
    store, done = Store.open(path, "paper"), 0
    limit(store)
    with pytest.raises(StoreError, match=r"full|input/output") as e:
        for i in range(10**5):
            n = store.append("note:decision", i, {"i": i, "text": "x" * 3000})
            store.commit(i % 2 == 0)
            done = n
    assert 0 < done < 10**5
    with pytest.raises(StoreError, match="shut after an earlier failure") as again: store.append("run:end", 1, {})
    assert str(e.value) in str(again.value)
    with pytest.raises(StoreError, match="shut"): store.commit(True)
    store.close()
    with Store.open(path, "paper", exclusive=False) as reader:
        v = reader.verify()
        assert v.ok and v.count == done


def test_full_by_page_count(tmp_path: Path) -> None:
    until_failure(tmp_path / "s.db", lambda s: s.query("PRAGMA max_page_count=200") and None)


def test_full_by_file_size_limit(tmp_path: Path) -> None:
    def work() -> None:
        until_failure(tmp_path / "s.db", lambda s: resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6)))
    assert forked(work) == 0


@contextlib.contextmanager
def small_disk(path: Path, size: str = "2m") -> Iterator[Path]:
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], capture_output=True).returncode:
        pytest.skip("no right to mount a small disk here")
    try: yield path
    finally: subprocess.run(["umount", "-l", path], check=True)


def test_full_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as d:
        until_failure(d / "s.db")
        with Store.open(d / "s.db", "paper", exclusive=False) as store, pytest.raises(StoreError, match="disk is full"):
            store.export_jsonl(d / "j.jsonl")


def test_read_only_disk(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as d:
        with Store.open(d / "a b?#%.db", "paper") as store: fill_up(store)
        subprocess.run(["mount", "-o", "remount,ro", d], check=True)
        with pytest.raises(StoreError, match="read-only"): Store.open(d / "a b?#%.db", "paper")
        with Store.open(d / "a b?#%.db", "paper", exclusive=False) as store: assert store.verify().count == 3


def test_read_only_file(tmp_path: Path) -> None:
    p = tmp_path / "s.db"
    Store.open(p, "paper").close()
    p.chmod(0o444)
    tmp_path.chmod(0o777)
    user = pwd.getpwnam("nobody")

    def work() -> None:
        if os.geteuid() == 0:
            os.chmod(S.lock_path(p, "paper"), 0o666)
            for d in tmp_path.parents:
                if d.owner() == "root" and d != Path(tempfile.gettempdir()) and d.is_relative_to(tempfile.gettempdir()): d.chmod(0o755)
            os.setgid(user.pw_gid)
            os.setuid(user.pw_uid)
        with pytest.raises(StoreError, match="read-only"): Store.open(p, "paper")
    assert forked(work) == 0


def test_not_a_database(tmp_path: Path) -> None:
    p = tmp_path / "s.db"
    p.write_bytes(os.urandom(8192))
    for exclusive in (True, False):
        with pytest.raises(StoreError, match="not a database"): Store.open(p, "paper", exclusive)
    with pytest.raises(StoreError, match="cannot be opened"): Store.open(tmp_path / "none.db", "paper", exclusive=False)
    sqlite3.connect(tmp_path / "empty.db").close()
    with pytest.raises(StoreError, match="no store in it"): Store.open(tmp_path / "empty.db", "paper", exclusive=False)


def test_a_damaged_page_is_found_after_a_crash(tmp_path: Path) -> None:
    p = tmp_path / "s.db"

    def work() -> None:
        store = Store.open(p, "paper", run="dies")
        for i in range(500): store.append("run:x", i, {"text": "x" * 200})
        store.commit(True)
        store.query("PRAGMA wal_checkpoint(TRUNCATE)")
        os.kill(os.getpid(), signal.SIGKILL)
    assert forked(work) == -signal.SIGKILL
    data = bytearray(p.read_bytes())
    data[len(data) // 2:len(data) // 2 + 4096] = b"\xff" * 4096
    p.write_bytes(data)
    with pytest.raises(StoreError, match="damaged"): Store.open(p, "paper")


@pytest.mark.parametrize(("where", "says"), [("mysql://h/d", "mysql"), ("mssql://u:hunter2@h/d", "mssql")])
def test_other_databases_are_refused(where: str, says: str) -> None:
    with pytest.raises(StoreError, match=says) as e: Store.open(where, "paper")
    assert "hunter2" not in str(e.value)


@pytest.mark.parametrize("account", ["", "a\nb"])
def test_bad_accounts_are_refused(account: str) -> None:
    with pytest.raises(StoreError, match="account"): Store.open(":memory:", account)


def test_no_server_and_no_password_shown() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(StoreError, match="open postgresql") as e: Store.open("postgresql://u:hunter2@127.0.0.1:9/d", "paper")
    assert "hunter2" not in str(e.value)


def test_no_driver(tmp_path: Path) -> None:
    code = ("import sys; sys.modules['psycopg'] = None\nfrom scalp_nb.trader.store import Store, StoreError\n"
            "try: Store.open('postgresql://u:hunter2@h/d', 'a')\nexcept StoreError as e: print(e)")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "pip install 'psycopg[binary]'" in out and "hunter2" not in out


def test_a_lost_server_shuts_the_store(postgres: str) -> None:
    import psycopg
    store = Store.open(postgres, "lost")
    store.append("run:x", 1, {})
    store.commit(True)
    with psycopg.connect(postgres, autocommit=True) as con:
        con.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = 'postgres'")
    store.append("run:x", 2, {})
    with pytest.raises(StoreError, match="commit to postgresql"): store.commit(True)
    with pytest.raises(StoreError, match="shut"): store.commit(True)
    store.close()
    with Store.open(postgres, "lost") as store:
        assert store.verify().count == 1 and store.took_over


def test_bars_of_two_sizes_and_two_accounts_do_not_mix(where: str) -> None:
    with Store.open(where, "paper") as store:
        for size, close in ((60, 1.5), (300, 2.5)): store.put_bar("INFY", size, 0, (1, 3, 0.5, close, 100))
    with Store.open(where, "other") as store: store.put_bar("INFY", 60, 0, (1, 3, 0.5, 2.75, 100))
    for account, found in (("paper", {60: 1.5, 300: 2.5}), ("other", {60: 2.75})):
        with Store.open(where, account, exclusive=False) as store:
            assert {r["size_ns"]: r["close"] for r in store.rows(S.BARS)} == found


def test_bars_of_an_older_store_are_set_aside_and_nothing_else(where: str) -> None:
    with Store.open(where, "paper") as store:
        fill_up(store)
        head, old = store.head(), "CREATE TABLE bars (symbol TEXT NOT NULL, ts BIGINT NOT NULL, close FLOAT, PRIMARY KEY (symbol, ts))"
        for sql in ("DROP TABLE bars", old, "INSERT INTO bars VALUES ('INFY', 60, 1.5)"): store.query(sql)
    with Store.open(where, "paper") as store:
        assert store.head() == head and store.verify().ok and store.rows(S.BARS) == []
        (name,) = [n for n in S.inspect(store.db.engine).get_table_names() if n.startswith("bars_before_")]
        assert store.query(f"SELECT symbol, ts, close FROM {name}") == [("INFY", 60, 1.5)]
        store.put_bar("INFY", 60, 60, (1, 2, 0.5, 1.5, 100))
    with Store.open(where, "paper") as store: assert len(store.rows(S.BARS)) == 1


def test_importing_is_quiet(tmp_path: Path) -> None:
    code = ("import sys, os; before = set(os.listdir('.')); import scalp_nb.trader.store, scalp_nb.trader.config\n"
            "assert set(os.listdir('.')) == before\n"
            "print([m for m in ('pandas', 'numba', 'plotly', 'vectorbt', 'psycopg', 'IPython', 'dotenv') if m in sys.modules])")
    env = os.environ | {"PYTHONPATH": str(Path(S.__file__).parents[2])}
    assert json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, env=env)
                      .stdout.replace("'", '"')) == []


def test_opening_is_fast_with_a_long_journal(tmp_path: Path) -> None:
    p = tmp_path / "s.db"
    with Store.open(p, "paper") as store:
        for i in range(100_000): store.append("note:decision", i, {"i": i})
        store.set_state("trader", {"n": 1})
    opened, verified = [], []
    for _ in range(5):
        t = time.perf_counter()
        with Store.open(p, "paper") as store:
            assert store.get_state("trader") == {"n": 1}
            opened.append(time.perf_counter() - t)
            assert store.verify().count == 100_000
            verified.append(time.perf_counter() - t - opened[-1])
    assert min(opened) < min(verified) / 3   # it does not read the journal, as a verification does
    with Store.open(p, "paper") as store:
        assert orjson.loads(next(store.records(100_000)).data) == {"i": 99_999}
