"""Fault runs at the Alpaca practice venue: five seeds in every build, a thousand in `make soak`, and what earlier ones found."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("alpaca")

from alpaca_faults import HOUSE, config_of, tape_of  # noqa: E402
from alpaca_live import until, venue  # noqa: E402
from fault_runs import broken, play, run_seed  # noqa: E402

from scalp_nb.feed.alpaca import AlpacaFeed, AlpacaFeedConfig  # noqa: E402
from scalp_nb.practice.alpaca import PracticeServer  # noqa: E402
from scalp_nb.practice.faults import read_script  # noqa: E402

FOUND = {
    2: "a feed that came back after a silence switched entries on although the broker was down",
    13: "a candidate that was waiting when the connection went down was sent all the same",
    17: "a decision window that closed by itself let time jump to the next timer: the replay differed",
    38: "the update stream was down, and its last word on a position was believed against newer executions",
}


@pytest.mark.parametrize("seed", [*FOUND, 1])
def test_five_seeds(seed: int) -> None:
    out = run_seed(HOUSE, seed)
    assert out.broken == [], f"again: python tests/alpaca_faults.py --seed {seed} -v"
    assert out.faults and out.fills, "a run without faults or fills shows nothing"


def test_a_broken_invariant_is_seen(tmp_path: Path) -> None:
    """The checks can fail: each is shown a story in which its invariant is broken."""
    tape = tape_of(1)
    s = play(HOUSE, tmp_path, config_of(0, tape), tape, read_script([{"fault": "update_lost", "match": "fill"}]))
    assert broken(s) == [] and s.of("note:fill")
    def finds(n: str) -> bool: return any(x.startswith(n) for x in broken(s))
    first = s.of("command:Submit")[0].data.intent.id
    s.seen.early.append(first)
    assert finds("1")
    s.seen.early.clear()
    s.seen.posts[first] += 1
    assert finds("2")
    s.seen.posts[first] -= 1
    lost = s.truth["executions"].pop()
    assert finds("3") and finds("4")
    s.truth["executions"].append(lost)
    fills = [r for r in s.records if r.kind in ("note:fill", "note:health", "note:alert")]
    kept, orders = s.records, s.placed
    exits = {r.data.intent.id for r in s.of("command:Submit") if r.data.intent.purpose.value != "entry"}
    s.records, s.placed = [r for r in kept if r not in fills], [o for o in orders if o.id not in exits]
    s.truth["executions"] = [e | {"ts": e["ts"] + (200 * 10**9 if i else 0)} for i, e in enumerate(s.truth["executions"])]
    assert finds("5")
    s.records, s.placed = kept, orders
    assert broken(s) == []


def feed_at(server: PracticeServer, tape: Any) -> AlpacaFeed:
    cfg = AlpacaFeedConfig(stream_url=server.data_url, data_url=server.url, first_wait_s=0.02, most_wait_s=0.1, busy_wait_s=0.05, batch_gap_s=0.0)
    return AlpacaFeed(tape.universe, cfg, server.terms.key, server.terms.secret, server.api.desk.clock.now)


def told(feed: AlpacaFeed, words: str, server: PracticeServer, step_s: float = 0.0) -> int:
    "Venue seconds until the feed says so."
    began = server.api.desk.clock.now()
    def heard() -> bool:
        if step_s: server.step(step_s)
        feed.read(0.02)
        feed.bars()
        return any(words in f"{n.kind} {n.text}" for n in feed.news())
    until(heard, words, 20, 0.0)
    return (server.api.desk.clock.now() - began) // 10**9


def test_a_forgotten_connection_is_outlasted() -> None:
    """The 90 s zombie: a torn connection counts against the limit of one, the feed says so, waits, and comes back by itself."""
    tape = tape_of(1)
    with venue(tape, 0.0) as server:
        feed = feed_at(server, tape)
        feed.start(server.api.desk.clock.now())
        try:
            told(feed, "subscribed", server)
            for line in list(server.api.hub.lines): line.abort()
            told(feed, "connection limit exceeded", server)
            assert 80 <= told(feed, "up reconnected", server, 5.0) <= 180
            assert feed.stats.connects == 2
        finally: feed.close()


def test_keys_that_expire_while_the_feed_runs() -> None:
    """The line is down from then on, and people are told why; the keys are not in what they are told."""
    tape = tape_of(1)
    with venue(tape, 0.0, terms={"zombie_s": 0.0}) as server:
        feed = feed_at(server, tape)
        feed.start(server.api.desk.clock.now())
        try:
            told(feed, "subscribed", server)
            old = server.terms
            server.api.orders.terms = server.terms.model_copy(update={"key": "PKNEW"})
            for line in list(server.api.hub.lines): line.abort()
            told(feed, "the keys are wrong or expired", server)
            assert old.secret not in repr(feed) and feed.stats.connects == 1
        finally: feed.close()


@pytest.mark.soak
def test_a_thousand_seeds() -> None:
    script = Path(__file__).parent / "alpaca_faults.py"
    assert subprocess.run([sys.executable, str(script), "--seeds", "0:1000"], check=False).returncode == 0
