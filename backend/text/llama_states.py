"""Hidden states out of llama.cpp: the residual stream after chosen blocks, for every token, and nothing beyond them.

llama.cpp calls a block's output `l_out-N`. An observer of the graph copies the wanted ones and stops the graph at the
last of them, so the final norm and the language-model head (a sixth of the work) never run; the key/value cache is
written before that point and stays good.

Shapes: T tokens, P tokens of the shared prefix, L blocks taken, F width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from backend.errors import LensError
from backend.text.llama_library import Context, OpenGguf

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from backend.text.prefixes import PrefixCache

    Floats = NDArray[np.float32]


class StateReader:
    """Reads prompts one after another; the prefix they share is computed once and remembered, states and all.

    Its context is plain attention over a float32 cache: with llama.cpp's defaults (float16) a routing decision of a
    mixture of experts can tip over, and one token's features with it (cosine 0.988 seen, against 0.9999998). The cost
    is 100 kB a token at the published size, 50 MB for a prompt of 512.
    """

    def __init__(self, model: OpenGguf, *, threads: int, limit: int, prefixes: PrefixCache | None = None) -> None:
        """`limit`: tokens of a prompt. `prefixes`: shared prefixes that earlier processes computed; None: none."""
        self._model, self._threads, self._limit, self._kept = model, threads, limit, prefixes
        self._context: Context | None = None
        self._wanted: dict[str, int] = {}
        self._last = ""
        self._found: dict[int, list[Floats]] = {}
        self._prefix: tuple[int, ...] = ()
        self._prefix_states: dict[int, Floats] = {}  # block -> (P, F)

    def read(self, ids: Sequence[int], take: Sequence[int], shared: int) -> Floats:
        """(T, L, F). `shared`: how many of the first tokens the next prompt is likely to have as well.

        Raises LensError where llama.cpp fails or does not show the blocks, OutOfMemoryError.
        """
        import numpy as np

        context = self._open(len(ids))
        reuse = self._known(ids, take)
        if not reuse:
            self._forget()
            reuse = self._recall(context, ids[:shared], take) if 0 < shared < len(ids) else False
        kept = len(self._prefix)
        context.keep(kept)
        self._wanted = {f"l_out-{block}": block for block in take}
        self._last = f"l_out-{max(take)}"
        self._found = {block: [self._prefix_states[block]] if reuse else [] for block in take}
        try:
            # A new prefix goes in one batch with the rest: by itself it costs 5 % (every expert is read twice), and on
            # a CPU each token's numbers are bit for bit the same in either.
            context.append(ids[kept:])
        except BaseException:
            self._forget()
            raise
        nothing = np.empty((0, self._model.width), np.float32)
        states = {block: np.concatenate([nothing, *parts]) for block, parts in self._found.items()}
        wrong = [block for block in take if states[block].shape != (len(ids), self._model.width)]
        if wrong:
            self._forget()
            raise LensError(
                f"this build of llama.cpp shows {len(states[wrong[0]])} of {len(ids)} tokens after block {wrong[0]}",
                hint="lens needs llama-cpp-python 0.3.36 or newer; or use --encoder exact.",
            )
        if not reuse and 0 < shared < len(ids):
            self._prefix = tuple(ids[:shared])
            self._prefix_states = {block: states[block][:shared].copy() for block in take}
            if self._kept is not None:
                context.keep(shared)
                beside = {str(block): rows for block, rows in self._prefix_states.items()}
                self._kept.keep(context, self._job(take), self._prefix, beside)
        return np.stack([states[block] for block in take], axis=1)

    def _known(self, ids: Sequence[int], take: Sequence[int]) -> bool:
        known = len(self._prefix)
        return 0 < known < len(ids) and tuple(ids[:known]) == self._prefix and set(take) <= set(self._prefix_states)

    def _recall(self, context: Context, prefix: Sequence[int], take: Sequence[int]) -> bool:
        """Whether an earlier process had computed the prefix; it is then this one's as well."""
        found = self._kept.recall(context, self._job(take), prefix) if self._kept is not None else None
        if found is None:
            return False
        self._prefix, self._prefix_states = tuple(prefix), {block: found[str(block)] for block in take}
        return True

    @staticmethod
    def _job(take: Sequence[int]) -> str:
        return f"states after blocks {sorted(take)}"

    def close(self) -> None:
        self._forget()
        if self._context is not None:
            self._context.close()
            self._context = None

    def _open(self, tokens: int) -> Context:
        """The context, made anew where it is too small. A prompt of Lens fits the smallest."""
        if tokens > self._limit:
            raise ValueError(f"{tokens} tokens, the context holds {self._limit}")
        if self._context is None or self._context.size < tokens:
            self.close()
            self._context = Context(self._model, tokens, threads=self._threads, exact=True, observer=self._observe)
        return self._context

    def _forget(self) -> None:
        self._prefix, self._prefix_states = (), {}

    def _observe(self, name: str, ask: bool, values: Callable[[], Floats]) -> bool:
        if ask:
            return name in self._wanted
        self._found[self._wanted[name]].append(values().reshape(-1, self._model.width))
        return name != self._last
