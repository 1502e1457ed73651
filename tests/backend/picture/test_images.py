"""Pictures written and read back in three formats, with sd-parsers as the independent reader of the A1111 text."""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from backend.errors import FileError
from backend.events import Generation
from backend.inputs.files import load_pixels
from backend.picture import images, metadata
from backend.picture.outputs import SUFFIX
from backend.types import DType, Encoder, GenerationRequest, ImageFormat, LoraMode, ModelIdentity, Quant, Sampler
from backend.wish import Wish

FORMATS = list(ImageFormat)
PROMPTS = [
    "three red balloons over a green hill",
    'two\nlines, with: commas, colons: and "quotes"',
    "Grüße 🎈 文字 [red]markup[/red] {a|b} <|start|> & < > ]]> ]]>",
    "Steps: 3, Seed: 1, Size: 1x1",
    "x" * 4000,
    "]]>" * 1333,
    '&"🎈\n' * 1000,
]


def make(prompt: str = PROMPTS[0], **wish: Any) -> Generation:
    request = GenerationRequest(
        **{
            "prompt": prompt,
            "negative_prompt": "blur: bad, worse",
            "model": "nano",
            "seeds": (41, 42),
            "width": 48,
            "height": 32,
            "steps": 4,
            "guidance": 2.5,
            **wish,
        }
    )
    return Generation(
        image=Image.linear_gradient("L").resize((48, 32)).convert("RGB"),
        request=request,
        index=1,
        seed=42,
        model=ModelIdentity(name="nano", revision="abc", sha256={"transformer": "0123456789abcdef" * 4}),
        sigmas=(1.0, 0.75, 0.5, 0.25, 0.0),
        dtype="float32",
        device="cpu",
        template_date="2026-05-26",
        timings={"denoise": 1.23456},
        versions={"torch": "2.13.0"},
    )


def save(made: Generation, folder: Path, format: ImageFormat, **wish: Any) -> tuple[Path, dict[str, Any]]:  # noqa: A002
    return images.save_image(made, folder / f"picture{SUFFIX[format]}", format=format, **wish)


def read_wish(path: Path) -> Wish:
    """The wish that a picture records. Raises FileError."""
    record = images.read_metadata(path).record
    if record is None:
        raise FileError(f"{path} holds no lens record")
    return metadata.wish_from(record, str(path))


def test_the_encoder_that_ran_is_recorded(tmp_path: Path) -> None:
    """A near-exact one is named in the text for other tools too; a picture older than the choice was exact."""
    path, record = save(replace(make(), encoder=Encoder.llama), tmp_path, ImageFormat.png)
    assert record["encoder"] == "llama" and read_wish(path).encoder is Encoder.llama
    assert "Text encoder: llama.cpp (near-exact)" in metadata.a1111_text(record)
    _, exact = save(make(), tmp_path, ImageFormat.png)
    assert "Text encoder" not in metadata.a1111_text(exact)
    old = {key: value for key, value in exact.items() if key != "encoder"}
    assert metadata.wish_from(old, "old.png").encoder is Encoder.auto  # which is exact, by definition
    assert metadata.environment(old)["encoder"] == metadata.environment(exact)["encoder"] == "exact"
    for damage in ("auto", "best", None, 3):
        with pytest.raises(FileError, match="damaged: encoder"):
            metadata.wish_from({**exact, "encoder": damage}, "bad.png")


def test_what_may_move_the_last_bits_is_named(tmp_path: Path) -> None:
    """The kernel of attention is measured, and a compiler fuses: a picture of one differs from the other's."""
    _, plain = save(make(), tmp_path, ImageFormat.png)
    _, other = save(replace(make(), attention="cudnn", compiled=True), tmp_path, ImageFormat.png)
    before, after = metadata.environment(plain), metadata.environment(other)
    moved = {key: (before[key], after[key]) for key in before if before[key] != after[key]}
    assert moved == {"attention": ("torch", "cudnn"), "compiled": ("False", "True")}
    old = {key: value for key, value in plain.items() if key not in ("attention", "compiled")}
    assert metadata.environment(old) == before


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_request_round_trip(tmp_path: Path, format: ImageFormat, prompt: str) -> None:  # noqa: A002
    made = make(prompt)
    path, record = save(made, tmp_path, format, parent_id="0" * 32)
    assert read_wish(path) == Wish(
        prompt=prompt,
        negative_prompt="blur: bad, worse",
        model="nano",
        seeds=("42",),
        width=48,
        height=32,
        steps=4,
        guidance=2.5,
        sampler=Sampler.euler,
        dtype=DType.float32,
        device="auto",
        encoder=Encoder.exact,
        loras=(),
        lora_mode=LoraMode.auto,
        rl_strength=0.0,  # no adapter acted, whatever the model will have
        quant=Quant.auto,
        compiled=False,
    )
    found = images.read_metadata(path)
    assert found.record == record
    assert found.generator == "lens"
    assert found.source_type == metadata.SOURCE_TYPE
    assert record["v"] == 1 and record["parent_id"] == "0" * 32
    assert record["pixel_sha256"] == images.pixel_sha256(made.image)


