"""Every tensor each network has, by its public name, as a function of its parameters. Standard library only.

Writers check what they are given against these tables, readers what they find, and the detection of a model by its
tensors works without building a network. Sources: the published checkpoints (facts 3.1 for the transformer, 3.3 for
GPT-OSS after dequantisation). Shapes are PyTorch's: a linear weight is (outputs, inputs).
"""

from __future__ import annotations

from itertools import pairwise

from backend.params import DiTParams, TextEncoderParams, VAEParams

Shapes = dict[str, tuple[int, ...]]

COLOURS = 3
PATCH = 2  # the latent statistics are those of 2x2 packed cells
TIME_FREQUENCIES = 256  # width of the sinusoidal time embedding; hard-coded in the published network


def transformer_shapes(params: DiTParams) -> Shapes:
    """Public key -> shape. At the published parameters: 1,264 tensors, 4,104,225,152 elements."""
    dim, mlp, head = params.dim, params.mlp_dim, params.attention_head_dim
    layers = len(params.selected_layer_index)
    out = params.patch_size**2 * params.out_channels
    shapes: Shapes = {
        "img_in.weight": (dim, params.in_channels),
        "img_in.bias": (dim,),
        "txt_in.weight": (dim, params.enc_hidden_dim * layers),
        "txt_in.bias": (dim,),
        "time_text_embed.timestep_embedder.linear_1.weight": (dim, TIME_FREQUENCIES),
        "time_text_embed.timestep_embedder.linear_1.bias": (dim,),
        "time_text_embed.timestep_embedder.linear_2.weight": (dim, dim),
        "time_text_embed.timestep_embedder.linear_2.bias": (dim,),
        "norm_out.linear.weight": (2 * dim, dim),
        "norm_out.linear.bias": (2 * dim,),
        "proj_out.weight": (out, dim),
        "proj_out.bias": (out,),
    }
    for index in range(layers):
        shapes[f"txt_norm.{index}.weight"] = (params.enc_hidden_dim,)
    for index in range(params.num_layers):
        block = f"transformer_blocks.{index}."
        for linear, rows in (("attn.img_qkv", 3), ("attn.txt_qkv", 3), ("attn.to_out.0", 1), ("attn.to_add_out", 1)):
            shapes[f"{block}{linear}.weight"] = (rows * dim, dim)
            shapes[f"{block}{linear}.bias"] = (rows * dim,)
        for norm in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
            shapes[f"{block}attn.{norm}.weight"] = (head,)
        for stream in ("img", "txt"):
            shapes[f"{block}{stream}_mod.1.weight"] = (6 * dim, dim)
            shapes[f"{block}{stream}_mod.1.bias"] = (6 * dim,)
            shapes[f"{block}{stream}_norm1.weight"] = (dim,)
            shapes[f"{block}{stream}_norm2.weight"] = (dim,)
            shapes[f"{block}{stream}_mlp.w1.weight"] = (mlp, dim)
            shapes[f"{block}{stream}_mlp.w2.weight"] = (dim, mlp)
            shapes[f"{block}{stream}_mlp.w3.weight"] = (mlp, dim)
    return shapes


def text_encoder_shapes(params: TextEncoderParams, *, with_head: bool = True) -> Shapes:
    """Key of Hugging Face's GptOssForCausalLM (experts dequantised) -> shape."""
    hidden, inner, experts = params.hidden_size, params.intermediate_size, params.num_local_experts
    queries = params.num_attention_heads * params.head_dim
    keys = params.num_key_value_heads * params.head_dim
    shapes: Shapes = {
        "model.embed_tokens.weight": (params.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    if with_head:
        shapes["lm_head.weight"] = (params.vocab_size, hidden)
    for index in range(params.num_hidden_layers):
        layer = f"model.layers.{index}."
        shapes |= {
            f"{layer}input_layernorm.weight": (hidden,),
            f"{layer}post_attention_layernorm.weight": (hidden,),
            f"{layer}self_attn.q_proj.weight": (queries, hidden),
            f"{layer}self_attn.q_proj.bias": (queries,),
            f"{layer}self_attn.k_proj.weight": (keys, hidden),
            f"{layer}self_attn.k_proj.bias": (keys,),
            f"{layer}self_attn.v_proj.weight": (keys, hidden),
            f"{layer}self_attn.v_proj.bias": (keys,),
            f"{layer}self_attn.o_proj.weight": (hidden, queries),
            f"{layer}self_attn.o_proj.bias": (hidden,),
            f"{layer}self_attn.sinks": (params.num_attention_heads,),
            f"{layer}mlp.router.weight": (experts, hidden),
            f"{layer}mlp.router.bias": (experts,),
            f"{layer}mlp.experts.gate_up_proj": (experts, hidden, 2 * inner),
            f"{layer}mlp.experts.gate_up_proj_bias": (experts, 2 * inner),
            f"{layer}mlp.experts.down_proj": (experts, inner, hidden),
            f"{layer}mlp.experts.down_proj_bias": (experts, hidden),
        }
    return shapes


def vae_shapes(params: VAEParams) -> Shapes:
    """Key of diffusers' AutoencoderKLFlux2 -> shape: encoder, decoder, what is between them, latent statistics."""
    widths, latent, layers = params.block_out_channels, params.latent_channels, params.layers_per_block
    last = widths[-1]
    shapes: Shapes = {}

    def conv(name: str, inputs: int, outputs: int, side: int = 3) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, inputs, side, side), (outputs,)

    def norm(name: str, width: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (width,)

    def residual(name: str, inputs: int, outputs: int) -> None:
        norm(f"{name}.norm1", inputs)
        conv(f"{name}.conv1", inputs, outputs)
        norm(f"{name}.norm2", outputs)
        conv(f"{name}.conv2", outputs, outputs)
        if inputs != outputs:
            conv(f"{name}.conv_shortcut", inputs, outputs, 1)

    def half(name: str, ends: tuple[int, int], path: tuple[int, ...], resample: str, blocks: int) -> None:
        """An encoder or decoder: `ends` its channels outside, `path` the widths of its stages in order."""
        conv(f"{name}.conv_in", ends[0], path[0])
        norm(f"{name}.conv_norm_out", path[-1])
        conv(f"{name}.conv_out", path[-1], ends[1])
        for index, (inputs, outputs) in enumerate(pairwise((path[0], *path))):
            stage = f"{name}.{resample}_blocks.{index}"
            for block in range(blocks):
                residual(f"{stage}.resnets.{block}", inputs if block == 0 else outputs, outputs)
            if index + 1 < len(path):
                conv(f"{stage}.{resample}samplers.0.conv", outputs, outputs)
        for block in range(2):
            residual(f"{name}.mid_block.resnets.{block}", last, last)
        if params.mid_block_add_attention:
            attention = f"{name}.mid_block.attentions.0"
            norm(f"{attention}.group_norm", last)
            for linear in ("to_q", "to_k", "to_v", "to_out.0"):
                shapes[f"{attention}.{linear}.weight"], shapes[f"{attention}.{linear}.bias"] = (last, last), (last,)

    half("encoder", (COLOURS, 2 * latent), widths, "down", layers)
    half("decoder", (latent, COLOURS), widths[::-1], "up", layers + 1)
    conv("quant_conv", 2 * latent, 2 * latent, 1)
    conv("post_quant_conv", latent, latent, 1)
    shapes["bn.running_mean"] = shapes["bn.running_var"] = (PATCH * PATCH * latent,)
    shapes["bn.num_batches_tracked"] = ()
    return shapes
