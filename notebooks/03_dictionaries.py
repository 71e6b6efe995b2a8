# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The dictionary zoo
#
# A sparse dictionary writes an activation as a sum of few atoms. There are many families of them; here all of them speak
# one language: `encode`, `decode`, `atoms`, `train`, `save`. This notebook trains some on data whose atoms are known, looks
# at what distinguishes them, and ends on the patch tokens of the embedded tiny CLIP. It runs offline in half a minute.

# %%
import warnings

import matplotlib.pyplot as plt
import torch

import vlsae
from vlsae.dictionaries import DICTIONARIES
from vlsae.dictionaries.baselines import fit_baselines
from vlsae.metrics.amortisation import amortisation_gap
from vlsae.metrics.matching import stability
from vlsae.metrics.reconstruction import reconstruction
from vlsae.metrics.shrinkage import relative_reconstruction_bias
from vlsae.metrics.stitching import classify_latents, combined_curve
from vlsae.training import SplicedModel, grid, sweep
from vlsae.training.loop import initial
from vlsae.training.meta import train_meta
from vlsae.training.objectives.end_to_end import output_kl
from vlsae.world import planted

warnings.filterwarnings("ignore", message="IProgress not found")  # of tqdm, where ipywidgets is missing


BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#57606a"  # Okabe and Ito's
plt.rcParams.update({"figure.dpi": 110, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
print(", ".join(DICTIONARIES))

# %% [markdown]
# ## 1. Data whose atoms are known
#
# 64 atoms in 32 dimensions, three of them active in every vector. Two random dictionaries of these sizes agree to about
# .40 (mean of the best cosines); every family below starts there.

# %%
truth = planted(32, 64, 3)
x, _ = truth.sample(20_000)
test, _ = truth.sample(2_000, part=1)

recipe = {"n_latents": 64, "steps": 500, "batch_size": 512, "lr": 6e-3, "dead_after_tokens": 20_000, "progress": False}
wanted = {  # each asked for three active latents a vector, in its own way
    "topk": {"k": 3},
    "batch_topk": {"k": 3},
    "relu": {"target_l0": 3.0},
    "gated": {"target_l0": 3.0},
    "jumprelu": {"target_l0": 3.0, "l0": 1.0, "start": 0.05},
    "matching_pursuit": {"k": 3},
    "nested_dictionary": {"k": 3},
}
trained = {family: vlsae.train(x, family, **recipe, **own) for family, own in wanted.items()}
baselines = fit_baselines(x[:3000], k=3, n_latents=64)

print(f"{'':>18}  atoms    EV     L0   bias")
for name, sae in {**trained, **baselines}.items():
    scores = reconstruction(sae, test)
    match = stability(truth.atoms, sae.atoms, sae.signed).mean
    bias = relative_reconstruction_bias(test - sae.b_dec, sae(test) - sae.b_dec)
    print(f"{name:>18}  {match:.3f}  {scores['ev_centred'].value:.3f}  {scores['l0'].value:5.2f}  {bias:.3f}")

# %% [markdown]
# `atoms` is the mean cosine with the true atoms, matched one to one. `bias` is 1 where reconstructions are not shrunk: the
# L1 penalty of `relu` pulls every code down, and at three active latents it has to be strong; `gated` was made to undo that.
# NMF explains less than nothing here: few of its parts are active, and its origin is the corner of the data.
#
# ## 2. What an encoder loses
#
# The atoms are one thing, finding the codes another. `infer` gives any dictionary codes by optimisation instead of by its
# encoder; `amortisation_gap` compares errors at equal numbers of latents.

# %%
for name in ("topk", "relu", "matching_pursuit"):
    gap = amortisation_gap(trained[name], test[:200])
    print(f"{name:>18}: encoder {gap.encoder:.4f}, optimised {gap.optimised:.4f} at L0 {gap.l0:.2f}")
codes = vlsae.infer(trained["topk"], test[:5], "omp", k=3)
print("orthogonal matching pursuit with the atoms of topk:", tuple(codes.shape), (codes > 0).sum(1).tolist())

# %% [markdown]
# ## 3. Several runs on one stream
#
# `sweep` reads every batch once and gives it to all runs; where shapes allow, encoders are one batched product. Each run is
# what training it alone would give.

# %%
runs = sweep(x, grid(k=[1, 2, 3, 5, 8], seed=[0, 1]), family="topk", **{**recipe, "steps": 300})
fig, axes = plt.subplots(1, 2, figsize=(8.2, 2.9), layout="constrained")
ks = [1, 2, 3, 5, 8]
for seed, colour in ((0, BLUE), (1, ORANGE)):
    mine = runs[seed::2]
    axes[0].plot(
        ks, [reconstruction(r, test)["ev_centred"].value for r in mine], "o-", color=colour, label=f"seed {seed}"
    )
    axes[1].plot(ks, [stability(truth.atoms, r.atoms).mean for r in mine], "o-", color=colour)
for ax, title in zip(axes, ("explained variance", "cosine with the true atoms"), strict=True):
    ax.axvline(3, color=GREY, linewidth=0.8, linestyle="--")
    ax.set(xlabel="k (3 atoms are truly active)", xticks=ks, title=title, ylim=(0, 1.02))
axes[0].legend(frameon=False)
plt.show()

# %% [markdown]
# ## 4. Patch tokens of the tiny CLIP
#
# Now real activations: 64 patch tokens of 192 dimensions an image, from the second-to-last block.

# %%
model = vlsae.load_model("tiny")
drawn = vlsae.world.scenes(128, seed=5)
tokens = model.tokens(drawn, "vision.-2.resid_post")[:, 1:].flatten(0, 1).float()
fresh = model.tokens(vlsae.world.scenes(32, seed=6), "vision.-2.resid_post")[:, 1:].flatten(0, 1).float()

common = {"steps": 200, "batch_size": 512, "lr": 2e-3, "decay": 0.4, "dead_after_tokens": 50_000}
narrow, wide = (vlsae.train(tokens, "topk", n_latents=n, k=12, progress=False, **common) for n in (128, 384))
again = vlsae.train(tokens, "topk", n_latents=384, k=12, seed=1, progress=False, **common)
for sae in (narrow, wide):
    scores = reconstruction(sae, fresh)
    print(
        f"{sae.n_latents} latents: EV {scores['ev_centred'].value:.3f}, {scores['dead'].value:.1%} dead on fresh tokens"
    )

start = [initial(tokens, "topk", n_latents=384, k=12, seed=s, **common).atoms for s in (0, 1)]
print(f"two seeds agree to {stability(wide.atoms, again.atoms).mean:.3f}; at the start to {stability(*start).mean:.3f}")

# %% [markdown]
# Stability should always be read beside its value at the start: runs that begin alike end alike, whatever the method.
#
# Which latents of the wide dictionary are *new*, and which refine ones the narrow one has? Stitching exchanges them, a group
# at a time; new ones are put in first, then groups are swapped. Here putting them in makes things worse until what they
# overlap with is gone: after so short a training, a latent without a near twin is seldom a concept that was missing.

# %%
new, _ = classify_latents(narrow, wide)
active, errors = combined_curve(narrow, wide, fresh[::2])
fig, ax = plt.subplots(figsize=(5.6, 2.9), layout="constrained")
ax.plot(errors / fresh[::2].var(0).sum(), color=BLUE)
ax.axvline(int(new.sum()), color=GREY, linewidth=0.8, linestyle="--")
ax.text(int(new.sum()) + 4, 0.28, "all new ones are in", color=GREY)
ax.set(xlabel="groups of latents exchanged, from the narrow to the wide", ylabel="share of variance left")
ax.set_title(f"{int(new.sum())} of {len(new)} latents are new (cosine <= .7)", loc="left")
plt.show()

meta = train_meta(wide, n_latents=64, k=4, arch="topk", steps=200, lr=3e-3, progress=False)
print(f"64 meta-latents, 4 a latent, explain {meta.explained_variance:.0%} of the atoms of the wide dictionary")

# %% [markdown]
# ## 5. For what the model reads
#
# A dictionary trained on reconstruction keeps what is large; one trained end to end keeps what the model's output depends
# on. `SplicedModel` is data and model at once: tokens come out, reconstructions go back in. Scores are of other scenes.

# %%
words = vlsae.world.concepts()["object"]
data = SplicedModel(model, drawn[:64], words, "vision.-3.resid_post", templates=("{}",))
own = {"n_latents": 256, "k": 8, "steps": 40, "batch_size": 512, "lr": 6e-3, "warmup_steps": 5, "progress": False}
local = vlsae.train(data, "topk", **own)
output = vlsae.train(data, "topk", objectives="end_to_end", dead_policy="none", **own)
both = vlsae.train(data, "topk", objectives="end_to_end", downstream=0.02, dead_policy="none", **own)
others = SplicedModel(model, vlsae.world.scenes(32, seed=7), words, "vision.-3.resid_post", templates=("{}",))
print("KL of the class probabilities, in nats")
held_out, _ = next(others.shuffled(10_000))
seen, _ = next(data.shuffled(10_000))
for name, sae in {"local": local, "end to end": output, "with later layers": both}.items():
    with torch.no_grad():
        unseen_kl = output_kl(others.logits, others.spliced(sae(held_out))[0])
        seen_kl = output_kl(data.logits, data.spliced(sae(seen))[0])
    ev = reconstruction(sae, held_out)["ev_centred"].value
    print(f"{name:>18}: {seen_kl:.3f} on scenes of the training, {unseen_kl:.3f} on others; EV {ev:.3f} on others")

# %% [markdown]
# On the output alone, 64 scenes are learnt by heart: on other scenes the classes fit worse than after local training. The
# later layers ask for much more than a class a scene; with them, less is lost of what the model reads than by training on
# reconstruction, at a lower explained variance.
#
# ## Where to go on
#
# `vlsae evaluate` trains fourteen families at equal sparsity on the tiny CLIP and scores them against the truth of its
# scenes and against baselines: one table, one figure, in one page. `vlsae train --preset` has the published recipes.
