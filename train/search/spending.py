"""What a search has spent, on the disk, and whether it may spend more: pictures, minutes and dollars in all.

What endpoints cost is counted by the budgets that are given to their clients (`backend.chat.budget`).
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from backend.cache.lines import JsonLines
from backend.chat.budget import Budget
from backend.chat.replies import ChatReply
from backend.errors import BudgetError
from train.search.config import Limits


class Spending:
    """Sums over every run of a search. A line that a crash tore is one picture or answer that is not counted."""

    def __init__(self, path: Path, limits: Limits) -> None:
        """Raises FileError for a file that cannot be read."""
        self.limits, self._lines, self._lock = limits, JsonLines(path), threading.Lock()
        self.pictures, self.seconds, self.dollars = 0, 0.0, 0.0
        self._ticked = time.monotonic()
        self.by_role: dict[str, dict[str, float]] = {}
        for row in self._lines.read():
            self._count(row)

    def add(self, role: str, **amounts: float) -> None:
        """Count pictures, seconds, dollars, tokens of a role. Raises FileError."""
        row: dict[str, Any] = {"role": role, **{key: value for key, value in amounts.items() if value}}
        with self._lock:
            self._lines.append(row)
            self._count(row)

    def tick(self) -> float:
        """Seconds since the last tick of this run: what is under way at once is counted once."""
        with self._lock:
            now = time.monotonic()
            passed, self._ticked = now - self._ticked, now
        return passed

    def _count(self, row: dict[str, Any]) -> None:
        role = str(row.get("role"))
        mine = self.by_role.setdefault(role, {})
        for key, value in row.items():
            if key != "role" and isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
                mine[key] = mine.get(key, 0) + value
        parts = self.by_role.values()
        self.pictures = int(sum(part.get("pictures", 0) for part in parts))
        self.seconds = sum(part.get("seconds", 0.0) for part in parts)
        self.dollars = sum(part.get("dollars", 0.0) for part in parts)

    def left(self) -> int | None:
        """Pictures that may still be drawn; None: no limit."""
        return None if self.limits.pictures is None else max(0, self.limits.pictures - self.pictures)

    def exhausted(self, reserve: int | None = 0) -> str | None:
        """What is spent, in words; None: nothing is. `reserve`: pictures that are kept back for the confirmation, with
        the minutes and dollars that so many took so far; None: this is the confirmation, which ends whatever the hour.
        """
        limits, kept = self.limits, reserve or 0
        share = kept / self.pictures if self.pictures else 0.0  # of what was spent so far
        words = ", with what the confirmation takes" if kept else ""
        if limits.pictures is not None and self.pictures + kept >= limits.pictures:
            return f"the budget of {limits.pictures:,} pictures{words}"
        if limits.minutes is not None and reserve is not None and self.seconds * (1 + share) >= 60 * limits.minutes:
            return f"the budget of {limits.minutes:g} minutes{words}"
        if limits.dollars is not None and self.dollars * (1 + share) >= limits.dollars:
            return f"the budget of ${limits.dollars:,.2f}{words}"
        return None

    def words(self) -> str:
        """`1,234 of 4,000 pictures, 12 of 60 minutes, $0.40`."""
        limits = self.limits

        def of(limit: float | None, form: str = "{:,.0f}") -> str:
            return "" if limit is None else f" of {form.format(limit)}"

        parts = [f"{self.pictures:,}{of(limits.pictures)} pictures"]
        parts.append(f"{self.seconds / 60:,.1f}{of(limits.minutes)} minutes")
        if self.dollars or limits.dollars is not None:
            parts.append(f"${self.dollars:,.2f}{of(limits.dollars, '${:,.2f}')}")
        return ", ".join(parts)

    def data(self) -> dict[str, Any]:
        return {
            "pictures": self.pictures, "seconds": round(self.seconds, 1), "dollars": round(self.dollars, 4),
            "roles": self.by_role,
        }  # fmt: skip


class RoleBudget(Budget):
    """The part of a search's spending that one endpoint has. What it answers is counted with its price."""

    def __init__(self, spending: Spending, role: str, price_in: float, price_out: float) -> None:
        """Prices in dollars a million tokens; both 0: it costs nothing."""
        limit = spending.limits.dollars if price_in or price_out else None
        super().__init__(dollars=limit, price_in=price_in, price_out=price_out)
        self._spending, self._role = spending, role

    def take(self) -> None:
        """Raises BudgetError where the search may spend no more dollars."""
        spending = self._spending
        if spending.limits.dollars is not None and spending.dollars >= spending.limits.dollars:
            raise BudgetError(f"the budget of ${spending.limits.dollars:,.2f} is spent", hint="what was made is kept")
        super().take()

    def add(self, reply: ChatReply) -> None:
        """Raises ReplyError where dollars are limited and the server does not count tokens."""
        dollars = (reply.tokens_in * self.price_in + reply.tokens_out * self.price_out) / 1e6
        self._spending.add(self._role, tokens_in=reply.tokens_in, tokens_out=reply.tokens_out, dollars=dollars, calls=1)
        super().add(reply)
