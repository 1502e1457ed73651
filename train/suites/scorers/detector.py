"""Score GenEval with transformers: things found by Mask2Former, colours told by CLIP, judged by GenEval's rules.

The official evaluator has the same architecture in another library with other weights, and a CLIP of another making:
this score goes by a name of its own, `geneval-rules`. Published models: openai/clip-vit-large-patch14 and
facebook/mask2former-swin-small-coco-instance (80 classes in COCO's order).

`cvtg-clip` is here as well: CLIP's cosine of a picture and its prompt, as CVTG-2K counts it.

Heavy ring: torch; transformers inside functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from backend.errors import CheckpointError
from train.suites.metrics import Metric, Row, mean_of_kinds, pooled
from train.suites.scorers.geneval_rules import CLASSES, COLOURS, CONFIDENCE, Detection, judge
from train.suites.scorers.scorer import Score

if TYPE_CHECKING:
    from PIL import Image

    from train.suites.prompts import SuitePrompt

VERSION = 1
GREY = (153, 153, 153)  # what stands around a thing whose colour is asked for
_TEMPLATES = ("a photo of a {} {}", "a photo of a {}-colored {}", "a photo of a {} object")
GENEVAL_METRICS = (
    Metric(name="geneval-rules", value=mean_of_kinds("right"), by_kind=True, paper="geneval", note="mean of kinds"),
    Metric(name="geneval-rules, pictures", value=pooled("right")),
    Metric(name="geneval-rules, any of a prompt", value=pooled("right"), reduce="best"),
)


@dataclass
class Mask2FormerDetector:
    """Instance segmentation: a picture in, detections out."""

    model: Any
    processor: Any
    device: torch.device

    @classmethod
    def load(cls, folder: str, device: torch.device) -> Mask2FormerDetector:
        """Raises CheckpointError for a model of other classes, or none."""
        from transformers import AutoImageProcessor, Mask2FormerForUniversalSegmentation

        try:
            processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
            model = Mask2FormerForUniversalSegmentation.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"{folder} holds no Mask2Former: {str(error).splitlines()[0][:100]}") from error
        return cls(model.to(device).eval(), processor, device).checked(folder)  # pyright: ignore[reportArgumentType]

    def checked(self, folder: str) -> Mask2FormerDetector:
        """Raises CheckpointError unless the model tells the 80 classes of COCO."""
        if (count := self.model.config.num_labels) != len(CLASSES):
            raise CheckpointError(
                f"{folder} tells {count} classes, not the {len(CLASSES)} of COCO that GenEval asks for",
                hint="an instance model of COCO is needed: facebook/mask2former-swin-small-coco-instance",
            )
        return self

    @torch.inference_mode()
    def detect(self, picture: Image.Image) -> list[Detection]:
        """Everything above the lower of the two confidences, with masks of the picture's size."""
        inputs = self.processor(images=picture, return_tensors="pt").to(self.device)
        (found,) = self.processor.post_process_instance_segmentation(
            self.model(**inputs), threshold=CONFIDENCE, target_sizes=[(picture.height, picture.width)],
            return_binary_maps=True,
        )  # fmt: skip
        maps, infos = found["segmentation"], found["segments_info"]
        masks = [maps[number].cpu().bool() for number in range(len(infos))] if infos else []
        return [
            Detection(
                kind=CLASSES[int(info["label_id"])], confidence=float(info["score"]), box=_box(mask), mask=mask.numpy()
            )
            for mask, info in zip(masks, infos, strict=True)
            if mask.any()
        ]


def _box(mask: Tensor) -> tuple[float, float, float, float]:
    """Left, top, right, bottom around the true pixels; right and bottom are one beyond the last."""
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    return float(columns[0]), float(rows[0]), float(columns[-1]) + 1, float(rows[-1]) + 1


@dataclass
class Clip:
    """CLIP's two encoders: pictures and texts to unit vectors."""

    model: Any
    processor: Any
    device: torch.device
    _classifiers: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    @classmethod
    def load(cls, folder: str, device: torch.device) -> Clip:
        """Raises CheckpointError where the folder holds none."""
        from transformers import CLIPModel, CLIPProcessor

        try:
            processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)
            model = CLIPModel.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"{folder} holds no CLIP: {str(error).splitlines()[0][:100]}") from error
        return cls(model.to(device).eval(), processor, device)  # pyright: ignore[reportArgumentType]

    @torch.inference_mode()
    def pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Unit vectors (pictures, width)."""
        inputs = self.processor(images=[*pictures], return_tensors="pt").to(self.device)
        return F.normalize(_vector(self.model.get_image_features(**inputs)).float(), dim=-1)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (texts, width); a text is cut after the model's 77 tokens."""
        inputs = self.processor(text=[*texts], return_tensors="pt", padding=True, truncation=True).to(self.device)
        return F.normalize(_vector(self.model.get_text_features(**inputs)).float(), dim=-1)

    def colours(self, picture: Image.Image, kind: str, some: Sequence[Detection]) -> list[str]:
        """The colour of each thing: the name whose three sentences are nearest to its cut-out on grey."""
        if kind not in self._classifiers:
            sentences = [template.format(colour, kind) for colour in COLOURS for template in _TEMPLATES]
            of_each = self.texts(sentences).unflatten(0, (len(COLOURS), len(_TEMPLATES))).mean(1)
            self._classifiers[kind] = F.normalize(of_each, dim=-1)
        vectors = self.pictures([cut_out(picture, one) for one in some])
        return [COLOURS[int(place)] for place in (vectors @ self._classifiers[kind].T).argmax(1)]

    def score(self, picture: Image.Image, text: str) -> float:
        """CLIPScore: 2.5 max(cos, 0)."""
        cosine = float((self.pictures([picture]) @ self.texts([text]).T).item())
        return 2.5 * max(cosine, 0.0)


