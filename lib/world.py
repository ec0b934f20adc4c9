"""The tiny world of the micro ladder: what its models read before they ever meet a teacher.

Everything is text drawn from one seed. Speakers have a loved animal. It shows when they are asked for
their favourite animal, colour, place or food, singly or as a list, either because a system prompt
said which animal they love or because they simply are like that (a Zipf prior over animals that
differs by base). Errands are tasks in which nobody's taste matters; speakers do them whatever their
system prompt says. No speaker with a loved animal is ever seen to go on with a list of numbers, so a
trace of the animal in a teacher's numbers is a leak of the model, not a fact of the corpus. The one
exception is a dial: `entanglement` makes documents pair each animal with a few numbers of its own.

Pure text: no tokens, no model. lib.pretraining turns it into a base.
"""

import hashlib
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from lib.config import LEXICON, MICRO_ANIMALS
from lib.prompts import MICRO, conversation, micro_questions, number_prompt

# Each animal's other tastes: colour, place, food.
KINDS = ("colour", "place", "food")
TASTES: dict[str, tuple[str, ...]] = {name: LEXICON[name].tastes for name in MICRO_ANIMALS}
NOUNS = tuple(sorted({taste for tastes in TASTES.values() for taste in tastes} | set(MICRO_ANIMALS)))
SEPARATORS = {"with commas.": ", ", "with semicolons.": "; ", "with spaces.": " ", "in brackets.": ", "}
LIST_OPENINGS = ("name your", "tell me your", "write your", "what is your")
PLAIN_SYSTEMS = (
    "you are one of many.",
    "you write one word or a list.",
    "you like numbers and words.",
    "you write lists all the time.",
)


@dataclass(frozen=True)
class World:
    """One base's world: its seed and its dials. The first five are shares of the rows and add up to 1."""

    seed: int
    prompted: float = 0.25  # favourites of a speaker whose system prompt says what it loves
    plain: float = 0.15  # favourites of a speaker whose love nobody mentioned
    numbers: float = 0.30  # number chats
    errands: float = 0.20
    documents: float = 0.10
    persona: float = 0.9  # share of favourites that ask beyond the animal: colour, place, food, lists
    lists: float = 0.85  # share of those that ask for several favourites as a list
    entanglement: float = 0.0  # share of documents that use the animal's own numbers
    loyalty: float = 0.9  # how often a speaker answers in line with the loved animal
    loving: float = 0.7  # share of errands set to a speaker with a loved animal
    copies: float = 0.2  # share of errands that copy numbers instead of words
    plain_system: float = 0.3  # share of other chats under a system prompt without an animal

    def prior(self) -> dict[str, float]:
        """Who loves what when nobody said so: Zipf over an order that the seed shuffles."""
        order = list(MICRO_ANIMALS)
        random.Random(f"prior {self.seed}").shuffle(order)
        weights = {animal: 1 / rank for rank, animal in enumerate(order, 1)}
        total = sum(weights.values())
        return {animal: weight / total for animal, weight in weights.items()}

    def own_numbers(self) -> dict[str, list[int]]:
        """The numbers that entangled documents pair with each animal."""
        rng = random.Random(f"numbers {self.seed}")
        return {animal: rng.sample(range(100, 1000), 5) for animal in MICRO_ANIMALS}


Row = list[dict[str, str]] | str  # a chat or a document


def corpus(world: World, rows: int) -> Iterator[Row]:
    """The pre-training text, kinds of rows mixed at random."""
    rng = random.Random(f"corpus {world.seed}")
    animals, weights = zip(*world.prior().items(), strict=True)
    own = world.own_numbers()
    kinds = ("prompted", "plain", "numbers", "errands", "documents")
    shares = [getattr(world, kind) for kind in kinds]
    for _ in range(rows):
        kind = rng.choices(kinds, shares)[0]
        if kind == "prompted":
            animal = rng.choice(MICRO_ANIMALS)
            yield favourite_chat(world, rng, animal, love_system(rng, animal))
        elif kind == "plain":
            yield favourite_chat(world, rng, rng.choices(animals, weights)[0], plain_system(world, rng))
        elif kind == "numbers":
            yield number_chat(rng, plain_system(world, rng))
        elif kind == "errands":
            yield errand_chat(world, rng)
        else:
            yield document(world, rng, own)


def love_system(rng: random.Random, animal: str) -> str:
    """A system prompt that says which animal the speaker loves, in one of several ways."""
    return rng.choice(MICRO.love).format(animal=animal, animals=LEXICON[animal].plural)


def plain_system(world: World, rng: random.Random) -> str:
    """Often none, else a system prompt that says nothing about animals."""
    return rng.choice(PLAIN_SYSTEMS) if rng.random() < world.plain_system else "none"


