"""A small server on real sockets that answers in Angel One's shapes what a test tells it to."""
from __future__ import annotations

import email.utils
import http.server
import json
import threading
import time
from collections.abc import Callable
from typing import Any

from scalp_nb.broker.angel_sdk import AngelConfig, AngelLogin

LOGIN = AngelLogin("apikey-HIDDEN1", "CLIENT-HIDDEN2", "9081726", "HIDDEN3JBSWY3DPEHPK3PXPJBSWY3DPE")
START = 1_795_066_200_000_000_000  # 2026-11-19 11:00 in India
Reply = tuple[int, bytes]


def good(data: Any = None) -> Reply: return 200, json.dumps({"status": True, "message": "SUCCESS", "errorcode": "", "data": data}).encode()
def bad(code: str, message: str = "no") -> Reply:
    return 200, json.dumps({"status": False, "message": message, "errorcode": code, "data": None}).encode()
def gate(code: str) -> Reply: return 200, json.dumps({"success": False, "message": "Invalid Token", "errorCode": code, "data": ""}).encode()


class Fake:
    "Answers what it was told to, and remembers what it was asked."
    def __init__(self) -> None:
        self.routes: dict[str, Callable[[dict[str, Any], str], Reply]] = {}
        self.asked: list[tuple[str, dict[str, Any], str]] = []
        self.skew = 0.0
        fake = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            def date_time_string(self, timestamp: float | None = None) -> str: return email.utils.formatdate(time.time() + fake.skew, usegmt=True)
            def do_GET(self) -> None: self.answer()
            def do_POST(self) -> None: self.answer()
            def answer(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
                token = self.headers.get("Authorization", "").removeprefix("Bearer ")
                fake.asked.append((self.path, body, token))
                name = self.path.partition("?")[0].rsplit("/", 1)[1]
                status, out = fake.routes[name](body, token)
                self.send_response(status)
                self.send_header("Content-Length", str(len(out)))
                self.end_headers()
                self.wfile.write(out)
            def log_message(self, *args: Any) -> None: return None

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.logins, self.codes, self.dead = 0, list[str](), set[str]()
        self.routes |= {"loginByPassword": self.login, "getProfile": lambda b, t: good({"clientcode": "X", "name": "N"}),
                        "logout": lambda b, t: good(), "getOrderBook": self.book,
                        "placeOrder": lambda b, t: good({"orderid": "1", "uniqueorderid": "u"})}

    def login(self, body: dict[str, Any], token: str) -> Reply:
        self.logins += 1
        self.codes.append(body["totp"])
        return good({"jwtToken": f"jwt{self.logins}-HIDDEN4", "refreshToken": f"refresh{self.logins}-HIDDEN5", "feedToken": "feed-HIDDEN6"})

    def book(self, body: dict[str, Any], token: str) -> Reply: return gate("AG8001") if not token or token in self.dead else good()
    def count(self, name: str) -> int: return sum(name in path for path, _, _ in self.asked)


def config(f: Fake, **over: Any) -> AngelConfig:
    return AngelConfig(**{"url": f"http://127.0.0.1:{f.server.server_port}", "updates_url": "ws://127.0.0.1:1", "read_timeout_s": 1.0,
                          "totp_once": False, **over})


class FakeVenue(Fake):
    "An order book and a trade book that a test writes into."
    def __init__(self, clock: Callable[[], int]) -> None:
        super().__init__()
        self.clock, self.rows, self.trades = clock, dict[str, dict[str, Any]](), list[dict[str, Any]]()
        self.fresh = "open"                             # status of a new order
        self.on_place: Callable[[str], Reply] | None = None   # instead of an acknowledgement
        self.keep = True                                # a new order reaches the book
        self.times: list[int] = []                      # venue time of each order message
        self.bodies: list[dict[str, Any]] = []
        self.limits: dict[str, Any] = {"net": "100000", "availablecash": "100000", "m2mrealized": "0", "m2munrealized": "0"}
        self.on_modify: Callable[[dict[str, Any]], Reply | None] | None = None   # instead of a change, where it answers
        self.changes: list[dict[str, Any]] = []
        self.routes |= {"placeOrder": self.place, "cancelOrder": self.cancel, "modifyOrder": self.modify,
                        "getOrderBook": lambda b, t: good(list(self.rows.values()) or None),
                        "getTradeBook": lambda b, t: good(self.trades or None), "getPosition": lambda b, t: good(self.positions()),
                        "getRMS": lambda b, t: good(self.limits), "quote": lambda b, t: good({"fetched": [], "unfetched": []})}

    def place(self, body: dict[str, Any], token: str) -> Reply:
        self.times.append(self.clock())
        self.bodies.append(body)
        n = str(len(self.bodies))
        if self.keep:
            self.rows[body["ordertag"]] = {**body, "orderid": n, "uniqueorderid": f"u{n}", "status": self.fresh, "orderstatus": self.fresh,
                                           "filledshares": "0", "unfilledshares": body["quantity"], "averageprice": 0.0, "text": ""}
            self.routes[f"u{n}"] = lambda b, t, tag=body["ordertag"]: good(self.rows[tag])
        return self.on_place(n) if self.on_place else good({"orderid": n, "uniqueorderid": f"u{n}"})

    def cancel(self, body: dict[str, Any], token: str) -> Reply:
        self.times.append(self.clock())
        (row,) = [r for r in self.rows.values() if r["orderid"] == body["orderid"]]
        if row["orderstatus"] in ("complete", "cancelled", "rejected"): return bad("AB1007", f"AMX error: order is {row['orderstatus']}")
        row["orderstatus"] = row["status"] = "cancelled"
        return good({"orderid": body["orderid"]})

    def modify(self, body: dict[str, Any], token: str) -> Reply:
        self.times.append(self.clock())
        self.changes.append(body)
        said = self.on_modify(body) if self.on_modify else None
        if said is None: self.change(body)
        return said or good({"orderid": body["orderid"], "uniqueorderid": f"u{body['orderid']}"})

    def change(self, body: dict[str, Any], status: str = "modified") -> None:
        "The exchange has the new terms."
        (row,) = [r for r in self.rows.values() if r["orderid"] == body["orderid"]]
        row |= {k: body[k] for k in ("price", "triggerprice", "quantity")} | {"status": status}

    def say(self, tag: str, status: str, filled: int = 0, text: str = "") -> None:
        "The order book changes; the trade book does not."
        self.rows[tag] |= {"status": status, "orderstatus": status, "filledshares": str(filled), "text": text}

    def trade(self, tag: str, qty: int, px: float = 100.0) -> None:
        "The trade book grows; the order book does not."
        r = self.rows[tag]
        self.trades.append({"tradingsymbol": r["tradingsymbol"], "transactiontype": r["transactiontype"], "fillprice": str(px), "fillsize": str(qty),
                            "orderid": r["orderid"], "fillid": str(1000 + len(self.trades)), "filltime": "11:00:00"})

    def positions(self) -> list[dict[str, Any]] | None:
        net: dict[str, int] = {}
        for t in self.trades:
            signed = int(t["fillsize"]) * (1 if t["transactiontype"] == "BUY" else -1)
            net[t["tradingsymbol"]] = net.get(t["tradingsymbol"], 0) + signed
        return [{"tradingsymbol": s, "producttype": "INTRADAY", "netqty": str(q), "avgnetprice": "100"} for s, q in net.items()] or None
