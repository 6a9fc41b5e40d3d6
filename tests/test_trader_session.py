"""The session, run in this process: its endings, its refusals, its interruptions, its command line."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from datetime import date
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import yaml
from markets import BUSY, synthetic

from scalp_nb.broker.base import BrokerError
from scalp_nb.feed.errors import ConfigError, DataError, RuleError
from scalp_nb.feed.instrument import Instrument, Universe, UniverseError
from scalp_nb.feed.recorder import RecordingError, write_parquet
from scalp_nb.feed.universe import save_universe
from scalp_nb.trader.client import Refused, SessionClient
from scalp_nb.trader.config import LiveMoney, load_config
from scalp_nb.trader.journal import payload
from scalp_nb.trader.lease import LeaseWatch
from scalp_nb.trader.replay import account_of, first_difference, incarnations, replay_run
from scalp_nb.trader.session import EXIT_CONFIG, EXIT_FAILED, EXIT_NOT_FLAT, EXIT_OK, EXIT_REFUSED, EXITS, main, run_session
from scalp_nb.trader.setup import RunConfig, load_market
from scalp_nb.trader.store import AccountBusy, Store


@pytest.fixture(scope="module")
def tape(tmp_path_factory):
    rows, uni = synthetic(n_symbols=2, seconds=300, seed=5, episode_every_s=30.0, episode_s=20.0)
    path = tmp_path_factory.mktemp("tape") / "tape.parquet"
    write_parquet(rows, uni, path)
    return path


pytestmark = pytest.mark.usefixtures("restore_signals")


def conf(tape: Path, **over):
    return load_config(RunConfig, None, BUSY | {"data.recording": str(tape), "run.account": "test", "exits.time_stop_s": 20.0} | over)


def folder(tmp_path: Path, cfg: RunConfig, name: str = "r") -> Path:
    run_dir = tmp_path / name
    run_dir.mkdir(exist_ok=True)
    (run_dir / "config.yaml").write_text(yaml.safe_dump(json.loads(cfg.model_dump_json())))
    return run_dir


def records(run_dir: Path):
    return list(Store.open(run_dir / "store.db", "test", exclusive=False).records())


def of_kind(run_dir: Path, kind: str):
    return [payload(r) for r in records(run_dir) if r.kind == kind]


def end(run_dir: Path):
    return payload(records(run_dir)[-1])


def test_a_whole_run_is_a_complete_record(tape, tmp_path):
    cfg = conf(tape)
    run_dir = folder(tmp_path, cfg)
    assert run_session(cfg, run_dir) == EXIT_OK
    kinds = [r.kind for r in records(run_dir)]
    assert kinds[0] == "run:begin" and kinds[-1] == "run:end"
    assert {"event:Started", "command:Submit", "note:fill", "note:round_trip", "event:Reconciled", "command:Halt"} <= set(kinds)
    assert end(run_dir)["flat"] and end(run_dir)["differences"] == []
    begin = payload(records(run_dir)[0])
    assert begin["content"] == load_market(cfg).content and begin["provenance"]["config_hash"]
    store = Store.open(run_dir / "store.db", "test", exclusive=False)
    assert len(store.fills()) == kinds.count("note:fill") and len(store.intents()) == kinds.count("command:Submit")
    assert replay_run(run_dir).ok and first_difference(run_dir) == "" and account_of(run_dir) == "test"
    assert not (run_dir / "control.json").exists()


def test_replay_names_the_first_difference(tape, tmp_path):
    cfg = conf(tape)
    run_dir = folder(tmp_path, cfg)
    assert run_session(cfg, run_dir) == EXIT_OK
    lives = list(incarnations(records(run_dir)))
    assert len(lives) == 1 and lives[0].clean
    with sqlite3.connect(run_dir / "store.db") as db:   # a journal that was edited and re-chained would verify; replay still tells
        db.execute("DROP TRIGGER IF EXISTS journal_no_update")
        for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type='trigger'").fetchall():
            db.execute(f"DROP TRIGGER {name}")
        seq, data = db.execute("SELECT seq, data FROM journal WHERE kind='command:Submit' ORDER BY seq LIMIT 1").fetchone()
        db.execute("UPDATE journal SET data=? WHERE seq=?", (data.replace('"qty":"1"', '"qty":"2"'), seq))
    assert f"record {seq}" in first_difference(run_dir)
    assert not Store.open(run_dir / "store.db", "test", exclusive=False).verify().ok


def test_replay_refuses_another_recording(tape, tmp_path):
    cfg = conf(tape)
    run_dir = folder(tmp_path, cfg)
    run_session(cfg, run_dir)
    rows, uni = synthetic(n_symbols=2, seconds=60, seed=6)
    write_parquet(rows, uni, tmp_path / "other.parquet")
    with pytest.raises(DataError, match="content of the recording"):
        replay_run(run_dir, tmp_path / "other.parquet")


def test_lease_lost_without_a_word_flattens_and_says_why(tape, tmp_path):
    read, write = os.pipe()
    cfg = conf(tape, **{"data.speed": 60.0})
    run_dir = folder(tmp_path, cfg)
    threading.Timer(1.2, lambda: os.close(write)).start()
    watch = LeaseWatch(read)
    status = run_session(cfg, run_dir, watch)
    assert status == EXIT_OK, EXITS[status]
    stop = next(c for c in of_kind(run_dir, "event:Control") if c.action == "stop")
    assert stop.who == "lease" and "without a word" in stop.args["reason"] and stop.args["policy"] == "flatten"
    ts = [r.ts for r in records(run_dir)]
    assert ts[-1] - stop.ts <= 2_000_000_000, "flat within 2 s of event time"
    assert end(run_dir)["rows"] < len(load_market(cfg).rows)


def test_lease_lost_with_policy_hold_keeps_positions_and_says_so(tape, tmp_path):
    read, write = os.pipe()
    cfg = conf(tape, **{"data.speed": 60.0, "session.on_lease_lost": "hold", "exits.time_stop_s": 0.0, "exits.stop_pct": 0.05,
                        "exits.target_pct": 0.2, "strategy.exit_on_opposite": False})
    run_dir = folder(tmp_path, cfg)
    threading.Timer(2.5, lambda: os.close(write)).start()
    assert run_session(cfg, run_dir, LeaseWatch(read)) == 1
    assert not end(run_dir)["flat"]
    assert run_session(cfg, run_dir) == EXIT_OK     # resumed by hand: the position is still known, and is closed at the end
    assert end(run_dir)["flat"]


def test_kill_file_and_signal_and_client(tape, tmp_path):
    cfg = conf(tape, **{"data.speed": 60.0})
    run_dir = folder(tmp_path, cfg)
    told = []

    def operator():
        while not (run_dir / "control.json").exists():
            time.sleep(0.05)
        with SessionClient(run_dir) as c:
            told.append(c.state()["phase"])
            c.pause("ann")
            c.set("risk.max_trades_per_day", 7, "ann")
            with pytest.raises(Refused, match="max_trades_per_day"):
                c.set("risk.max_trades_per_day", -1, "ann")
            c.set("strategy.lower", 0.5, "ann")   # the interface's bound is inclusive, the model's is not: the trader refuses
            time.sleep(0.8)
            told.append(c.state())
            told.append(c.journal())
            c.resume("ann")
            c.kill("bob")
            time.sleep(0.8)
            told.append(c.state())
        os.kill(os.getpid(), signal.SIGTERM)
    thread = threading.Thread(target=operator)
    thread.start()
    assert run_session(cfg, run_dir) == EXIT_OK
    thread.join()
    assert told[0] in ("trading", "starting") and told[1]["paused"] == "ann" and not told[1]["entries"]
    assert "kill" in told[3]["breakers"]
    actions = [(c.action, c.who) for c in of_kind(run_dir, "event:Control")]
    assert actions[:3] == [("pause", "ann"), ("set", "ann"), ("set", "ann")] and ("kill", "bob") in actions
    assert actions[-1] == ("stop", "signal SIGTERM")
    assert "lower" in of_kind(run_dir, "run:refused")[0]["reason"]
    assert replay_run(run_dir).ok
    run2 = folder(tmp_path, cfg, "k")
    (run2 / "KILL").touch()
    fast = cfg.model_copy(update={"data": cfg.data.model_copy(update={"speed": None})})
    assert run_session(fast, run2) == EXIT_OK
    assert not of_kind(run2, "command:Submit") and (run2 / "KILL.seen").exists()


def test_a_tripped_breaker_survives_the_restart_until_a_person_resets_it(tape, tmp_path):
    cfg = conf(tape)
    run_dir = folder(tmp_path, cfg)
    (run_dir / "KILL").touch()
    assert run_session(cfg, run_dir) == EXIT_OK
    (run_dir / "KILL").unlink()
    before = len(of_kind(run_dir, "command:Submit"))
    assert run_session(cfg, run_dir) == EXIT_OK
    assert len(of_kind(run_dir, "command:Submit")) == before == 0
    assert [n.data["code"] for n in of_kind(run_dir, "note:entries") if not n.data["on"]].count("breaker") >= 2  # in both lives


def test_a_planted_difference_refuses_to_trade_and_prints_it(tape, tmp_path, capsys):
    cfg = conf(tape)
    run_dir = folder(tmp_path, cfg)
    assert run_session(cfg, run_dir) == EXIT_OK
    fill = next(line for line in (run_dir / "venue.jsonl").read_text().splitlines() if '"k":"fill"' in line)
    forged = json.loads(fill) | {"exec": "X9", "ts": json.loads(fill)["ts"] + 1}
    submit = json.loads(next(line for line in (run_dir / "venue.jsonl").read_text().splitlines() if '"op":"submit"' in line))
    submit["id"] = submit["intent"]["id"] = forged["id"] = "feedfeedfeedfeedfee"
    number = sum('"k":"ack"' in line for line in (run_dir / "venue.jsonl").read_text().splitlines()) + 1
    ack = {"k": "ack", "ts": forged["ts"], "id": forged["id"], "venue_id": f"X{number:08d}", "reason": ""}
    forged["exec"] = f"X{number:08d}.1"
    with open(run_dir / "venue.jsonl", "a") as f:
        f.writelines(json.dumps(x, separators=(",", ":")) + "\n" for x in (submit, ack, forged))
    assert run_session(cfg, run_dir) == EXIT_REFUSED
    halt = of_kind(run_dir, "command:Halt")[-1]
    assert not halt.ok and "feedfeed" in halt.reason and "differ" in halt.reason


def test_two_sessions_on_one_account(tape, tmp_path, capsys):
    cfg = conf(tape)
    a, b = folder(tmp_path, cfg, "a"), folder(tmp_path, cfg, "b")
    with Store.open(a / "store.db", "test", run="a", lock_dir=tmp_path):
        assert run_session(cfg, b) == EXIT_CONFIG
    text = capsys.readouterr().err
    assert "test" in text and "a" in text and str(os.getpid()) in text
    with Store.open(a / "store.db", "test", run="a"), pytest.raises(AccountBusy, match=str(os.getpid())):
        Store.open(a / "store.db", "test", run="c")


def test_a_full_disk_stops_trading_and_leaves_the_journal_intact(tape, tmp_path):
    cfg = conf(tape)
    run_dir = folder(tmp_path, cfg)
    code = ("import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (220_000, 220_000)); import signal; "
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); from scalp_nb.trader.session import main; sys.exit(main(sys.argv[1:]))")
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "NUMBA_DISABLE_CACHING": "0"}
    p = subprocess.run([sys.executable, "-c", code, str(run_dir / "config.yaml"), str(run_dir)], env=env, capture_output=True, text=True, timeout=120)
    assert p.returncode in (EXIT_FAILED, EXIT_CONFIG), (p.returncode, p.stderr)
    assert "nothing" in p.stderr or "full" in p.stderr or "large" in p.stderr or "disk" in p.stderr, p.stderr
    assert Store.open(run_dir / "store.db", "test", exclusive=False).verify().ok
    assert run_session(cfg, run_dir) == EXIT_OK  # with room again it resumes, reconciles and ends flat
    assert end(run_dir)["flat"]


@pytest.mark.parametrize("over,error,words", [
    ({"data.recording": "missing.parquet"}, DataError, "missing"),
    ({"data.symbols": ["S0", "NOPE"]}, UniverseError, "NOPE"),
    ({"data.start": "2030-01-01"}, DataError, "rows left"),
    ({"session.rules_date": "1999-01-04"}, RuleError, "no rule table for the date"),
    ({"strategy.levels": 5, "data.recording": "one_level"}, ConfigError, "levels: needs 5"),
    ({"data.recording": "truncated"}, RecordingError, "the file has no end"),
    ({"data.universe": "duplicated.csv"}, UniverseError, "duplicate"),
    ({"data.universe": "other.csv"}, DataError, "symbols of the universe file"),
])
def test_bad_input_is_refused_before_anything_is_traded(tape, tmp_path, over, error, words, capsys):
    rows, uni = synthetic(n_symbols=2, seconds=30)
    if over.get("data.recording") == "one_level":
        for f in ("bid_px", "ask_px"):
            rows[f][:, 1:] = np.nan
        for f in ("bid_qty", "ask_qty", "bid_orders", "ask_orders"):
            rows[f][:, 1:] = 0
        write_parquet(rows, uni, tmp_path / "one.parquet")
        over = over | {"data.recording": str(tmp_path / "one.parquet")}
    if over.get("data.recording") == "truncated":
        (tmp_path / "t.parquet").write_bytes(tape.read_bytes()[:20_000])
        over = over | {"data.recording": str(tmp_path / "t.parquet")}
    if "data.universe" in over:
        save_universe(Universe("o", (Instrument("A", "NSE"), Instrument("B", "NSE"))), tmp_path / "other.csv")
        (tmp_path / "duplicated.csv").write_text("symbol,venue\nS0,NSE\nS0,NSE\n")
        over = over | {"data.universe": str(tmp_path / over["data.universe"])}
    cfg = conf(tape, **over)
    run_dir = folder(tmp_path, cfg)
    assert run_session(cfg, run_dir) in (EXIT_CONFIG, EXIT_FAILED)
    assert words.lower() in capsys.readouterr().err.lower()
    if (run_dir / "store.db").exists():
        assert not of_kind(run_dir, "command:Submit")
    with pytest.raises(error, match="(?i)" + words):
        from scalp_nb.trader.setup import setup_for
        setup_for(cfg, load_market(cfg))


def test_a_recording_of_several_days_is_refused_until_one_is_chosen(tmp_path):
    parts = [synthetic(n_symbols=1, seconds=60, day=date(2026, 11, d)) for d in (17, 18, 19)]
    write_parquet(np.concatenate([rows for rows, _ in parts]), parts[0][1], tmp_path / "three.parquet")
    with pytest.raises(DataError, match="2026-11-17, 2026-11-18, 2026-11-19.; allowed: one trading day.*data.start and data.end"):
        load_market(conf(tmp_path / "three.parquet"))
    cfg = conf(tmp_path / "three.parquet")
    assert run_session(cfg, folder(tmp_path, cfg)) == EXIT_CONFIG
    one = load_market(conf(tmp_path / "three.parquet", **{"data.start": "2026-11-18", "data.end": "2026-11-18"}))
    assert one.day == date(2026, 11, 18) and len(one.rows) == len(parts[1][0])


def test_a_venue_away_at_the_last_look_is_an_end_that_is_not_well(tape, tmp_path, monkeypatch):
    from scalp_nb.broker.paper import PaperBroker
    real = PaperBroker.state

    def away(self, ts):
        if ended: raise BrokerError("broker", "no answer", "an answer", "look into the account")
        return real(self, ts)
    ended: list[int] = []
    from scalp_nb.trader import session
    finish = session.finish
    monkeypatch.setattr(PaperBroker, "state", away)
    monkeypatch.setattr(session, "finish", lambda run: (ended.append(1), finish(run))[1])
    cfg = conf(tape)
    assert run_session(cfg, folder(tmp_path, cfg)) == EXIT_NOT_FLAT and len(ended) == 1   # no emergency, no second try
    told = end(tmp_path / "r")
    assert (told["ok"], told["flat"]) == (False, True) and "could not be compared at the end: broker: got 'no answer'" in told["reason"]
    assert not of_kind(tmp_path / "r", "run:error") and replay_run(tmp_path / "r").ok


def test_real_money_is_refused_where_the_venue_is_paper(tape, tmp_path, capsys, monkeypatch):
    phrase = "trade real money on test"
    monkeypatch.setenv("SCALP_LIVE_CONFIRM", phrase)
    cfg = conf(tape).model_copy(update={"live": LiveMoney(enabled=True, confirm=phrase)})
    assert run_session(cfg, folder(tmp_path, cfg)) == EXIT_CONFIG
    assert "proved parameters only" in capsys.readouterr().err   # with a promoted set the paper venue refuses it: test_promoted.py


def test_command_line(tape, tmp_path, capsys):
    y = tmp_path / "c.yaml"
    y.write_text(yaml.safe_dump({"data": {"recording": str(tape)}, "run": {"out_dir": str(tmp_path / "runs"), "account": "test"}}))
    assert main([str(y), "--set", "risk.max_trades_per_day=1"]) == EXIT_OK
    (run_dir,) = (tmp_path / "runs").glob("run-*")
    assert load_config(RunConfig, run_dir / "config.yaml").risk.max_trades_per_day == 1
    assert (run_dir / "session.log").read_text().count("\n") > 3
    assert main([str(y), "--set", "risk.max_trades_per_day"]) == EXIT_CONFIG
    assert main([str(y), "--set", "risk.nope=1"]) == EXIT_CONFIG
    assert main([str(tmp_path / "none.yaml")]) == EXIT_CONFIG
    assert "NAME=VALUE" in capsys.readouterr().err


def test_money_in_the_tables_is_exact(tape, tmp_path):
    cfg = conf(tape, **{"sizing.fixed_qty": 3})
    run_dir = folder(tmp_path, cfg)
    assert run_session(cfg, run_dir) == EXIT_OK
    store = Store.open(run_dir / "store.db", "test", exclusive=False)
    cash = Decimal(1_000_000) - sum((f.side * f.qty * f.px + fee for f, fee, _ in store.fills()), Decimal(0))
    assert Decimal(end(run_dir)["equity"]) == cash


def test_a_silent_market_does_not_make_the_session_deaf(tape, tmp_path):
    rows, uni = synthetic(n_symbols=2, seconds=60)
    rows["ts"][len(rows) // 2:] += 3_600_000_000_000
    rows["recv"][len(rows) // 2:] += 3_600_000_000_000
    write_parquet(rows, uni, tmp_path / "gap.parquet")
    cfg = conf(tape, **{"data.recording": str(tmp_path / "gap.parquet"), "data.speed": 30.0})
    run_dir = folder(tmp_path, cfg)
    threading.Timer(3.0, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
    begin = time.monotonic()
    assert run_session(cfg, run_dir) == EXIT_OK
    assert time.monotonic() - begin < 15
    assert end(run_dir)["flat"]


def test_a_defect_while_trading_closes_everything_and_is_journalled(tape, tmp_path, capsys, monkeypatch):
    from scalp_nb.trader import session
    cfg = conf(tape)
    run_dir = folder(tmp_path, cfg)
    real, calls = session.interruptions, []

    def broken(run):
        calls.append(1)
        if run.runner.trader.held and not any(x == "raised" for x in calls):
            calls.append("raised")
            raise ZeroDivisionError("a defect")
        real(run)
    monkeypatch.setattr(session, "interruptions", broken)
    monkeypatch.setattr(session, "SLICE", 16)
    assert run_session(cfg, run_dir) == EXIT_FAILED
    assert "raised" in calls
    assert of_kind(run_dir, "run:error")[0]["error"] == "ZeroDivisionError"
    assert end(run_dir)["flat"], "the emergency exit closed the position"
    assert replay_run(run_dir).ok
    assert "a defect" in capsys.readouterr().err
