"""Every parser of foreign bytes, a row each: good inputs, and what reads them.

What a reader raises is a LensError (or the error that its callers are promised, named in its row); everything else is a
defect, and so are 2 seconds or 300 MB for a few kilobytes.
"""

from __future__ import annotations

import io
import json
import struct
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

Read = Callable[[bytes, Path], object]  # an input, and a folder of its own -> whatever


@dataclass(frozen=True)
class Target:
    """One parser. `promised`: errors besides LensError that its callers handle."""

    name: str
    seeds: Callable[[], tuple[bytes, ...]]
    read: Read
    promised: tuple[type[Exception], ...] = ()


def _file(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


# Weights -------------------------------------------------------------------------------------------------------------


def safetensors_seeds() -> tuple[bytes, ...]:
    def file(header: dict[str, Any], size: int) -> bytes:
        text = json.dumps(header).encode()
        return text + b"\n" + bytes(size)

    from backend.model.tensors import transformer_shapes
    from tests.backend import tiny_weights as tiny

    wide, narrow = transformer_shapes(tiny.DIT)["transformer_blocks.0.img_mlp.w1.weight"]
    lora = {
        "transformer.transformer_blocks.0.img_mlp.w1.lora_A.weight": {
            "dtype": "U8", "shape": [1, narrow], "data_offsets": [0, narrow],
        },
        "transformer.transformer_blocks.0.img_mlp.w1.lora_B.weight": {
            "dtype": "U8", "shape": [wide, 1], "data_offsets": [narrow, narrow + wide],
        },
    }  # fmt: skip
    plain = {"x": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}}
    return file({"__metadata__": {"format": "pt", "alpha": "4"}, **lora}, wide + narrow), file(plain, 12)


def read_safetensors(data: bytes, folder: Path) -> None:
    """The length goes before what was drawn: an edit of it would end nearly every input there."""
    from backend.checkpoints.headers import read_header
    from backend.lora.keys import read_lora
    from backend.lora.scales import sidecar
    from backend.model.tensors import transformer_shapes
    from tests.backend import tiny_weights as tiny

    text, _, body = data.partition(b"\n")
    path = _file(folder, "x.safetensors", struct.pack("<Q", len(text)) + text + body)
    read_header(path)
    if b"lora" in text:
        sidecar(path)
        read_lora(path, transformer_shapes(tiny.DIT))


def gguf_seeds() -> tuple[bytes, ...]:
    """The headers of a tiny transformer and a tiny gpt-oss, written by hand after the GGUF specification."""
    from backend.checkpoints import gguf_keys
    from tests.backend import tiny_weights as tiny

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value.encode())) + value.encode()

    def value(said: object) -> bytes:
        if isinstance(said, bool):
            return struct.pack("<I?", 7, said)
        if isinstance(said, int):
            return struct.pack("<II", 4, said)
        if isinstance(said, float):
            return struct.pack("<If", 6, said)
        if isinstance(said, list):
            return struct.pack(f"<IIQ{len(said)}I", 9, 4, len(said), *said)
        return struct.pack("<I", 8) + text(str(said))

    def file(said: dict[str, Any]) -> bytes:
        keys = b"".join(text(key) + value(one) for key, one in {**said, "general.alignment": 32}.items())
        tokens = text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b")
        tensor = text("x.weight") + struct.pack("<IQQIQ", 2, 4, 8, 0, 0)
        head = b"GGUF" + struct.pack("<IQQ", 3, 1, len(said) + 2) + keys + tokens + tensor
        return head + bytes(-len(head) % 32 + 128)

    transformer, encoder = gguf_keys.transformer_header(tiny.DIT), gguf_keys.text_header(tiny.TEXT)
    return file({"general.architecture": "lens", **transformer}), file({"general.architecture": "gpt-oss", **encoder})


def read_gguf(data: bytes, folder: Path) -> None:
    from backend.checkpoints import gguf_keys
    from backend.checkpoints.headers import read_header

    header = read_header(_file(folder, "x.gguf", data))
    if gguf_keys.transformer_params(header.metadata, "x.gguf") is None:
        gguf_keys.text_params(header.metadata, 300, "x.gguf")


def config_seeds() -> tuple[bytes, ...]:
    from tests.backend import tiny_weights as tiny

    configs = (tiny.transformer_config(), tiny.text_config(), tiny.vae_config())
    return tuple(json.dumps(config).encode() for config in configs)


