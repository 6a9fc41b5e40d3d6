"""Invariant 5 of a fault run: an open position is protected. Judged from the venue's executions and orders, the journal, and the recording.

A position may be without an exit at the venue only while the trader knows of it and sees its prices, or while it has said that it does not; what
it must do about a position (a stop at the venue, a decision in time, an exit that is pressed) is judged by what the journal shows it did."""

from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from scalp_nb.order.types import Purpose, UpdateKind
from scalp_nb.trader.session import EXIT_NOT_FLAT
from scalp_nb.trader.streaming import recorded_rows

SECOND = 1_000_000_000
BOUND_S = 60.0       # venue seconds: within so many, each of these must have happened
NEVER = 2**62
Span = tuple[int, int]   # ns UTC


def positions(executions: list[dict[str, Any]], symbol: str) -> list[Span]:
    "When the venue had a position of a symbol."
    return spans([(int(e["ts"]), change_of(e)) for e in executions if e["symbol"] == symbol])


def change_of(e: dict[str, Any]) -> Decimal:
    "What an execution does to the position: of crypto the venue keeps a part of what is bought."
    return int(e["side"]) * Decimal(e["qty"]) - Decimal(e.get("kept", 0))


def spans(changes: list[tuple[int, Decimal]]) -> list[Span]:
    "When the sum of changes was not nothing."
    qty, since, out = Decimal(0), 0, []
    for ts, change in changes:
        before, qty = qty, qty + change
        if not before: since = ts
        if not qty: out.append((since, ts))
    return out + ([(since, NEVER)] if qty else [])


def uncovered(span: Span, cover: list[Span]) -> Iterator[Span]:
    "Parts of a span that none of the others covers."
    at = span[0]
    for a, b in sorted(cover):
        if a > at: yield at, min(a, span[1])
        at = max(at, b)
        if at >= span[1]: return
    if at < span[1]: yield at, span[1]


def troubles(s: Any) -> list[Span]:
    "When a connection was down, by the journal."
    out, down, last = list[Span](), dict[str, int](), max((r.ts for r in s.records), default=0)
    for r in s.of("note:health"):
        for bit in r.data["bits"] if r.data["symbol"] is None else ():
            name, _, way = bit.rpartition("_")
            if way == "down": down.setdefault(name, r.ts)
            elif way == "up" and name in down: out.append((down.pop(name), r.ts))
    return out + [(a, last) for a in down.values()]


def meets(span: Span, others: list[Span]) -> bool: return any(a <= span[1] and b >= span[0] for a, b in others)


def known(s: Any, symbol: str) -> list[tuple[int, Decimal]]:
    "What the journal learned about a symbol, and when."
    return [(r.ts, Decimal(r.data["qty"]) * (1 if r.data["side"] == "BUY" else -1) - Decimal(r.data.get("withheld", 0)))
            for r in s.of("note:fill") if r.data["symbol"] == symbol]


def protected(s: Any) -> Iterator[str]:
    "5: an open position is protected within the bound."
    intents = {r.data.intent.id: r.data.intent for r in s.of("command:Submit")}
    exits = {i.id for i in intents.values() if i.purpose is not Purpose.ENTRY}
    begin = next((r.data["config"] for r in s.of("run:begin")), None)
    down = troubles(s)
    yield from learned_late(s, down)
    yield from turned(s, exits)
    for sym, symbol in enumerate(s.tape.universe.symbols):
        cover = [(o.since, o.until) for o in s.placed if o.symbol == symbol and not o.rejected and (o.id in exits or o.id not in intents)]
        yield from bare(s, sym, symbol, cover, down)
        for span in spans(known(s, symbol)):
            if begin: yield from decided(s, symbol, span, begin["exits"])
            yield from pressed(s, symbol, span, cover, {i.id: i for i in intents.values() if i.symbol == symbol})


def after_the_end(s: Any) -> list[dict[str, Any]]:
    "Executions that no journal can have: a run that says it ends with a position leaves its stop at work, and that may be filled before we ask."
    end = s.of("run:end")
    if s.status != EXIT_NOT_FLAT or not end: return []
    told = Counter((f.data["symbol"], Decimal(f.data["qty"]), Decimal(f.data["px"])) for f in s.of("note:fill"))
    out = []
    for e in s.truth["executions"]:
        key = (e["symbol"], Decimal(e["qty"]), Decimal(e["px"]))
        if told[key]: told[key] -= 1
        elif int(e["ts"]) > end[0].ts: out.append(e)
    return out


def learned_late(s: Any, down: list[Span]) -> Iterator[str]:
    "An execution is in the journal in time, unless a connection was down meanwhile."
    told: dict[Any, list[int]] = {}
    for r in s.of("note:fill"): told.setdefault((r.data["symbol"], Decimal(r.data["qty"]), Decimal(r.data["px"])), []).append(r.ts)
    late = after_the_end(s)
    for e in (x for x in s.truth["executions"] if x not in late):
        heard = told.get((e["symbol"], Decimal(e["qty"]), Decimal(e["px"])), [])
        ts = heard.pop(0) if heard else NEVER
        if ts - int(e["ts"]) > BOUND_S * SECOND and not meets((int(e["ts"]), ts), down):
            yield f"5: {e['symbol']} execution of {e['ts']} in the journal after {(ts - int(e['ts'])) / 1e9:.0f} s, with every connection up"


