"""The model card of a dictionary: what is known of it as a README for the Hugging Face hub, and what is not."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlsae.atomic import replacing
from vlsae.dictionaries.base import Dictionary
from vlsae.dictionaries.checkpoint import ARCHITECTURES, CheckpointError, architecture
from vlsae.dictionaries.hub import checked, parse_hub_id

ORIGIN = {  # of `metadata`, as `vlsae.train` leaves it, and what the card calls it
    "model": "Model",
    "weight_hash": "Hash of the model's weights",
    "site": "Site",
    "target_site": "Site of the targets",
    "text_site": "Site of the texts",
    "tokens": "Tokens",
    "source": "Images",
    "n_tokens_seen": "Tokens seen in training",
}
ELSEWHERE = {"recipe", "measured", "license"}  # of `metadata`, with places of their own on the card
# what Markdown would read as its own; an underscore only where no letters are on both sides
STRUCTURE = re.compile(r"[|`*\[\]<>&\\~$#\x00-\x1f\x7f-\x9f\u2028\u2029]|(?<![^\W_])_|_(?![^\W_])")


def model_card(
    dictionary: Dictionary,
    repo_id: str | None = None,
    subfolder: str = "",
    *,
    license: str | None = None,
    base_model: str | None = None,
) -> str:
    """The model card of a dictionary, from its settings, weights and `metadata`; what they do not say is not invented.

    Numbers under `metadata["measured"]`, by name, become a table of their own.

    Args:
        dictionary: any family.
        repo_id: "user/repo", where the card says the dictionary is.
        subfolder: of the repository.
        license: the hub's name of a licence ("mit"); `metadata["license"]` where None, and none where that is missing.
        base_model: the hub's id of the model that it reads; of an "hf:" model in `metadata["model"]` where None.

    Returns:
        Markdown with a YAML header.

    Raises:
        CheckpointError: for what can be no repository.

    Example:
        >>> from vlsae.dictionaries.topk import TopKDictionary
        >>> print(model_card(TopKDictionary(d=4, n_latents=8, k=2), "user/repo", license="mit"))
        ---
        library_name: vlsae
        license: mit
        tags:
        - sparse-autoencoder
        - interpretability
        - topk
        ---
        <BLANKLINE>
        # A topk dictionary of 8 latents
        ...
    """
    license = license or dictionary.metadata.get("license")
    parts = [
        f"---\n{_header(dictionary, license, base_model)}\n---",
        f"# A {_text(dictionary.family)} dictionary of {dictionary.n_latents:,} latents",
        _introduction(dictionary),
        "## Facts",
        _table(facts(dictionary)),
        "## Training",
        _given(dictionary.metadata.get("recipe"), "The recipe is not recorded."),
        "## Measured",
        _given(dictionary.metadata.get("measured"), "Nothing measured is recorded."),
        "## Use",
        _use(dictionary, repo_id, subfolder),
        "## Codes",
        codes(dictionary),
        "## Limits",
        "\n".join(f"- {limit}" for limit in limits(dictionary, license)),
    ]
    return "\n\n".join(parts) + "\n"


def write_card(text: str, folder: str | Path) -> None:
    """Write or replace the folder's `README.md`."""
    with replacing(Path(folder) / "README.md") as partial:
        partial.write_text(text, encoding="utf-8")


def facts(dictionary: Dictionary) -> dict[str, Any]:
    """What is known of a dictionary, by the names of the card's table."""
    recorded = {key: value for key, value in dictionary.metadata.items() if value is not None}
    known = {name: recorded[key] for key, name in ORIGIN.items() if key in recorded}
    more = {f"Metadata: {key}": recorded[key] for key in recorded if key not in ORIGIN and key not in ELSEWHERE}
    return {
        "Family": dictionary.family,
        "Width of the activations (d)": dictionary.d,
        "Latents": dictionary.n_latents,
        **{f"Setting: {name}": value for name, value in dictionary.settings.items()},
        "Input transform": dictionary.transform.kind,
        "Weights": str(dictionary.W_dec.dtype).removeprefix("torch."),
        **known,
        **more,
    }


