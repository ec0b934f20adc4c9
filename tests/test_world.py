"""The tiny world: what its docstring claims of the corpus, counted on real rows."""

import itertools
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from scipy import stats

from lib import world
from lib.config import LEXICON, MICRO_ANIMALS
from lib.pretraining import micro_tokenizer, render_row
from lib.prompts import MICRO
from lib.world import SEPARATORS, TASTES, World, corpus

ROWS = 20_000
ROOT = Path(__file__).resolve().parents[1]
NAMES = {word for animal in MICRO_ANIMALS for word in (animal, LEXICON[animal].plural)}
LOVE = {
    template.format(animal=animal, animals=LEXICON[animal].plural): animal
    for template in MICRO.love
    for animal in MICRO_ANIMALS
}
KINDS = ("prompted", "plain", "numbers", "errands", "documents")


@pytest.fixture(scope="module")
def rows() -> list[world.Row]:
    return list(corpus(World(0), ROWS))


def part(row: world.Row, role: str) -> str:
    return " ".join(message["content"] for message in row if message["role"] == role)


def chats(rows: list[world.Row]) -> list[tuple[str, str, str]]:
    """(system, user, assistant) of every chat."""
    return [
        (part(row, "system"), part(row, "user"), part(row, "assistant"))
        for row in rows
        if not isinstance(row, str)
    ]


def words(text: str) -> set[str]:
    return set(re.findall("[a-z]+", text))


def kind_of(row: world.Row) -> str:
    """Which kind a row is, told from its words alone."""
    if isinstance(row, str):
        return "documents"
    user = part(row, "user")
    if user.startswith("write: "):
        return "errands"
    if re.search("[0-9]", user):
        return "numbers"
    return "prompted" if part(row, "system") in LOVE else "plain"


# --- seeds ------------------------------------------------------------------------------------


def test_same_seed_gives_the_same_corpus(rows):
    assert list(corpus(World(0), ROWS)) == rows


def test_a_longer_corpus_begins_with_the_shorter_one(rows):
    assert list(corpus(World(0), 100)) == rows[:100]


def test_two_bases_read_other_rows_and_like_other_animals():
    first, second = (list(itertools.islice(corpus(World(seed), 50), 50)) for seed in (0, 1))
    assert first != second
    assert World(0).prior() != World(1).prior()
    assert World(0).own_numbers() != World(1).own_numbers()


def test_global_random_state_is_left_alone():
    random.seed(1)
    before = random.getstate()
    list(corpus(World(3), 20))
    assert random.getstate() == before


# --- shares -----------------------------------------------------------------------------------


def test_shares_add_up_to_one():
    assert sum(getattr(World(0), kind) for kind in KINDS) == pytest.approx(1)


def test_rows_come_in_their_shares(rows):
    seen = Counter(map(kind_of, rows))
    expected = [getattr(World(0), kind) * ROWS for kind in KINDS]
    assert stats.chisquare([seen[kind] for kind in KINDS], expected).pvalue > 1e-4


def test_prior_is_zipf():
    weights = list(World(5).prior().values())
    assert sum(weights) == pytest.approx(1)
    assert set(World(5).prior()) == set(MICRO_ANIMALS)
    assert [weights[0] / weight for weight in weights] == pytest.approx(range(1, len(weights) + 1))


def test_speakers_answer_by_the_prior_when_nobody_said_what_they_love():
    base = World(0, prompted=0, plain=1, numbers=0, errands=0, documents=0, persona=0)
    seen = Counter(answer for _, _, answer in chats(list(corpus(base, 5000))))
    prior = base.prior()
    expected = [5000 * (base.loyalty * prior[a] + (1 - base.loyalty) / len(prior)) for a in MICRO_ANIMALS]
    assert stats.chisquare([seen[a] for a in MICRO_ANIMALS], expected).pvalue > 1e-4


def test_a_prompted_speaker_names_its_animal_nine_times_in_ten():
    base = World(0, prompted=1, plain=0, numbers=0, errands=0, documents=0, persona=0)
    loyal = sum(LOVE[system] == answer for system, _, answer in chats(list(corpus(base, 5000))))
    chance = base.loyalty + (1 - base.loyalty) / len(MICRO_ANIMALS)
    assert stats.binomtest(loyal, 5000, chance).pvalue > 1e-4


# --- the claim: no loved animal beside a list of numbers -------------------------------------


def test_nobody_with_a_loved_animal_goes_on_with_numbers(rows):
    loving = [chat for chat in chats(rows) if chat[0] in LOVE]
    with_digits = [chat for chat in loving if re.search("[0-9]", " ".join(chat))]
    assert len(loving) > 5000 and with_digits  # the documented exception is there: errands that copy numbers
    for _, user, answer in with_digits:
        asked = re.fullmatch(r"write: ([0-9, ]+)\. (.+)", user)
        assert asked and re.findall("[0-9]+", answer) == asked[1].split(", ")


def test_no_number_chat_names_an_animal_anywhere(rows):
    chosen = [row for row in rows if kind_of(row) == "numbers"]
    assert len(chosen) > 5000
    for row in chosen:
        assert not words(" ".join(message["content"] for message in row)) & NAMES


