"""llama.cpp through ctypes: one opened GGUF, contexts on it, the eval callback. No tokens' meaning, no text.

The high-level class of llama-cpp-python has no access to the eval callback and prints to stderr, so the C interface is
used directly. llama.cpp aborts the process where it is given nonsense (an unknown token, a grammar that rejects a
token): callers check first. Only Python's own exceptions come through: those raised in a callback are kept and raised
again, because ctypes would print and drop them.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backend.errors import CheckpointError, LensError, OutOfMemoryError
from backend.packing.ggml_library import load_ggml

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

Stop = Callable[[], bool]
Observer = Callable[[str, bool, Callable[[], "Floats"]], bool]
BATCH = 512  # tokens computed at once: as long as a whole prompt of Lens may be
STEP = 512  # contexts grow in steps of so many tokens
_ERROR, _CONTINUED = 4, 5  # log levels of ggml
_ABORTED = 2  # llama_decode's return value after its abort callback said so
_complaints: deque[str] = deque(maxlen=8)  # llama.cpp's last error messages, for ours


class Library:
    """llama.cpp's and ggml's functions. Made once a process, by `library()`."""

    def __init__(self) -> None:
        ggml = load_ggml("Install llama-cpp-python again, or do without it: --encoder exact --reasoner off.")
        from llama_cpp import llama_cpp as api

        self.api: Any = api
        self.ggml = ggml
        tensor, size = ctypes.c_void_p, ctypes.c_size_t
        for name, result, arguments in (
            ("ggml_get_name", ctypes.c_char_p, [tensor]),
            ("ggml_nelements", ctypes.c_int64, [tensor]),
            ("ggml_nbytes", size, [tensor]),
            ("ggml_backend_tensor_get", None, [tensor, ctypes.c_void_p, size, size]),
        ):
            function = getattr(ggml, name)
            function.restype, function.argtypes = result, arguments
        self._log = api.llama_log_callback(_note)  # must live as long as the library: C holds only its address
        api.llama_log_set(self._log, ctypes.c_void_p())
        api.llama_backend_init()

    def uses_amx(self) -> bool:
        """Whether llama.cpp was built for Intel's matrix extension and runs on a processor that has it."""
        return b"AMX_INT8 = 1" in self.api.llama_print_system_info()

    def name(self, tensor: int) -> str:
        return self.ggml.ggml_get_name(tensor).decode("utf-8", errors="replace")

    def read(self, tensor: int) -> Floats:
        """A float32 tensor's values, flat, from whichever device holds them."""
        import numpy as np

        count, nbytes = self.ggml.ggml_nelements(tensor), self.ggml.ggml_nbytes(tensor)
        if nbytes != 4 * count:
            raise LensError(f"llama.cpp's tensor {self.name(tensor)!r} is not float32: {nbytes} bytes for {count}")
        values = np.empty(count, np.float32)
        self.ggml.ggml_backend_tensor_get(tensor, values.ctypes.data, 0, nbytes)
        return values


@functools.cache
def library() -> Library:
    """The process's one library. Raises LensError where llama.cpp cannot be loaded."""
    return Library()


def _note(level: int, text: bytes, _data: object) -> None:
    """llama.cpp's log: errors are kept for our messages, the rest (a page for every opened file) is dropped."""
    if level == _ERROR or (level == _CONTINUED and _complaints):
        _complaints.append(text.decode("utf-8", errors="replace").strip())


def complaint() -> str:
    """What llama.cpp said since the last call, as a clause; empty where it said nothing."""
    said = "; ".join(dict.fromkeys(line for line in _complaints if line))
    _complaints.clear()
    return f": {said}" if said else ""


