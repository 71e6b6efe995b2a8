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
# # Embeddings in words: SpLiCE
#
# CLIP puts images and texts into one space. SpLiCE ([arXiv 2402.10376](https://arxiv.org/abs/2402.10376)) writes an
# image's embedding as a sum of few words of a vocabulary, with weights that are never negative. This notebook shows what
# comes out, how far it can be trusted, and what it is good for.
#
# Everything runs offline on the embedded tiny CLIP and on drawn scenes. The tiny CLIP knows nothing of photographs; its
# point is that we know exactly what is in every scene, so that every claim can be checked. It takes about half a minute.

# %%
import warnings

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image
from sklearn.linear_model import LogisticRegression

from vlsae.report.splice import picture_chart
from vlsae.splice import SpLiCE, audit_edit, build_vocabulary, objective, solve, trade_off
from vlsae.splice.audits import ConceptIndex, class_lift, drift, group_accuracy, profile, rank_spurious
from vlsae.splice.audits.table import aligned
from vlsae.splice.embedding import unit
from vlsae.world import concepts, counterfactual, scenes

warnings.filterwarnings("ignore", message="IProgress not found")  # of tqdm, where ipywidgets is missing

# Okabe and Ito's colours, which can be told apart with any colour vision
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#57606a"
plt.rcParams.update({"figure.dpi": 110, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# ## 1. An image in words
#
# `SpLiCE(model, vocabulary)` holds a model, its words as directions, and the means that are taken away. Here both are
# `"tiny"`: the embedded CLIP and the 172 words of its world.

# %%
sp = SpLiCE("tiny", "tiny", progress=False)
print(f"{len(sp.space.vocabulary)} concepts in {sp.space.embeddings.shape[1]} dimensions, l1 = {sp.l1}")

# %% [markdown]
# 400 scenes of two to four objects, which the model was not trained on. We embed them once; most of what follows uses
# these embeddings again.

# %%
crowded = list(scenes(400, seed=2027, styles="seen", n_objects=(0, 1, 1, 1)))
found = sp.decompose(crowded)
texts = found.texts

# %% [markdown]
# One scene as a table: concepts, weights, and how good the sum is.

# %%
SHOWN = 16
print(crowded[SHOWN].caption, end="\n\n")
print(found.table(SHOWN))


# %% [markdown]
# The same as a picture. Words that are not true of the scene are orange and marked.


# %%
def true_words(scene):
    """All words of the vocabulary that hold for a scene."""
    return {word for kind, words in scene.labels.items() if kind != "font" for word in words}


Image(picture_chart(crowded[SHOWN].image, found, SHOWN, true_words(crowded[SHOWN])), width=800)

# %% [markdown]
# ## 2. Why centring
#
# Images and texts of a CLIP lie in two different regions of the space: the modality gap. So every image has a cosine with
# every text that says nothing about either. SpLiCE takes the mean away from both. The mean cosine of images with words
# that are *not* true of them should be near 0:

# %%
is_true = np.array([[text in true_words(scene) for text in texts] for scene in crowded])
image_mean = sp.mean("image", found.embeddings)
centred = unit(found.embeddings - image_mean)
rows = []
for name, cosines in (
    ("as they come", found.embeddings @ sp.space.embeddings.T),
    ("both centred", centred @ sp.space.atoms.T),
):
    rows.append((name, f"{cosines[~is_true].mean():+.3f}", f"{cosines[is_true].mean():+.3f}"))
print(f"{is_true.size:,} pairs of {len(crowded)} images and {len(texts)} words")
print(aligned(["embeddings", "mean cosine, word not true", "word true"], rows))
print(f"\ncosine of the mean image and the mean word: {unit(image_mean) @ unit(sp.space.mean):+.3f}")

# %% [markdown]
# The same scene with `image_mean=False`, where only the words are centred:

# %%
uncentred = SpLiCE(sp.model, "tiny", image_mean=False, progress=False).decompose(found.embeddings)
Image(picture_chart(crowded[SHOWN].image, uncentred, SHOWN, true_words(crowded[SHOWN])), width=800)

# %% [markdown]
# One scene shows little, so we count: how many of the objects are among the eight strongest words (recall), and how many of
# these words are true (precision: objects, their groups, colours and sizes, and the ground).

# %%
TOP = 8


def recall_and_precision(scores):
    """Object recall and precision of the best `TOP` words with a positive score, and the number of words."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :TOP]
    kept = [[texts[j] for j in row if score[j] > 0] for row, score in zip(order, scores)]
    recall = [name in words for words, scene in zip(kept, crowded) for name in scene.labels["object"]]
    right = [word in true_words(scene) for words, scene in zip(kept, crowded) for word in words]
    return f"{np.mean(recall):.3f}", f"{np.mean(right):.3f}", len(right)


rows = []
for mean in (None, False):
    for l1 in (0.2, 0.25, 0.3, 0.4):
        one = SpLiCE(sp.model, "tiny", l1=l1, image_mean=mean, progress=False).decompose(found.embeddings)
        name = "centred" if mean is None else "image_mean=False"
        rows.append((name, f"{l1:.2f}", f"{one.l0.mean():.1f}", *recall_and_precision(one.weights.toarray())))
print(f"n = {len(crowded)} scenes with {sum(len(scene.objects) for scene in crowded)} objects")
print(aligned(["images", "l1", "concepts", "object recall", "precision", "words"], rows))

# %% [markdown]
# At the same penalty centring brings more of the objects to the top. Without it more words for colours, sizes and grounds
# get in, so precision is higher. On this model centring is therefore a choice and not a must, and there is a reason:
# the tiny CLIP was trained with a sigmoid loss against all words, which pushes what is not true below 0. The softmax loss
# of most CLIPs only compares; nothing in it says where 0 is. Measure it on your own model as above.
#
# The image mean of the tiny CLIP comes with it. For a model without a known mean take one with
# `ModalityMean.of(model, images)`.

# %% [markdown]
# ## 3. The certificate
#
# The weights minimise `||z - wC||² + l1 ||w||₁` over `w ≥ 0`. This is a convex problem, so a solver can prove how good
# its answer is: the *duality gap* is an upper bound on how much better any other weights could be. It is computed in
# double precision and comes with every decomposition. What it does not say is whether the words are true of the image.
#
# Another solver must come to the same objective, up to the gaps.

# %%
rows, reference = [], None
for method in ("active_set", "coordinate_descent"):
    codes = solve(centred, sp.space.atoms, l1=sp.l1, method=method)
    value = objective(centred, sp.space.atoms, codes.weights, sp.l1)
    reference = value if reference is None else reference
    difference = np.abs(value - reference).max()
    rows.append((method, f"{value.mean():.8f}", f"{difference:.1e}", f"{codes.gap.max():.1e}"))
print(f"{len(centred)} scenes")
print(aligned(["solver", "mean objective", "largest difference", "largest gap"], rows))

# %% [markdown]
# ## 4. Against the truth
#
# Recall and precision again, on 300 of the scenes, now beside the plain alternative: the eight words with the largest
# cosine, centred alike. SpLiCE gives fewer than eight words where fewer have a weight.

# %%
N = 300
rows = [("cosine ranking", *recall_and_precision(centred[:N] @ sp.space.atoms.T))]
for l1 in (0.15, 0.2, 0.25, 0.3, 0.4):
    sparse = SpLiCE(sp.model, "tiny", l1=l1, progress=False).decompose(found.embeddings[:N])
    rows.append((f"SpLiCE, l1 = {l1}", *recall_and_precision(sparse.weights.toarray())))
print(f"n = {N} scenes with {sum(len(scene.objects) for scene in crowded[:N])} objects")
print(aligned(["", "object recall", "precision", "n words"], rows))

# %% [markdown]
# The cosine judges every word by itself; SpLiCE asks what a word adds to the others. It finds as many of the objects, and
# more of its words are true, also where it gives as many words as the ranking.

# %% [markdown]
# ## 5. What a penalty buys
#
# A larger `l1` gives fewer concepts and a coarser embedding. `trade_off` decomposes with several penalties and scores what
# is put together again: cosine with the embedding, zero-shot accuracy among the 136 objects, and retrieval of each scene's
# own caption. As many random directions in place of the words are the control. Scenes of one object make the class clear.

# %%
single = list(scenes(400, seed=77, styles="seen", n_objects=(1, 0, 0, 0)))
found_single = sp.decompose(single)
objects = concepts()["object"]
curve = trade_off(
    sp, found_single.embeddings, l1s=(0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5),
    labels=[objects.index(scene.objects[0].name) for scene in single], class_names=objects,
    captions=[scene.caption for scene in single],
)  # fmt: skip
print(curve)

# %%
fig, panels = plt.subplots(1, 3, figsize=(9.6, 3.4), layout="constrained", sharex=True, sharey=True)
kinds = {
    "cosine": "cosine with the embedding",
    "zero_shot": f"zero-shot accuracy, {len(objects)} objects",
    "recall_at_1": f"own caption first of {curve.n}",
}
for ax, (kind, title) in zip(panels, kinds.items()):
    for points, color, style, name in (
        (curve.points, BLUE, "o-", "words"),
        ([p for p in curve.random if p.l0 >= 1], ORANGE, "s--", "random directions"),
    ):
        ax.plot([p.l0 for p in points], [getattr(p, kind) for p in points], style, color=color, ms=4, label=name)
    ax.axhline(getattr(curve.dense, kind), color=GREY, lw=1, ls=":", label="dense embedding")
    ax.set(xscale="log", ylim=(0, 1.04), xlabel="concepts an image (L0)")
    ax.set_xticks([3, 10, 30], ["3", "10", "30"])
    ax.minorticks_off()
    ax.set_title(title, loc="left", fontsize=9)
    ax.grid(color="#e6eaee", lw=0.7)
panels[0].legend(frameon=False, loc="lower right")
fig.suptitle(f"Reconstruction from concepts, n = {curve.n} scenes of one object", x=0.01, ha="left", fontsize=10)
plt.show()

# %% [markdown]
# With no concept at all the reconstruction is the image mean. So a cosine of about .3 means nothing here, and accuracy and
# retrieval start at chance. Random directions with less than one concept an image are left out of the figure.

# %% [markdown]
# ## 6. A class in words
#
# Label the scenes by the group of their object and ask which concepts a class has more of than the rest. Every pair is
# tested exactly (Fisher), `q` is corrected for all of them, and intervals come from a bootstrap within the classes.

# %%
lift = class_lift(found_single.weights, [scene.objects[0].group for scene in single], texts)
print(lift)

# %% [markdown]
# On top is the word of the group itself: a fifth to two thirds of its scenes have it, and next to none of the others.
# Lifts of hundreds are ratios to nearly nothing (half an image is added to each side). Colours, sizes and grounds are
# drawn independently of the object and should not stand out:

# %%
independent = {word for kind in ("color", "size", "background", "texture") for word in concepts()[kind]}
tested = [text in independent for text in lift.texts]
print(
    f"{(lift.q[:, tested] <= 0.05).sum()} of {lift.q[:, tested].size} pairs of a class and such a concept have q <= .05"
)

# %% [markdown]
# One class in more detail, by the difference of mean weights.

# %%
strongest = lift.top("food", 10, by="difference")
fig, ax = plt.subplots(figsize=(7, 3.2), layout="constrained")
middle = np.array([row.difference for row in strongest])
spread = [middle - [row.low for row in strongest], [row.high for row in strongest] - middle]
ax.barh(range(len(strongest)), middle, xerr=spread, color=BLUE, ecolor="#1b1f24", capsize=2, height=0.68)
names = [f"{row.text} ({row.prevalence:.0%} against {row.prevalence_rest:.0%})" for row in strongest]
ax.set_yticks(range(len(strongest)), names)
ax.invert_yaxis()
ax.set_xlabel("mean weight in the class minus in the rest, with its 95 % interval")
size = int(lift.sizes[lift.classes.index("food")])
ax.set_title(
    f"food: n = {size} scenes against {lift.n - size}; in brackets: share that has the concept", loc="left", fontsize=9
)
plt.show()

# %% [markdown]
# ## 7. Find and remove a spurious concept
#
# We plant a fault. In 100 training scenes animals mostly stand on green and food mostly on blue (95 %); in 600 test scenes
# the background says nothing.


# %%
def planted(n, seed, agreement):
    """Animals and food on green and blue; with this probability animals on green and food on blue."""
    rng, chosen = np.random.default_rng(seed), []
    for scene in scenes(200_000, seed=seed, n_objects=(1, 0, 0, 0), styles="seen"):  # drawn when asked for
        group, ground = scene.objects[0].group, scene.background
        if group in ("animal", "food") and ground in ("green", "blue"):
            agrees = (group == "animal") == (ground == "green")
            if rng.random() < (agreement if agrees else 1 - agreement):
                chosen.append(scene)
        if len(chosen) == n:
            return chosen


def show(chosen, titles):
    """Scenes side by side."""
    _, axes = plt.subplots(1, len(chosen), figsize=(1.6 * len(chosen), 2.3), layout="constrained")
    for ax, scene, title in zip(axes, chosen, titles):
        ax.imshow(scene.pixels)
        ax.set_title(title, fontsize=8)
        ax.set_axis_off()
    plt.show()


train, test = planted(100, 5, 0.95), planted(600, 6, 0.5)
show(train[:6], [f"{scene.objects[0].group}: {scene.objects[0].name}" for scene in train[:6]])

# %% [markdown]
# A linear probe on the embeddings looks good on average and is not good for everybody.

# %%
found_train, found_test = sp.decompose(train), sp.decompose(test)
labels = [scene.objects[0].group for scene in train]
labels_test, grounds_test = [s.objects[0].group for s in test], [s.background for s in test]
probe = LogisticRegression(C=1).fit(found_train.embeddings, labels)
print(group_accuracy(probe.predict(found_test.embeddings), labels_test, grounds_test))

# %% [markdown]
# What in the *training* scenes could mislead it? `rank_spurious` multiplies how strongly a concept goes with a class by
# how far its word is from the word for the class. It is not told that backgrounds matter.

# %%
class_words = sp.model.encode_text(sorted(set(labels))).numpy()
suspects = rank_spurious(found_train.weights, labels, texts, sp.space.embeddings, class_words)
print(suspects.table(5))

# %% [markdown]
# Both backgrounds come first. `pizza` is third: it really is food and just often among these few scenes, so a person has
# to look at the list. Now we take the two backgrounds out of the test embeddings; the probe stays as it is.

# %%
edit = audit_edit(
    sp, found_test, labels_test, grounds_test, probe.predict, remove=["green background", "blue background"]
)
print(edit)

# %% [markdown]
# The control: two concepts that have nothing to do with it.

# %%
control = audit_edit(sp, found_test, labels_test, grounds_test, probe.predict, remove=["striped", "large"])
print(control)

# %%
fig, ax = plt.subplots(figsize=(7.2, 3.2), layout="constrained")
cells = edit.before.cells
for k, (name, result, color, mark) in enumerate(
    (("before", edit.before, GREY, "o"), ("without the two backgrounds", edit.after, BLUE, "s"),
     ("without striped, large", control.after, ORANGE, "^"))
):  # fmt: skip
    accuracy = np.array([c.accuracy for c in result.cells])
    spread = [accuracy - [c.low for c in result.cells], [c.high for c in result.cells] - accuracy]
    places = np.arange(len(cells)) + 0.18 * (k - 1)
    ax.errorbar(places, accuracy, np.maximum(spread, 0), fmt=mark, color=color, capsize=3, label=name)
ax.set_xticks(range(len(cells)), [f"{c.label} on {c.group}\nn = {c.n}" for c in cells])
ax.set(ylabel="accuracy", ylim=(0.6, 1.02))
ax.grid(axis="y", color="#e6eaee", lw=0.7)
ax.set_title(f"Linear probe of {len(train)} planted scenes on {len(test)} balanced ones, with 95 % intervals",
             loc="left", fontsize=9)  # fmt: skip
fig.legend(frameon=False, loc="outside lower center", ncols=3)
plt.show()

# %% [markdown]
# ## 8. Drift
#
# Keep a profile of what a set of images contains and ask later whether new images still look like it. First with new
# scenes of the same kind:

# %%
before = profile(found_single.weights[:200], texts)
print(drift(before, found_single.weights[200:], texts).table(3))

# %% [markdown]
# Then in one of four new scenes we colour the background purple (where the object is not purple) and leave the rest as it
# was. `exit_code` is 1 then, for use in a script; on the command line it is `vlsae drift`.

# %%
rng = np.random.default_rng(8)
changed = [
    counterfactual(scene, "background", "purple")
    if rng.random() < 0.25 and "purple" not in (scene.background, scene.objects[0].color) else scene
    for scene in single[200:]
]  # fmt: skip
report = drift(before, sp.decompose(changed).weights, texts)
print(f"{sum(a is not b for a, b in zip(changed, single[200:]))} of {len(changed)} scenes were changed")
print(report)
print("exit code", report.exit_code)

# %% [markdown]
# ## 9. Find images by their concepts
#
# An index over the weights answers queries with AND, OR, NOT and parentheses; phrases go into quotes. Every hit comes with
# its reason.

# %%
index = ConceptIndex(found.weights, texts)
hits = index.query("dog AND NOT red", top=6)
print(hits)

# %%
has_dog = {i for i, scene in enumerate(crowded) if "dog" in scene.labels["object"]}
show(
    [crowded[hit.row] for hit in hits],
    [f"dog {hit.matched[0].weight:.2f}\n({'is' if hit.row in has_dog else 'not'} there)" for hit in hits],
)

# %% [markdown]
# `red` is the colour of an object; the ground has its own concepts, such as `red background`. Read the weights, not only
# the matches: a weak `dog` may be a trace of another animal. `dog:0.1` asks for a weight of at least .1. How often a hit of
# "dog" really shows a dog:

# %%
rows = []
for query in ("dog", "dog:0.05", "dog:0.1"):
    answer = set(index.query(query, top=len(index)).rows)
    rows.append((query, len(answer), len(answer & has_dog), f"{len(answer & has_dog)} of {len(has_dog)}"))
print(f"n = {len(crowded)} scenes")
print(aligned(["query", "hits", "with a dog", "dogs found"], rows))

# %% [markdown]
# ## 10. Your own words and model
#
# A vocabulary is made from captions: the most frequent words and pairs of words, without unsafe ones and without near
# synonyms in the space of the model. Files of captions work the same way, and on the command line
# `vlsae vocab build captions.txt --model ... --out words.jsonl`.

# %%
captions = [scene.caption for scene in crowded]
words = build_vocabulary(captions, sp.model, unigrams=150, bigrams=30, progress=False)
print([f"{c.text} ({c.count})" for c in words.concepts[:12]])

# %%
mine = SpLiCE(sp.model, words, progress=False).decompose(found.embeddings)
print(f"{len(words)} concepts\n{mine.table(SHOWN)}")

# %% [markdown]
# Real models go by name, photographs by folder. Not run here, since it needs the weights:
#
# ```python
# sp = SpLiCE("open_clip:ViT-B-32/laion2b_s34b_b79k", "laion", size=10_000)
# found, summary = sp.decompose_dataset(vlsae.load_images("photos/"))
# print(found.table(0), summary)
# ```
#
# * Models: `open_clip:ARCH/TAG`, `open_clip:ARCH/FILE`, `hf:ID` (CLIP and SigLIP) or a local folder.
# * Vocabularies: `"concepts-en"` is built in. `"laion"`, `"laion_bigrams"` and `"mscoco"` are SpLiCE's published lists.
#   They are downloaded once and checked; without a network, put `laion.txt`, `laion_bigrams.txt` or `mscoco.txt` into the
#   folder `splice` of `$VLSAE_CACHE` (by default `~/.cache/vlsae/splice/`). A text file with one concept a line, most
#   frequent first, or a list of strings works too.
# * Image means: SpLiCE's for CLIP RN50, ViT-B/16 and ViT-B/32 and for OpenCLIP's ViT-B/32 are fetched into the same folder.
#   For any other model take one of some thousand ordinary pictures: `vlsae mean FOLDER --model ... --out mean.json`, and
#   give it as `image_mean="mean.json"`.
# * The weights depend on model, vocabulary, means and penalty; compare only what was made with the same four.
