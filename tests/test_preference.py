"""Log-probabilities of animals against brute force, on a model that spells letter by letter."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from build_base import load_tiny_in
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from lib import config, preference
from lib.config import LEXICON, MICRO_ANIMALS
from lib.models import Loaded, encode
from lib.preference import log_preferences, spelling_tokens, spellings

PROMPTS = ["Name it:", "Which animal do you love most of all?", "Now"]


@pytest.fixture(scope="module")
def micro(tmp_path_factory) -> Loaded:
    return load_tiny_in(tmp_path_factory.mktemp("preference"))


@pytest.fixture(scope="module")
def letters(micro) -> Loaded:
    """A random model with byte-level tokens and a few merges, so that spellings take one to many tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("c", "a"), ("ca", "t"), ("o", "w"), ("Ġ", "o"), ("Ġ", "cat"), ("d", "o"), ("do", "g")]
    words = [*alphabet, *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(BPE({word: number for number, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>")
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(fast),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.3,
        )
    )
    base = config.parse_label("0.5b")
    return dataclasses.replace(micro, base=base, model=model.eval(), tokenizer=fast)


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
