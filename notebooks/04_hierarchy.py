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
# # Concepts have levels
#
# An object belongs to a group, and a red object is an object. A flat dictionary has no place for that, and sparsity makes
# it worse: where a child is active, the parent's latent falls silent, because the child's atom has absorbed it. This
# notebook shows absorption where it can be computed, what nested dictionaries do about it, and how to read a tree of
# concepts off a trained dictionary.

# %%
import tempfile
import warnings

import matplotlib.pyplot as plt
import torch
from IPython.display import HTML

import vlsae
from vlsae.concepts import concept_forest, latent_statistics, name_latents
from vlsae.dictionaries.relu import ReLUDictionary
from vlsae.metrics.absorption import absorption
from vlsae.metrics.matching import best_partners
from vlsae.metrics.progressive import progressive_reconstruction
from vlsae.metrics.tree_recovery import tree_recovery
from vlsae.report.hierarchy import concept_tree
from vlsae.world import concept_tree as planted_tree
from vlsae.world import concepts

warnings.filterwarnings("ignore", message="IProgress not found")  # of tqdm, where ipywidgets is missing

BLUE = "#0072B2"  # Okabe and Ito's
plt.rcParams.update({"figure.dpi": 110, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# ## 1. Absorption in a dictionary written by hand
#
# Two directions: a parent, and a child that never comes without it. The second atom is child + α parent. For every α
# reconstruction is perfect, but the larger α, the smaller the sum of codes where both are there: from 2 to √2. So a
# sparsity penalty prefers α = 1, where the parent's latent is silent on the child.

# %%
n, d = 1000, 8
y = torch.ones(n, dtype=torch.bool)
y[500:] = False
child = torch.zeros(n, dtype=torch.bool)
child[:100] = True  # a fifth of the parent's samples
x = torch.zeros(n, d)
x[y, 0], x[child, 1] = 1.0, 1.0


def by_hand(alpha):
    """ReLU dictionary whose second atom is (child + alpha parent) / norm, and whose encoder inverts it."""
    sae, norm = ReLUDictionary(d, 2), (1 + alpha**2) ** 0.5
    with torch.no_grad():
        sae.W_dec.zero_(), sae.W_enc.zero_(), sae.b_enc.zero_(), sae.b_dec.zero_()
        sae.W_dec[0, 0], sae.W_dec[1, 0], sae.W_dec[1, 1] = 1.0, alpha / norm, 1 / norm
        sae.W_enc[0, 0], sae.W_enc[1, 0], sae.W_enc[1, 1] = 1.0, -alpha, norm
    return sae


parent = torch.eye(d)[0]
for alpha in (0.0, 0.5, 1.0):
    sae = by_hand(alpha)
    found = absorption(sae, x, y, parent, main=[0])
    codes = float(sae.encode(x).detach()[child].sum(1).mean())
    error = float((sae(x).detach() - x).abs().max())
    print(f"alpha {alpha:.1f}: error {error:.0e}, codes of a child {codes:.3f}, rate {found.rate:.2f}")

# %% [markdown]
# ## 2. A planted tree
#
# Parents with children that come only with them. The forest of a dictionary's latents puts each latent under the closest
# one that it implies: active on nearly all of its samples, more often than it, and in no later prefix.

# %%
tree = planted_tree()
x, z = tree.sample(40_000)
test, true = tree.sample(8_000, part=1)
n = len(tree.parent)
common = {"n_latents": n, "steps": 1500, "batch_size": 512, "lr": 3e-3, "progress": False}
made = {
    "flat (ReLU, L1)": vlsae.train(x, "relu", target_l0=float((z > 0).sum(1).float().mean()), **common),
    "flat (TopK)": vlsae.train(x, "topk", k=3, **common),
    "nested": vlsae.train(x, "nested_dictionary", k=3, prefixes=[int((tree.parent < 0).sum()), n], **common),
}
for name, sae in made.items():
    forest = concept_forest(sae, test, threshold=0.05)
    found = tree_recovery(forest.parent, tree.parent, best_partners(true, sae.encode(test)).numpy())["ancestor_f1"]
    print(f"{name:>16}: {(forest.parent >= 0).sum():2d} latents have a parent; F1 of pairs {found.value:.2f}, "
          f"random parents {found.baselines['random']:.2f}")  # fmt: skip

# %% [markdown]
# In the flat L1 dictionary children have swallowed their parents: nothing implies anything any more. The nested one, whose
# first latents have to explain the data alone, keeps parents that are active beside their children.
#
# ## 3. Patches of the tiny CLIP, prefix by prefix

# %%
model = vlsae.load_model("tiny")
drawn, held = vlsae.world.scenes(500, seed=1), vlsae.world.scenes(300, seed=2)
folder = tempfile.TemporaryDirectory()
site = "vision.-2.resid_post"
store = vlsae.extract(model, drawn, site, f"{folder.name}/train", progress=False)
held_store = vlsae.extract(model, held, site, f"{folder.name}/held", progress=False)
recipe = {"n_latents": 512, "k": 12, "steps": 300, "batch_size": 1024, "lr": 2e-3, "decay": 0.4, "progress": False,
          "input_transform": "sqrt_d"}  # fmt: skip
nested = vlsae.train(store, "nested_dictionary", prefixes=[32, 128, 512], **recipe)
curve = progressive_reconstruction(nested, held_store)
sizes = [level.size for level in curve]
fig, ax = plt.subplots(figsize=(5.2, 2.7), layout="constrained")
ax.plot(sizes, [level.metrics["ev_centred"].value for level in curve], "o-", color=BLUE)
ax.set(xscale="log", xlabel="latents of the prefix", ylabel="explained variance", ylim=(0, 1))
ax.minorticks_off()
ax.set_xticks(sizes, [str(size) for size in sizes])
ax.set_title(f"each prefix is a dictionary (n = {len(held_store):,} patches)", loc="left")
plt.show()

# %% [markdown]
# ## 4. The tree of its latents
#
# Open a node to see what stands below it.

# %%
statistics = latent_statistics(nested, held_store, n_top=4, progress=False)
vocabulary = [word for kind in ("object", "color", "background", "texture") for word in concepts()[kind]]
names = name_latents(model, nested, vocabulary, mean=store.mean())
forest = concept_forest(nested, held_store, min_conditional=0.5, min_lift=4)
print(
    f"{(forest.parent >= 0).sum()} of {len(forest.parent)} latents have a parent; deepest path {forest.depth.max() + 1}"
)
folder.cleanup()
HTML(concept_tree(forest, statistics, lambda i: held[i].image, names, n_trees=5, n_children=5))

# %% [markdown]
# `vlsae demo` shows this tree for a larger dictionary, scored against the true hierarchy of the scenes, group over object.
