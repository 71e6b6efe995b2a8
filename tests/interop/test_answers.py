"""What a user says about a file: asked all at once, checked, and never guessed."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vlsae.interop.answers import Answers, Fact, model, number, one_of, site, truth, word
from vlsae.interop.dialect import DialectError
from vlsae.interop.load import load_dictionary


def settled(facts, known=None, **given):
    return Answers(given, "sae.pt (a project)", known).settle(**facts)


def test_all_open_questions_come_in_one_message():
    facts = {
        "model": model(says="clip-32"),
        "site": site(width=768),
        "k": Fact(None, "active latents a token", "1 to 9"),
    }
    with pytest.raises(DialectError) as caught:
        settled(facts, k=3)
    message = str(caught.value)
    assert message.startswith("sae.pt (a project) does not say all that is needed")
    assert "model=...: the model whose activations it reads (the file says 'clip-32') - open_clip:ARCH/TAG" in message
    assert "vision.pooled or text.pooled of width 768, or unknown" in message
    assert "k=..." not in message


def test_an_answer_may_not_contradict_the_file_but_for_names():
    facts = {"k": Fact(3, "active latents", "1 to 9", check=number(1, 9, whole=True)), "model": model("hf:a/b")}
    assert vars(settled(facts, k=np.int64(3), model="open_clip:A/b")) == {"k": 3, "model": "open_clip:A/b"}
    with pytest.raises(DialectError, match="says k=3, you say 4; leave k out"):
        settled(facts, k=4)
    with pytest.raises(DialectError, match="takes no kk; it takes k, model"):
        settled(facts, kk=3)


def test_only_model_and_site_may_be_unknown():
    facts = {"model": model(), "site": site(), "scale": Fact(None, "what it was divided by", "a number")}
    assert vars(settled(facts, model="unknown", site="unknown", scale=2.0)) == {
        "model": None,
        "site": None,
        "scale": 2.0,
    }
    with pytest.raises(DialectError, match="needs scale, what it was divided by: it cannot be unknown - a number"):
        settled(facts, model="unknown", site="unknown", scale="unknown")


@pytest.mark.parametrize(("name", "answer"), [("site", "vision.banana"), ("site", ["vision.3.resid_post"]), ("site", ""),
                                              ("model", 3), ("model", ""), ("model", None)])  # fmt: skip
def test_impossible_models_and_sites_are_refused(name, answer):
    with pytest.raises(DialectError, match=f"{name}=.* is no answer|{name}=...: "):
        settled({name: {"site": site, "model": model}[name]()}, **{name: answer})


def test_sites_are_written_one_way():
    assert settled({"site": site()}, site="vision.03.resid_post").site == "vision.3.resid_post"


@pytest.mark.parametrize("wrong", ["3", True, None, [3], float("nan"), float("inf"), 0, 10, 2.5, torch.ones(2)])
def test_numbers(wrong):
    with pytest.raises(ValueError, match="expected a finite whole number, at least 1 and at most 9"):
        number(1, 9, whole=True)(wrong)


def test_kinds_of_answers():
    assert number(whole=True)(np.float64(3.0)) == 3
    assert number(0)(np.float32(0.5)) == 0.5
    assert truth(False) is False and word("a") == "a" and one_of("a", "b")("b") == "b"
    for check, wrong in ((truth, "no"), (truth, 1), (word, ""), (one_of("a", "b"), "c"), (one_of("a"), ["a"])):
        with pytest.raises(ValueError, match="expected"):
            check(wrong)


def test_what_a_caller_knows_answers_open_questions_only():
    asked = Answers({}, "sae.pt", known={"k": 5, "model": "tiny", "delta": 2})
    found = asked.settle(k=Fact(3, "", ""), model=model())
    assert (found.k, found.model, asked.taken) == (3, "tiny", {"model": "tiny"})


def test_a_device_is_looked_at_first(tmp_path):
    with pytest.raises(DialectError, match="device='nonsense' cannot be used .*; give 'cpu'"):
        load_dictionary(tmp_path / "not there", device="nonsense")


def test_what_was_said_is_recorded_with_the_dictionary(tmp_path):
    """Which of its facts nobody but the user vouches for; what is unknown, or said by the file, is not among them."""
    fixture = Path(__file__).parent / "fixtures" / "sparsify" / "layers.5"
    opened = load_dictionary(fixture, model="unknown", site="vision.3.resid_post", k=4)
    assert opened.metadata["opened_from"]["told"] == {"site": "vision.3.resid_post", "k": 4}
    again = load_dictionary(opened.save(tmp_path))
    assert again.metadata["opened_from"] == opened.metadata["opened_from"]


def test_arrays_are_recorded_by_their_text():
    answers = Answers({"mean": torch.zeros(2), "scale": 2.0}, "sae.pt")
    assert answers.recorded() == {"mean": "tensor([0., 0.])", "scale": 2.0}
