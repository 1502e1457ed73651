"""A language model of a few thousand parameters that reads real conversations: its tokenizer and its shapes."""

from __future__ import annotations

from dataclasses import replace

from tokenizers import Tokenizer

from backend.params import TemplateParams, TextEncoderParams
from backend.text.harmony import HarmonyWriter, system_text
from train.nano import language


def small_language() -> tuple[Tokenizer, TextEncoderParams]:
    """The template's length is counted here, as a model's file states it."""
    template = TemplateParams(identity="You are Lens.", instruction="Describe the image.", thinking="")
    tokenizer = language.train_tokenizer(420, template, documents=40)
    writer = HarmonyWriter(tokenizer)
    writer.message("system", system_text(template))
    writer.message("developer", f"# Instructions\n\n{template.instruction}\n\n").open("user")
    params = TextEncoderParams(
        vocab_size=420,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        intermediate_size=16,
        num_local_experts=2,
        num_experts_per_tok=1,
        template=replace(template, prefix_tokens=len(writer.ids)),
    )
    return tokenizer, params
