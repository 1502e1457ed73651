"""Features through llama.cpp at the published size, without the published weights.

    python -m benchmarks.big_gguf run /tmp/big.gguf            write, measure in fresh processes, delete
    python -m benchmarks.big_gguf write /tmp/big.gguf          12.1 GB: gpt-oss-20b's tensors, types and vocabulary size
    python -m benchmarks.big_gguf measure /tmp/big.gguf --threads 2 --cold

The weights are random blocks, tiled, of the types of the usual conversion (experts MXFP4, other matrices Q8_0): time
and memory do not depend on their values, as long as the router spreads its tokens. The vocabulary is made up too, but
as long as the real one, since reading it is part of opening the file. Memory is what Linux says of the process: the
resident set is the mapped file (RssFile, given back whenever another process needs it) and its own (RssAnon).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import gguf
import numpy as np
from numpy.typing import NDArray

from backend.checkpoints.gguf_keys import TEXT_ARCH, text_header
from backend.errors import FileError
from backend.params import TextEncoderParams

Bytes = NDArray[np.uint8]
TYPES = gguf.GGMLQuantizationType
PARAMS = TextEncoderParams()
CONTROL = {
    "<|startoftext|>": 199998, "<|endoftext|>": 199999, "<|return|>": 200002, "<|constrain|>": 200003,
    "<|channel|>": 200005, "<|start|>": 200006, "<|end|>": 200007, "<|message|>": 200008, "<|call|>": 200012,
}  # fmt: skip
PIECES = 199998  # ordinary tokens; the rest is control, most of it reserved
TAKE = (5, 11, 17, 23)
PREFIX, TOKENS = 97, 300  # of a prompt; the prefix is the part that every prompt shares
TILE = 4_999_999  # blocks' bytes repeat after about so many: no divisor of a row, so that no two experts are alike
SPARE = 1 << 30  # bytes of disk to leave free
TARGETS = {"seconds": 20.0, "peak GB": 13.0}  # first features without repacking, resident set


@dataclass(frozen=True)
class Slot:
    """One tensor of the file; `shape` row-major."""

    name: str
    shape: tuple[int, ...]
    kind: TYPES
    value: float  # of norms and biases; the size of a block's weights, roughly, for matrices

    @property
    def nbytes(self) -> int:
        elements, size = gguf.GGML_QUANT_SIZES[self.kind]
        return int(np.prod(self.shape, dtype=np.int64)) // elements * size


def slots(p: TextEncoderParams = PARAMS) -> Iterator[Slot]:
    """Every tensor of gpt-oss-20b, in the order of the file."""
    width, inner, experts = p.hidden_size, p.intermediate_size, p.num_local_experts
    q, kv = p.num_attention_heads * p.head_dim, p.num_key_value_heads * p.head_dim
    yield Slot("token_embd.weight", (p.vocab_size, width), TYPES.Q8_0, 1.0)
    yield Slot("output_norm.weight", (width,), TYPES.F32, 1.0)
    yield Slot("output.weight", (p.vocab_size, width), TYPES.Q8_0, 0.02)
    for n in range(p.num_hidden_layers):
        for norm in ("attn_norm", "post_attention_norm"):
            yield Slot(f"blk.{n}.{norm}.weight", (width,), TYPES.F32, 1.0)
        for name, out, into in (("q", q, width), ("k", kv, width), ("v", kv, width), ("output", width, q)):
            yield Slot(f"blk.{n}.attn_{name}.weight", (out, into), TYPES.Q8_0, 0.02)
            yield Slot(f"blk.{n}.attn_{name}.bias", (out,), TYPES.F32, 0.01)
        yield Slot(f"blk.{n}.attn_sinks.weight", (p.num_attention_heads,), TYPES.F32, 0.5)
        yield Slot(f"blk.{n}.ffn_gate_inp.weight", (experts, width), TYPES.F32, 0.02)
        yield Slot(f"blk.{n}.ffn_gate_inp.bias", (experts,), TYPES.F32, 0.0)
        for name, out, into in (("gate", inner, width), ("up", inner, width), ("down", width, inner)):
            yield Slot(f"blk.{n}.ffn_{name}_exps.weight", (experts, out, into), TYPES.MXFP4, 0.02)
            yield Slot(f"blk.{n}.ffn_{name}_exps.bias", (experts, out), TYPES.F32, 0.01)


def vocabulary() -> tuple[list[str], list[int], list[str]]:
    """Tokens, their types and merges of a byte-level BPE: letters, all pairs, and triples that two merges lead to."""
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [a + b for a in letters for b in letters]
    room = PIECES - len(letters) - len(pairs)
    triples = [pair + letters[(7 * i) % 256] for i in range(3) for pair in pairs][:room]  # three letters each a pair
    triples = list(dict.fromkeys(triples))
    tokens = [*letters, *pairs, *triples]
    merges = [f"{pair[0]} {pair[1]}" for pair in pairs]
    merges += [f"{t[:2]} {t[2]}" for t in triples] + [f"{t[0]} {t[1:]}" for t in triples]
    tokens += [f"[unused{n}]" for n in range(len(tokens), PIECES)]
    types = [int(gguf.TokenType.NORMAL)] * len(tokens)
    names = {number: text for text, number in CONTROL.items()}
    for number in range(PIECES, PARAMS.vocab_size):
        tokens.append(names.get(number, f"<|reserved_{number}|>"))
        types.append(int(gguf.TokenType.CONTROL))
    return tokens, types, merges


def write(path: Path) -> int:
    """Write the file, a few MB at a time; returns its bytes. Raises FileError where the disk is too small."""
    need = sum(slot.nbytes for slot in slots()) + 2**25
    free = shutil.disk_usage(path.parent).free
    if free < need + SPARE:
        raise FileError(
            f"{path.parent}: {free / 1e9:.1f} GB free, {(need + SPARE) / 1e9:.1f} GB needed",
            hint="Name another folder.",
        )
    writer = gguf.GGUFWriter(path, TEXT_ARCH)
    for key, value in text_header(PARAMS).items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif key.startswith("lens."):
            continue  # not in files of llama.cpp's own converter
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_uint32(key, int(value))
    tokens, types, merges = vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-4o")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(CONTROL["<|startoftext|>"])
    writer.add_eos_token_id(CONTROL["<|return|>"])
    writer.add_add_bos_token(False)
    for slot in slots():
        dtype = np.dtype(np.float32) if slot.kind is TYPES.F32 else np.dtype(np.uint8)
        shape = slot.shape if slot.kind is TYPES.F32 else gguf.quant_shape_to_byte_shape(slot.shape, slot.kind)
        writer.add_tensor_info(slot.name, shape, dtype, slot.nbytes, None if slot.kind is TYPES.F32 else slot.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    generator = np.random.default_rng(0)
    with path.open("r+b") as file:
        start = file.seek(0, os.SEEK_END)
        file.write(bytes(-start % gguf.GGUF_DEFAULT_ALIGNMENT))
        for slot in slots():
            for piece in data(slot, generator):
                file.write(piece)
            assert slot.nbytes % gguf.GGUF_DEFAULT_ALIGNMENT == 0, slot  # else padding would have to follow
        file.flush()
        os.fsync(file.fileno())
        return file.tell()


def data(slot: Slot, generator: np.random.Generator) -> Iterator[bytes]:
    """A tensor's bytes, piece by piece: one random tile over and over, from a new place each time."""
    if slot.kind is TYPES.F32:
        count = slot.nbytes // 4
        steady = slot.name.endswith("norm.weight")
        values = np.full(count, slot.value) if steady else generator.standard_normal(count) * slot.value
        yield values.astype(np.float32).tobytes()
        return
    size = gguf.GGML_QUANT_SIZES[slot.kind][1]
    tile = blocks(slot.kind, TILE // size, slot.value, generator)
    left = slot.nbytes
    while left:
        piece = tile[: min(left, tile.size)]
        yield piece.tobytes()
        left -= piece.size


def blocks(kind: TYPES, count: int, scale: float, generator: np.random.Generator) -> Bytes:
    """Random quantised blocks whose weights have about the standard deviation `scale`, as flat bytes."""
    size = gguf.GGML_QUANT_SIZES[kind][1]
    table = generator.integers(0, 256, (count, size), dtype=np.uint8)
    if kind is TYPES.MXFP4:  # a power of two, then 32 of the values 0, .5, 1, 1.5, 2, 3, 4, 6 with their sign
        table[:, 0] = 127 + round(np.log2(scale / 2.7))
    else:  # Q8_0: a float16 factor, then 32 signed bytes
        table[:, :2] = np.full(count, scale / 74, np.float16).view(np.uint8).reshape(count, 2)
    return table.reshape(-1)


def prompt(model_tokens: int, header: tuple[int, ...], seed: int) -> tuple[int, ...]:
    """TOKENS ids, of which the first PREFIX are the same for every seed and end with the user's header."""
    shared = np.random.default_rng(0).integers(0, model_tokens, PREFIX - len(header)).tolist()
    own = np.random.default_rng(seed).integers(0, model_tokens, TOKENS - PREFIX).tolist()
    return (*shared, *header, *own)


def measure(path: Path, threads: int, repack: bool, folder: Path | None) -> dict[str, float]:
    """In this process, which should be a fresh one: seconds and memory up to the first and the second features.

    `folder`: where processes leave each other the beginning that prompts share; None: each computes it.
    """
    import psutil

    born = psutil.Process().create_time()
    from backend.cache.store import Store
    from backend.text.harmony import HarmonyWriter
    from backend.text.llama import LlamaModel

    found = {"imports s": time.time() - born}
    start = time.perf_counter()
    prefixes = Store(folder, ".safetensors", SPARE, print) if folder else None
    with LlamaModel(path, threads=threads, repack=repack, prefixes=prefixes) as model:
        found["open s"] = time.perf_counter() - start
        if repack and not model.repacked:
            raise SystemExit("llama.cpp would use AMX here, where its repacked kernels crash")
        header = tuple(HarmonyWriter(model.tokenizer).open("user").ids)
        start = time.perf_counter()
        first = model.hidden_states(prompt(PIECES, header, 1), TAKE)
        found["features s"] = time.perf_counter() - start
        found["first features s"] = time.time() - born
        found["processor s"] = time.process_time()  # far under threads * seconds: others had the cores
        start = time.perf_counter()
        second = model.hidden_states(prompt(PIECES, header, 2), TAKE)
        found["next prompt s"] = time.perf_counter() - start
        assert first.shape == second.shape == (TOKENS, len(TAKE), PARAMS.hidden_size)
        assert bool(first.isfinite().all()) and not bool((first == second).all())
        found |= resident()
    return found


def resident() -> dict[str, float]:
    """Peak and present memory of this process in GB (10^9), from Linux."""
    names = {"VmHWM": "peak GB", "RssAnon": "own GB", "RssFile": "mapped GB"}
    found: dict[str, float] = {}
    for line in Path("/proc/self/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key in names:
            found[names[key]] = int(value.split()[0]) * 1024 / 1e9
    return found


def forget(file: BinaryIO) -> None:
    """Take the file out of the page cache, as after a restart."""
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def fresh(path: Path, threads: int, *, cold: bool, repack: bool, folder: Path | None = None) -> dict[str, float]:
    """`measure` in a process of its own."""
    if cold:
        with path.open("rb") as file:
            forget(file)
    command = [sys.executable, "-m", "benchmarks.big_gguf", "here", str(path), "--threads", str(threads)]
    command += [*(["--repack"] if repack else []), *(["--prefixes", str(folder)] if folder else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise FileError(f"the measuring process ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def show(rows: dict[str, dict[str, float]]) -> None:
    keys = list(next(iter(rows.values())))
    print("| | " + " | ".join(keys) + " |\n|---|" + "--:|" * len(keys))
    for title, row in rows.items():
        print(f"| {title} | " + " | ".join(f"{row[key]:.2f}" for key in keys) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "write", "measure", "here"))
    parser.add_argument("path", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cold", action="store_true", help="empty the page cache of the file first")
    parser.add_argument("--repack", action="store_true", help="as a server would: 10 GB more memory")
    parser.add_argument("--prefixes", type=Path, help="folder of the beginnings that prompts share, kept by processes")
    given = parser.parse_args()
    if given.what == "here":
        print(json.dumps(measure(given.path, given.threads, given.repack, given.prefixes)))
        return
    if given.what in ("run", "write"):
        start = time.perf_counter()
        print(f"{write(given.path) / 1e9:.2f} GB written in {time.perf_counter() - start:.0f} s", flush=True)
    try:
        if given.what == "measure":
            title = f"{given.threads} threads{', cold' if given.cold else ''}{', repacked' if given.repack else ''}"
            row = fresh(given.path, given.threads, cold=given.cold, repack=given.repack, folder=given.prefixes)
            show({title: row})
        elif given.what == "run":
            with tempfile.TemporaryDirectory() as folder:
                rows = {
                    f"{given.threads} threads, {title}": fresh(
                        given.path, given.threads, cold=cold, repack=given.repack, folder=Path(folder)
                    )
                    for title, cold in (
                        ("file on disk, nothing kept", True),
                        ("file on disk, shared beginning kept", True),
                        ("file in the page cache, shared beginning kept", False),
                    )
                }
            show(rows)
            best = min(rows.values(), key=lambda row: row["first features s"])
            print(f"target {TARGETS['seconds']:.0f} s: {best['first features s']:.1f} s; "
                  f"target {TARGETS['peak GB']:.0f} GB: {best['peak GB']:.2f} GB")  # fmt: skip
    finally:
        if given.what == "run":
            given.path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
