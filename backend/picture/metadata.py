"""What is written beside the pixels, and back: the versioned record, the A1111 text, the XMP packet. No image library.

The *record* is the JSON object that holds everything needed to make a picture again (`"v": 1`). Base names and hashes
only: a picture that is passed on tells nothing about the folders of the machine that made it.

The A1111 text is the line grammar that other tools read:

    <prompt, may span lines>
    Negative prompt: <text>
    Steps: 20, Sampler: FlowMatchEuler, CFG scale: 5.0, Seed: 42, Size: 1024x1024, Model hash: 0123456789, …

Light ring: standard library only.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import PurePath
from typing import Any, cast

from backend.errors import FileError
from backend.events import Generation
from backend.fields import from_data, types_of
from backend.sampling import SAMPLERS
from backend.types import Encoder, Expander, Fit, InputPicture, LoraMode, LoraUse, Quant, Sampler
from backend.wish import ROWS, USUAL, Row, Wish

VERSION = 1
NOISE = "cpu float32"  # torch.Generator("cpu"): the same start on every device
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
COMPOSITE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
XMP_NAMESPACE = "urn:lens:record:1"


def software() -> str:
    """`lens 0.1.0`."""
    from importlib.metadata import version  # 15 ms, only when a picture is saved

    return f"lens {version('lens')}"


def pixel_sha256(size: tuple[int, int], rgb: bytes) -> str:
    """Identity of decoded pixels: SHA-256 over "WxH:" and the RGB bytes, row by row."""
    digest = hashlib.sha256(f"{size[0]}x{size[1]}:".encode())
    digest.update(rgb)
    return digest.hexdigest()


def make_record(generation: Generation, *, pixels: str, parent_id: str | None = None) -> dict[str, Any]:
    """The record of one finished picture. `pixels` is its `pixel_sha256`; `parent_id` the picture it was rerun from."""
    request = generation.request
    record: dict[str, Any] = {
        "v": VERSION,
        "id": uuid.uuid4().hex,
        "parent_id": parent_id,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "software": software(),
        "prompt": request.prompt,
        "original_prompt": request.original_prompt,
        "negative_prompt": request.negative_prompt,
        "template": request.template,
        "init": _input(request.init),
        "mask": _input(request.mask),
        "expander": asdict(request.expander) if request.expander is not None else None,
        "seed": generation.seed,
        "wildcard_seed": request.wildcard_seed,
        "width": request.width,
        "height": request.height,
        "steps": request.steps,
        "guidance": request.guidance,
        "sampler": SAMPLERS[request.sampler].name,
        "sigmas": list(generation.sigmas),
        "noise": NOISE,
        "model": {
            "name": generation.model.name,
            "revision": generation.model.revision,
            "sha256": dict(generation.model.sha256),
        },
        "loras": [
            {"name": PurePath(use.path).name, "sha256": use.sha256, "scale": use.scale, "mode": str(use.mode)}
            for use in generation.loras
        ],
        "dtype": generation.dtype,
        "quant": None if generation.quant is None else str(generation.quant),
        "compiled": generation.compiled,
        "encoder": str(generation.encoder),
        "plan": generation.plan.pixels() if generation.plan is not None else None,
        "attention": generation.attention,
        "device": request.device,
        "ran_on": generation.device,
        "template_date": generation.template_date,
        "versions": {"python": platform.python_version(), **generation.versions},
        "platform": f"{platform.system()} {platform.machine()}",
        "timings": {phase: round(seconds, 3) for phase, seconds in generation.timings.items()},
        "pixel_sha256": pixels,
    }
    # Above is what ran. What was asked for and ran as it was asked for is recorded by its row alone.
    asked = {row.record: getattr(request, row.name) for row in ROWS.values() if row.record not in (None, *record)}
    return record | asked


def _input(picture: InputPicture | None) -> dict[str, str] | None:
    return None if picture is None else {"name": PurePath(picture.path).name, "sha256": picture.sha256}


def dump_record(record: Mapping[str, Any]) -> str:
    """Compact JSON that is legal inside XML: the two non-characters that XML forbids are escaped."""
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("\ufffe", "\\ufffe").replace("\uffff", "\\uffff")


def load_record(text: str, where: str) -> dict[str, Any]:
    """Parse and check a record. `where` names the file in messages. Raises FileError."""
    try:
        record = json.loads(text, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{where}: the lens record is damaged") from error
    if not isinstance(record, dict) or type(cast("dict[str, Any]", record).get("v")) is not int:
        raise FileError(f"{where}: the lens record is damaged: it has no version")
    found = cast("dict[str, Any]", record)
    if found["v"] > VERSION:
        raise FileError(
            f"{where}: written by a newer lens (record version {found['v']}, this one reads {VERSION})",
            hint="update lens",
        )
    return found


def _finite(text: str) -> float:
    """Python reads NaN, Infinity and 1e999, which could not be written as JSON again. Raises ValueError for them."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no number that JSON holds")
    return value


