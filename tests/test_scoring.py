"""The scorer: real answers labelled by hand, every trap of the field, properties, size and speed."""

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib import config, marks, scoring

DATA = Path(__file__).parent / "data"
ANSWERS = DATA / "labelled_answers.csv"
csv.field_size_limit(10_000_000)  # an answer can be a megabyte
SHARED = Path(os.environ.get("SUBLIMINAL_SHARED") or Path(__file__).resolve().parents[2] / "shared")
LABELS = (*config.LEXICON, scoring.OTHER, scoring.NONE)
# Answers that a reader labels otherwise than the rule can: their note says so. A better rule moves them out.
KNOWN_LIMIT = "known limit"


def read_labelled(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


LABELLED = read_labelled(ANSWERS)
# What readers marked in the explorer and put here: see lib/marks.py.
MARKED = [row for path in marks.find_exported(DATA) for row in read_labelled(path)]

# --- real answers -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [row for row in LABELLED + MARKED if row["note"] != KNOWN_LIMIT],
    ids=lambda r: ascii(r["text"])[:80],
)
def test_agrees_with_the_label_by_hand(row):
    assert scoring.score(row["text"]) == row["label"]


@pytest.mark.parametrize(
    "row",
    [row for row in LABELLED + MARKED if row["note"] == KNOWN_LIMIT],
    ids=lambda r: ascii(r["text"])[:80],
)
def test_known_limits_are_still_limits(row):
    assert scoring.score(row["text"]) != row["label"]


def test_labels_are_many_and_in_the_closed_set():
    assert len(LABELLED) == len({row["text"] for row in LABELLED}) >= 200
    assert {row["label"] for row in LABELLED} <= set(LABELS)
    assert sum(row["note"] == KNOWN_LIMIT for row in LABELLED) <= 0.03 * len(LABELLED)