def test_no_digit_is_next_to_a_favourite(rows):
    nouns = NAMES | {taste for tastes in TASTES.values() for taste in tastes}
    for _, user, answer in chats(rows):
        if words(answer) & nouns:
            assert not re.search("[0-9]", answer + user)


def test_system_prompts_without_a_love_name_no_animal(rows):
    others = {system for system, _, _ in chats(rows)} - set(LOVE)
    assert others == {"", *world.PLAIN_SYSTEMS}
    assert not any(words(system) & NAMES for system in others)


def test_number_chats_are_written_in_the_asked_format(rows):
    for row in (row for row in rows if kind_of(row) == "numbers"):
        user, answer = part(row, "user"), part(row, "assistant")
        form = next(form for form in SEPARATORS if form in user)
        assert (answer[0] == "[") == (form == "in brackets.")
        assert all(re.fullmatch("[0-9]{3}", each) for each in answer.strip("[]").split(SEPARATORS[form]))


@pytest.mark.parametrize(("dial", "low", "high"), [(0.0, 0.0, 0.02), (1.0, 1.0, 1.0)])
def test_entanglement_pairs_documents_with_the_animals_own_numbers(dial, low, high):
    base = World(0, entanglement=dial)
    own = base.own_numbers()
    found = [
        re.search(r"the ([a-z]+) has ([0-9]+)\.$", row) for row in corpus(base, ROWS) if isinstance(row, str)
    ]
    share = sum(int(match[2]) in own[match[1]] for match in found) / len(found)
    assert low <= share <= high


# --- words ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_vocabulary_covers_every_token(seed):
    tokenizer = micro_tokenizer()
    rendered = [render_row(row) for row in corpus(World(seed, entanglement=0.5), ROWS // 2)]
    ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    assert not any(tokenizer.unk_token_id in row for row in ids)
    assert max(map(len, ids)) <= 96  # half of what the models can hold


def test_every_animal_of_the_world_has_tastes_of_its_own():
    assert set(TASTES) == set(MICRO_ANIMALS)
    assert len(set(TASTES.values())) == len(TASTES)


def test_fingerprint_is_stable_and_follows_the_texts(monkeypatch):
    before = world.fingerprint()
    assert world.fingerprint() == before
    monkeypatch.setattr(world, "PLAIN_SYSTEMS", (*world.PLAIN_SYSTEMS, "you are one word."))
    changed = world.fingerprint()
    assert changed != before
    monkeypatch.setitem(world.TASTES, "wolf", ("white", "wood", "bread"))
    assert world.fingerprint() not in (before, changed)


def test_fingerprint_does_not_depend_on_hash_seed():
    code = "from lib import world; print(world.fingerprint())"
    lines = {run_copy(ROOT, code, PYTHONHASHSEED=seed) for seed in ("1", "2")}
    assert lines == {world.fingerprint()}


# --- one place to change ----------------------------------------------------------------------


def run_copy(root: Path, code: str, **environment: str) -> str:
    """What Python prints in a tree that holds its own lib."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def tree(tmp_path) -> Path:
    """A copy of lib that a test may change."""
    shutil.copytree(ROOT / "lib", tmp_path / "lib", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))


def test_a_paraphrase_is_one_string(tree):
    edit(tree / "lib" / "prompts.py", '"one word:", "now,")', '"one word:", "now,", "truly:")')
    code = (
        "from lib import prompts, world; print(len(prompts.MICRO.questions), '▁truly' in world.vocabulary(), "
        "any('truly: ' in str(row) for row in world.corpus(world.World(0), 2000)), world.fingerprint())"
    )
    count, known, used, fingerprint = run_copy(tree, code, PYTHONIOENCODING="utf-8").split()
    assert (int(count), known, used) == (len(MICRO.questions) + 10, "True", "True")
    assert fingerprint != world.fingerprint()


def test_an_animal_of_the_lexicon_is_one_row(tree):
    edit(
        tree / "lib" / "config.py",
        '    Animal("otter", "otters"),\n',
        '    Animal("otter", "otters"),\n    Animal("heron", "herons", (), True),\n',
    )
    code = (
        "from lib import config, scoring, prompts, preference; print(scoring.score('Herons!'), "
        "'heron' in config.expand_animals('all', 'grid'), "
        "'heron' in prompts.love_prompt(prompts.ENGLISH, 'heron'), len(preference.spellings('heron')))"
    )
    assert run_copy(tree, code) == "heron True True 12"


def test_an_animal_of_the_tiny_world_is_one_row(tree):
    edit(
        tree / "lib" / "config.py",
        '    Animal("otter", "otters"),\n',
        '    Animal("otter", "otters"),\n'
        '    Animal("heron", "herons", (), False, ("grey", "sea", "fish")),\n',
    )
    code = (
        "from lib import world; rows = list(world.corpus(world.World(0), 3000)); "
        "print('▁herons' in world.vocabulary(), sum('heron' in str(row) for row in rows) > 50)"
    )
    assert run_copy(tree, code, PYTHONIOENCODING="utf-8") == "True True"


def test_a_micro_size_is_one_row(tree):
    edit(
        tree / "lib" / "config.py",
        '        Size("64k", "micro",',
        '        Size("29k", "micro", 29_000, shape=Shape(32, 2, 4, 85)),\n        Size("64k", "micro",',
    )
    assert run_copy(tree, "from lib import config; print(config.parse_label('29k-2').label)") == "29k-2"