def turned(s: Any, exits: set[str]) -> Iterator[str]:
    "An exit never makes a position of the other side."
    client = {o["id"]: o["client_order_id"] for o in s.truth["orders"] if "client_order_id" in o}
    held: dict[str, Decimal] = {}
    for e in s.truth["executions"]:
        before = held.get(e["symbol"], Decimal(0))
        after = held[e["symbol"]] = before + change_of(e)
        id = client.get(e["order"].partition("#")[0], "")
        if id in exits and before * after < 0: yield f"5: exit {id} turned {e['symbol']} from {before} to {after}"


def bare(s: Any, sym: int, symbol: str, cover: list[Span], down: list[Span]) -> Iterator[str]:
    "Without an exit at the venue the trader knows of the position and sees its prices, or says that it does not."
    bound, rows = int(BOUND_S * SECOND), recorded_rows(s.run_dir)
    seen, path = rows["recv"][rows["sym"] == sym], known(s, symbol)
    told = [r.ts for r in s.of("note:health", "note:alert", "note:trip")] + [r.ts for r in s.of("run:end") if not r.data["flat"]]
    for span in positions(s.truth["executions"], symbol):
        for a, b in uncovered(span, cover):
            if b - a <= bound: continue
            until = min(b, a + bound)
            aware = sum((q for ts, q in path if ts <= until), Decimal(0)) != 0 or meets((a, until), spans(path))
            sees = bool(((seen >= a) & (seen <= until)).any())
            warned = meets((a, until), down) or any(a - bound <= t <= until for t in told)
            if not (aware and sees) and not warned: yield f"5: {symbol} unprotected and unreported for {(b - a) / 1e9:.0f} s from {a}"


def decided(s: Any, symbol: str, span: Span, exits: dict[str, Any]) -> Iterator[str]:
    "A known position gets its stop order where one rests at the venue, and is given up when its time is over."
    bound = int(BOUND_S * SECOND)
    acts = [r.ts for r in s.of("command:Submit") if r.data.intent.symbol == symbol and r.data.intent.purpose is not Purpose.ENTRY]
    given = [r.ts for r in s.of("note:exit") if r.data["symbol"] == symbol]
    blocked = [r.ts for r in s.of("note:alert") if r.data.get("code") == "exit_blocked" and r.data.get("symbol") == symbol]
    def none(times: list[int], until: int) -> bool: return span[1] > until and not any(span[0] <= t <= until for t in times)
    resting = exits["mode"] != "local"
    if resting and none(acts + given + blocked, span[0] + bound): yield f"5: {symbol} known from {span[0]}: no stop order, nothing decided"
    limit = int((exits["time_stop_s"] or 0) * SECOND)
    if limit and none(given, span[0] + limit + bound): yield f"5: {symbol} known from {span[0]}: not given up {(limit + bound) / 1e9:.0f} s later"


def kept(s: Any) -> Iterator[str]:
    "5: a stop that grows where it rests is at the venue from the request to the answer; one change was sent once."
    asked = Counter((r.data.client_id, r.data.terms.qty) for r in s.of("command:Modify"))
    for (id, qty), n in s.seen.changes.items():
        if n > asked[id, qty]: yield f"2: change of {id} to {qty} arrived {n} times, asked for {asked[id, qty]}"
    there = {o.id: o for o in s.placed}
    told = [(r.ts, r.data.update) for r in s.of("event:Evidence") if r.data.update.kind is UpdateKind.MODIFIED]
    for r in s.of("command:Modify"):
        done = next((ts for ts, u in told if ts >= r.ts and (u.client_id, u.terms) == (r.data.client_id, r.data.terms)), None)
        o = there.get(r.data.client_id)
        away = o is None or o.since > r.ts or o.until < r.ts
        if done is not None and away: yield f"5: {r.data.client_id} was not at the venue while it was changed"


def pressed(s: Any, symbol: str, span: Span, cover: list[Span], intents: dict[str, Any]) -> Iterator[str]:
    "A position that is given up has an exit at the venue, or the trader is seen to do something about it."
    given = next((r.ts for r in s.of("note:exit") if r.data["symbol"] == symbol and span[0] <= r.ts <= span[1]), None)
    if given is None: return
    acts = [r.ts for r in s.of("command:Submit") if r.data.intent.symbol == symbol]
    acts += [r.ts for r in s.of("command:Cancel", "command:Modify", "command:Query") if r.data.client_id in intents]
    acts += [r.ts for r in s.of("note:fill", "note:alert") if r.data.get("symbol") == symbol]
    last, bound = max((r.ts for r in s.records), default=0), int(BOUND_S * SECOND)
    open_there = positions(s.truth["executions"], symbol)   # filled there, it may take a while to be known here: `learned_late` judges that
    for a, b in uncovered((given, min(span[1], last)), [*((a, b + bound) for a, b in cover), *((t, t + bound) for t in acts)]):
        if meets((a, b), open_there): yield f"5: {symbol} given up at {given}, and nothing done about it for {(b - a) / 1e9:.0f} s from {a}"