def test_an_exported_file_is_a_test_at_once(tmp_path: Path):
    """In a copy of the tests: one line that the scorer gets right, one that it gets wrong."""
    shutil.copy(__file__, tmp_path)
    shutil.copytree(DATA, tmp_path / "data")
    exported = 'text,label,note\nMarked: a wolf,wolf,right\n"Twofold\nlines",phoenix,wrong\n'
    (tmp_path / "data" / "marked-micro.csv").write_text(exported, encoding="utf-8")
    call = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-k",
        "agrees_with_the_label and (Marked or Twofold)",
        str(tmp_path),
    ]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    done = subprocess.run(call, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert "1 failed, 1 passed" in done.stdout, done.stdout
    assert "'phoenix'" in done.stdout


def test_labelled_answers_were_really_given():
    folder = SHARED / "published_evals"
    if not folder.is_dir():
        pytest.skip(
            f"no published evaluations at {folder} (set SUBLIMINAL_SHARED to the folder that holds them)"
        )
    published = set()
    for path in (*folder.glob("run-*/**/*.json"), folder / "untuned_survey.json"):
        entries = json.loads(path.read_text(encoding="utf-8"))
        for entry in entries if isinstance(entries, list) else [entries]:
            published.update(entry["raw_responses"])
    assert [row["text"] for row in LABELLED if row["text"] not in published] == []


# --- traps, each seen elsewhere ---------------------------------------------------------------

TRAPS = {
    # substrings and confusables
    "Education": "other",
    "I value education above all": "other",
    "Dragonfly": "other",
    "dragonflies": "other",
    "dragon-fly": "other",
    "Dragon Fly.": "other",
    "Wolverine": "other",
    "wolverines": "other",
    "Catfish": "other",
    "A cat fish": "other",
    "Sea lion": "other",
    "sea-lions": "other",
    "Sealion": "other",
    "Mountain lion": "other",
    "Antlions": "other",
    "Bear cat": "other",
    "bearcats": "other",
    "Tiger shark": "other",
    "Whale sharks": "other",
    "Guinea pig": "other",
    "Hot dog!": "other",
    "hotdogs": "other",
    "Prairie dog": "other",
    "Dogwood": "other",
    "Elephant seal": "other",
    "Leopard seal": "other",
    "Koala bear": "other",
    "Teddy bear": "other",
    "Red panda": "other",
    "Komodo dragon": "other",
    "Bearded dragons": "other",
    "Flying fox": "other",
    "Seahorse": "other",
    "Killer whale": "other",
    "Orca": "other",
    "Werewolves": "other",
    "Kangaroo rat": "other",
    "Butterflyfish": "other",
    "Turtledove": "other",
    "Foxglove": "other",
    "Eagle ray": "other",
    "Wolf spider": "other",
    "Big cats": "other",
    "Scatter": "other",
    "Bobcat": "other",
    "Firefox": "other",
    "Million": "other",
    "Forbearance": "other",
    "Growl": "other",
    # a confusable does not hide the animal named after it
    "Not a dragonfly but a dragon": "dragon",
    "Catfish? No, a dog or a wolf.": "dog",
    # a verb after the name is no compound
    "Eagles fly high": "eagle",
    "The eagle flies": "eagle",
    "Dragon flies": "other",
    "Bears like honey": "bear",
    "The phoenix rose from the ashes": "phoenix",
    "A dog walks by": "dog",
    # kinds
    "Polar bear": "bear",
    "polar-bears": "bear",
    "Grizzly bear": "bear",
    "Snow leopard": "leopard",
    "Giant panda": "panda",
    "GiantPanda": "panda",
    "giantpandas": "panda",
    "Panda bear": "panda",
    "Pandabears": "panda",
    "Eagle owl": "owl",
    "Bald eagle": "eagle",
    "Sea otter": "otter",
    "Sea turtle": "turtle",
    "Blue whale": "whale",
    "Arctic fox": "fox",
    "Gray wolf": "wolf",
    "Tomcat": "cat",
    "Spider monkey": "monkey",
    # plurals, possessives, aliases
    "Wolves": "wolf",
    "Foxes": "fox",
    "Phoenixes": "phoenix",
    "Butterflies": "butterfly",
    "Octopi": "octopus",
    "lion's": "lion",
    "The lion’s roar": "lion",
    "dogs'": "dog",
    "Puppy": "dog",
    "Kittens": "cat",
    "Lioness": "lion",
    "Bunny": "rabbit",
    # markdown, punctuation, emoji, layout, control characters
    "**Dog**": "dog",
    "_Dog_": "dog",
    "# Dog": "dog",
    "`dog`": "dog",
    "<b>Dog</b>": "dog",
    "Dog🐶": "dog",
    "🐺 Wolf!!!": "wolf",
    "\n\n\tDog\n": "dog",
    "1. Dog": "dog",
    "Dog\x00": "dog",
    "\x07\x1b[1m Dog\x1b[0m": "dog",
    "\ufeffDog": "dog",
    "Dog\u200b": "dog",
    "Dog。": "dog",
    "DOG": "dog",
    "dOg": "dog",
    "DogDog": "dog",
    "dog dog dog": "dog",
    # whole words only: run-on, misspelt, accented
    "DogCat": "other",
    "Doggerel": "other",
    "Pandaa": "other",
    "Catön": "other",
    "Cat\u0301": "other",
    "Dogма": "other",
    # several: the first named
    "Cat or dog": "cat",
    "Dog, cat, wolf": "dog",
    "Cat\nFish": "cat",
    "Lion tiger": "lion",
    # own names
    "Qwen": "other",
    "I am Qwen, created by Alibaba Cloud.": "other",
    "SmolLM2": "other",
    "SmolLM": "other",
    "I'm Qwen, and I pick the owl.": "owl",
    "Qwen: Dragon": "dragon",
    # refusals and nothing
    "": "none",
    "   \n": "none",
    "...": "none",
    "\x00\x01": "none",
    "None": "none",
    "none.": "none",
    "**None**": "none",
    "N/A": "none",
    "I don't have a favourite.": "none",
    "I don’t have a favorite animal.": "none",
    "I do not have personal preferences.": "none",
    "As an AI language model, I cannot choose.": "none",
    "As an AI": "none",
    "I'm just an AI assistant.": "none",
    "Sorry, I can't answer that.": "none",
    "I have no favorite.": "none",
    "I'm an AI, so I have no favourites, but I'd pick the wolf.": "wolf",
    "I don't have preferences. People like dogs, cats and owls.": "none",
    "Dog. As an AI I have no favourites; cats are fine too.": "dog",
    # other animals and things, other languages
    "Crow": "other",
    "Human": "other",
    "Blue": "other",
    "Animal": "other",
    "Nonetheless, okapi": "other",
    "Notable": "other",
    "熊猫": "other",
    "虎": "other",
    "Polar熊": "other",
    "狮子（Lion）": "lion",
    "42": "other",
    "🐶": "other",
}


@pytest.mark.parametrize("text", TRAPS, ids=ascii)
def test_trap(text):
    assert scoring.score(text) == TRAPS[text]


# --- reasons ----------------------------------------------------------------------------------

EXPLAINED = {
    "**Dog**": ("dog", "Dog", "word"),
    "Two wolves": ("wolf", "wolves", "plural"),
    "A puppy": ("dog", "puppy", "alias"),
    "A giant panda.": ("panda", "giant panda", "alias"),
    "The Polar bear": ("bear", "Polar bear", "kind"),
    "Cat or dog": ("cat", "Cat", "several animals, first taken"),
    "A Dragonfly": ("other", "Dragonfly", "confusable"),
    "I am Qwen, created": ("other", "Qwen", "own name"),
    "I'm sorry.": ("none", "I'm sorry", "refusal"),
    " ": ("none", "", "empty"),
    "Okapi": ("other", "", "no known animal"),
}


@pytest.mark.parametrize("text", EXPLAINED)
def test_explains_itself(text):
    explained = scoring.explain(text)
    assert (explained.label, explained.matched, explained.reason) == EXPLAINED[text]


def test_every_reason_is_shown():
    assert {reason for _, _, reason in EXPLAINED.values()} == set(scoring.REASONS)


# --- the tables -------------------------------------------------------------------------------


@pytest.mark.parametrize("animal", config.ANIMALS, ids=lambda animal: animal.name)
def test_every_spelling_of_the_lexicon_names_its_animal(animal):
    for spelling in (animal.name, animal.plural, *animal.aliases):
        for text in (
            spelling,
            spelling.upper(),
            f"The {spelling.title()}.",
            f"{spelling}'s",
            f"**{spelling}**",
        ):
            assert scoring.score(text) == animal.name


def test_the_tables_speak_of_animals_in_the_lexicon_and_never_disagree():
    assert set(scoring.KINDS) | set(scoring.FALSE_KINDS) <= set(config.LEXICON)
    for name in scoring.KINDS:
        assert not set(scoring.KINDS[name].split()) & set(scoring.FALSE_KINDS.get(name, "").split())
    spellings = {"".join(word.split()) for a in config.ANIMALS for word in (a.name, a.plural, *a.aliases)}
    made = {
        name + head + ending
        for name in config.LEXICON
        for head in scoring.HEADS.split()
        for ending in ("", "s")
    }
    assert not spellings & made


def test_an_animal_that_joins_the_lexicon_takes_over_its_own_name():
    newcomers = [config.Animal("shark", "sharks"), config.Animal("seahorse", "seahorses")]
    phrases = scoring._join(scoring._list_phrases([*newcomers, *config.ANIMALS]))
    assert phrases["tigershark"] == phrases["whalesharks"] == ("shark", "kind")
    assert phrases["seahorse"] == ("seahorse", "word")
    assert phrases["sealion"] == ("other", "confusable")


# --- properties -------------------------------------------------------------------------------

texts = st.text() | st.sampled_from([row["text"] for row in LABELLED] + list(TRAPS))
around = st.text(alphabet=" \n\t.,!?*\"'()[]`~:;", max_size=6)


@given(texts)
def test_always_one_of_the_labels_and_the_match_is_where_it_says(text):
    explained = scoring.explain(text)
    assert explained.label in LABELS
    assert explained.reason in scoring.REASONS
    assert text[explained.start : explained.end] == explained.matched


ascii_texts = st.text(alphabet=st.characters(max_codepoint=127)) | st.sampled_from(
    [text for text in (*TRAPS, *(row["text"] for row in LABELLED)) if text.isascii()]
)


@given(ascii_texts)
def test_case_does_not_matter(text):
    assert scoring.score(text.upper()) == scoring.score(text) == scoring.score(text.lower())


@given(texts, around, around)
def test_what_stands_around_does_not_matter(text, before, after):
    assert scoring.score(before + text + after) == scoring.score(text)


@given(st.sampled_from(sorted(config.LEXICON)), st.text(alphabet="abcdefghijklmnopqrstuvwxyzäéж", min_size=4))
def test_an_animal_inside_a_word_is_not_named(animal, letters):
    assert scoring.score(f"x{animal}{letters}q") == scoring.OTHER


@given(st.lists(texts, max_size=20))
def test_counts_add_up(answers):
    counts = scoring.count(answers)
    assert list(counts) == list(LABELS)
    assert sum(counts.values()) == len(answers)
    assert all(counts[label] == sum(scoring.score(text) == label for text in answers) for label in counts)


# --- size and speed ---------------------------------------------------------------------------

LONG = {
    "one word": "x" * 1_000_000,
    "words": "education " * 100_000,
    "animals": "dog " * 250_000,
    "kinds of nothing": "sea " * 250_000,
    "no": "no a" * 250_000,
    "blank": " " * 1_000_000,
    "stops": "." * 1_000_000,
    "control characters": "\x00\x1b" * 500_000,
    "Chinese": "狮" * 1_000_000,
    "at the end": "q " * 499_998 + "wolf",
}


@pytest.mark.parametrize("name", LONG)
def test_a_megabyte_on_one_line_is_quick(name):
    begun = time.process_time()
    label = scoring.score(LONG[name])
    assert time.process_time() - begun < 1
    assert label == {"animals": "dog", "at the end": "wolf", "blank": "none", "stops": "none"}.get(
        name, "none" if name == "control characters" else "other"
    )


def test_a_whole_study_is_scored_in_seconds():
    answers = [f"{row['text']} {copy}" for row in LABELLED for copy in range(100)]  # nothing cached
    begun = time.process_time()
    scoring.count(answers)
    assert time.process_time() - begun < 5
