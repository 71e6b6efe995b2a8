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
# # What did adaptation change?
#
# A CLIP tuned on a few images a class is more accurate. Did it learn new concepts, or does it read the old ones in another
# way? `vlsae.compare` answers by number: one dictionary, the same images, both models.
#
# The task: ten objects drawn in a style that the embedded tiny CLIP never saw.

# %%
import warnings

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML, Image

import vlsae
from vlsae.adaptation.comparison.joint import joint_tokens
from vlsae.adaptation.tiny import MAPLE_FOLDER, TEMPLATES, few_shot_task
from vlsae.demo_adaptation import SITE
from vlsae.report import comparison_figures as figures
from vlsae.world import scenes
from vlsae.world.clip_data import WORDS, presence

warnings.filterwarnings("ignore", message="IProgress not found")  # of tqdm, where ipywidgets is missing
plt.rcParams.update({"figure.dpi": 110, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})

model = vlsae.load_model("tiny")
train, train_labels, names = few_shot_task(240, seed=1)
test, labels, _ = few_shot_task(120, seed=2)
quiet = {"class_names": names, "progress": False}
accuracy = float((model.zero_shot(test, names, TEMPLATES).argmax(1).numpy() == np.array(labels)).mean())
f"tiny CLIP, untouched: {accuracy:.3f} of {len(test)} scenes; chance {1 / len(names):.2f}"

# %% [markdown]
# ## 1. Texts alone: CoOp
#
# CoOp learns four vectors in front of the class name and touches nothing else. Whatever it gains is remapping, and the
# comparison has to say so: every image has the same latents in both models.
#
# The dictionary is trained on tokens of this very model; it needs no labels.

# %%
recipe = {"n_latents": 512, "k": 12, "steps": 250, "batch_size": 1024, "lr": 2e-3, "input_transform": "sqrt_d",
          "decay": 0.4, "progress": False}  # fmt: skip
maple = vlsae.load_adapted(model, MAPLE_FOLDER)
sae = vlsae.train(joint_tokens([model, maple], train, SITE, progress=False), "topk", **recipe)

coop = vlsae.adapt(model, train, "coop", labels=train_labels, n_ctx=4, epochs=30, **quiet)
against = {"labels": labels, "templates": TEMPLATES, "site": SITE, "masks": (1, 10, 100), **quiet}
splice = vlsae.SpLiCE(model, "tiny", progress=False)
found = vlsae.compare(model, coop, sae, test, curves=False, splice=splice, **against)
print(found.summary())
print("overlap of an image's top 10 latents:", found.overlap("image", 10).value, "| changed:", found.changed_latents())
for found_class in found.class_concepts[:3]:
    before, after = (", ".join(word for word, _ in side[:4]) for side in (found_class.before, found_class.after))
    print(f"{found_class.name:>8}: {before}  ->  {after}   cosine {found_class.cosine:.2f}")

# %% [markdown]
# ## 2. Both towers: MaPLe
#
# The MaPLe that comes with vlsae has prompts in both towers, so patches can change. First the question whether one dictionary
# fits both models at all; it was trained on tokens of both.

# %%
found = vlsae.compare(model, maple, sae, test, **against)
print(found.validity.verdict)
print(found.summary())

# %% [markdown]
# Where the gain comes from: each image runs through one model up to the dictionary's site and through the other from there on.

# %%
metrics = found.gain_result.metrics
parts = {"whole gain": "gain", "through the latents": "latents", "through what follows them": "remapping"}
Image(
    figures.gain_bars({label: (metrics[k].value, *metrics[k].ci) for label, k in parts.items()}, len(test)), width=700
)

# %%
Image(figures.overlap_curves(found.overlaps), width=760)

# %% [markdown]
# Accuracy while only the first k latents of a class are kept, or while they are removed. The latents that the base ranks
# first carry the adapted model, too.

# %%
Image(figures.masking_plot(found.curves, sae.n_latents), width=860)

# %% [markdown]
# ## 3. A shortcut
#
# Now every training scene has the background colour that is tied to its class, and all weights of the vision tower are
# tuned. On such scenes the result is nearly perfect; on scenes with other grounds it is not. Which latents grew?

# %%
style = {"n_objects": (1.0, 0.0, 0.0, 0.0), "styles": "held_out"}
number = lambda drawn: [names.index(scene.objects[0].name) for scene in drawn]  # noqa: E731
tied = scenes(160, seed=3, spurious=1.0, **style)
tuned = vlsae.adapt(model, tied, "full", labels=number(tied), templates=TEMPLATES, shots=8, lr=1e-3, epochs=5,
                    batch_size=16, warm_up_lr=0.0, **quiet)  # fmt: skip
for ground, drawn in (("tied grounds", scenes(120, seed=4, spurious=1.0, **style)), ("any ground", test)):
    right = [
        float((m.zero_shot(drawn, names, TEMPLATES).argmax(1).numpy() == np.array(number(drawn))).mean())
        for m in (model, tuned)
    ]
    print(f"{ground:>12}: base {right[0]:.3f}, tuned {right[1]:.3f}")

# %%
sae = vlsae.train(joint_tokens([model, tuned], train, SITE, progress=False), "topk", **recipe)
found = vlsae.compare(model, tuned, sae, test, curves=False, **against)
print(found.summary())

# %% [markdown]
# What the latents that grew most respond to in the tuned model, by their correlation with every true word of the scenes:

# %%
truth = np.stack([presence(scene.labels) for scene in test])
z = found.aggregates[1].image.toarray().astype(float)
grown = found.examples(12)["Gained or amplified in the adapted model"]
rows = []
for latent in grown:
    with np.errstate(invalid="ignore", divide="ignore"):
        r = np.nan_to_num([np.corrcoef(z[:, latent], word)[0, 1] for word in truth.T])
    before, after = (a.dataset[latent] / len(test) for a in found.aggregates)
    rows.append(f"<tr><td>#{latent}<td>{before:.2f}<td>{after:.2f}<td>{WORDS[r.argmax()]}<td>{r.max():.2f}")
HTML("<table><tr><th>latent<th>tokens an image, base<th>tuned<th>word<th>correlation" + "".join(rows) + "</table>")

# %% [markdown]
# Mostly grounds: what was learned is visible without a label of the shortcut. `vlsae compare BASE ADAPTED --data folder/`
# writes all of this, with heatmaps of both models side by side, as one page.
