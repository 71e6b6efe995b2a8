"""The commands on real photographs through full-size CLIPs built from their published configurations.

Only the weights stand between this and the real thing: they are random here.
"""

import json

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from tests.backbones.models import hf_tokenizer
from vlsae.cli import main

PHOTOS = ("astronaut", "chelsea", "coffee", "rocket", "camera", "coins", "page", "brick", "grass", "gravel")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twelve photographs that scikit-image and scikit-learn ship, of many shapes, and one broken file."""
    import skimage.data
    from sklearn.datasets import load_sample_images

    folder = tmp_path_factory.mktemp("photos")
    for i, name in enumerate(PHOTOS):
        picture = Image.fromarray(np.asarray(getattr(skimage.data, name)()))
        (folder / ("scenes" if i < 4 else "textures")).mkdir(exist_ok=True)
        picture.save(folder / ("scenes" if i < 4 else "textures") / f"{name}.png")
    for i, pixels in enumerate(load_sample_images().images):
        Image.fromarray(pixels).save(folder / "scenes" / f"sklearn{i}.jpg")
    (folder / "scenes" / "broken.jpg").write_bytes(b"no photograph")
    return folder


def _open_clip_folder(arch, folder):
    torch.manual_seed(0)
    model = open_clip.create_model(arch)
    folder.mkdir()
    from safetensors.torch import save_file

    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    config = {"model_cfg": open_clip.get_model_config(arch), "preprocess_cfg": model.visual.preprocess_cfg}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return str(folder)


def _hf_folder(patch_size, folder):
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    torch.manual_seed(0)
    words = hf_tokenizer().vocab_size
    text = {"eos_token_id": words - 1, "bos_token_id": 2, "pad_token_id": 0}
    CLIPModel(CLIPConfig(vision_config={"patch_size": patch_size}, text_config=text)).save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)
    hf_tokenizer().save_pretrained(folder)
    return str(folder)


MODELS = {
    "open_clip ViT-B-32": (lambda f: _open_clip_folder("ViT-B-32", f / "m"), 49),
    "open_clip ViT-B-16": (lambda f: _open_clip_folder("ViT-B-16", f / "m"), 196),
    "transformers ViT-B-32": (lambda f: _hf_folder(32, f / "m"), 49),
    "transformers ViT-B-16": (lambda f: _hf_folder(16, f / "m"), 196),
}


QUICK = ("open_clip ViT-B-32", "transformers ViT-B-16")  # one a library and a patch size; the others are slow tests


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
)
def test_extract_train_stats_heatmap_report(name, photos, tmp_path, capsys):
    build, n_patches = MODELS[name]
    model, run = build(tmp_path), tmp_path / "run"

    def vlsae(*arguments) -> dict:
        assert main([str(a) for a in arguments] + ["--json"]) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    store = vlsae("extract", photos, "--model", model, "--out", run / "activations", "--batch-size", 4)
    assert (store["n_images"], store["n_tokens"], store["d"], store["n_skipped"]) == (12, n_patches, 768, 1)
    data = ("--data", run / "activations")
    trained = vlsae("train", *data, "--out", run / "dictionary", "--n-latents", 256, "--k", 8, "--steps", 40,
                    "--batch-size", 256, "--input-transform", "sqrt_d")  # fmt: skip
    assert trained["l0"] <= 8
    dictionary = ("--dictionary", run / "dictionary")
    assert 0 < vlsae("stats", *data, *dictionary, "--out", run / "statistics")["alive"] <= 256
    picture = run / "heat.png"
    heat = vlsae("heatmap", photos / "scenes" / "chelsea.png", *dictionary, "--latent", 3, "--out", picture)
    assert heat["latents"] == [3]
    width, height = Image.open(photos / "scenes" / "chelsea.png").size
    assert Image.open(picture).size == (width, height + 36)  # the photograph and the printed scale below
    (run / "words.txt").write_text("cat\ndog\nphoto\nbus\n")
    page = vlsae("report", *data, *dictionary, "--statistics", run / "statistics", "--out", run / "report.html",
                 "--words", run / "words.txt")  # fmt: skip
    html = (run / "report.html").read_text(encoding="utf-8")
    assert page["report"] == str(run / "report.html")
    assert html.count("<article") > 0
    assert "12 images" in html
