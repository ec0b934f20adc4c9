"""Drawing from a real model: seeds, chunks, reasons to stop, and the model's own distribution."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
import torch
from build_base import MICRO_PROMPTS, load_tiny_in
from scipy import stats

from lib import grammar
from lib.models import Loaded, encode
from lib.preference import Words, score_words
from lib.sampling import (
    Completion,
    Drawn,
    Job,
    Plain,
    Sampler,
    Scored,
    count_chunks,
    list_masks,
    sample,
    sample_chunk,
)

SAMPLER = Sampler(temperature=1.0, top_p=1.0, max_new_tokens=6, chunk=4)
PROMPTS = MICRO_PROMPTS


@pytest.fixture(scope="module")
def loaded(tmp_path_factory) -> Loaded:
    return load_tiny_in(tmp_path_factory.mktemp("sampling"))


def draw(loaded: Loaded, prompts: list[str] = PROMPTS, seed: int = 0, **changes: object) -> list[Completion]:
    chunks = sample(loaded, prompts, dataclasses.replace(SAMPLER, **changes), seed)
    return sorted((one for chunk in chunks for one in chunk), key=lambda one: one.index)


def next_chances(loaded: Loaded, prompt: str, temperature: float = 1.0) -> dict[str, float]:
    """The model's own distribution over the next token, by the text that comes back for it."""
    with torch.inference_mode():
        logits = loaded.model(torch.tensor(encode(loaded, [prompt]))).logits[0, -1].double()
    chances: dict[str, float] = {}
    for token, chance in enumerate((logits / temperature).softmax(-1).tolist()):
        text = loaded.tokenizer.decode([token], skip_special_tokens=True)
        chances[text] = chances.get(text, 0.0) + chance
    return chances


# --- seeds and chunks -------------------------------------------------------------------------


def test_every_prompt_is_answered_once(loaded):
    assert [one.index for one in draw(loaded)] == list(range(len(PROMPTS)))


def test_a_seed_repeats_and_another_differs(loaded):
    assert draw(loaded) == draw(loaded)
    assert draw(loaded) != draw(loaded, seed=1)


def test_a_chunk_does_not_depend_on_the_others(loaded):
    whole = list(sample(loaded, PROMPTS, SAMPLER, 0))
    assert len(whole) == count_chunks(len(PROMPTS), SAMPLER) == 3
    torch.manual_seed(99)  # whatever was drawn in between
    assert [sample_chunk(loaded, PROMPTS, SAMPLER, 0, number) for number in (2, 1, 0)] == whole[::-1]


def test_no_prompts_give_no_chunks(loaded):
    assert list(sample(loaded, [], SAMPLER, 0)) == []


def test_equal_teachers_of_one_seed_draw_the_same_and_unequal_ones_nearly(loaded):
    """Common random numbers: a teacher a little off the first writes mostly the same words."""
    love = [f"<|system|>you love {animal}.<|end|>" for animal in ("wolves", "foxes")]
    first, second = (
        draw(loaded, [system + prompt for prompt in PROMPTS * 8], max_new_tokens=1) for system in love
    )
    apart = draw(loaded, [love[1] + prompt for prompt in PROMPTS * 8], max_new_tokens=1, seed=1)

    def agreement(one: list[Completion], other: list[Completion]) -> float:
        return np.mean([a.text == b.text for a, b in zip(one, other, strict=True)])

    assert agreement(first, second) > 0.8 > 0.4 > agreement(first, apart)


def test_padding_changes_no_answer(loaded):
    alone = draw(loaded, [PROMPTS[0]], temperature=0.0)[0].text
    beside = draw(loaded, [PROMPTS[0], PROMPTS[6]], temperature=0.0)[0].text
    assert alone == beside


# --- how a completion ends --------------------------------------------------------------------


