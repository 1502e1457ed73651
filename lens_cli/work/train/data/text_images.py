"""`lens train data text-images`: drawn words with captions that quote them, a source for `scan`."""

from __future__ import annotations

import time

from lens_cli.work.train.data.call import Call, run_todo, span
from train.data.settings import section, write_section
from train.data.text_images import stage as drawing
from train.data.text_images.texts import TextImageSettings


class TextImagesCommand:
    """The call's folder is that of the tars, with a config.json of its own beside them."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.settings, self.remembered = section(TextImageSettings, "text-images", call.folder, call.given)
        self.stage = drawing.TextImages(call.folder, self.settings)
        self.todo = [shard for shard in self.stage.shards if not self.stage.done(shard)]

    def run(self) -> None:
        call, talk, count, tars = self.call, self.call.talk, self.settings.count, len(self.stage.shards)
        write_section(call.folder, "text-images", self.remembered)
        self.stage.forget_others()
        run_todo(call, "text-images", self.stage, self.todo)
        talk.say(f"text-images: {count:,} pictures in {tars:,} tars")
        talk.say(f"take them in: lens train data scan WORK texts={call.folder} …")
        talk.say("and keep their captions and their plain grounds: --set own=texts for caption, and for select")
        talk.say("  --set texts.clarity=none --set texts.entropy=none --set texts.dark=none --set texts.bright=none")
        talk.data(call.folder)
        talk.result({"path": str(call.folder), "pictures": count, "tars": tars})

    def explain(self) -> None:
        from train.data.text_images.draw import materials

        given = materials(self.settings)
        start = time.process_time()
        for number in range(8):
            drawing.draw(number, self.settings, given)
        each = (time.process_time() - start) / 8
        pictures = min(len(self.todo) * drawing.A_TAR, self.settings.count)
        cost = f"about {span(pictures * each)} of one core"
        self.call.talk.say(f"text-images: {pictures:,} pictures to draw, {cost}")
        self.call.talk.result({"pictures": pictures, "core_seconds": pictures * each})
