"""What a user can do after a diagnosis: sentences, commands and lines of Python that can be copied."""

from __future__ import annotations

import shlex
from pathlib import PurePath
from typing import Any

from vlsae.interop.examination.diagnosis import Diagnosis, Remedy
from vlsae.interop.examination.rules import LEAST_EV

OTHERS = 2  # remedies beside the best
COMMAND = 104  # characters of a line to be copied


def steps(found: Diagnosis, path: str, data: str, options: str) -> list[str]:
    """Lines; those to be copied are indented.

    Args:
        found: the diagnosis; path, data, options: as for `Diagnosis.summary`.
    """
    again = _Again(found, path, data, options)
    if not found.metrics:
        return again.elsewhere()
    best = [*found.remedies[:1]] if found.remedies and (not found.fits or found.remedies[0].ev >= LEAST_EV) else []
    lines = [line for remedy in best for line in again.with_remedy(remedy)]
    others = found.remedies[len(best) : len(best) + OTHERS]
    if others:
        lines.append(f"Less good: {'; '.join(f'{r.how} ({r.ev:.3f})' for r in others)}.")
    if not found.fits and (not best or best[0].ev < LEAST_EV):
        lines += again.suspects()
    elif not lines:
        where = f"at {found.site}, on {' and '.join(found.judged)} tokens"
        warned = any(finding.severity == "warning" for finding in found.findings)
        lines.append(f"{'Mind the warning, then use' if warned else 'Use'} it {where}.")
    return lines


class _Again:
    """The same examination once more, or the dictionary opened and changed."""

    def __init__(self, found: Diagnosis, path: str, data: str, options: str):
        self.found, self.path, self.data, self.options = found, path, data, options
        self.told = dict(found.opened.get("told", {}))

    def command(self, path: str = "", model: str = "", more: str = "") -> list[str]:
        """The examination of another dictionary, on another model, or with another option; too long for a line, on several."""
        parts = [f"vlsae doctor {shlex.quote(path or self.path)}", f"--model {shlex.quote(model or self.found.model)}",
                 f"--data {shlex.quote(self.data)}", *(part for part in (self.options, more) if part)]  # fmt: skip
        if len(line := f"  {' '.join(parts)}") <= COMMAND:
            return [line]
        return [f"  {parts[0]} \\", *(f"      {part} \\" for part in parts[1:-1]), f"      {parts[-1]}"]

    def with_remedy(self, remedy: Remedy) -> list[str]:
        """A sentence, and lines that open, change and save the dictionary and look at it again."""
        use = "Best: use it" if remedy.ev >= LEAST_EV else "What helps most, though not enough, is to use it"
        text = f"{use} {remedy.how}, where it explains {remedy.ev:.3f}."
        answers, change = self._change(remedy)
        if not self.path:
            return [text, *(f"  {line}" for line in change)]
        fixed = f"{PurePath(self.path.rstrip('/')).name}-fixed"
        lines = ["import vlsae"]
        lines += ["from vlsae.dictionaries.transform import InputTransform"] * any(
            "InputTransform" in x for x in change
        )
        given = "".join(f", {name}={value!r}" for name, value in answers.items())
        lines += [f"sae = vlsae.load_dictionary({self.path!r}{given})", *change, f"sae.save({fixed!r})"]
        return [f"{text} In Python:", *(f"  {line}" for line in lines), "Then look again:", *self.command(fixed)]

    def _change(self, remedy: Remedy) -> tuple[dict[str, Any], list[str]]:
        """What to answer when the file is opened again, and lines for what no answer changes."""
        change, answers = list(remedy.lines), dict(self.told)
        if self.found.opened and self.path:  # files of other projects take a site, whatever they say themselves
            answers["site"] = remedy.site
        else:
            change.insert(0, f"sae.metadata['site'] = {remedy.site!r}")
        if remedy.k and "k" in answers:
            answers["k"], change = remedy.k, [line for line in change if not line.startswith("sae.k =")]
        return answers, [*self._tokens(remedy.site), *change] if any("(tokens" in line for line in change) else change

    def _tokens(self, site: str) -> list[str]:
        """Lines that read the tokens of a site that were judged."""
        images = f'vlsae.load_images("{self.data}")[:64]' if self.data else "images"
        model = [f'model = vlsae.load_model("{self.found.model}")'] if self.path else []
        lines = [*model, f'tokens = model.tokens({images}, "{site}")']
        if not site.endswith("pooled"):
            lines.append(f"tokens = tokens[:, [role in {list(self.found.judged)} for role in model.token_roles]]")
        return [*lines, "tokens = tokens.flatten(0, 1)"]

    def elsewhere(self) -> list[str]:
        """Where the site or the width is not there."""
        if not self.path:
            return ["Give the model that it was trained on, or another site=."]
        return ["Give the model that it was trained on, or the site:", *self.command(model="MODEL"),
                *self.command(more="--site SITE")]  # fmt: skip

    def suspects(self) -> list[str]:
        """What is left where nothing that was tried makes it fit."""
        found = self.found
        tried = f"{max(0, len(found.sites) - 1)} other sites and {max(0, len(found.trials) - 1)} other inputs and k"
        lines = [
            f"None of {tried} makes it explain {LEAST_EV} or more. Is {found.model} the model that it was trained on?"
        ]
        lines += self.command(model="MODEL") if self.path else []
        if self.told:
            lines.append(f"Are the answers right that it was opened with ({', '.join(self.told)})?")
        if "cls" not in found.judged and "pooled" not in found.judged:
            lines.append("Is it for other tokens?")
            lines += self.command(more="--tokens cls") if self.path else ['  examine(..., tokens="cls")']
        return [*lines, "Otherwise it is not trained, or its weights are damaged."]