class OpenGguf:
    """The weights of one GGUF, memory-mapped."""

    def __init__(self, path: Path, *, repack: bool, gpu_layers: int) -> None:
        """`repack`: rearrange the weights for the processor's wide instructions, in memory of the process's own.

        At the published size that takes 27 s and 10 GB more, and makes prompts a fifth faster. Whether it was done
        stands in `repacked`: it is not where llama.cpp would take AMX for it, whose kernels end the process with a
        segmentation fault at the first prompt (llama.cpp issue 20824, pull request 26954; seen with 0.3.36 as well).
        Raises CheckpointError where llama.cpp will not have the file.
        """
        self.lib = library()
        api = self.lib.api
        params = api.llama_model_default_params()
        params.n_gpu_layers = gpu_layers
        self.repacked = repack and not self.lib.uses_amx()
        params.use_extra_bufts = self.repacked
        params.load_mode = api.LLAMA_LOAD_MODE_MMAP
        complaint()
        self.pointer = api.llama_model_load_from_file(os.fsencode(path), params)
        if not self.pointer:
            raise CheckpointError(
                f"{path}: llama.cpp cannot open it{complaint()}",
                hint="Fetch it again with `lens models pull`, or use --encoder exact.",
            )
        self.width = int(api.llama_model_n_embd(self.pointer))
        self.vocab = api.llama_model_get_vocab(self.pointer)
        self.vocab_size = int(api.llama_vocab_n_tokens(self.vocab))
        self._adapters: dict[Path, Any] = {}

    def adapter(self, path: Path) -> Any:
        """Low-rank updates of these weights, opened once, for `Context`. Raises CheckpointError."""
        if path not in self._adapters:
            complaint()
            found = self.lib.api.llama_adapter_lora_init(self.pointer, os.fsencode(path))
            if not found:
                raise CheckpointError(
                    f"{path}: llama.cpp cannot apply it{complaint()}",
                    hint="go without: LENS_REASONER__ADAPTER=false",
                )
            self._adapters[path] = found
        return self._adapters[path]

    def close(self) -> None:
        if self.pointer:
            self.lib.api.llama_model_free(self.pointer)  # and with it its adapters
            self._adapters.clear()
            self.pointer = None


