"""What may be spent at endpoints: requests, tokens, dollars."""

from __future__ import annotations

import threading

from backend.chat.replies import ChatReply
from backend.errors import BudgetError, ReplyError, UsageError


class Budget:
    """What may be spent, by all clients that share it, from several threads. None: no limit.

    A question is not sent once a limit is reached; answers that are under way at that moment are still paid for.
    """

    def __init__(
        self,
        *,
        calls: int | None = None,  # requests sent, those that a server refused among them
        tokens: int | None = None,  # in and out
        dollars: float | None = None,  # needs both prices
        price_in: float | None = None,  # dollars a million tokens
        price_out: float | None = None,
    ) -> None:
        if dollars is not None and (price_in is None or price_out is None):
            raise UsageError("a limit of dollars needs the prices of tokens in and out")
        self.calls, self.tokens, self.dollars = calls, tokens, dollars
        self.price_in, self.price_out = price_in or 0.0, price_out or 0.0
        self.sent = self.tokens_in = self.tokens_out = 0
        self._lock = threading.Lock()

    @property
    def spent(self) -> float:
        """Dollars so far; 0 without prices."""
        return (self.tokens_in * self.price_in + self.tokens_out * self.price_out) / 1e6

    def take(self) -> None:
        """Count one request that is about to be sent. Raises BudgetError where a limit is reached."""
        with self._lock:
            for spent, limit, what in (
                (self.sent, self.calls, "{:,} requests"),
                (self.tokens_in + self.tokens_out, self.tokens, "{:,} tokens"),
                (self.spent, self.dollars, "${:,.2f}"),
            ):
                if limit is not None and spent >= limit:
                    raise BudgetError(f"the budget of {what.format(limit)} is spent", hint="what was answered is kept")
            self.sent += 1

    def add(self, reply: ChatReply) -> None:
        """Count an answer. Raises ReplyError where the limit is one of tokens and the server does not count them."""
        with self._lock:
            self.tokens_in += reply.tokens_in
            self.tokens_out += reply.tokens_out
        if not reply.tokens_in and not (self.tokens is None and self.dollars is None):
            raise ReplyError(
                "the endpoint does not say how many tokens it took: a limit of tokens or dollars cannot be kept",
                hint="limit the requests instead",
            )