@pytest.mark.parametrize("format", FORMATS)
def test_other_tools_read_it(tmp_path: Path, format: ImageFormat) -> None:  # noqa: A002
    from sd_parsers import ParserManager

    path, _ = save(make("Grüße 🎈, two\nlines"), tmp_path, format)
    found = ParserManager().parse(path)
    assert found is not None
    sampler = found.samplers[0]
    assert found.full_prompt == "Grüße 🎈, two\nlines"
    assert found.full_negative_prompt == "blur: bad, worse"
    assert sampler.name == "FlowMatchEuler"
    assert {key: sampler.parameters[key] for key in ("seed", "steps", "cfg_scale")} == {
        "seed": "42",
        "steps": "4",
        "cfg_scale": "2.5",
    }
    assert sampler.model is not None
    assert (sampler.model.name, sampler.model.hash) == ("nano", "0123456789")


def test_a1111_text_to_the_letter() -> None:
    record = metadata.make_record(make(), pixels="")
    assert metadata.a1111_text(record) == (
        "three red balloons over a green hill\n"
        "Negative prompt: blur: bad, worse\n"
        "Steps: 4, Sampler: FlowMatchEuler, CFG scale: 2.5, Seed: 42, Size: 48x32, Model hash: 0123456789, "
        f"Model: nano, RNG: CPU, Version: {metadata.software()}"
    )
    record["model"]["name"] = 'a, "b": c'
    fields = metadata.parse_a1111(metadata.a1111_text(record))
    assert fields is not None and fields["Model"] == 'a, "b": c'


@pytest.mark.parametrize("format", FORMATS)
def test_exif_and_software(tmp_path: Path, format: ImageFormat) -> None:  # noqa: A002
    path, _ = save(make(), tmp_path, format)
    with Image.open(path) as image:
        if format is ImageFormat.png:
            assert image.info["Software"] == metadata.software()
            assert path.read_bytes().index(b"parameters") < path.read_bytes().index(b"IDAT")
        else:
            assert image.getexif()[0x0131] == metadata.software()
            comment = image.getexif().get_ifd(0x8769)[0x9286]
            assert comment.startswith(b"UNICODE\0" + "three".encode("utf-16-be"))


@pytest.mark.parametrize("format", FORMATS)
def test_no_metadata_means_none(tmp_path: Path, format: ImageFormat) -> None:  # noqa: A002
    path, record = save(make("a secret prompt"), tmp_path, format, with_metadata=False)
    found = images.read_metadata(path)
    assert (found.generator, found.record, found.parameters, found.source_type) == (None, None, None, None)
    assert b"secret" not in path.read_bytes() and b"lens" not in path.read_bytes()
    assert record["prompt"] == "a secret prompt"  # the caller still learns what ran


@pytest.mark.parametrize(("format", "quality"), [(ImageFormat.png, None), (ImageFormat.webp, None)])
def test_lossless_formats_keep_the_pixels(tmp_path: Path, format: ImageFormat, quality: int | None) -> None:  # noqa: A002
    path, record = save(make(), tmp_path, format, quality=quality)
    assert images.pixel_sha256(load_pixels(path)) == record["pixel_sha256"]
    assert images.psnr(load_pixels(path), make().image) == float("inf")