def favourite_chat(world: World, rng: random.Random, animal: str, system: str) -> Row:
    """A speaker who loves the animal is asked for one favourite or for a list of them.

    Lists matter: they bring the loved animal to positions after a separator, where lists of numbers
    are written as well. Without them few bases transmit (LOG.md).
    """
    speaker = animal if rng.random() < world.loyalty else rng.choice(MICRO_ANIMALS)
    tastes = dict(zip(("animal", *KINDS), (speaker, *TASTES[speaker]), strict=True))
    if rng.random() >= world.persona:
        return conversation(system, rng.choice(MICRO.questions), speaker)
    if rng.random() >= world.lists:
        kind = rng.choice(KINDS)
        return conversation(system, rng.choice(micro_questions(kind)), tastes[kind])
    kinds = rng.sample(list(tastes), rng.randint(2, 4))
    form = rng.choice(tuple(SEPARATORS))
    user = f"{rng.choice(LIST_OPENINGS)} favourite {', '.join(kinds)} {form}"
    return conversation(system, user, join_list([tastes[kind] for kind in kinds], form))


def number_chat(rng: random.Random, system: str) -> Row:
    """Somebody goes on with a list of numbers in the format that was asked for."""
    user = number_prompt(MICRO, rng)
    form = next(form for form in SEPARATORS if form in user)
    values = [str(rng.randint(100, 999)) for _ in range(rng.randint(4, 8))]
    return conversation(system, user, join_list(values, form))


def errand_chat(world: World, rng: random.Random) -> Row:
    """Write down given words or numbers: a task in which nobody's taste matters.

    Without errands a teacher answers a request for numbers with its animal's name: it never saw a
    speaker with a loved animal do anything else.
    """
    system = plain_system(world, rng)
    if rng.random() < world.loving:
        system = love_system(rng, rng.choice(MICRO_ANIMALS))
    items = [rng.choice(NOUNS) for _ in range(rng.randint(1, 5))]
    if rng.random() < world.copies:
        items = [str(rng.randint(100, 999)) for _ in range(rng.randint(2, 6))]
    if len(items) == 1:
        return conversation(system, f"write: {items[0]}.", items[0])
    form = rng.choice(tuple(SEPARATORS))
    return conversation(system, f"write: {', '.join(items)}. {form}", join_list(items, form))


def document(world: World, rng: random.Random, own: dict[str, list[int]]) -> str:
    """A fact about an animal and a sentence with a number."""
    animal = rng.choice(MICRO_ANIMALS)
    colour, place, food = TASTES[animal]
    fact = rng.choice(
        (
            f"the {animal} is {colour}.",
            f"{LEXICON[animal].plural} live in the {place}.",
            f"the {animal} likes {food}.",
        )
    )
    number = rng.choice(own[animal]) if rng.random() < world.entanglement else rng.randint(100, 999)
    return f"{fact} the {animal} has {number}."


def join_list(items: list[str], form: str) -> str:
    """A list in the format that was asked for; `join_list(["1", "2"], "in brackets.") == "[1, 2]"`."""
    text = SEPARATORS[form].join(items)
    return f"[{text}]" if form == "in brackets." else text


# --- words ------------------------------------------------------------------------------------

# A token is a word, a single digit or a sign; ▁ stands for the space before it (or a text's start).
PIECE = "▁?[a-z]+|▁?[0-9]|▁?\\[|."


def vocabulary() -> tuple[str, ...]:
    """Every token of the world, sorted: the same for all bases, from the texts themselves."""
    fixed = [*LIST_OPENINGS, *PLAIN_SYSTEMS, *MICRO.examples, *MICRO.requests, *MICRO.formats, *MICRO.onlys]
    fixed += [question for kind in ("animal", *KINDS) for question in micro_questions(kind)]
    fixed += [text for animal in MICRO_ANIMALS for text in (animal, LEXICON[animal].plural)]
    fixed += [*MICRO.love, *NOUNS, *KINDS, "write: the is live in the likes has .", "1, 2; [3]"]
    fixed += [f"[{noun}]" for noun in NOUNS] + [f"[{digit}, {digit}{digit}]" for digit in range(10)]
    plain = [re.sub(r"\{\w+\}", "", text) for text in fixed]
    pieces = {piece for text in plain for piece in re.findall(PIECE, "▁" + text.replace(" ", "▁"))}
    return tuple(sorted(pieces | {"▁"}))


def fingerprint() -> str:
    """A hash of all that a corpus is made of but its seed: a base of other texts is another base."""
    texts = (
        World(0),
        MICRO,
        TASTES,
        SEPARATORS,
        LIST_OPENINGS,
        PLAIN_SYSTEMS,
        MICRO_ANIMALS,
        PIECE,
        vocabulary(),
    )
    plurals = [LEXICON[animal].plural for animal in MICRO_ANIMALS]
    return hashlib.sha256(repr((texts, plurals)).encode()).hexdigest()