def codes(dictionary: Dictionary) -> str:
    """What a code of 1 means, in words."""
    transform, norms = dictionary.transform, dictionary.atoms.float().norm(dim=1)
    if type(dictionary)._decode is not Dictionary._decode:
        return "Codes are this family's own and no multiples of atoms; see its documentation."
    if transform.kind in ("none", "centre"):
        unit = "in the units of the activations"
    elif not transform.affine:
        unit = f"behind the transform {transform.kind!r}, which is relative to each token"
    elif transform.kind == "standardise":
        unit = "in standard deviations of each coordinate"
    else:
        unit = (
            f"behind the transform {transform.kind!r}; times {1 / float(transform.scale[0]):.9g} it is in their units"
        )
    signs = "both signs" if dictionary.signed else "no negative values"
    return (
        f"Codes times atoms, plus a bias, rebuild the activations {unit}. Atoms have norms of {_span(norms)}. Codes have "
        f"{signs}."
    )


def limits(dictionary: Dictionary, license: str | None) -> list[str]:
    """What is not known, and what to keep in mind."""
    metadata = dictionary.metadata
    unknown = [
        name for key, name in ORIGIN.items() if key not in ("target_site", "text_site") and not metadata.get(key)
    ]
    found = [f"Not recorded, and so unknown: {', '.join(unknown).lower()}."] if unknown else []
    if not metadata.get("measured"):
        found.append(
            "How well it reconstructs, how sparse its codes are and whether its latents mean anything is not recorded."
        )
    if metadata.get("site"):
        found.append("It is made for activations of the site above; at others nothing is promised.")
    if not dictionary.transform.affine:
        found.append("Codes alone do not give the activations back: `decode(z, like=x)` needs the tokens' own scale.")
    found.append(
        "Latents have numbers and no names here; a name from top images or texts is a hypothesis to be tested."
    )
    if not license:
        found.append("No licence is stated; ask its authors before you use it.")
    return found


def _header(dictionary: Dictionary, license: str | None, base_model: str | None) -> str:
    from huggingface_hub import ModelCardData

    model = str(dictionary.metadata.get("model") or "")
    clip = ["clip"] if "clip" in model.lower() or model in ("tiny", "tiny16") else []
    return ModelCardData(
        library_name="vlsae",
        license=license,
        base_model=base_model or _hub_model(model),
        tags=["sparse-autoencoder", "interpretability", *clip, dictionary.family],
    ).to_yaml()


def _hub_model(model: str) -> str | None:
    """The hub id in "hf:user/model"; None for a folder and for everything else."""
    if not model.startswith("hf:") or Path(model.removeprefix("hf:")).exists():
        return None
    try:
        repo_id, subfolder, revision = parse_hub_id(model)
    except CheckpointError:
        return None
    return repo_id if not subfolder and revision is None else None


def _introduction(dictionary: Dictionary) -> str:
    of_the_family = (inspect.getdoc(inspect.getmodule(type(dictionary))) or "").partition("\n")[0]
    return f"A sparse dictionary of activations, in the format of vlsae. {_text(of_the_family)}".rstrip()


def _use(dictionary: Dictionary, repo_id: str | None, subfolder: str) -> str:
    place = "path/to/this/folder" if repo_id is None else str(checked(repo_id, subfolder))
    own = f"""```python
import vlsae

dictionary = vlsae.load_dictionary({place!r})
codes = dictionary.encode(activations)  # [..., {dictionary.d}] to [..., {dictionary.n_latents}]
reconstruction = dictionary(activations)
```"""
    if ARCHITECTURES.get(dictionary.family) != architecture(dictionary):
        what = "family" if dictionary.transform.kind == "none" else "input transform"
        return f"{own}\n\nSAELens does not know the {what}, and so cannot open it."
    folder = f"snapshot_download({repo_id!r})" if repo_id else repr(place)
    inside = f' + "/{subfolder}"' if subfolder and repo_id else ""
    lines = ["from huggingface_hub import snapshot_download"] if repo_id else []
    lines += ["from sae_lens import SAE", "", f"sae = SAE.load_from_disk({folder}{inside})"]
    return own + "\n\nSAELens opens the same files:\n\n```python\n" + "\n".join(lines) + "\n```"


def _given(rows: Any, missing: str) -> str:
    """A table of what is recorded, whether or not it has names."""
    if not rows:
        return missing
    return _table(rows if isinstance(rows, Mapping) else {"As recorded": rows})


def _table(rows: Mapping[str, Any]) -> str:
    lines = [f"| {_text(name)} | {_text(value)} |" for name, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _text(value: Any) -> str:
    """A value as text in which Markdown finds no structure: no new cell, line, link or markup."""
    return STRUCTURE.sub(lambda found: f"&#{ord(found[0])};", str(value))


def _span(norms) -> str:
    low, high = float(norms.min()), float(norms.max())
    return f"{low:.4g}" if high - low <= 1e-3 * high else f"{low:.4g} to {high:.4g}"
