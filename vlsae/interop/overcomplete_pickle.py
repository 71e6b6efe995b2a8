"""What a whole pickled model of overcomplete may hold besides its weights without being another function."""

from __future__ import annotations

from typing import Any

from vlsae.interop.dialect import DialectError
from vlsae.interop.modules import SavedModule

OURS = "overcomplete."  # torch's own modules are looked at by their tensors and classes
HOOKS = ("_forward_hooks", "_forward_pre_hooks")
OF_MODULES = {"training", "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_is_full_backward_hook",
              *HOOKS, *(f"_{name}" for name in ("forward_hooks_with_kwargs", "forward_hooks_always_called",
              "forward_pre_hooks_with_kwargs", "backward_hooks", "backward_pre_hooks", "state_dict_hooks",
              "state_dict_pre_hooks", "load_state_dict_pre_hooks", "load_state_dict_post_hooks"))}  # fmt: skip
KNOWN = OF_MODULES | {  # attributes of releases 0.0.2 to 0.3.0; those that a forward pass reads are read by the dialect too
    "_fitted_info", "_fused_dictionary", "_weights", "act", "bandwidth", "bandwith", "bias", "delta", "device", "dictionary",
    "dimensions", "dropout", "encoder", "final_activation", "final_block", "fitted", "hidden_activation", "hidden_dim",
    "in_dimensions", "input_size", "k", "kernel_fn", "max_iter", "multiplier", "n_components", "nb_blocks", "nb_candidates",
    "nb_components", "nb_concepts", "norm_layer", "normalization", "output_activation", "residual", "running_threshold",
    "thresholds", "threshold_momentum", "tied_to", "top_k", "weight",
}  # fmt: skip


def refuse_hooks(module: SavedModule) -> None:
    """Refuse a model with hooks, which may change whatever passes by.

    Raises:
        DialectError: where any part of the model has one.
    """
    for path, part in module.parts():
        found = [name for name in HOOKS if part.state.get(name)]
        if found:
            raise DialectError(
                f"{module.source.weights} was saved with hooks on {path or 'the model'} ({', '.join(found)}), which may change "
                "what it computes. Remove them (handle.remove()) and save it again, or save its state dict."
            )


def attributes(module: SavedModule) -> dict[str, Any]:
    """Attributes of the library's own modules by their dotted names; `KNOWN` ones have one name wherever they stand."""
    found = {}
    for path, part in module.parts():
        if part.name.startswith(OURS):
            found |= {
                name if name in KNOWN else f"{path}.{name}".lstrip("."): value for name, value in part.state.items()
            }
    return found