class Context:
    """A key/value cache of one conversation on a model; tokens are appended at the end or taken from it."""

    def __init__(
        self, model: OpenGguf, size: int, *, threads: int, exact: bool = False, observer: Observer | None = None,
        adapter: Path | None = None,
    ) -> None:  # fmt: skip
        """`size` tokens at most, rounded up to STEP.

        `adapter`: updates of the weights for this context alone; the model's other contexts know nothing of them.
        `exact`: a float32 cache and plain attention instead of float16 and flash attention. `observer(name, ask,
        read)` sees every tensor of the graph: asked first, it says whether it wants the values; given them through
        `read()`, it says whether to go on. Raises OutOfMemoryError.
        """
        self.model, self.lib, self.size = model, model.lib, -(-size // STEP) * STEP
        self.exact = exact
        self.length = 0  # tokens in the cache
        self._failure: BaseException | None = None
        self._observer = observer
        api = self.lib.api
        params = api.llama_context_default_params()
        params.n_ctx = self.size
        params.n_batch = params.n_ubatch = BATCH
        params.n_threads = params.n_threads_batch = threads
        params.n_outputs_max = 1  # logits are only ever read for the last token: saves 400 MB at the published size
        params.swa_full = True  # else positions that left a layer's window are gone, and no prefix could be kept
        params.type_k = params.type_v = api.GGML_TYPE_F32 if exact else api.GGML_TYPE_F16
        params.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED if exact else api.LLAMA_FLASH_ATTN_TYPE_AUTO
        if observer is not None:
            self._callback = api.ggml_backend_sched_eval_callback(self._observe)
            params.cb_eval = self._callback
        complaint()
        self.pointer = api.llama_init_from_model(model.pointer, params)
        if not self.pointer:
            raise OutOfMemoryError(
                f"no room for a language-model context of {self.size} tokens{complaint()}",
                hint="Close other programs, or use --reasoner off.",
            )
        self._memory = api.llama_get_memory(self.pointer)
        if adapter is not None:
            self._adapt(adapter)

    def _adapt(self, path: Path) -> None:
        api = self.lib.api
        try:
            one = (api.llama_adapter_lora_p_ctypes * 1)(self.model.adapter(path))
            if api.llama_set_adapters_lora(self.pointer, one, 1, (ctypes.c_float * 1)(1.0)):
                raise LensError(f"llama.cpp does not apply {path}{complaint()}")
        except BaseException:
            self.close()
            raise

    def keep(self, tokens: int) -> None:
        """Forget everything after the first `tokens` tokens."""
        if tokens == 0:
            self.lib.api.llama_memory_clear(self._memory, False)
        elif not self.lib.api.llama_memory_seq_rm(self._memory, 0, tokens, -1):
            raise LensError(f"llama.cpp cannot cut its cache back to {tokens} tokens{complaint()}")
        self.length = tokens

    def append(self, ids: Sequence[int], stop: Stop | None = None) -> bool:
        """Run `ids` behind what is there. False where `stop()` said so in between; the cache is then empty.

        Raises what a callback raised, and LensError for llama.cpp's own failures; the cache is then empty as well.
        """
        if not all(0 <= i < self.model.vocab_size for i in ids) or self.length + len(ids) > self.size:
            raise ValueError(f"{len(ids)} tokens behind {self.length} do not fit, or are not of this vocabulary")
        complaint()
        try:
            for first in range(0, len(ids), BATCH):
                if not self._run(ids[first : first + BATCH], stop):
                    self.keep(0)
                    return False
        except BaseException:
            self.keep(0)
            raise
        return True

    def _run(self, ids: Sequence[int], stop: Stop | None) -> bool:
        api = self.lib.api
        tokens = (api.llama_token * len(ids))(*ids)  # named: the batch holds only its address
        batch = api.llama_batch_get_one(tokens, len(ids))
        self._failure = None
        if stop is None:
            result = api.llama_decode(self.pointer, batch)
        else:  # asked before every operation: cheap against a prompt, dear against a single token
            asked = api.ggml_abort_callback(functools.partial(self._asked, stop))
            api.llama_set_abort_callback(self.pointer, asked, None)
            try:
                result = api.llama_decode(self.pointer, batch)
            finally:
                api.llama_set_abort_callback(self.pointer, api.ggml_abort_callback(), None)
        if self._failure is not None:
            raise self._failure
        if result == _ABORTED:
            return False
        if result != 0:
            raise LensError(f"llama.cpp failed on {len(ids)} tokens (code {result}){complaint()}")
        self.length += len(ids)
        return True

    def saved(self) -> NDArray[np.uint8]:
        """llama.cpp's own copy of the cache, for `restore`; a context of another size reads it as well."""
        import numpy as np

        api = self.lib.api
        out = np.empty(api.llama_state_seq_get_size(self.pointer, 0), np.uint8)
        if api.llama_state_seq_get_data(self.pointer, _bytes_of(out), out.size, 0) != out.size:
            raise LensError(f"llama.cpp did not copy its cache{complaint()}")
        return out

    def restore(self, saved: NDArray[np.uint8], tokens: int) -> None:
        """Fill an empty cache with what `saved` gave for `tokens` tokens. Raises LensError, the cache then empty."""
        api = self.lib.api
        self.keep(0)
        complaint()
        used = api.llama_state_seq_set_data(self.pointer, _bytes_of(saved), saved.size, 0)
        if used != saved.size or api.llama_memory_seq_pos_max(self._memory, 0) != tokens - 1:
            self.keep(0)
            raise LensError(f"llama.cpp does not take back what it had saved{complaint()}")
        self.length = tokens

    def logits(self) -> Floats:
        """Give a copy of what the network says of the token after the last one, (vocabulary,)."""
        import numpy as np

        pointer = self.lib.api.llama_get_logits_ith(self.pointer, -1)
        return np.ctypeslib.as_array(pointer, shape=(self.model.vocab_size,)).copy()

    def close(self) -> None:
        if self.pointer:
            self.lib.api.llama_free(self.pointer)
            self.pointer = None

    def _asked(self, stop: Stop, _data: object) -> bool:
        try:
            return self._failure is not None or stop()
        except BaseException as failure:  # noqa: BLE001 - Ctrl-C too: ctypes would swallow it
            self._failure = failure
            return True

    def _observe(self, tensor: int, ask: bool, _data: object) -> bool:
        """The eval callback. Asked: compute up to here and show it? Shown: go on?

        After a failure every next tensor is wanted and then declined, which ends each part of the graph at once.
        """
        if self._failure is not None:
            return ask
        try:
            assert self._observer is not None
            return self._observer(self.lib.name(tensor), ask, functools.partial(self.lib.read, tensor))
        except BaseException as failure:  # noqa: BLE001
            self._failure = failure
            return ask


def _bytes_of(array: NDArray[np.uint8]) -> Any:
    """As llama.cpp's functions want it: no copy, and valid as long as `array` is."""
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