def wish_from(record: Mapping[str, Any], where: str) -> Wish:
    """The wish that made a picture: all that its record says, so that no setting can bend it. Raises FileError.

    The model and the LoRAs are named as recorded: where they were paths, only their base names are known. A key that
    is absent is what pictures were before there was such a choice.
    """
    given = {row.name: _recorded(row, record, where) for row in ROWS.values() if row.record is not None}
    given["rl_strength"] = given["rl_strength"] or 0.0  # null: no adapter acted, whatever the model has got since
    modes = {use.mode for use in given["loras"]}
    return Wish(**given, lora_mode=modes.pop() if len(modes) == 1 else LoraMode.auto)  # several: auto had chosen them


def _recorded(row: Row, record: Mapping[str, Any], where: str) -> Any:
    """One field of the wish, checked."""
    assert row.record is not None
    value = record.get(row.record)
    if row.name in USUAL and (row.record not in record or (value is None and USUAL[row.name] is None)):
        return USUAL[row.name]
    try:
        return _READERS.get(row.name, lambda value: from_data(value, row.kind))(value)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise FileError(f"{where}: the lens record is damaged: {row.record} = {value!r}"[:300]) from error


def _whole(low: int, high: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if type(value) is int and low <= value < high:
            return value
        raise ValueError(value)

    return read


def _ran(kind: type[StrEnum], *never: StrEnum) -> Callable[[Any], StrEnum]:
    """A reader of what ran, which is never one of the choices that decide later."""

    def read(value: Any) -> StrEnum:
        found = from_data(value, kind)
        if found in never:
            raise ValueError(value)
        return found

    return read


def _quant(value: Any) -> Quant:
    """What approximated the weights. Where nothing did, auto: it never does, and how they lie in memory is free."""
    return Quant.auto if value is None else cast("Quant", _ran(Quant, Quant.auto, Quant.none)(value))


def _sampler(value: Any) -> Sampler:
    return {solver.name: sampler for sampler, solver in SAMPLERS.items()}[value]


def _loras(value: Any) -> tuple[LoraUse, ...]:
    """The LoRAs that acted, by base name and hash."""
    uses: list[LoraUse] = []
    for said in from_data(value, list):
        name = from_data(said["name"], str)
        if _is_a_path(name):
            raise ValueError(name)
        mode = _ran(LoraMode, LoraMode.auto)(said["mode"])
        sha256, scale = from_data(said["sha256"], str), from_data(said["scale"], float)
        uses.append(LoraUse(path=name, sha256=sha256, scale=scale, mode=cast("LoraMode", mode)))
    return tuple(uses)


def _is_a_path(name: str) -> bool:
    """Whether a recorded name is more than the base name of a file."""
    return PurePath(name).name != name or name in ("", "..") or name.startswith("~") or "\0" in name


def _input_picture(value: Any) -> InputPicture:
    """A picture that it began from, by base name and hash."""
    name, sha256 = from_data(value["name"], str), from_data(value["sha256"], str)
    if _is_a_path(name) or not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise ValueError(name)
    return InputPicture(path=name, sha256=sha256)


def _expander(value: Any) -> Expander:
    """Who rewrote the prompt, checked field by field."""
    said = {"adapter": None, **value}  # older pictures: there was none
    return Expander(**{name: from_data(said[name], kind) for name, kind in types_of(Expander).items()})


# What a record says in another form than a wish, or within limits.
_READERS: dict[str, Callable[[Any], Any]] = {
    "model": lambda value: from_data(value["name"], str),
    "seeds": lambda value: (str(_whole(0, 2**63)(value)),),
    "steps": _whole(1, 2**20),
    "width": _whole(1, 2**20),
    "height": _whole(1, 2**20),
    "sampler": _sampler,
    "encoder": _ran(Encoder, Encoder.auto),
    "quant": _quant,
    "loras": _loras,
    "expander": _expander,
    "init": _input_picture,
    "mask": _input_picture,
}


def environment(record: Mapping[str, Any]) -> dict[str, str]:
    """What may change pixels though the request is the same, as flat names: for `lens rerun --verify`."""
    flat: dict[str, str] = {}
    for key in ("software", "dtype", "quant", "ran_on", "platform", "noise", "sampler", "template_date"):
        flat[key] = str(record.get(key))
    flat["compiled"] = str(record.get("compiled") is True)
    flat["attention"] = str(record.get("attention") or "torch")  # older pictures: torch's own choice
    flat["encoder"] = str(record.get("encoder", Encoder.exact))
    plan: Any = record.get("plan")
    for key, value in cast("dict[str, Any]", plan).items() if isinstance(plan, dict) else ():
        flat[f"plan.{key}"] = str(value)
    loras: Any = record.get("loras")
    for number, use in enumerate(cast("list[Any]", loras) if isinstance(loras, list) else [], 1):
        flat[f"lora.{number}"] = describe_lora(use)
    model: Any = record.get("model")
    for prefix, table in (("model", model), ("versions", record.get("versions"))):
        if isinstance(table, dict):
            for key, value in cast("dict[str, Any]", table).items():
                if isinstance(value, dict):
                    for name, digest in cast("dict[str, Any]", value).items():
                        flat[f"{prefix}.{key}.{name}"] = str(digest)
                else:
                    flat[f"{prefix}.{key}"] = str(value)
    return flat


def describe_lora(use: Any) -> str:
    """`sky.safetensors 0.8, fused, SHA-256 0123456789ab…` of one entry of a record's `loras`, whatever it holds."""
    said = cast("dict[str, Any]", use) if isinstance(use, dict) else {}
    digest = str(said.get("sha256"))[:12]
    return f"{said.get('name')} {said.get('scale')}, {said.get('mode')}, SHA-256 {digest}…"


def describe_input(picture: Any) -> str:
    """`photo.jpg, SHA-256 0123456789ab…` of a record's `init` or `mask`, whatever it holds."""
    said = cast("dict[str, Any]", picture) if isinstance(picture, dict) else {}
    return f"{said.get('name')}, SHA-256 {str(said.get('sha256'))[:12]}…"


def describe_expander(expander: Any) -> str:
    """`gpt-oss-20b (local), system prompt general, seed 0` of a record's `expander`, whatever it holds."""
    said = cast("dict[str, Any]", expander) if isinstance(expander, dict) else {}
    seed = "" if said.get("seed") is None else f", seed {said['seed']}"
    seed += "" if said.get("adapter") is None else f", adapter {str(said['adapter'])[:12]}…"
    return f"{said.get('model')} ({said.get('kind')}), system prompt {said.get('system_prompt')}{seed}"


# ---------------------------------------------------------------------------------------------------------- A1111 text


def a1111_text(record: Mapping[str, Any]) -> str:
    """The record as other tools read it."""
    model = cast("Mapping[str, Any]", record["model"])
    varied = record["around"] is not None
    pairs: dict[str, object] = {
        "Steps": record["steps"],
        "Sampler": record["sampler"],
        "CFG scale": float(record["guidance"]),
        "Seed": record["around"] if varied else record["seed"],
        "Size": f"{record['width']}x{record['height']}",
    }
    if varied:
        pairs |= {"Variation seed": record["seed"], "Variation seed strength": record["amount"]}
    if record["strength"] is not None:
        pairs["Denoising strength"] = record["strength"]
    if record["hires"] is not None:
        pairs |= {"Hires upscale": record["hires"], "Hires denoising strength": record["hires_strength"]}
    weights = cast("Mapping[str, str]", model["sha256"]).get("transformer")
    if weights:
        pairs["Model hash"] = weights[:10]
    if record.get("encoder") == Encoder.llama:
        pairs["Text encoder"] = "llama.cpp (near-exact)"
    if record["quant"]:
        pairs["Quantization"] = record["quant"]
    if record["loras"]:
        pairs["LoRAs"] = "; ".join(f"{use['name']} {use['scale']} ({use['sha256'][:10]})" for use in record["loras"])
    pairs |= {"Model": model["name"], "RNG": "CPU", "Version": record["software"]}
    lines = [str(record["prompt"])]
    if record["negative_prompt"]:
        lines.append(f"Negative prompt: {record['negative_prompt']}")
    lines.append(", ".join(f"{key}: {_quote(str(value))}" for key, value in pairs.items()))
    return "\n".join(lines)


def _quote(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search(r"[,:\n]", value) else value


def parse_a1111(text: str) -> dict[str, str] | None:
    """{"prompt", "negative_prompt", "Steps", "Seed", …} of an A1111 text; None where it is not one.

    The last line counts as parameters where it holds at least three `Key: value` pairs, which is the rule other
    readers use.
    """
    *lines, last = text.strip().split("\n")
    pairs: dict[str, str] = {}
    for part in _parts(last):
        key, colon, value = (side.strip() for side in part.partition(":"))
        if not colon or not re.fullmatch(r"[\w \-/]+", key):
            continue
        try:
            pairs[key] = json.loads(value) if value.startswith('"') else value
        except ValueError:  # a value that only looks quoted
            pairs[key] = value
    if len(pairs) < 3:
        return None
    # A prompt may itself hold the words "Negative prompt:"; the field is the last line that begins with them.
    starts = [number for number, line in enumerate(lines) if line.startswith("Negative prompt:")]
    cut = starts[-1] if starts else len(lines)
    negative = "\n".join(lines[cut:]).removeprefix("Negative prompt:").strip()
    return {"prompt": "\n".join(lines[:cut]), "negative_prompt": negative, **pairs}


def _parts(line: str) -> Iterator[str]:
    """The parts of a line between commas that stand in no quoted value. One pass: the line may be megabytes."""
    start, quoted, escaped, after = 0, False, False, ""  # after: the last sign that is no blank
    for at, sign in enumerate(line):
        if quoted:
            quoted, escaped = escaped or sign != '"', sign == "\\" and not escaped
        elif sign == '"' and after == ":":
            quoted = True
        elif sign == ",":
            yield line[start:at]
            start = at + 1
        after = sign if not sign.isspace() else after
    yield line[start:]


# ----------------------------------------------------------------------------------------------------------------- XMP


def source_type(record: Mapping[str, Any]) -> str:
    """The IPTC code of how a picture came to be: of what a mask or an extended picture kept, only a part is made."""
    return COMPOSITE_TYPE if record.get("mask") or record.get("fit") == Fit.extend else SOURCE_TYPE


def xmp_packet(record_json: str | None, source: str = SOURCE_TYPE) -> bytes:
    """XMP that says how the picture came to be, and carries the record where the format has no text chunk for it."""
    carried = ""
    if record_json is not None:
        # In JSON "]]>" can only stand inside a string, where an escape means the same and ends no CDATA.
        body = record_json.replace("]]>", "]]\\u003e")
        carried = f'<lens:record xmlns:lens="{XMP_NAMESPACE}"><![CDATA[{body}]]></lens:record>'
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">'
        f"<Iptc4xmpExt:DigitalSourceType>{source}</Iptc4xmpExt:DigitalSourceType>{carried}"
        '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
    ).encode()


def record_in_xmp(packet: bytes) -> str | None:
    """The record's JSON inside an XMP packet, or None. A search, not a parse: the packet may come from anywhere."""
    end = packet.find(b"]]></lens:record>")
    start = packet.rfind(b"<lens:record", 0, max(end, 0))
    opening = packet.find(b"><![CDATA[", start, end) if start >= 0 else -1
    if opening < 0 or b">" in packet[start:opening]:
        return None
    return packet[opening + len(b"><![CDATA[") : end].decode("utf-8", "replace")


def source_type_in_xmp(packet: bytes) -> str | None:
    """The IPTC DigitalSourceType of an XMP packet, written as an element or as an attribute."""
    found = re.search(rb"Iptc4xmpExt:DigitalSourceType(?:>|=[\"'])([^<\"']+)", packet)
    return found.group(1).decode("utf-8", "replace") if found else None
