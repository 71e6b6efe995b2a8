"""Adapted CLIPs computed once more, plainly, from open_clip's modules: what published files must amount to."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from open_clip.model import CLIP


def open_clip_twin(backbone) -> CLIP:
    """An open_clip model with the weights of a Hugging Face CLIP, copied module by module."""
    hf, config = backbone.model, backbone.model.config
    v, t = config.vision_config, config.text_config
    twin = CLIP(
        config.projection_dim,
        {"image_size": v.image_size, "patch_size": v.patch_size, "width": v.hidden_size, "layers": v.num_hidden_layers,
         "head_width": v.hidden_size // v.num_attention_heads, "mlp_ratio": v.intermediate_size / v.hidden_size},
        {"context_length": t.max_position_embeddings, "vocab_size": t.vocab_size, "width": t.hidden_size,
         "heads": t.num_attention_heads, "layers": t.num_hidden_layers, "mlp_ratio": t.intermediate_size / t.hidden_size},
        quick_gelu=True,
    ).eval()  # fmt: skip
    with torch.no_grad():
        twin.logit_scale.copy_(hf.logit_scale)
        twin.token_embedding.weight.copy_(hf.text_model.embeddings.token_embedding.weight)
        twin.positional_embedding.copy_(hf.text_model.embeddings.position_embedding.weight)
        twin.text_projection.copy_(hf.text_projection.weight.T)
        twin.ln_final.load_state_dict(hf.text_model.final_layer_norm.state_dict())
        vision = hf.vision_model
        twin.visual.conv1.load_state_dict(vision.embeddings.patch_embedding.state_dict())
        twin.visual.class_embedding.copy_(vision.embeddings.class_embedding)
        twin.visual.positional_embedding.copy_(vision.embeddings.position_embedding.weight)
        twin.visual.proj.copy_(hf.visual_projection.weight.T)
        twin.visual.ln_pre.load_state_dict(vision.pre_layrnorm.state_dict())
        twin.visual.ln_post.load_state_dict(vision.post_layernorm.state_dict())
        for ours, theirs in ((twin.transformer, hf.text_model), (twin.visual.transformer, vision)):
            for block, layer in zip(ours.resblocks, theirs.encoder.layers, strict=True):
                a = layer.self_attn
                block.attn.in_proj_weight.copy_(torch.cat([a.q_proj.weight, a.k_proj.weight, a.v_proj.weight]))
                block.attn.in_proj_bias.copy_(torch.cat([a.q_proj.bias, a.k_proj.bias, a.v_proj.bias]))
                block.attn.out_proj.load_state_dict(a.out_proj.state_dict())
                block.ln_1.load_state_dict(layer.layer_norm1.state_dict())
                block.ln_2.load_state_dict(layer.layer_norm2.state_dict())
                block.mlp.c_fc.load_state_dict(layer.mlp.fc1.state_dict())
                block.mlp.c_proj.load_state_dict(layer.mlp.fc2.state_dict())
    return twin


@torch.no_grad()
def texts(clip: CLIP, ids, ctx=None, deep=()):
    """Unit embeddings of token ids `[C, places]` whose places 1 to n hold `ctx`, and `deep[i]` before block i + 1."""
    x = clip.token_embedding(ids)
    if ctx is not None:
        x[:, 1 : 1 + ctx.shape[-2]] = ctx
    x, mask = x + clip.positional_embedding[: ids.shape[1]], clip.attn_mask[: ids.shape[1], : ids.shape[1]]
    for i, block in enumerate(clip.transformer.resblocks):
        if 0 < i <= len(deep):
            x[:, 1 : 1 + len(deep[i - 1])] = deep[i - 1]
        x = block(x, attn_mask=mask)
    return F.normalize(clip.ln_final(x)[torch.arange(len(ids)), ids.argmax(-1)] @ clip.text_projection, dim=-1)


@torch.no_grad()
def images(clip: CLIP, pixels, shallow=None, deep=()):
    """Unit embeddings of images with prompts at the end of the sequence, replaced by `deep[i]` before block i + 1."""
    v = clip.visual
    x = v.conv1(pixels).flatten(2).transpose(1, 2)
    x = torch.cat([v.class_embedding.expand(len(x), 1, -1), x], 1) + v.positional_embedding
    if shallow is not None:
        x = torch.cat([x, shallow.expand(len(x), -1, -1)], 1)
    x = v.ln_pre(x)
    for i, block in enumerate(v.transformer.resblocks):
        if 0 < i <= len(deep):
            x = torch.cat([x[:, : -len(deep[i - 1])], deep[i - 1].expand(len(x), -1, -1)], 1)
        x = block(x)
    return F.normalize(v.ln_post(x)[:, 0] @ v.proj, dim=-1)
