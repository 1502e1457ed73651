"""Programs that others wrote ask the server: OpenAI's SDK, `webuiapi`, an MCP client; and schemathesis, which reads the
server's own description and sends what it should refuse.

Why it can be trusted: the clients are the real packages, and what they give back is compared with the file's record.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import anyio
import numpy as np
import openai
import pytest
import webuiapi
from PIL import Image

from backend.inputs.files import see_mask
from backend.picture import metadata
from backend.server.http.uploads import keep_edit, keep_img2img
from tests.backend.server.conftest import Running
from tests.lens_cli.cli import environment

SIZE = "176x176"


@pytest.fixture(scope="module")
def sdk(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def record_of(data: bytes) -> dict[str, Any]:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        text = image.info.get("lens") or metadata.record_in_xmp(image.info["xmp"])
        assert isinstance(text, str)
        return metadata.load_record(text, "the answer")


def test_openai_plain(sdk: openai.OpenAI) -> None:
    extra = {"seed": 5, "steps": 3, "guidance": 2.5, "negative_prompt": "blue"}
    answer = sdk.images.generate(
        prompt="a red fish", n=2, size=SIZE, model="nano", output_format="webp", extra_body=extra
    )  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert answer.data is not None and len(answer.data) == 2
    for place, one in enumerate(answer.data):
        record = record_of(base64.b64decode(one.b64_json or ""))
        assert (record["seed"], record["steps"], record["guidance"]) == (5 + place, 3, 2.5)
        assert (record["negative_prompt"], record["width"]) == ("blue", 176)
        assert one.revised_prompt == record["prompt"] == "a red fish"


def test_openai_stream(sdk: openai.OpenAI) -> None:
    """Two partial images of three steps, then the picture."""
    stream = sdk.images.generate(
        prompt="a red fish",
        size=SIZE,
        stream=True,
        partial_images=2,
        extra_body={"seed": 5, "steps": 3},  # pyright: ignore[reportArgumentType, reportCallIssue]
    )
    events = list(stream)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
    *partial, whole = events
    assert [event.type for event in events] == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert [getattr(event, "partial_image_index", None) for event in partial] == [0, 1]
    assert all(Image.open(io.BytesIO(base64.b64decode(event.b64_json))).format == "PNG" for event in partial)
    assert record_of(base64.b64decode(whole.b64_json))["seed"] == 5 and whole.size == SIZE


@pytest.mark.parametrize(
    ("method", "path", "status", "code", "hint"),
    [
        ("POST", "/v1/images/generation", 404, "unknown_path", "/v1/images/generations"),
        ("POST", "/v1/chat/completions", 404, "unknown_path", "/v1/images/generations or"),
        ("GET", "/sdapi/v1/sd_models", 404, "unknown_path", "/sdapi/v1/sd-models"),
        ("POST", "/sdapi/v1/interrogate", 404, "unknown_path", "/sdapi/v1/"),
        ("POST", "/api/generate", 404, "unknown_path", "/v1/images/generations or /sdapi/v1/txt2img;"),
        ("GET", "/v1/%1b[2Jx", 404, "unknown_path", "GET /openapi.json lists all"),
        ("GET", "/v1/images/generations", 405, "wrong_method", "it takes POST"),
        ("POST", "/health", 405, "wrong_method", "it takes GET"),
    ],
)
def test_a_path_that_is_not_there_is_answered_like_any_other_error(
    server: Running, method: str, path: str, status: int, code: str, hint: str
) -> None:
    with pytest.raises(HTTPError) as caught:
        urlopen(Request(server.url + path, method=method, data=b"{}" if method == "POST" else None), timeout=30)
    told = json.loads(caught.value.read())
    error = told["error"]
    assert (caught.value.code, error["code"]) == (status, code) and hint in error["hint"], error
    assert error["type"] == "invalid_request_error" and told["detail"] == error["message"]
    assert error["message"].isprintable() and (status != 405 or caught.value.headers["allow"] in error["hint"])


def test_openai_models_and_errors(sdk: openai.OpenAI) -> None:
    models = {model.id: model for model in sdk.models.list()}
    assert "nano" in models and (models["nano"].model_extra or {})["image_defaults"]["steps"] == 20
    for wrong, kind in (
        ({"model": "dall-e-3"}, openai.NotFoundError), ({"n": 10_000}, openai.BadRequestError),
        ({"size": "1x1"}, openai.BadRequestError), ({"extra_body": {"steps": "many"}}, openai.BadRequestError),
    ):  # fmt: skip
        with pytest.raises(kind) as caught:
            sdk.images.generate(**{"prompt": "a", **wrong})
        assert isinstance(caught.value, openai.APIStatusError) and caught.value.message
    with pytest.raises(openai.APIStatusError) as ran_out:
        sdk.images.generate(prompt="oom", size=SIZE)  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert ran_out.value.status_code == 507 and ran_out.value.code == "out_of_memory"


def test_webuiapi(server: Running) -> None:
    api: Any = webuiapi.WebUIApi(host="127.0.0.1", port=server.client.place.port)
    assert api.get_samplers()[0]["name"] == "Euler" and api.get_loras() == []
    assert "nano" in [model["title"] for model in api.get_sd_models()]
    api.set_options({"sd_model_checkpoint": "lens-turbo"})
    assert api.get_options()["sd_model_checkpoint"] == "lens-turbo"
    api.set_options({"sd_model_checkpoint": "nano"})
    made = api.txt2img(prompt="a red fish", seed=9, steps=3, cfg_scale=2, width=176, height=192, batch_size=2)
    assert [image.size for image in made.images] == [(176, 192)] * 2
    assert made.info["all_seeds"] == [9, 10] and made.info["cfg_scale"] == 2 and "Steps: 3" in made.info["infotexts"][0]
    assert any("Euler a" in note for note in made.info["notes"])  # which nobody asked for, and is not here
    assert made.images[0].text["parameters"] == made.info["infotexts"][0]
    assert api.get_progress()["progress"] == 0
    usual = api.txt2img(prompt="fish", steps=1)  # 512x512, where nobody chose a size
    assert usual.images[0].size == (256, 256) and any("512x512" in note for note in usual.info["notes"])


# ------------------------------------------------------------------------------------------------ pictures come along

WIDE, HIGH = 208, 176
NOISE = np.random.default_rng(0).integers(0, 256, (HIGH, WIDE, 3), dtype=np.uint8)
LEFT = np.zeros((HIGH, WIDE), np.uint8)
LEFT[:, : WIDE // 2] = 255


def encoded(picture: np.ndarray | Image.Image, kind: str = "PNG", **how: Any) -> bytes:
    buffer = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(buffer, kind, **how)
    return buffer.getvalue()


def with_alpha(alpha: np.ndarray) -> bytes:
    return encoded(np.dstack([NOISE, alpha]))


def kept_halves(picture: Image.Image) -> tuple[bool, bool]:
    """Whether the left and the right half have the very bytes of the picture that was sent."""
    same, middle = np.asarray(picture) == NOISE, WIDE // 2
    return bool(same[:, :middle].all()), bool(same[:, middle:].all())


def wait_until_swept(server: Running) -> None:
    """What came along goes when its job has ended."""
    until = time.monotonic() + 20
    while list((server.home / "state/spool").glob("*/[im]*")):
        assert time.monotonic() < until
        time.sleep(0.02)


def test_openai_edits(server: Running, sdk: openai.OpenAI) -> None:
    """What is transparent in the picture is drawn anew, the rest comes back to the byte."""
    sent = with_alpha(255 - LEFT)
    answer = sdk.images.edit(image=sent, prompt="a fish", n=2, extra_body={"seed": 5, "steps": 2, "guidance": 2.5})
    assert answer.data is not None and answer.size == f"{WIDE}x{HIGH}"
    for place, one in enumerate(answer.data):
        data = base64.b64decode(one.b64_json or "")
        record = record_of(data)
        assert kept_halves(Image.open(io.BytesIO(data))) == (False, True)
        assert (record["seed"], record["steps"], record["guidance"], record["strength"]) == (5 + place, 2, 2.5, 1)
        assert record["init"] == {"name": "image.png", "sha256": hashlib.sha256(sent).hexdigest()} == record["mask"]
    wait_until_swept(server)


def test_openai_edits_as_a_stream_with_a_mask_and_with_a_size(server: Running, sdk: openai.OpenAI) -> None:
    stream = sdk.images.edit(
        image=[encoded(NOISE)], mask=with_alpha(LEFT), prompt="a fish", stream=True, partial_images=1,
        extra_body={"seed": 5, "steps": 3, "strength": 0.7},
    )  # fmt: skip
    partial, whole = list(stream)
    assert (partial.type, whole.type) == ("image_edit.partial_image", "image_edit.completed")
    data = base64.b64decode(whole.b64_json)
    assert kept_halves(Image.open(io.BytesIO(data))) == (True, False) and record_of(data)["strength"] == 0.7
    large = encoded(np.tile(NOISE, (5, 5, 1)), compress_level=0)
    assert len(large) > 2 << 20  # more than a request without pictures may have
    sized = sdk.images.edit(image=large, prompt="a fish", size="176x176", extra_body={"steps": 1})  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert sized.data is not None
    record = record_of(base64.b64decode(sized.data[0].b64_json or ""))
    assert (record["width"], record["fit"], record["strength"], record.get("mask")) == (176, "scale", 0.6, None)
    wait_until_swept(server)


def test_openai_edits_that_are_refused(server: Running, sdk: openai.OpenAI) -> None:
    good = encoded(NOISE)
    for wrong in (
        {"image": b"GIF89a no picture"}, {"image": good[:-9000]}, {"image": [good, good]}, {"image": []},
        {"image": encoded(Image.new("1", (8000, 6000)))}, {"image": encoded(NOISE, "TIFF")},
        {"mask": encoded(LEFT[:64, :64])}, {"mask": encoded(LEFT * 0)}, {"mask": b""},
        {"extra_body": {"strength": 2}}, {"extra_body": {"init": "/etc/passwd"}, "n": 99}, {"size": "7x7"},
    ):  # fmt: skip
        with pytest.raises(openai.BadRequestError) as caught:
            sdk.images.edit(**{"image": good, "prompt": "a fish", **wrong})
        assert caught.value.message and str(server.home) not in caught.value.message, wrong
    wait_until_swept(server)


def test_webuiapi_img2img(server: Running) -> None:
    api: Any = webuiapi.WebUIApi(host="127.0.0.1", port=server.client.place.port)
    picture, mask = Image.fromarray(NOISE), Image.fromarray(LEFT)
    for invert in (False, True):
        made = api.img2img(
            images=[picture], mask_image=mask, inpainting_mask_invert=int(invert), prompt="a fish", seed=9, steps=2,
            denoising_strength=0.5, width=WIDE, height=HIGH,
        )  # fmt: skip
        assert kept_halves(made.image) == (invert, not invert) and "init_images" not in made.parameters
        assert any("inpaint_full_res" in note for note in made.info["notes"])
    usual = api.img2img(images=[picture], prompt="a fish", steps=1)  # 512x512: the picture's own size
    assert usual.image.size == (WIDE, HIGH) and json.loads(usual.image.text["lens"])["strength"] == 0.75
    for wrong in ([], [picture, picture]):
        with pytest.raises(RuntimeError, match="400"):
            api.img2img(images=wrong, prompt="a fish")
    wait_until_swept(server)


def test_what_a_mask_means(tmp_path: Path) -> None:
    """White is drawn; transparency is drawn in OpenAI's edits, what is opaque in A1111's."""
    image, grey, alpha = encoded(NOISE), encoded(LEFT), with_alpha(LEFT)
    for mask, invert, openai_s, a1111_s in (
        (grey, False, LEFT, LEFT), (grey, True, LEFT, 255 - LEFT), (alpha, False, 255 - LEFT, LEFT),
        (alpha, True, 255 - LEFT, 255 - LEFT),
    ):  # fmt: skip
        for uploads, drawn in (
            (keep_edit(tmp_path, image, mask), openai_s), (keep_img2img(tmp_path, image, mask, invert=invert), a1111_s)
        ):  # fmt: skip
            assert uploads.mask is not None and (np.asarray(see_mask(uploads.mask)) == drawn).all()
    unmasked = keep_edit(tmp_path, image, None), keep_img2img(tmp_path, alpha, None, invert=True)
    assert [uploads.mask for uploads in unmasked] == [None, None]


def test_an_mcp_client(tmp_path: Path) -> None:
    """The program as an agent starts it, with the fake engine inside."""
    from mcp import StdioServerParameters
    from mcp.client.client import Client

    fake = str(Path(__file__).resolve().parents[2] / "fake_engine.py")
    words = [fake, "mcp", "--folder", str(tmp_path), "--local"]
    started = StdioServerParameters(command=sys.executable, args=words, env=environment())
    steps = list[tuple[float, float | None]]()

    async def heard(progress: float, total: float | None, message: str | None) -> None:
        steps.append((progress, total))

    async def ask() -> tuple[set[str], list[Any], Any, Any, Any]:
        async with Client(started) as client:
            names = {tool.name for tool in (await client.list_tools()).tools}
            asked = {"prompt": "a red fish", "seed": 3, "size": SIZE, "steps": 4, "output": "sub/fish.png"}
            drawn = await client.call_tool("draw", asked, progress_callback=heard)
            found = await client.call_tool("history", {"query": "red"})
            models = await client.call_tool("models", {})
            outside = await client.call_tool("draw", {"prompt": "a", "output": "../x.png"})
            return names, list(drawn.content), found, models, outside

    names, drawn, found, models, outside = anyio.run(ask)
    assert names == {"draw", "refine", "history", "models"}
    (row,) = json.loads(drawn[0].text)["pictures"]
    assert Path(row["path"]) == tmp_path / "sub/fish.png" and row["seed"] == 3
    assert Image.open(io.BytesIO(base64.b64decode(drawn[1].data))).size == (176, 176)
    assert json.loads(found.content[0].text)[0]["id"] == row["id"]
    assert "nano" in [model["id"] for model in json.loads(models.content[0].text)]
    assert outside.is_error and "x.png" in outside.content[0].text
    assert steps and steps[-1] == (4, 4)


@pytest.mark.skipif("SCHEMATHESIS" not in os.environ, reason="five seconds: SCHEMATHESIS=2 says how many cases a route")
def test_schemathesis(server: Running) -> None:
    """No request that the description allows gets a 500."""
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings

    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    routes: list[Any] = [result.ok() for result in schema.get_all_operations()]  # pyright: ignore
    cases = int(os.environ["SCHEMATHESIS"])
    apart = ("/v1/stop", "/v1/unload", "/v1/refine")  # would end the server, or load a language model
    routes = [route for route in routes if route.path not in apart]
    assert len(routes) > 15
    often = settings(
        max_examples=cases, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )  # fmt: skip
    for route in routes:
        answers = list[int]()

        def send(case: Any) -> None:
            answer = case.call(timeout=20)
            answers.append(answer.status_code)  # noqa: B023  called within this turn
            assert answer.status_code < 500 or answer.status_code == 507, (case.method, case.path, answer.text)

        often(given(case=route.as_strategy())(send))()
        assert answers
