"""Codes inside a model: states of a machine that a small transformer watches, and concepts of the tiny CLIP."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vlsae.dictionaries.group_codebook import GroupCodebook
from vlsae.metrics.codes import code_precision
from vlsae.training import train
from vlsae.world import scenes
from vlsae.world.captions import concepts
from vlsae.world.clip_data import patch_coverage

STATES, LENGTH, WIDTH = 12, 8, 48
NAMES = tuple(concepts()["object"][:STATES])


class Watcher(nn.Module):
    """Two causal blocks around a codebook; says which state comes next."""

    def __init__(self, d):
        super().__init__()
        self.embed, self.head = nn.Linear(d, WIDTH), nn.Linear(WIDTH, STATES)
        self.place = nn.Parameter(0.1 * torch.randn(LENGTH, WIDTH))
        block = {"dropout": 0.0, "batch_first": True, "norm_first": True}
        self.before, self.after = (nn.TransformerEncoderLayer(WIDTH, 4, 96, **block) for _ in range(2))
        self.book = GroupCodebook(WIDTH, 24, k=1)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(LENGTH))

    def stream(self, frames):
        return self.before(self.embed(frames) + self.place, self.mask, is_causal=True)

    def forward(self, frames, through):
        return self.head(self.after(through(self.stream(frames)), self.mask, is_causal=True))


@pytest.fixture(scope="module")
def machine(tiny):
    """A random graph of 12 states with 3 ways out of each, walks on it, drawn as pictures, and a trained watcher."""
    rng = np.random.default_rng(3)
    ways = np.stack([rng.choice(STATES, 3, replace=False) for _ in range(STATES)])
    pictures = [scenes(24, seed=i, names=(name,), n_objects=(1, 0, 0, 0)) for i, name in enumerate(NAMES)]
    frames = torch.stack([tiny.encode_image(list(drawn)) for drawn in pictures])

    def walks(n, shown):
        states = np.empty((n, LENGTH + 1), int)
        states[:, 0] = rng.integers(0, STATES, n)
        for t in range(LENGTH):
            states[:, t + 1] = ways[states[:, t], rng.integers(0, 3, n)]
        views = rng.choice(shown, (n, LENGTH))
        return frames[states[:, :-1], views], torch.from_numpy(states)

    torch.manual_seed(0)
    watcher = Watcher(frames.shape[-1])
    optimizer = torch.optim.Adam(watcher.parameters(), lr=2e-3)
    for step in range(400):
        x, states = walks(64, np.arange(16))
        if step == 150:
            with torch.no_grad():
                watcher.book.prepare(watcher.stream(walks(256, np.arange(16))[0]).flatten(0, 1))
        logits = watcher(x, watcher.book.bottleneck if step >= 150 else lambda stream: stream)
        loss = F.cross_entropy(logits.flatten(0, 1), states[:, 1:].flatten())
        if step >= 150:
            seen = watcher.stream(x).detach()
            loss = loss + (watcher.book(seen) - seen).square().sum(-1).mean() / WIDTH
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return watcher.eval(), ways, walks(400, np.arange(16, 24))


@torch.no_grad()
def test_codes_are_the_states_of_the_machine(machine):
    """Card 5, test 5: on pictures never seen, `P(state | code) >= .95` for every code that is in use."""
    watcher, _, (frames, states) = machine
    z = watcher.book.encode(watcher.stream(frames)).flatten(0, 1)
    now = F.one_hot(states[:, :-1].flatten(), STATES).bool()
    precision, recall = code_precision(z, now)
    used = z.sum(0) >= 20
    assert (precision[used].max(1).values >= 0.95).all()
    assert used.sum() >= STATES
    assert set(precision[used].argmax(1).tolist()) == set(range(STATES))


@torch.no_grad()
def test_another_states_code_makes_the_model_expect_its_successors(machine):
    """Card 5, test 5: with the code of state t at the last step, >= .9 of the mass is where the graph leads from t."""
    watcher, ways, (frames, states) = machine
    z = watcher.book.encode(watcher.stream(frames)).flatten(0, 1)
    _, recall = code_precision(z, F.one_hot(states[:, :-1].flatten(), STATES).bool())
    for state in range(STATES):
        code = int(recall[:, state].nan_to_num().argmax())

        def forced(stream, code=code):
            codes = watcher.book.encode(stream)
            codes[:, -1] = watcher.book.force(codes[:, -1], [code])
            return watcher.book.decode(codes)

        elsewhere = states[:, -2] != state
        masses = [
            watcher(frames, through)[elsewhere, -1].softmax(-1)[:, ways[state]].sum(-1).mean().item()
            for through in (forced, watcher.book)
        ]
        assert masses[0] >= 0.9
        assert masses[1] < 0.5


@torch.no_grad()
def test_forced_codes_make_the_tiny_clip_see_a_concept(tiny):
    """Card 5, test 6: a concept's codes on all patches raise its zero-shot probability; without them all is as before.

    The concept is not destroyed by disabling its codes in scenes that do show it: the class token has read it before.
    """
    site, names = "vision.-2.resid_post", NAMES[:6]
    drawn = [s for i, name in enumerate(names) for s in scenes(30, seed=40 + i, names=(name,), n_objects=(1, 0, 0, 0))]
    kind = torch.arange(6).repeat_interleave(30)
    tokens = tiny.tokens(drawn, site)[:, 1:]
    options = {"n_latents": 192, "k": 4, "steps": 300, "batch_size": 1024, "lr": 3e-3, "progress": False}
    with torch.enable_grad():
        book = train(tokens.flatten(0, 1), "group_codebook", **options)
    covered = torch.stack([torch.from_numpy(patch_coverage(s.masks)[0] > 0.25) for s in drawn])
    shows = F.one_hot(kind, 6).bool()[:, None] & covered[:, :, None]
    precision, recall = code_precision(book.encode(tokens).flatten(0, 1), shows.flatten(0, 1))

    def probability(codes, target, of):
        """With these codes forced on every patch, in place of what the codebook holds there."""

        def edit(stream):
            z = book.encode(stream[:, 1:])
            return torch.cat([stream[:, :1], book.decode(book.force(z, codes) if codes else z)], 1)

        with tiny.edit(site, edit):
            return tiny.zero_shot([drawn[i] for i in of], names)[:, target].mean().item()

    for target in range(6):
        others = (kind != target).nonzero()[:, 0].tolist()[::5]
        untouched = tiny.zero_shot([drawn[i] for i in others], names)
        codes = (precision * recall.clamp_max(0.2))[:, target].nan_to_num().topk(4).indices.tolist()
        before, forced = probability([], target, others), probability(codes, target, others)
        assert forced > 0.8
        assert before < 0.15
        assert torch.equal(tiny.zero_shot([drawn[i] for i in others], names), untouched)