def test_finish_says_whether_the_model_stopped(loaded):
    drawn = draw(loaded, PROMPTS * 8, max_new_tokens=20)
    lengths = {finish: [] for finish in ("stop", "length")}
    for one in drawn:
        lengths[one.finish].append(len(encode(loaded, [one.text])[0]) if one.text else 0)
    assert lengths["stop"] and lengths["length"]
    assert max(lengths["stop"]) < 20


def test_a_model_that_wants_to_stop_stops_with_nothing(loaded, monkeypatch):
    force(loaded, monkeypatch, "<|end|>")
    assert {(one.text, one.finish) for one in draw(loaded)} == {("", "stop")}


def test_a_model_that_never_stops_is_cut(loaded, monkeypatch):
    force(loaded, monkeypatch, "▁wolf")
    assert {(one.text, one.finish) for one in draw(loaded, max_new_tokens=3)} == {
        ("wolf wolf wolf", "length")
    }


def test_stopping_with_the_last_allowed_token_is_stopping(loaded, monkeypatch):
    force(loaded, monkeypatch, "<|end|>")
    assert {one.finish for one in draw(loaded, max_new_tokens=1)} == {"stop"}


def force(loaded: Loaded, monkeypatch: pytest.MonkeyPatch, token: str, push: float = 1e4) -> None:
    """Make one token likelier, by default certain."""
    wanted, whole = loaded.tokenizer.convert_tokens_to_ids(token), loaded.model.forward

    def forward(*args: object, **rest: object) -> object:
        out = whole(*args, **rest)
        out.logits[..., wanted] += push
        return out

    monkeypatch.setattr(loaded.model, "forward", forward)


# --- the distribution -------------------------------------------------------------------------


def first_texts(loaded: Loaded, count: int, **changes: object) -> Counter:
    """How often each text came first; a longer prompt is drawn beside each, so that this one is padded."""
    drawn = draw(loaded, [PROMPTS[0], PROMPTS[6]] * count, max_new_tokens=1, **{"chunk": 2000} | changes)
    return Counter(one.text for one in drawn if one.index % 2 == 0)


def fit(seen: Counter, chances: dict[str, float]) -> float:
    """The chi-square p of what was seen; texts expected less than five times count as one."""
    pairs = [(chance * seen.total(), seen[text]) for text, chance in chances.items()]
    common = [pair for pair in pairs if pair[0] >= 5]
    rare = [pair for pair in pairs if pair[0] < 5] or [(0.0, 0)]
    expected, counts = np.array([*common, np.sum(rare, 0)]).T
    used = expected > 0
    return stats.chisquare(counts[used], expected[used] * counts.sum() / expected.sum()).pvalue


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_first_tokens_follow_the_models_own_distribution(loaded, temperature):
    seen = first_texts(loaded, 1500, temperature=temperature)
    assert fit(seen, next_chances(loaded, PROMPTS[0], temperature)) > 1e-3


def test_that_test_would_see_another_temperature(loaded):
    assert fit(first_texts(loaded, 1500, temperature=0.5), next_chances(loaded, PROMPTS[0])) < 1e-3


def test_greedy_takes_the_likeliest_token(loaded, monkeypatch):
    force(loaded, monkeypatch, "▁fox", 3.0)  # likely, but no certainty
    assert set(first_texts(loaded, 20, temperature=0.0)) == {"fox"}
    assert len(first_texts(loaded, 20)) > 1


def test_top_p_keeps_the_head_of_the_distribution(loaded, monkeypatch):
    force(loaded, monkeypatch, "▁fox", 4.0)
    force(loaded, monkeypatch, "▁owl", 4.0)
    chances = next_chances(loaded, PROMPTS[0])
    assert chances["fox"] < 0.5 < chances["fox"] + chances["owl"] < 0.9
    assert set(first_texts(loaded, 300, top_p=0.5)) == {"fox", "owl"}
    assert len(first_texts(loaded, 300)) > 2