def read_configs(data: bytes, folder: Path) -> None:
    """As that of the network that it is most likely meant for."""
    from backend.checkpoints import config_files

    config = config_files.read_json(_file(folder, "config.json", data))
    if "latent_channels" in config:
        config_files.vae_params(config, "config.json")
    elif "vocab_size" in config:
        config_files.text_encoder_params(config, "config.json")
    else:
        config_files.transformer_params(config, "config.json")


def model_index_seeds() -> tuple[bytes, ...]:
    parts = {"transformer": ["lens", "LensTransformer2DModel"], "vae": ["diffusers", "AutoencoderKLFlux2"]}
    return (json.dumps({"_class_name": "LensPipeline", "_diffusers_version": "0.36", **parts}).encode(),)


def read_model_index(data: bytes, folder: Path) -> None:
    from backend.checkpoints.layouts import diffusers

    _file(folder, "model_index.json", data)
    diffusers(folder)


def shard_index_seeds() -> tuple[bytes, ...]:
    named = {"a.weight": "model-00001-of-00002.safetensors", "b.weight": "model-00002-of-00002.safetensors"}
    return (json.dumps({"metadata": {"total_size": 9}, "weight_map": named}).encode(),)


def read_shard_index(data: bytes, folder: Path) -> None:
    from backend.checkpoints.layouts import diffusers
    from tests.backend import tiny_weights as tiny

    _file(folder, "model_index.json", model_index_seeds()[0])
    (folder / "transformer").mkdir()
    _file(folder / "transformer", "config.json", json.dumps(tiny.transformer_config()).encode())
    _file(folder / "transformer", "diffusion_pytorch_model.safetensors.index.json", data)
    for number in (1, 2):
        _file(folder / "transformer", f"model-0000{number}-of-00002.safetensors", b"")
    diffusers(folder)


# Pictures ------------------------------------------------------------------------------------------------------------


@cache
def record() -> dict[str, Any]:
    """A record as a picture of Lens-Nano has it."""
    from PIL import Image

    from backend.events import Generation, ModelIdentity
    from backend.picture.metadata import make_record
    from backend.types import DType, Encoder, GenerationRequest

    request = GenerationRequest(
        prompt="a [red] fish, at night", negative_prompt="rain", model="nano", seeds=(5,), width=16, height=16, steps=2,
        guidance=3.0,
    )  # fmt: skip
    made = Generation(
        image=Image.new("RGB", (16, 16)), request=request, index=0, seed=5, sigmas=(1.0, 0.5, 0.0),
        model=ModelIdentity(name="nano", revision=None, sha256={"transformer": "0" * 64}), device="cpu",
        dtype=DType.float32, quant=None, encoder=Encoder.exact, template_date="2026-05-26", versions={}, timings={},
    )  # fmt: skip
    return make_record(made, pixels="0" * 64)


def picture_seeds() -> tuple[bytes, ...]:
    from PIL import Image

    from backend.picture.images import encode
    from backend.types import ImageFormat

    image = Image.new("RGB", (16, 16), (200, 30, 30))
    return tuple(encode(image, kind, quality=None, record=record()) for kind in ImageFormat)


def read_picture(data: bytes, folder: Path) -> None:
    from backend.inputs.files import load_pixels
    from backend.picture.images import read_metadata
    from backend.picture.metadata import environment, wish_from

    path = _file(folder, "x.png", data)
    found = read_metadata(path)
    if found.record is not None:
        environment(found.record)
        wish_from(found.record, "x.png")
    load_pixels(path)


def read_record(data: bytes, folder: Path) -> None:
    """What stands in a picture, without the picture around it: the checksums of a PNG would end most edits."""
    from backend.picture.metadata import environment, load_record, wish_from
    from lens_cli.commands.info import _record_lines  # pyright: ignore[reportPrivateUsage]

    found = load_record(data.decode("utf-8", "replace"), "x.png")
    environment(found)
    _record_lines(found)
    wish_from(found, "x.png")


def text_seeds() -> tuple[bytes, ...]:
    from backend.picture.metadata import a1111_text, dump_record, xmp_packet

    return a1111_text(record()).encode(), xmp_packet(dump_record(record()))


