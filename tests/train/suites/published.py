"""Files of suites as their authors publish them, a few rows each, and a run's folder of small pictures.

The rows are made up in the published form; none is a benchmark's prompt.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from backend.picture.images import pixel_sha256
from train.suites.folder import MADE, RunFolder, Sample, Shard
from train.suites.prompts import SuitePrompt, fingerprint, read_prompts
from train.suites.table import Suite, suite_of


def write(folder: Path, name: str) -> Path:
    """The files of a suite below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    _WRITERS[suite_of(name).reader](folder, name)
    return folder


def _json_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


def _geneval(folder: Path, name: str) -> None:
    cat = {"class": "cat", "count": 1}
    rows = [
        {"tag": "single_object", "include": [cat], "prompt": "a photo of a cat"},
        {"tag": "counting", "include": [{"class": "cat", "count": 2}], "exclude": [{"class": "cat", "count": 3}],
         "prompt": "a photo of two cats"},
        {"tag": "position", "include": [cat, {"class": "dog", "count": 1, "position": ["left of", 0]}],
         "prompt": "a photo of a dog left of a cat"},
    ]  # fmt: skip
    _json_lines(folder / "evaluation_metadata.jsonl", rows)


def _oneig(folder: Path, name: str) -> None:
    chinese = name.endswith("zh")
    end, key = ("-ZH", "prompt_cn") if chinese else ("", "prompt_en")
    rows = ['Anime_Stylization,000,"a fox, drawn",x', 'Portrait,000,"a smith",x', 'Text_Rendering,007,"a sign",x']
    head = f"category,id,{key},class"
    (folder / f"OneIG-Bench{end}.csv").write_text("\n".join([head, *rows]) + "\n", "utf-8")
    text = "你好 世界" if chinese else "Open 24 hours"
    (folder / f"text_content{'_zh' if chinese else ''}.csv").write_text(f"id,text_content\n007,{text}\n", "utf-8")
    (folder / "Q_D").mkdir(exist_ok=True)
    said = {"question": json.dumps({"1": "Is there a fox?", "2": "Is it red?", "3": "Is the red fox asleep?"}),
            "dependency": json.dumps({"1": [0], "2": [1], "3": [2]})}  # fmt: skip
    for kind in ("anime", "human", "object", *(["multilingualism"] if chinese else [])):
        own = {"000": said} if kind == "anime" else {}
        (folder / "Q_D" / f"{kind}{'_zh' if chinese else ''}.json").write_text(json.dumps(own))


def _longtext(folder: Path, name: str) -> None:
    rows = [
        {"category": "sign", "length": "short", "prompt": f"a sign {n}", "text": ["Fresh bread", "every day"],
         "text_length": 4, "prompt_id": n}
        for n in (79, 100, 160)  # the published numbers have gaps there
    ]  # fmt: skip
    _json_lines(folder / suite_of(name).files[0], rows)


def _cvtg(folder: Path, name: str) -> None:
    for part in ("CVTG", "CVTG-style"):  # as its README spells it
        for regions in range(2, 6):
            (folder / part).mkdir(exist_ok=True)
            row = {"index": 3, "prompt": "A board with 'Big Sale' and 'Today'", "carrier_list": [],
                   "sentence_list": ["Big Sale", "Today"]}  # fmt: skip
            (folder / part / f"{regions}.json").write_text(json.dumps({"data_list": [row]}))


def _geneval2(folder: Path, name: str) -> None:
    rows = [{"prompt": f"prompt {n}", "atom_count": 2, "vqa_list": [["How many cats?", "two"]]} for n in range(2)]
    _json_lines(folder / "geneval2_data.jsonl", rows)


def _unigenbench(folder: Path, name: str) -> None:
    points = json.dumps({"Testpoints": ["Style"], "Testpoint Description": ["ink"]}).replace('"', '""')
    (folder / "test_prompts_en.csv").write_text(f'index,prompt,sub_dims\n0,"a hill","{points}"\n1,a tree,\n')


_WRITERS: Mapping[str, Callable[[Path, str], None]] = {
    "geneval": _geneval, "oneig": _oneig, "longtext": _longtext, "cvtg": _cvtg, "geneval2": _geneval2,
    "unigenbench": _unigenbench,
}  # fmt: skip


def colour_of(prompt: SuitePrompt, index: int) -> tuple[int, int, int]:
    """Told apart by place."""
    return (40 + 7 * prompt.number % 200, 30 + 50 * index % 200, 90)


def picture_of(prompt: SuitePrompt, index: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    """Two halves, so that it is more than one colour."""
    picture = Image.new("RGB", size, colour_of(prompt, index))
    picture.paste((255, 255, 255), (0, 0, size[0] // 2, size[1]))
    return picture


def protocol(suite: Suite, prompts: tuple[SuitePrompt, ...], images: int) -> dict[str, Any]:
    ids = [prompt.id for prompt in prompts]
    return {
        "suite": suite.name, "prompts": {"ids": ids, "total": len(ids), "sha256": fingerprint(prompts)},
        "images": images, "seed": 0, "model": "lens", "weights": {"transformer": "ab" * 32}, "width": 32, "height": 32,
        "steps": 20, "guidance": 5.0, "sampler": "euler", "dtype": "float32", "reasoner": None,
    }  # fmt: skip


def draw_run(
    path: Path, name: str, data: Path, images: int = 4, states: Mapping[tuple[str, int], str] | None = None,
    draw: Callable[[SuitePrompt, int], Image.Image] = picture_of,
) -> tuple[RunFolder, Suite, tuple[SuitePrompt, ...]]:  # fmt: skip
    """A run whose pictures `draw` made; `states`: of the pictures that were not."""
    suite = suite_of(name)
    prompts = read_prompts(suite, data)
    run = RunFolder(path)
    with run.writing(protocol(suite, prompts, images), Shard()) as lines:
        for prompt in prompts:
            for index in range(images):
                state = (states or {}).get((prompt.id, index), MADE)
                picture = draw(prompt, index) if state == MADE else None
                stream = io.BytesIO()
                if picture is not None:
                    picture.save(stream, "PNG")
                sample = Sample(
                    id=prompt.id, kind=prompt.kind, index=index, asked=prompt.prompt, prompt=prompt.prompt, seed=1,
                    state=state, rewrite="none", seconds=1.0,
                    pixels="" if picture is None else pixel_sha256(picture),
                )  # fmt: skip
                run.add(lines, prompt, sample, stream.getvalue() if picture is not None else None)
    return run, suite, prompts
