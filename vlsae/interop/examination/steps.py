"""What a user can do after a diagnosis: sentences, commands and lines of Python that can be copied."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
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
    lines, others = [], found.remedies
    if others and others[0].ev >= LEAST_EV:
        lines, others = again.with_remedy(others[0]), others[1:]
    if others:
        worse = "Less good" if lines else "More, though not enough, is explained"
        lines.append(f"{worse}: {'; '.join(f'{remedy.how} ({remedy.ev:.3f})' for remedy in others[:OTHERS])}.")
    lost = found.metrics["ev_centred"].value < LEAST_EV
    if not found.fits and lost and not (found.remedies and found.remedies[0].ev >= LEAST_EV):
        lines += again.suspects()
    elif not found.fits and not lines:
        lines.append("Check what is said above to be wrong, and how the file was opened.")
    elif not lines:
        where = f"at {found.site}, on {' and '.join(found.judged)} tokens"
        warned = any(finding.severity == "warning" for finding in found.findings)
        lines.append(f"{'Mind what is said above, then use' if warned else 'Use'} it {where}.")
        lines += again.opened()
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
        text = f"Best: use it {remedy.how}, where it explains {remedy.ev:.3f}."
        if "input" in remedy.about and not remedy.lines:  # an encoder that is not linear cannot take it into its bias
            return [
                f"{text} Look for an answer about it when opening the file (--set): no line of Python does it here."
            ]
        answers, change = self._change(remedy)
        if not self.path:
            return [text, *(f"  {line}" for line in change)]
        fixed = f"{PurePath(self.path.rstrip('/')).name}-fixed"
        lines = ["import vlsae"]
        lines += ["from vlsae.dictionaries.transform import InputTransform"] * any(
            "InputTransform" in x for x in change
        )
        lines += [*self.opening(answers), *change, f"sae.save({fixed!r})"]
        return [f"{text} In Python:", *(f"  {line}" for line in lines), "Then look again:", *self.command(fixed)]

    def opened(self) -> list[str]:
        """The line that opens it as it was opened, where that is not known to the reader anyway."""
        answers = self.told | ({"site": self.found.site} if self.found.opened else {})
        return [f"  {line}" for line in self.opening(answers)] if self.path else []

    def opening(self, answers: Mapping[str, Any]) -> list[str]:
        """A call, on several lines where it is too long for one; answers that were too long to be kept as `...`."""
        given = [f"{name}={'...' if str(value).endswith('...') else repr(value)}" for name, value in answers.items()]
        line = f"sae = vlsae.load_dictionary({', '.join([repr(self.path), *given])})"
        if len(line) <= COMMAND:
            return [line]
        return ["sae = vlsae.load_dictionary(", *(f"    {part}," for part in (repr(self.path), *given)), ")"]

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
        inputs = "images"
        if self.path and site.startswith("text"):
            inputs = f"open({self.data!r}).read().splitlines()[:64]"
        elif self.path:
            inputs = f"vlsae.load_images({self.data!r})[:64]"
        kept = f"[:, [role in {list(self.found.judged)} for role in model.token_roles]]"
        return [*([f"model = vlsae.load_model({self.found.model!r})"] if self.path else []),
                f"tokens = model.tokens({inputs}, {site!r})",
                f"tokens = tokens{'' if site.endswith('pooled') else kept}.flatten(0, 1)"]  # fmt: skip

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
        return [*lines, "Otherwise it is not trained, or its weights are damaged."]