def read_texts(data: bytes, folder: Path) -> None:
    from backend.picture.metadata import parse_a1111, record_in_xmp, source_type_in_xmp

    parse_a1111(data.decode("utf-8", "replace"))
    record_in_xmp(data)
    source_type_in_xmp(data)


# Settings, records, journals, logs -----------------------------------------------------------------------------------

SETTINGS = b"""model = "nano"
output_dir = "pictures"
[generate]
steps = 9
guidance = 2.5
loras = ["sky=0.8"]
[output]
template = "{date}/{slug}-{seed:04d}"
format = "webp"
"""


def read_settings(data: bytes, folder: Path) -> None:
    """As the user's own file and as that of a project; then what a command makes of them."""
    import os

    from backend import settings
    from backend.picture.outputs import plan_output
    from backend.types import ImageFormat

    path = _file(folder, "config.toml", data)
    before, here = os.environ.get("LENS_CONFIG"), Path.cwd()
    os.environ["LENS_CONFIG"] = str(path)
    try:
        found = settings.load()
    finally:
        os.environ.pop("LENS_CONFIG")
        if before is not None:
            os.environ["LENS_CONFIG"] = before
    _file(folder, "lens.toml", data)
    os.chdir(folder)
    try:
        settings.load()
    finally:
        os.chdir(here)
    plan_output(
        None, format=None, quality=None, metadata=True, default_folder=found.output_dir,
        default_template=found.output.template, default_format=found.output.format or ImageFormat.png,
        default_quality=found.output.quality,
    )  # fmt: skip


def lines(*rows: object) -> Callable[[], tuple[bytes, ...]]:
    return lambda: ("\n".join(map(json.dumps, rows)).encode() + b"\n",)


def read_pull_record(data: bytes, folder: Path) -> None:
    from backend.checkpoints import records

    path = records.record_file("lens")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    records.load("lens")


def read_captions(data: bytes, folder: Path) -> None:
    from train.data.captions.journals import Journal

    journal = Journal(_file(folder, "00000.jsonl", data))
    journal.all()
    journal.tokens()


def read_log(data: bytes, folder: Path) -> None:
    from train.run import status

    status.run_of(folder, tuple(status.read_log(_file(folder, "metrics.jsonl", data))))


def read_run_config(data: bytes, folder: Path) -> None:
    from train.run import status

    _file(folder, "config.json", data)
    status.run_of(folder, ())


def read_mark(data: bytes, folder: Path) -> None:
    from train.data.work import Work

    (folder / "scan").mkdir(exist_ok=True)
    _file(folder / "scan", "00000.done", data)
    Work(folder).mark("scan", 0)
    Work(folder).changed("scan", 0)


def read_data_config(data: bytes, folder: Path) -> None:
    from train.data.captions.ask import CaptionSettings
    from train.data.settings import section
    from train.data.tars.pack import PackConfig

    _file(folder, "config.json", data)
    section(CaptionSettings, "caption", folder, ())
    section(PackConfig, "pack", folder, ())


def tar_seeds() -> tuple[bytes, ...]:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in (("a.jpg", b"jpeg"), ("a.txt", b"a cat"), ("a.json", b'{"key": "a"}')):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return (buffer.getvalue()[:4096],)


def read_tar(data: bytes, folder: Path) -> None:
    from train.data.tars.pack import read_members

    read_members(data)


def read_prompts(data: bytes, folder: Path) -> None:
    from backend.batch.lines import read_lines
    from backend.wish import Wish

    for name in ("x.jsonl", "x.txt"):
        read_lines(data.decode("utf-8", "replace"), name, Wish())


# What comes over the network -----------------------------------------------------------------------------------------


def answer_seeds() -> tuple[bytes, ...]:
    decision = json.dumps({"decision": "rewrite", "prompt": "A red fish.", "rule": None})
    chance = {"token": "A", "logprob": -0.25, "top_logprobs": [{"token": "A", "logprob": -0.25}]}
    message = {"role": "assistant", "content": decision, "reasoning_content": "Hm.", "refusal": None}
    choice = {"index": 0, "finish_reason": "stop", "message": message, "logprobs": {"content": [chance]}}
    usage = {"prompt_tokens": 9, "completion_tokens": 7}
    return (json.dumps({"id": "x", "choices": [choice], "usage": usage}).encode(),)