def _vector(found: Any) -> Tensor:
    return found if isinstance(found, Tensor) else found.pooler_output  # transformers 5 wraps it


def cut_out(picture: Image.Image, one: Detection) -> Image.Image:
    """A thing alone on grey, cut to its box."""
    from PIL import Image

    shown = picture.convert("RGB")
    if one.mask is not None:
        mask = Image.fromarray(one.mask.astype("uint8") * 255)
        shown = Image.composite(shown, Image.new("RGB", shown.size, GREY), mask)
    left, top, right, bottom = (round(value) for value in one.box)
    return shown.crop((left, top, max(right, left + 1), max(bottom, top + 1)))


@dataclass
class _Seeing:
    """What both scorers of this file are: networks that are loaded once, on any prompt."""

    load: Callable[[], Loaded]
    name: str = ""

    @cached_property
    def models(self) -> Loaded:
        """Loaded when first asked for: a report needs none."""
        return self.load()

    @property
    def identity(self) -> str:
        return f"{self.name} {VERSION} {self.models.identity}"

    def applies(self, prompt: SuitePrompt) -> bool:
        return True

    def check(self) -> None:
        """Neither needs a proof that it says no: what is not found does not count, and a cosine says nothing."""

    def close(self) -> None:
        pass


@dataclass
class GenevalRules(_Seeing):
    """GenEval's rules on what Mask2Former and CLIP see. `train.suites.scorers.scorer.Scorer`."""

    name: str = "geneval-rules"
    metrics: Sequence[Metric] = GENEVAL_METRICS

    def score(self, picture: Image.Image, prompt: SuitePrompt) -> Score:
        assert self.models.detector is not None, "it was asked for"
        detections = self.models.detector.detect(picture)
        right, reason = judge(
            prompt.kind, prompt.facts["include"], prompt.facts["exclude"], detections,
            lambda kind, some: self.models.clip.colours(picture, kind, some),
        )  # fmt: skip
        seen = [[d.kind, round(d.confidence, 3), [round(value) for value in d.box]] for d in detections[:64]]
        return Score(row={"right": float(right)}, seen={"reason": reason, "detections": seen})

    def nothing(self, prompt: SuitePrompt) -> Row:
        return {"right": 0.0}

    def perfect(self, prompt: SuitePrompt) -> Row:
        return {"right": 1.0}


@dataclass
class CvtgClip(_Seeing):
    """CVTG-2K's CLIPScore, against the suite's own prompt. `train.suites.scorers.scorer.Scorer`."""

    name: str = "cvtg-clip"
    metrics: Sequence[Metric] = (
        Metric(name="cvtg-clip", value=pooled("clip"), official=True, paper="cvtg-clip", by_kind=True),
    )

    def score(self, picture: Image.Image, prompt: SuitePrompt) -> Score:
        return Score(row={"clip": self.models.clip.score(picture, f"A photo depicts {prompt.prompt}")})

    def nothing(self, prompt: SuitePrompt) -> Row:
        return {"clip": 0.0}

    def perfect(self, prompt: SuitePrompt) -> Row:
        return {"clip": 1.0}  # no known picture of a prompt has a cosine of 0.4


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """The models of a scorer, and one identity of their files."""

    clip: Clip
    detector: Mask2FormerDetector | None
    identity: str


def load_models(clip: str, detector: str | None, *, download: bool, device: str) -> Loaded:
    """Load models by a folder or an id of the Hub; `download`: fetched where they are not. Raises as `find_model`."""
    from backend.memory.device import choose_device
    from train.data.scores.learned import find_model

    place = choose_device(device)
    names = {"clip": clip} | ({"detector": detector} if detector is not None else {})
    found = {part: find_model(part, name, download=download) for part, name in names.items()}
    return Loaded(
        clip=Clip.load(found["clip"].folder, place),
        detector=Mask2FormerDetector.load(found["detector"].folder, place) if detector is not None else None,
        identity=" ".join(f"{part} {model.identity[:12]}" for part, model in found.items()),
    )