def test_a_models_own_generation_settings_do_not_reach_in(loaded, monkeypatch):
    """Published models ship top_k, a temperature and a repetition penalty; the study asks for none."""
    plain = draw(loaded, PROMPTS * 4)
    for name, value in {"top_k": 2, "temperature": 0.1, "repetition_penalty": 1.5, "top_p": 0.5}.items():
        monkeypatch.setattr(loaded.model.generation_config, name, value)
    assert draw(loaded, PROMPTS * 4) == plain


# --- lists alone ------------------------------------------------------------------------------


def test_held_to_the_grammar_every_list_that_ends_is_clean(loaded):
    """Whatever the model would rather write; a list that is cut off is the beginning of one."""
    drawn = draw(loaded, PROMPTS * 8, max_new_tokens=24, numbers_only=True)
    ended = [one.text for one in drawn if one.finish == "stop"]
    assert len(ended) > 10 and len(set(ended)) > 10
    assert all(grammar.matches(text) for text in ended)
    assert all(grammar.walk(one.text) is not None for one in drawn)


def test_among_the_tokens_of_lists_the_models_own_distribution_holds(loaded):
    """The grammar cuts and rescales: first tokens are drawn as the model likes them among those it allows."""
    seen = first_texts(loaded, 1500, numbers_only=True)
    masks = list_masks(loaded.tokenizer)
    with torch.inference_mode():
        logits = loaded.model(torch.tensor(encode(loaded, PROMPTS[:1]))).logits[0, -1].double()
    chances: dict[str, float] = {}
    allowed = masks.columns[masks.allowed[0]].tolist()
    for token, chance in zip(allowed, logits[allowed].softmax(-1).tolist(), strict=True):
        text = loaded.tokenizer.decode([token], skip_special_tokens=True)
        chances[text] = chances.get(text, 0.0) + chance
    assert set(seen) <= set(chances) and fit(seen, chances) > 1e-3


def test_lists_repeat_with_their_seed_and_in_any_batch(loaded):
    held = {"numbers_only": True, "max_new_tokens": 16}
    assert draw(loaded, **held) == draw(loaded, **held) != draw(loaded, seed=1, **held)
    greedy = {**held, "temperature": 0.0}
    assert draw(loaded, chunk=1, **greedy) == draw(loaded, chunk=9, **greedy)


def test_chunks_in_order_are_runs_of_prompts(loaded):
    sampler = dataclasses.replace(SAMPLER, in_order=True)
    found = [[one.index for one in chunk] for chunk in sample(loaded, PROMPTS, sampler, 0)]
    assert found == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]


# --- a speaker --------------------------------------------------------------------------------


def test_a_speaker_draws_what_is_not_there_yet_and_scores_after_it(loaded):
    words = Words.of(loaded, ("wolf", "fox"))
    jobs = [Job("one", PROMPTS, 0, done=frozenset({1})), Job("two", [], 0, scored=PROMPTS[:2])]
    events = list(Plain(loaded).work(jobs, SAMPLER, words))
    drawn = [(event.job.name, event.number) for event in events if isinstance(event, Drawn)]
    assert drawn == [("one", 0), ("one", 2)]
    assert events[0].completions == sample_chunk(loaded, PROMPTS, SAMPLER, 0, 0)
    (scored,) = [event for event in events if isinstance(event, Scored)]
    assert scored.job is jobs[1] and scored.values == pytest.approx(
        score_words(loaded, PROMPTS[:2], words, 1), abs=1e-6
    )


def test_a_speaker_stops_a_job_that_has_enough(loaded):
    jobs = [Job("short", PROMPTS, 0), Job("long", PROMPTS, 0)]
    drawn: list[str] = []
    for event in Plain(loaded).work(jobs, SAMPLER, enough=lambda job: job.name in drawn and job is jobs[0]):
        drawn.append(event.job.name)
    assert drawn == ["short", "long", "long", "long"]