def read_answer(data: bytes, folder: Path) -> None:
    from backend.cache.lines import JsonLines
    from backend.chat.address import Label, make_address
    from backend.chat.client import Client
    from backend.errors import LensError
    from backend.reasoner import answers

    labels = {name: Label(name, name) for name in ("base_url", "model", "key", "timeout", "limit", "max_tokens")}
    address = make_address("http://127.0.0.1:1/v1", "m", key=None, timeout=1, max_tokens=9, labels=labels)
    client = Client(address)
    for read in (answers.read_json, answers.read_plain):
        try:
            read(data.decode("utf-8", "replace"))
        except LensError:
            pass
    reply = client._first_choice(data, "application/json")  # pyright: ignore[reportPrivateUsage]
    JsonLines(folder / "journal.jsonl").append({"text": reply.content, "in": reply.tokens_in})
    answers.read_json(reply.content)


def read_request(data: bytes, folder: Path) -> None:
    """A client's JSON as the three doors of the server take it, up to a complete request."""
    from backend.errors import UsageError
    from backend.foreign.documents import parse_json
    from backend.requests import build_request
    from backend.server.http.routes_a1111 import TextToImage
    from backend.server.http.routes_jobs import NewJob
    from backend.server.http.routes_openai import ImageRequest
    from backend.server.wire import wish_from
    from backend.settings import Settings

    body = parse_json(data)
    for door in (NewJob, ImageRequest, TextToImage):
        try:
            door.model_validate(body)
        except ValueError:  # pydantic's own, which the server answers with 422
            continue
    wish = wish_from(body.get("wish") if isinstance(body, dict) else body)
    if wish.model not in (None, "nano"):
        raise UsageError("another model")  # which the intake refuses by name
    build_request(wish, Settings(), lambda text: None)


REQUEST = {"prompt": "a red fish", "seeds": ["5"], "steps": 2, "guidance": 2.5, "width": 256, "height": 256}
A1111 = {"prompt": "a red fish", "n_iter": 1, "batch_size": 1, "override_settings": {"CLIP_stop_at_last_layers": 1}}


def settings_seeds() -> tuple[bytes, ...]:
    return (SETTINGS,)


def record_seeds() -> tuple[bytes, ...]:
    return (json.dumps(record()).encode(),)


def _promised() -> tuple[type[Exception], ...]:
    from backend.foreign.documents import Unreadable

    return (Unreadable,)


FILES = {"vae/config.json": {"size": 9, "sha256": "0" * 64}}
PULLED = {
    "v": 1,
    "folder": "/x",
    "layout": "diffusers",
    "repo": "a/b",
    "revision": "0" * 40,
    "when": "",
    "files": FILES,
}
ANSWER = {"picture": "0" * 64, "kind": "dense", "identity": "x", "text": "a cat", "tokens_in": 3, "tokens_out": 4}
MARK = {"rows": 1, "sha256": "0" * 64, "stamp": "x", "reads": {"scan": "0" * 64}}
DATA = {"caption": {"model": "m", "attempts": 3, "own": ["a"]}, "pack": {"tar_bytes": 20000, "quality": 90}}
RUN = {"kind": "pretrain", "steps": 10, "stages": [{"steps": 5}]}

TARGETS = (
    Target("safetensors", safetensors_seeds, read_safetensors),
    Target("gguf", gguf_seeds, read_gguf),
    Target("config.json", config_seeds, read_configs),
    Target("model_index.json", model_index_seeds, read_model_index),
    Target("index.json", shard_index_seeds, read_shard_index),
    Target("picture", picture_seeds, read_picture),
    Target("record", record_seeds, read_record),
    Target("a1111 and xmp", text_seeds, read_texts),
    Target("settings", settings_seeds, read_settings),
    Target("pull record", lines(PULLED), read_pull_record),
    Target("caption journal", lines(ANSWER, {**ANSWER, "cut": True}), read_captions),
    Target("metrics.jsonl", lines({"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}), read_log),
    Target("run config", lines(RUN), read_run_config),
    Target("mark", lines(MARK), read_mark),
    Target("data config", lines(DATA), read_data_config),
    Target("tar", tar_seeds, read_tar, (tarfile.TarError,)),
    Target("prompts", lines({"prompt": "a cat", "seeds": [1], "steps": 2}, {"prompt": "b"}), read_prompts),
    Target("answer", answer_seeds, read_answer),
    Target("request", lines({"wish": REQUEST, "n": 1, **A1111}), read_request, _promised()),
)
