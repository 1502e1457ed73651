"""How far the pictures of few steps are from those of 250, by sampler: mean PSNR in dB.

    python -m benchmarks.sampler_error [MODEL]    # base 192, three prompts, two seeds

The far end is `dpmpp_2m` at 250 steps, where both samplers agree.
"""

from __future__ import annotations

import sys

from PIL import Image

from backend.events import PictureFailed
from backend.picture.images import psnr
from backend.requests import STEPS_LIMIT, build_request
from backend.session import Session
from backend.settings import Settings
from backend.types import Sampler
from backend.wish import Wish

PROMPTS = ("three red balloons over a green hill", "a cat and a moon", 'a red sign that says "OPEN"')
SEEDS = ("1", "2")
STEPS = (8, 20, 40)


def main(model: str = "nano") -> None:
    with Session(Settings()) as session:

        def drawn(sampler: Sampler, steps: int) -> list[Image.Image]:
            return [
                picture
                for prompt in PROMPTS
                for picture in draw(session, Wish(
                    prompt=prompt, model=model, base=192, seeds=SEEDS, sampler=sampler, steps=steps
                ))
            ]  # fmt: skip

        far = drawn(Sampler.dpmpp_2m, STEPS_LIMIT)
        for steps in STEPS:
            for sampler in Sampler:
                each = [psnr(one, other) for one, other in zip(drawn(sampler, steps), far, strict=True)]
                print(f"{steps:3} steps  {sampler:10} {sum(each) / len(each):.1f} dB", flush=True)


def draw(session: Session, wish: Wish) -> list[Image.Image]:
    """The pictures of a wish, unsaved."""
    pictures: list[Image.Image] = []
    for made in session.draw(build_request(wish, Settings(), print), on_event=lambda event: None):
        if isinstance(made, PictureFailed):
            raise made.error
        pictures.append(made.image)
    return pictures


if __name__ == "__main__":
    main(*sys.argv[1:2])
