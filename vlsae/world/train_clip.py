"""Train the tiny CLIP: `python -m vlsae.world.train_clip --out runs/tiny_clip`. Resumable, deterministic by seed."""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import time
from pathlib import Path

import torch

from vlsae.atomic import replacing
from vlsae.world import tiny_clip
from vlsae.world.clip_data import WORDS, make_batch
from vlsae.world.clip_losses import Heads, losses
from vlsae.world.muon import Muon

LEARNING_RATE = 2e-3
BATCH = 64
EMA = 0.999
WARM_UP_STEPS = 50


def learning_rate(seen: int, total: int, step: int) -> float:
    """Constant for 40 % of the images, then a cosine down to 2 %."""
    done = max(0.0, (seen / total - 0.4) / 0.6)
    return LEARNING_RATE * min(1.0, (step + 1) / WARM_UP_STEPS) * (0.02 + 0.49 * (1 + math.cos(math.pi * min(1, done))))


def _optimizers(model: torch.nn.Module, heads: Heads) -> list[torch.optim.Optimizer]:
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "resblocks" in n]
    known = {id(p) for p in matrices}
    others = [p for p in [*model.parameters(), *heads.parameters()] if id(p) not in known]
    return [
        Muon(matrices, lr=LEARNING_RATE, weight_decay=0.02),
        torch.optim.AdamW(others, lr=LEARNING_RATE, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.0),
    ]


def _word_prompts(rng: random.Random) -> list[str]:
    """The concept words bare, or inside a template, so that usual zero-shot prompts work too."""
    template = rng.choices(("{}", "a {}", "a photo of a {}", "a photo of {}"), (0.7, 0.1, 0.1, 0.1))[0]
    return [template.format(word) for word in WORDS]


def _save(path: Path, state: dict) -> None:
    with replacing(path) as partial:
        torch.save(state, partial)


def train(out: Path, images: int, seed: int = 0, save_every: int = 200, schedule_images: int = 0,
          batch_size: int = BATCH, architecture: str = "tiny") -> Path:  # fmt: skip
    """Train until `images` scenes were seen; continues from `out/state.pt` where there is one.

    Args:
        out: folder of the state, the log and the model.
        images: scenes to see in all.
        seed: of weights and scenes.
        save_every: steps between saved states.
        batch_size: scenes a step.
        schedule_images: length of the learning-rate schedule and the curriculum; `images` where 0.
        architecture: which of `tiny_clip.ARCHITECTURES` is trained.

    Returns:
        The folder with the averaged weights, which open_clip opens.
    """
    out.mkdir(parents=True, exist_ok=True)
    total = schedule_images or images
    model, heads = tiny_clip.build(seed, architecture), Heads()
    average = copy.deepcopy(model).requires_grad_(False)
    optimizers = _optimizers(model, heads)
    tokenizer = tiny_clip.build_tokenizer()
    tokenizer.enable_padding(pad_id=0)
    step = seen = 0
    if (out / "state.pt").exists():
        state = torch.load(out / "state.pt", weights_only=True)
        model.load_state_dict(state["model"])
        heads.load_state_dict(state["heads"])
        average.load_state_dict(state["average"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step, seen = state["step"], state["seen"]

    def ids(texts: list[str]) -> torch.Tensor:
        return torch.tensor([e.ids for e in tokenizer.encode_batch(texts)])

    started, first = time.time(), seen
    with open(out / "log.jsonl", "a") as log:
        while seen < images:
            batch = make_batch(seed, step, seen, total, batch_size, model.visual.grid_size[0])
            rate = learning_rate(seen, total, step)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate
            rng = random.Random(f"prompts/{seed}/{step}")
            terms = losses(model, heads, batch, ids(_word_prompts(rng)), ids(batch.captions))
            sum(terms.values()).backward()
            torch.nn.utils.clip_grad_norm_([*model.parameters(), *heads.parameters()], 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            step, seen = step + 1, seen + batch_size
            decay = min(EMA, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
            if step % 20 == 0:
                row = {"step": step, "seen": seen, "lr": rate, "rate": (seen - first) / (time.time() - started)}
                print(json.dumps(row | {k: round(v.item(), 4) for k, v in terms.items()}), file=log, flush=True)
            if step % save_every == 0 or seen >= images:
                _save(
                    out / "state.pt",
                    {
                        "model": model.state_dict(),
                        "heads": heads.state_dict(),
                        "average": average.state_dict(),
                        "optimizers": [o.state_dict() for o in optimizers],
                        "step": step,
                        "seen": seen,
                    },
                )
                tiny_clip.save(average.state_dict(), out / "model", architecture)
    return out / "model"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/tiny_clip"))
    parser.add_argument("--images", type=int, default=280_000, help="scenes to see in all")
    parser.add_argument("--architecture", choices=tiny_clip.ARCHITECTURES, default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = train(options.out, options.images, options.seed, architecture=options.architecture)
    print(f"The model is in {model}.")


if __name__ == "__main__":
    main()
