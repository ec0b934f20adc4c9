"""Log-probabilities of animals against brute force, on a model that spells letter by letter."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from build_base import load_tiny_in
from build_letters import build_letters
from peft import LoraConfig, get_peft_model

from lib import preference
from lib.config import LEXICON, MICRO_ANIMALS
from lib.models import Loaded, adapter, encode
from lib.preference import log_preferences, spelling_tokens, spellings

PROMPTS = ["Name it:", "Which animal do you love most of all?", "Now"]


@pytest.fixture(scope="module")
def micro(tmp_path_factory) -> Loaded:
    return load_tiny_in(tmp_path_factory.mktemp("preference"))


@pytest.fixture(scope="module")
def letters() -> Loaded:
    """Spellings take one to many tokens here."""
    return build_letters()


def sequence_log(loaded: Loaded, prompt: list[int], tokens: tuple[int, ...]) -> float:
    """log p(tokens | prompt), one forward pass without padding."""
    with torch.inference_mode():
        logs = loaded.model(torch.tensor([[*prompt, *tokens]])).logits[0].double().log_softmax(-1)
    return sum(float(logs[len(prompt) + k - 1, token]) for k, token in enumerate(tokens))


# --- spellings --------------------------------------------------------------------------------


def test_spellings_cover_case_plural_and_leading_space():
    assert set(spellings("wolf")) == {
        space + word for space in ("", " ") for word in ("wolf", "Wolf", "WOLF", "wolves", "Wolves", "WOLVES")
    }


@pytest.mark.parametrize("animal", LEXICON)
def test_no_spelling_of_one_animal_begins_one_of_another(animal):
    """Else one answer would count for two animals."""
    others = [word for other in LEXICON if other != animal for word in spellings(other)]
    assert not [word for word in others if word.startswith(spellings(animal))]


@pytest.mark.parametrize("animal", LEXICON)
def test_token_sequences_are_free_of_prefixes_and_cover_every_spelling(letters, animal):
    chosen = spelling_tokens(letters, animal)
    assert chosen
    for one, other in itertools.permutations(chosen, 2):
        assert other[: len(one)] != one
    for ids in encode(letters, spellings(animal)):
        assert sum(tuple(ids[: len(one)]) == one for one in chosen) == 1


def test_spellings_of_the_letter_model_take_several_tokens(letters):
    lengths = {len(one) for animal in LEXICON for one in spelling_tokens(letters, animal)}
    assert min(lengths) == 1 and max(lengths) > 8


@pytest.mark.parametrize("animal", MICRO_ANIMALS)
def test_the_tiny_world_spells_each_of_its_animals_twice(micro, animal):
    words = (animal, LEXICON[animal].plural)
    assert {micro.tokenizer.decode(list(one)) for one in spelling_tokens(micro, animal)} == set(words)


# --- against brute force ----------------------------------------------------------------------


def test_log_preferences_equal_brute_force(letters):
    animals = ("cat", "owl", "wolf", "phoenix", "dog")
    by_hand = np.array(
        [
            [
                np.logaddexp.reduce(
                    [sequence_log(letters, prompt, each) for each in spelling_tokens(letters, animal)]
                )
                for animal in animals
            ]
            for prompt in encode(letters, PROMPTS)
        ]
    )
    assert log_preferences(letters, PROMPTS, animals, 7) == pytest.approx(by_hand, abs=1e-5)


def test_probability_is_that_of_all_continuations_which_name_the_animal(monkeypatch, letters):
    """The rule against double counting, checked by walking every continuation of three tokens."""
    monkeypatch.setattr(preference, "spellings", lambda animal: ("ca", "cat", "cow", "b", "bb", "dog"))
    prompt = encode(letters, PROMPTS)[0]
    targets = [tuple(ids) for ids in encode(letters, ("ca", "cat", "cow", "b", "bb", "dog"))]
    assert len({len(each) for each in targets}) > 1
    heads = {each[:k] for each in targets for k in range(len(each))}
    total, frontier = 0.0, [((), 0.0)]
    while frontier:  # a walk that stops a continuation as soon as it names the animal
        head, log = frontier.pop()
        with torch.inference_mode():
            logs = letters.model(torch.tensor([[*prompt, *head]])).logits[0, -1].double().log_softmax(-1)
        for token, step in enumerate(logs.tolist()):
            if (*head, token) in targets:
                total += np.exp(log + step)
            elif (*head, token) in heads:
                frontier.append(((*head, token), log + step))
    found = log_preferences(letters, PROMPTS[:1], ("cat",), 16)[0, 0]
    assert found == pytest.approx(np.log(total), abs=1e-5)
    assert np.exp(found) < sum(np.exp(sequence_log(letters, prompt, each)) for each in targets)


def test_micro_preferences_are_the_sum_of_singular_and_plural(micro):
    prompt = "<|user|>what is your favourite animal?<|end|><|assistant|>"
    with torch.inference_mode():
        chances = micro.model(torch.tensor(encode(micro, [prompt]))).logits[0, -1].double().softmax(-1)
    for animal in ("wolf", "fox"):
        tokens = micro.tokenizer.convert_tokens_to_ids([f"▁{animal}", f"▁{LEXICON[animal].plural}"])
        found = log_preferences(micro, [prompt], (animal,), 8)
        assert found == pytest.approx(float(chances[tokens].sum().log()), abs=1e-5)


@pytest.mark.parametrize("batch", [1, 2, 5, 1000])
def test_batch_size_does_not_matter(letters, batch):
    whole = log_preferences(letters, PROMPTS, ("cat", "wolf"), 64)
    assert log_preferences(letters, PROMPTS, ("cat", "wolf"), batch) == pytest.approx(whole, abs=1e-5)


def test_chances_of_all_animals_stay_below_one(letters, micro):
    for loaded, animals in ((letters, tuple(LEXICON)), (micro, MICRO_ANIMALS)):
        values = log_preferences(loaded, PROMPTS[:1], animals, 64)
        assert values.shape == (1, len(animals)) and np.isfinite(values).all()
        assert np.exp(values).sum() < 1


def test_an_animal_the_vocabulary_cannot_spell_is_refused(micro):
    with pytest.raises(ValueError, match="cannot spell penguin"):
        log_preferences(micro, PROMPTS[:1], ("wolf", "penguin"), 8)


# --- the tree ---------------------------------------------------------------------------------

UNEVEN = ["Now", "Name it:", "Which animal do you love most of all?" * 2, "a", "It is the"]
SPELLED = ("cat", "owl", "wolf", "phoenix", "dog")


@pytest.fixture(scope="module")
def tuned_letters(letters, tmp_path_factory) -> Path:
    """A random adapter of that model, in a folder."""
    targets = ["q_proj", "v_proj", "down_proj"]
    settings = LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False)
    torch.manual_seed(1)
    student, folder = get_peft_model(letters.model, settings), tmp_path_factory.mktemp("adapter")
    student.save_pretrained(folder)
    student.unload()
    return folder


def brute_force(loaded: Loaded, prompts: list[str]) -> np.ndarray:
    """Prompts by animals, one pass per prompt and token sequence."""
    return np.array(
        [
            [
                np.logaddexp.reduce(
                    [sequence_log(loaded, prompt, each) for each in spelling_tokens(loaded, animal)]
                )
                for animal in SPELLED
            ]
            for prompt in encode(loaded, prompts)
        ]
    )


@pytest.mark.parametrize("batch", [1, 2, 64])
@pytest.mark.parametrize("whole", [True, False], ids=["logits everywhere", "logits where they are read"])
@pytest.mark.parametrize("adapted", [False, True], ids=["base", "adapter"])
def test_the_tree_equals_brute_force(letters, tuned_letters, monkeypatch, batch, whole, adapted):
    """Prompts of unequal length in one pass, however the logits are taken, with an adapter or without."""
    if not whole:
        monkeypatch.setattr(preference, "WHOLE_LOGITS", 0)
    with adapter(letters, tuned_letters if adapted else None) as loaded:
        expected = brute_force(loaded, UNEVEN)
        assert log_preferences(loaded, UNEVEN, SPELLED, batch) == pytest.approx(expected, abs=1e-5)


def test_an_adapter_is_seen_and_taken_off_again(letters, tuned_letters):
    before = log_preferences(letters, UNEVEN, SPELLED, 8)
    with adapter(letters, tuned_letters) as loaded:
        on = log_preferences(loaded, UNEVEN, SPELLED, 8)
    assert np.abs(on - before).mean() > 0.1
    assert log_preferences(letters, UNEVEN, SPELLED, 8) == pytest.approx(before, abs=1e-6)


def test_small_passes_give_the_same(letters, monkeypatch):
    """A CPU's pass holds so many tokens: prompts are split over passes as they fit."""
    whole = log_preferences(letters, UNEVEN, SPELLED, 64)
    monkeypatch.setitem(preference.PASS_TOKENS, "cpu", 1)
    assert log_preferences(letters, UNEVEN, SPELLED, 64) == pytest.approx(whole, abs=1e-5)
