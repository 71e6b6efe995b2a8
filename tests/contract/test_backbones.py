"""What every backbone must do."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.backbones.models import BUILDERS


@pytest.fixture(scope="module", params=BUILDERS)
def model(request):
    return BUILDERS[request.param]()


@pytest.fixture(scope="module")
def photos():
    rng = np.random.default_rng(0)
    sizes = [(96, 64), (64, 96), (50, 50)]
    return [Image.fromarray(rng.integers(0, 255, (h, w, 3), np.uint8)) for w, h in sizes]


def test_embeddings_are_unit_and_batching_does_not_matter(model, photos):
    """Rows of a batch are computed alone; another batch size may only change the rounding."""
    embedded = model.encode_image(photos)
    assert embedded.dtype == torch.float32
    assert torch.allclose(embedded.norm(dim=1), torch.ones(3), atol=1e-5)
    assert torch.allclose(embedded, model.encode_image(photos, batch_size=1), atol=1e-5)


def test_text_and_zero_shot(model, photos):
    if not model.has_text:
        with pytest.raises(ValueError, match="no text tower"):
            model.encode_text(["a cat"])
        with pytest.raises(ValueError, match="no text tower"):
            model.zero_shot(photos, ["cat", "dog"])
        return
    text = model.encode_text(["a red cat", "a small blue bus on a green background"])
    assert text.shape[0] == 2
    assert text.shape[1] == model.encode_image(photos).shape[1]
    assert torch.allclose(text.norm(dim=1), torch.ones(2), atol=1e-5)
    assert torch.allclose(text[:1], model.encode_text(["a red cat"]), atol=1e-5)
    p = model.zero_shot(photos, ["cat", "dog", "bus"], templates=["a {}", "a photo of a {}"])
    assert p.shape == (3, 3)
    assert torch.allclose(p.sum(1), torch.ones(3), atol=1e-5)
    with pytest.raises(ValueError, match="give a list"):
        model.encode_text("a cat")


def test_tokens_have_roles_and_a_grid(model, photos):
    tokens = model.tokens(photos, "vision.-1.resid_post")
    rows, columns = model.patch_grid
    assert tokens.shape[:2] == (3, len(model.token_roles))
    assert model.token_roles.count("patch") == rows * columns
    assert model.token_roles[-rows * columns :] == ["patch"] * (rows * columns)


def test_capture_equals_the_modules_own_output(model, photos):
    """The captured residual is what the block returns, seen by an independent hook."""
    own = []
    handle = model.blocks("vision")[1].register_forward_hook(lambda _m, _a, out: own.append(out))
    with torch.no_grad(), model.capture("vision.1.resid_post") as found:
        model.forward_image(model.pixels(photos))
    handle.remove()
    own = own[0][0] if isinstance(own[0], tuple) else own[0]
    assert torch.equal(found["vision.1.resid_post"], own)
    assert torch.equal(model.tokens(photos, "vision.1.resid_post"), own)
    assert torch.equal(model.tokens(photos, "vision.2.resid_pre"), own)


def test_identity_edits_are_bit_exact_everywhere(model, photos):
    pixels = model.pixels(photos)
    with torch.no_grad():
        before = model.forward_image(pixels)
        for site in [s for s in model.sites() if s.startswith("vision")]:
            with model.edit(site, lambda x: x):
                assert torch.equal(model.forward_image(pixels), before), site
            with model.edit(site, lambda x: x.clone()):
                assert torch.equal(model.forward_image(pixels), before), site


def test_edits_act_and_end(model, photos):
    pixels = model.pixels(photos)
    with torch.no_grad():
        before = model.forward_image(pixels)
        for site in [s for s in model.sites() if s.startswith("vision")]:
            with model.edit(site, torch.zeros_like):
                assert not torch.equal(model.forward_image(pixels), before), site
            assert torch.equal(model.forward_image(pixels), before), site


def test_text_sites(model):
    if not model.has_text:
        return
    texts = ["a red cat", "a bus"]
    before = model.encode_text(texts)
    for site in [s for s in model.sites() if s.startswith("text")]:
        with model.edit(site, lambda x: x.clone()):
            assert torch.equal(model.encode_text(texts), before), site
    assert model.tokens(texts, "text.-1.resid_post").shape[0] == 2


def test_hooks_vanish_on_exceptions(model, photos):
    pixels = model.pixels(photos)
    with torch.no_grad():
        before = model.forward_image(pixels)

        def broken(_x):
            raise RuntimeError("inside the edit")

        for site in ("vision.1.resid_post", "vision.pooled"):
            with pytest.raises(RuntimeError, match="inside the edit"), model.edit(site, broken):
                model.forward_image(pixels)
        assert torch.equal(model.forward_image(pixels), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.blocks("vision"))


def test_edit_sees_before_later_hooks(model, photos):
    """Prepended: a hook that was there first receives the edited value."""
    seen = []
    handle = model.blocks("vision")[0].register_forward_hook(lambda _m, _a, out: seen.append(out))
    with model.edit("vision.0.resid_post", torch.zeros_like), torch.no_grad():
        model.forward_image(model.pixels(photos))
    handle.remove()
    value = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    assert value.abs().max() == 0


def test_a_batch_may_grow_at_a_residual_site(model, photos):
    """Several edits in one pass give what each gives alone."""
    edits = [lambda x: x, torch.zeros_like, lambda x: 2 * x]
    pixels = model.pixels(photos)
    for site in ("vision.0.resid_post", "vision.1.resid_pre", "vision.pooled"):
        with torch.no_grad(), model.edit(site, lambda x: torch.cat([fn(x) for fn in edits])):
            together = model.forward_image(pixels)
        for fn, part in zip(edits, together.chunk(len(edits)), strict=True):
            with torch.no_grad(), model.edit(site, fn):
                assert torch.allclose(part, model.forward_image(pixels), atol=1e-5)
    with pytest.raises(ValueError, match="The edit at"), model.edit("vision.0.mlp_out", lambda x: torch.cat([x, x])):
        model.encode_image(photos)


def test_wrong_shape_and_wrong_sites(model, photos):
    with pytest.raises(ValueError, match=r"return \(3, "), model.edit("vision.0.resid_post", lambda x: x[:, :1]):
        model.encode_image(photos)
    with pytest.raises(ValueError, match="but this vision tower has"):
        model.tokens(photos, "vision.99.resid_post")
    with pytest.raises(ValueError, match="is not a site"):
        model.tokens(photos, "vision")
    with pytest.raises(ValueError, match="does not exist"):
        model.tokens(photos, "vision.0.attn_pattern")


def test_extraction_stops_after_the_last_needed_block(model, photos):
    """Early exit: the block after the site never runs, and with several sites the last one decides."""
    ran = []
    handles = [
        b.register_forward_hook(lambda _m, _a, _o, i=i: ran.append(i)) for i, b in enumerate(model.blocks("vision"))
    ]
    both = model.tokens_at(photos, ["vision.0.resid_post", "vision.1.mlp_out"])
    for handle in handles:
        handle.remove()
    assert set(both) == {"vision.0.resid_post", "vision.1.mlp_out"}
    assert 2 not in ran
    assert torch.equal(both["vision.0.resid_post"], model.tokens(photos, "vision.0.resid_post"))


def test_pooled_site_is_the_embedding(model, photos):
    pooled = model.tokens(photos, "vision.pooled")[:, 0]
    assert torch.allclose(torch.nn.functional.normalize(pooled, dim=-1), model.encode_image(photos), atol=1e-6)


def test_readout_of_the_last_class_token_is_the_embedding(model, photos):
    """Where a class token is pooled, reading it out from the last block must give the image embedding."""
    if "cls" not in model.token_roles:
        return
    last = model.tokens(photos, "vision.-1.resid_post")[:, 0]
    with torch.no_grad():
        read = torch.nn.functional.normalize(model.readout(last), dim=-1)
    assert torch.allclose(read, model.encode_image(photos), atol=1e-5)


def test_a_painted_patch_moves_its_own_embedding_most(model):
    """Geometry against the model's own preprocessing, on non-square photos: paint a patch, see which token changes."""
    rows, columns = model.patch_grid
    side = model.geometry.height // rows
    for size in [(10 * side, 7 * side), (5 * side, 9 * side)]:
        grey = Image.new("RGB", size, (127, 127, 127))
        for patch in (0, columns - 1, rows * columns // 2, rows * columns - 1):
            x0, y0, x1, y1 = model.geometry.patch_box(patch, size)
            painted = grey.copy()
            inset_x, inset_y = (x1 - x0) / 5, (y1 - y0) / 5
            painted.paste(
                (255, 0, 0), tuple(round(v) for v in (x0 + inset_x, y0 + inset_y, x1 - inset_x, y1 - inset_y))
            )
            change = (model.tokens([painted], "vision.0.resid_pre") - model.tokens([grey], "vision.0.resid_pre"))[0]
            patches = [i for i, role in enumerate(model.token_roles) if role == "patch"]
            assert int(change[patches].norm(dim=-1).argmax()) == patch, (model.spec, size, patch)


def test_weight_hash_names_the_weights(model):
    from copy import copy

    other = copy(model)
    other.__dict__.pop("weight_hash", None)
    assert other.weight_hash == model.weight_hash
    with torch.no_grad():
        parameter = next(model.model.parameters())
        parameter.view(-1)[0] += 1
        other.__dict__.pop("weight_hash", None)
        changed = other.weight_hash
        parameter.view(-1)[0] -= 1
    assert changed != model.weight_hash
