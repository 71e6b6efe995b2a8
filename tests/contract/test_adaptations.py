"""What every registered adaptation must do, with parameters away from their start."""

import inspect
import json
from types import SimpleNamespace

import pytest
import torch

from vlsae.adaptation.adaptation import ADAPTATIONS, Adaptation, TuningBatch
from vlsae.adaptation.adapted import AdaptedBackbone
from vlsae.adaptation.checkpoint import read_adaptation
from vlsae.world import scenes

NAMES = ["cat", "fire truck", "dog"]
TEMPLATES = ("a photo of a {}", "{}")
LABELS = torch.tensor([0, 1, 2])


@pytest.fixture(scope="module", params=list(ADAPTATIONS))
def case(request, tiny):
    """A method made, prepared where it wants to be, and moved, around the tiny CLIP."""
    drawn = scenes(3, seed=4)
    before = {name: value.clone() for name, value in tiny.model.state_dict().items()}
    plain = SimpleNamespace(features=tiny.encode_image(drawn), last=tiny.tokens(drawn, "vision.-1.resid_post"))
    adaptation = ADAPTATIONS.get(request.param)(tiny, NAMES)
    if "vision" not in adaptation.changes:
        adaptation.prepare(plain.features, LABELS)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in adaptation.parameters():
            p += 0.02 * torch.randn(p.shape, generator=generator)
    return SimpleNamespace(name=request.param, drawn=drawn, before=before, plain=plain, adaptation=adaptation,
                           adapted=AdaptedBackbone(tiny, adaptation))  # fmt: skip


def test_it_says_what_it_is(case):
    adaptation, kind = case.adaptation, type(case.adaptation)
    assert kind.method == case.name
    assert set(adaptation.changes) <= {"vision", "text", "head"} and adaptation.changes
    assert set(adaptation.settings) <= set(_keywords(kind))
    assert json.loads(json.dumps(adaptation.settings)).keys() == adaptation.settings.keys()
    assert len(case.adapted.token_roles) == len(case.adapted.original.token_roles) + adaptation.n_prompts


def _keywords(kind):
    """Keyword settings of a constructor and, where it hands others on, of those it inherits from."""
    return {name for parent in kind.__mro__ if issubclass(parent, Adaptation) and parent is not Adaptation
            for name, p in inspect.signature(parent.__init__).parameters.items() if p.kind is p.KEYWORD_ONLY}  # fmt: skip


def test_zero_shot_gives_probabilities_and_leaves_the_base_alone(case, tiny):
    found = case.adapted.zero_shot(case.drawn, NAMES, TEMPLATES)
    assert found.shape == (3, 3)
    assert not found.requires_grad
    assert torch.allclose(found.sum(1), torch.ones(3), atol=1e-5)
    assert not torch.allclose(found, tiny.zero_shot(case.drawn, NAMES, TEMPLATES), atol=1e-4)
    assert all(torch.equal(value, case.before[name]) for name, value in tiny.model.state_dict().items())
    assert torch.equal(tiny.encode_image(case.drawn), case.plain.features)


def test_classes_are_any_or_those_it_is_bound_to(case):
    if case.adaptation.class_names is None:
        assert case.adapted.zero_shot(case.drawn, ["tree", "ball"], TEMPLATES).shape == (3, 2)
    else:
        with pytest.raises(ValueError, match="knows no others"):
            case.adapted.zero_shot(case.drawn, ["tree", "ball"], TEMPLATES)


def test_what_it_leaves_is_as_before_bit_for_bit(case, tiny):
    features = case.adapted.encode_image(case.drawn)
    last = case.adapted.tokens(case.drawn, "vision.-1.resid_post")
    if "vision" in case.adaptation.changes:
        assert not torch.allclose(features, case.plain.features, atol=1e-4)
        return
    assert torch.equal(last, case.plain.last)
    if type(case.adaptation).image is Adaptation.image:  # an adapter moves embeddings after the tower
        assert torch.equal(features, case.plain.features)


def test_one_backward_pass_reaches_every_parameter_and_no_other(case, tiny):
    adaptation, adapted = case.adaptation, case.adapted
    learned = {name: p for name, p in adaptation.named_parameters() if p.requires_grad}
    if not learned:
        return
    frozen = "vision" not in adaptation.changes
    batch = TuningBatch(LABELS, NAMES, TEMPLATES, case.plain.features if frozen else None,
                        None if frozen else adapted.pixels(list(case.drawn)))  # fmt: skip
    own = {id(p) for p in learned.values()}
    base = [p for p in tiny.model.parameters() if id(p) not in own]
    for p in base:
        p.requires_grad_(False)
    loss = adaptation.loss(adapted, batch)
    loss.backward()
    for p in base:
        p.requires_grad_(True)
    assert loss.shape == ()
    silent = [name for name, p in learned.items() if p.grad is None or not p.grad.abs().sum() > 0]
    adaptation.zero_grad(set_to_none=True)
    assert silent == []
    assert all(p.grad is None for p in base)


def test_it_comes_back_from_its_folder_bit_for_bit(case, tiny, tmp_path):
    again = read_adaptation(tiny, case.adapted.save(tmp_path / case.name))
    assert json.dumps(again.adaptation.settings) == json.dumps(case.adaptation.settings)
    assert again.adaptation.class_names == case.adaptation.class_names
    assert again.spec == case.adapted.spec == f"tiny+{case.name}"
    state = again.adaptation.state_dict()
    assert state.keys() == case.adaptation.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in case.adaptation.state_dict().items())
    found, expected = (m.zero_shot(case.drawn, NAMES, TEMPLATES) for m in (again, case.adapted))
    assert torch.equal(found, expected)
    assert torch.equal(again.encode_image(case.drawn), case.adapted.encode_image(case.drawn))
