"""The embedded CLIP: a real open_clip folder, equal in transformers, and as good as its card says."""

import json

import numpy as np
import open_clip
import pytest
import torch

from vlsae.world import scenes, tiny_clip
from vlsae.world.clip_data import make_batch, patch_coverage, patch_owners
from vlsae.world.clip_losses import every_positive_loss, text_embeddings, vision_tokens
from vlsae.world.evaluate_clip import Evaluator
from vlsae.world.muon import orthogonalise


@pytest.fixture(scope="module", params=tiny_clip.FOLDERS)
def evaluator(request):
    return Evaluator(tiny_clip.FOLDERS[request.param])


@pytest.fixture(params=tiny_clip.FOLDERS)
def model(request):
    return request.getfixturevalue(request.param)


def test_opens_by_open_clips_own_factory():
    source = f"local-dir:{tiny_clip.FOLDER}"
    model, preprocess = open_clip.create_model_from_pretrained(source)
    tokens = open_clip.get_tokenizer(source)(["a red cat", "a photo of a small blue bus on a green background"])
    assert tokens.shape == (2, tiny_clip.CONTEXT_LENGTH)
    image = preprocess(scenes(1)[0].image)
    assert model.encode_image(image[None]).shape == (1, 192)
    assert model.encode_text(tokens).shape == (2, 192)
    assert sum(p.numel() for p in model.parameters()) < 4e6
    assert sum(f.stat().st_size for f in tiny_clip.FOLDER.iterdir()) <= 15e6


def test_the_second_is_another_architecture(tiny, tiny16):
    assert (tiny16.spec, tiny16.patch_grid, len(tiny16.blocks("vision"))) == ("tiny16", (4, 4), 4)
    assert (tiny.patch_grid, len(tiny.blocks("vision"))) == ((8, 8), 6)
    assert tiny16.tokens(scenes(1)).shape == (1, 17, 104)
    assert sum(f.stat().st_size for f in tiny_clip.FOLDERS["tiny16"].iterdir()) <= 1.6e6
    for name, folder in tiny_clip.FOLDERS.items():
        assert json.loads((folder / "open_clip_config.json").read_text()) == tiny_clip.config(name)
    with pytest.raises(ValueError, match="architecture='small' is unknown; use one of tiny, tiny16"):
        tiny_clip.build(0, "small")


def test_equals_its_transformers_conversion(model):
    """Same weights, another implementation: float32 rounding over six blocks stays below 1e-5 of unit vectors."""
    hf = tiny_clip.to_transformers(model.model, model.spec)
    pixels = model.pixels(scenes(8, seed=1))
    ids = model.tokenize([s.caption for s in scenes(8, seed=1)])
    with torch.no_grad():
        out = hf(input_ids=ids, pixel_values=pixels, attention_mask=(ids != 0).long())
        ours = model.model(pixels, ids)
    assert (out.image_embeds - ours[0]).abs().max() < 1e-5
    assert (out.text_embeds - ours[1]).abs().max() < 1e-5


def test_training_forward_equals_the_models_own(model):
    """With all patches kept, the training script's token path and cut text tower are open_clip's."""
    drawn = scenes(4, seed=2)
    pixels = torch.from_numpy(np.stack([s.pixels for s in drawn]))
    with torch.no_grad():
        last = vision_tokens(model.visual, pixels, torch.arange(len(model.token_roles) - 1).expand(4, -1))[1]
        image = torch.nn.functional.normalize(model.visual.ln_post(last[:, 0]) @ model.visual.proj, dim=-1)
        text = text_embeddings(model.model, model.tokenize(["a red cat", "an owl left of a bus"]))
    assert (image - model.encode_image(drawn)).abs().max() < 1e-5
    assert (text - model.encode_text(["a red cat", "an owl left of a bus"])).abs().max() < 1e-5


def test_batches_are_a_function_of_their_arguments():
    a, b = make_batch(0, 7, 200_000, 400_000, 4), make_batch(0, 7, 200_000, 400_000, 4)
    assert np.array_equal(a.pixels, b.pixels)
    assert a.captions == b.captions
    assert np.array_equal(a.keep, b.keep)


def test_patches_of_any_size_show_an_object_from_the_same_ink():
    """17 pixels of one object inside a patch of 8, and so inside a patch of 16; with 16 none of them shows it."""
    masks = np.zeros((2, 64, 64), bool)
    masks[0, 8:12, 8:12] = masks[1, 40:44, 40:44] = True
    masks[0, 12, 8] = True
    for grid, patch in ((8, 9), (4, 0)):
        owners = patch_owners(patch_coverage(masks, grid), np.array([7, 3]))
        assert owners[patch] == 7
        assert (np.delete(owners, patch) == -1).all()


def test_every_positive_loss_closed_form():
    """Two positives at logit a, two negatives at logit b: each term is softplus(ln 2 + b - a)."""
    logits = torch.tensor([[2.0, 2.0, -1.0, -1.0]])
    expected = torch.nn.functional.softplus(torch.tensor(np.log(2) - 3.0)).float()
    assert torch.allclose(every_positive_loss(logits, torch.tensor([[1.0, 1.0, 0.0, 0.0]])), expected, atol=1e-6)


def test_muon_direction_is_orthogonal():
    """Five quintic steps bring singular values above 1e-2 of the norm into [0.65, 1.25] (Jordan et al. 2024)."""
    matrix = torch.randn(3, 24, 60, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrix))
    assert values.min() > 0.65
    assert values.max() < 1.25
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    alignment = (orthogonalise(matrix) * (u @ v)).sum((1, 2)) / 24
    assert alignment.min() > 0.7


@pytest.mark.parametrize("architecture", tiny_clip.ARCHITECTURES)
def test_train_resumes_to_the_same_weights(tmp_path, architecture):
    """Three steps at once, or one and then the rest after a restart."""
    from vlsae.world import train_clip

    torch.set_num_threads(1)
    whole = train_clip.train(tmp_path / "a", 12, batch_size=4, architecture=architecture)
    train_clip.train(tmp_path / "b", 4, schedule_images=12, batch_size=4, architecture=architecture)
    parts = train_clip.train(tmp_path / "b", 12, batch_size=4, architecture=architecture)
    torch.set_num_threads(2)
    assert (whole / "open_clip_model.safetensors").read_bytes() == (parts / "open_clip_model.safetensors").read_bytes()
    written = json.loads((parts / "open_clip_config.json").read_text())
    assert written["model_cfg"]["vision_cfg"]["width"] == tiny_clip.ARCHITECTURES[architecture]["vision"]["width"]


def test_scores_of_the_card_hold(evaluator):
    """A smaller run than the card's: 400 scenes, so 4 standard errors below the card are allowed."""
    card = json.loads((evaluator.folder / "scores.json").read_text())
    described = (evaluator.folder / "README.md").read_text()
    assert all(f"| {name} | {value:.4f} |" in described for name, value in card.items())

    def least(name: str, n: int) -> float:
        p = card[name]
        return p - 4 * np.sqrt(max(p * (1 - p), 1e-3) / n)

    assert evaluator.single(400, styles="seen") >= least("object accuracy, free positions", 400)
    assert evaluator.single(400, "background", styles="seen") >= least("background accuracy", 400)
    assert evaluator.single(400, "color", styles="seen") >= least("colour accuracy", 400)
    assert evaluator.recall(300, 2) >= least("object recall among the top 2 words, 2 objects", 600)
    assert evaluator.recall(200, 4) >= least("object recall among the top 4 words, 4 objects", 800)
