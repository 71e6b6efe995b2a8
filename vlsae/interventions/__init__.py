"""Edits of what a model computes."""

from vlsae.interventions.fusion import fuse_codes, fused_text, mix_logits

__all__ = ["fuse_codes", "fused_text", "mix_logits"]