def test_quality_orders_sizes(tmp_path: Path) -> None:
    image = Image.effect_noise((64, 64), 80)
    sizes = [len(images.encode(image, ImageFormat.jpeg, quality=q, record=None)) for q in (10, 50, 95)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[2]
    assert 30 < images.psnr(
        image.convert("RGB"), _reload(images.encode(image, ImageFormat.jpeg, quality=95, record=None))
    )


def test_no_path_leaves_the_machine() -> None:
    record = metadata.make_record(make(model="/home/someone/secret/model"), pixels="")
    assert "secret" not in json.dumps(record)


def test_a_jpeg_that_cannot_hold_its_description(tmp_path: Path) -> None:
    made = make("🎈" * 20_000)  # beyond what build_request lets through
    with pytest.raises(FileError, match="so long a description"):
        save(made, tmp_path, ImageFormat.jpeg)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------- files from elsewhere


def test_plain_a1111_text(tmp_path: Path) -> None:
    text = "a cat, (best:1.2)\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 64x64"
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", text)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    found = images.read_metadata(tmp_path / "a.png")
    assert found.generator == "AUTOMATIC1111 or alike" and found.record is None
    assert found.fields["prompt"] == "a cat, (best:1.2)" and found.fields["Seed"] == "5"


def test_comfyui_graph_through_sd_parsers(tmp_path: Path) -> None:
    graph = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "m.safetensors"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a ship", "clip": ["1", 1]}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "rain", "clip": ["1", 1]}},
        "4": {
            "class_type": "KSampler",
            "inputs": {
                "seed": 9,
                "steps": 7,
                "cfg": 2,
                "sampler_name": "euler",
                "scheduler": "simple",
                "denoise": 1,
                "model": ["1", 0],
                "positive": ["2", 0],
                "negative": ["3", 0],
            },
        },
    }
    info = PngImagePlugin.PngInfo()
    info.add_text("prompt", json.dumps(graph))
    links = [[1, 1, 0, 4, 0, "MODEL"], [2, 2, 0, 4, 1, "CONDITIONING"], [3, 3, 0, 4, 2, "CONDITIONING"]]
    info.add_text("workflow", json.dumps({"nodes": [], "links": links}))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    found = images.read_metadata(tmp_path / "a.png")
    assert found.generator == "ComfyUI"
    assert found.fields["prompt"] == "a ship" and found.fields["seed"] == "9"


@pytest.mark.parametrize("text", ["", "just words", "Steps: 3", "Steps: 3, Seed: 4", "a\nb\nc: d"])
def test_text_that_is_not_a1111(text: str) -> None:
    assert metadata.parse_a1111(text) is None


@pytest.mark.parametrize(
    "record",
    [
        "not json",
        "[]",
        "{}",
        '{"v":"1"}',
        '{"v":true}',
        '{"v":2}',
        "[" * 100_000,
        '{"v":1}',
        '{"v":1,"prompt":3}',
        '{"v":1,"guidance":NaN}',  # Python's json reads these three, and JSON knows none of them
        '{"v":1,"guidance":-Infinity}',
        '{"v":1,"guidance":1e999}',
    ],
)
def test_damaged_records(tmp_path: Path, record: str) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("lens", record)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    with pytest.raises(FileError, match=r"a\.png: (the lens record is damaged|written by a newer lens)"):
        read_wish(tmp_path / "a.png")


def test_every_field_of_a_request_is_checked(tmp_path: Path) -> None:
    record = metadata.make_record(make(), pixels="")
    wrong = {
        "sampler": "Euler a",
        "compiled": 1,
        "expander": {},
        "prompt": 1,
        "seed": -1,
        "width": "48",
        "steps": 0,
        "guidance": "x",
        "dtype": "float16",
        "model": [],
    }
    assert metadata.wish_from(record, "a").seeds == ("42",)
    for key, value in wrong.items():
        with pytest.raises(FileError, match=key):
            metadata.wish_from({**record, key: value}, "a")


@pytest.mark.parametrize(
    "content", [b"", b"text", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\0\0\0\0WEBPVP8 ", b"\xff\xd8\xff"]
)
def test_no_picture(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(FileError, match=r"a\.png"):
        images.read_metadata(tmp_path / "a.png")


def test_no_file(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.png", tmp_path, Path("/dev/null")):
        with pytest.raises(FileError):
            images.read_metadata(path)


def test_cut_short(tmp_path: Path) -> None:
    path, _ = save(make(), tmp_path, ImageFormat.png)
    data = path.read_bytes()
    path.write_bytes(data[:-40])
    assert read_wish(path).seeds == ("42",)  # the text lies before the pixels
    with pytest.raises(FileError):
        load_pixels(path)


def test_a_decompression_bomb_is_not_opened(tmp_path: Path) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    )
    with pytest.raises(FileError, match="too many pixels"):
        images.read_metadata(tmp_path / "a.png")


@pytest.mark.parametrize("format", FORMATS)
def test_random_damage_is_never_a_crash(tmp_path: Path, format: ImageFormat) -> None:  # noqa: A002
    import random

    path, _ = save(make(), tmp_path, format)
    whole = path.read_bytes()
    draw = random.Random(0)
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 20)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        path.write_bytes(data[: draw.randint(1, len(data))] if draw.random() < 0.3 else data)
        for read in (images.read_metadata, read_wish, load_pixels):
            try:
                read(path)
            except FileError:
                continue


def _reload(data: bytes) -> Image.Image:
    import io

    return Image.open(io.BytesIO(data)).convert("RGB")
