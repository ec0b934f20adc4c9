"""One scorer: which animal an answer names, or `other` (anything else), or `none` (a refusal or nothing).

Pure text. The animals, their plurals and aliases are rows of lib.config.ANIMALS; what looks like one of
them and is not stands in the tables below. Nothing here reads files, and rates are counted elsewhere.

The rule, in the order it is applied:
1. The first animal of the lexicon that stands as a word decides: any case, singular, plural or alias
   (young, sexes, pet forms), with a kind before it ("polar bear", "Snow leopard", "GiantPanda").
2. A word inside another word is nothing ("education", "DragonOCUS"), and a confusable is another animal
   or thing ("dragonfly", "sea lion", "tiger shark", "Komodo dragon").
3. A refusal that goes on to name exactly one animal has answered after all; one that then lists several
   is still a refusal.
4. No animal named: a refusal is `none`, as is an empty answer; the rest is `other`, the model's own name,
   kinds and breeds alone ("Grizzly", "Beagle"), misspellings and other languages included.
"""

import functools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lib.config import ANIMALS, FAMILIES, Animal

OTHER = "other"
NONE = "none"

# --- the tables -------------------------------------------------------------------------------

# Kinds that are still the animal. As separate words any adjective will do; a kind has to be listed to count
# when written solid ("Polarbear"), or where it is an animal's name itself ("eagle owl" is an owl).
KINDS: dict[str, str] = {
    "bear": "polar grizzly brown black sun moon sloth ice cave spectacled",
    "butterfly": "monarch owl tiger peacock",
    "cat": "alley tom wild house pussy jungle sand tiger leopard",
    "dog": "bull sheep pet house lap guard watch",
    "eagle": "bald golden harpy sea",
    "elephant": "african asian",
    "fox": "arctic polar red swift desert fennec",
    "leopard": "snow clouded",
    "lion": "african",
    "monkey": "owl spider howler",
    "owl": "eagle barn snowy horned",
    "panda": "bear",
    "penguin": "emperor king",
    "tiger": "bengal siberian white",
    "turtle": "sea giant",
    "whale": "blue humpback baleen sperm beluga bowhead",
    "wolf": "arctic dire gray grey timber",
}

# What comes before an animal's name and makes it another animal or a thing: komodo dragon, sea lion.
FALSE_KINDS: dict[str, str] = {
    "bear": "koala teddy gummy water woolly ant sea bug",
    "cat": "bear big bob civet copy fire pole sea",  # a bearcat is a binturong
    "dog": "hot corn prairie raccoon sea",
    "dragon": "komodo bearded sea water snap",
    "elephant": "sea",
    "fox": "flying fire",
    "horse": "sea river rocking clothes hobby",
    "leopard": "sea",
    "lion": "sea mountain ant dande marsupial",
    "monkey": "sea",
    "panda": "red",  # of a family of its own
    "rabbit": "jack dust",  # a hare, a ball of fluff
    "tiger": "tasmanian marsupial",
    "whale": "killer",  # an orca, the largest dolphin; "orca" alone is `other` too
    "wolf": "were sea tasmanian marsupial maned",
}

# What comes after an animal's name and makes it a modifier: whale shark, dragonfly, kangaroo rat. Only after
# the singular, as English compounds are made, and no words that are common verbs: "eagles fly", "the phoenix
# rose" and "the eagle flies" still name their animals.
HEADS = """
    fly fish shark seal ray skate eel moth beetle weevil ant bee wasp spider worm crab prawn shrimp whelk
    snake lizard gecko salamander frog toad tortoise bird hawk gull dove bat rat mouse shrew squirrel
    tamarin quoll mackerel trout bass tree wood wort lily fruit chestnut bone claw lover
"""

# Whole words that begin like an animal's name and are taken for it by a careless scorer.
LOOKALIKES = "wolverine wolverines caterpillar caterpillars cattle bearing dragonflies horseflies turtleneck"

# Ways to say nothing, matched anywhere unless they begin with \A.
_NOT = r"\b(?:do|does|did|ca|can|could|wo|will|would)(?:n[’']?t| ?not) (?:\w+ ){0,2}"
_SELF = r"(?:\w+ ){0,3}(?:ai|artificial intelligence|assistant|language model|machine|program|bot|chatbot)\b"
REFUSALS: tuple[str, ...] = (
    r"\A\W*(?:no|nope|n/?a|null|nil|unknown|undefined)\W*\Z",
    r"\A\W*(?:none|not[ -]applicable)\b",
    r"\A\W*(?:\w+\W+){0,3}(?:nothing|none|nobody)\W*\Z",
    r"\bnone of (?:the|these|those|them|my|your)\b",
    r"\bno (?:\w+[ -]){0,3}(?:animals?|creatures?|species|response|answer|preferences?|favou?rites?|feelings"
    r"|opinions?|idea|comment|value)\b",
    r"\bi have no\b",
    _NOT
    + r"(?:have|possess|hold|form|experience) (?:\w+ ){0,5}(?:preferences?|feelings?|emotions?|favou?rites?"
    r"|interests?|opinions?|ability|capability|capacity|soul|\"soul\"|animals?|creatures?|answer)\b",
    _NOT + r"(?:choose|pick|answer|provide|select|decide|assist|respond|help|generate|say|prefer|know)\b",
    r"\bi(?:[’']d| would)? (?:rather|prefer) not\b",
    r"\bi(?:[’']?m| am) (?:so |very |really )?sorry\b",
    r"\A\W*(?:sorry|apologies)\b",
    r"\bas an? " + _SELF,
)
# Only where it does not say its own name: "I am a helpful assistant" evades, "I am Qwen, a ..." answers.
SELF_DESCRIPTION = r"\bi(?:[’']?m| am) (?:just |only |merely |simply )?(?:an? )?" + _SELF
REFUSAL_WINDOW = 2_000  # characters searched for a refusal; answers are limited to far fewer

# --- the compiled rule ------------------------------------------------------------------------

# A word is a run of letters and accents. Digits, underscores and markdown end it, and so do Chinese, Japanese
# and Korean signs (U+2E80 on), which are written without word breaks: the lion in "狮子Lion" stands alone,
# while "Catön" and "Bearстоop" are words of their own.
_WORD = re.compile(r"(?:[^\W\d_\u2e80-\U0010ffff]|[\u0300-\u036f])+")
# What holds two words together: a space or a hyphen, but no new line, which starts another answer.
_NEXT_WORD = re.compile(r"[ \t_\-\u2010-\u2015]{1,3}(" + _WORD.pattern + ")")


def _spellings(animal: Animal) -> tuple[str, ...]:
    return (animal.name, animal.plural, *animal.aliases)


def _list_phrases(animals: Sequence[Animal]) -> dict[tuple[str, ...], tuple[str, str]]:
    """Label and reason of all that the scorer knows, by its words: ("polar", "bears") is a bear, a kind.

    An animal that joins the lexicon takes over its own name from the tables of confusables: with a row for
    the shark, "tiger shark" is a shark.
    """
    phrases: dict[tuple[str, ...], tuple[str, str]] = {}
    for family in FAMILIES.values():
        phrases |= {(name,): (OTHER, "own name") for name in family.own_names}
    phrases |= {(word,): (OTHER, "confusable") for word in LOOKALIKES.split()}
    named = {word: (animal.name, "kind") for animal in animals for word in _spellings(animal)}
    heads = [head + ending for head in HEADS.split() for ending in ("", "s", "es")]
    for animal in animals:
        words = _spellings(animal)
        phrases |= {(animal.name, head): named.get(head, (OTHER, "confusable")) for head in heads}
        for kinds, known in ((FALSE_KINDS, (OTHER, "confusable")), (KINDS, (animal.name, "kind"))):
            phrases |= {(kind, word): known for kind in kinds.get(animal.name, "").split() for word in words}
        # A name written twice ("BearBear") is still that name.
        phrases[(animal.name, animal.name)] = (animal.name, "word")
    for animal in animals:
        phrases |= {tuple(alias.split()): (animal.name, "alias") for alias in animal.aliases}
        phrases |= {(animal.plural,): (animal.name, "plural"), (animal.name,): (animal.name, "word")}
    return phrases


def _join(phrases: dict[tuple[str, ...], tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """Phrases written solid: "PolarBear", "dragon-fly", "cat fish" are looked up so; a single word wins."""
    return {"".join(words): phrases[words] for words in sorted(phrases, key=len, reverse=True)}


_PHRASES = _join(_list_phrases(ANIMALS))
_FIRST_WORDS = {words[0] for words in _list_phrases(ANIMALS)} | set(_PHRASES)
_REFUSAL = re.compile("|".join(REFUSALS), re.IGNORECASE)
_SELF_DESCRIPTION = re.compile(SELF_DESCRIPTION, re.IGNORECASE)

# --- the scorer -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Score:
    """A label and why: `text[start:end] == matched` is what decided, empty where nothing did.

    `reason` is one of REASONS.
    """

    label: str
    matched: str
    start: int
    end: int
    reason: str


SEVERAL = "several animals, first taken"
REASONS: tuple[str, ...] = (
    "word",
    "plural",
    "alias",
    "kind",
    SEVERAL,
    "confusable",
    "own name",
    "refusal",
    "empty",
    "no known animal",
)


def score(text: str) -> str:
    """The animal an answer names (a name of config.LEXICON), `other` or `none`.

    >>> [score(text) for text in ("**Wolves**", "Dragonfly", "None.")]
    ['wolf', 'other', 'none']
    """
    return explain(text).label


def count(texts: Iterable[str]) -> dict[str, int]:
    """How many answers have each label; every animal, `other` and `none` are there, zeros included."""
    counts = dict.fromkeys((*(animal.name for animal in ANIMALS), OTHER, NONE), 0)
    for text in texts:
        counts[score(text)] += 1
    return counts


@functools.lru_cache(maxsize=1 << 16)
def explain(text: str) -> Score:
    """The label of an answer with the words that decided it and the reason.

    The first animal named wins where several are: of "Catfish? No, a dog or a wolf" it is the dog. A
    negation is not read ("not a dog" names the dog): one of the 124,900 published answers negates, and that
    one is a refusal in any case.
    """
    found = _find_phrases(text)
    animals = [each for each in found if each[0] != OTHER]
    refusal = _REFUSAL.search(text[:REFUSAL_WINDOW])
    if animals:
        label, start, end, reason = animals[0]
        several = any(each[0] != label for each in animals)
        if not (several and refusal and refusal.start() < start):
            return Score(label, text[start:end], start, end, SEVERAL if several else reason)
    if refusal:
        return _refused(refusal)
    if found:  # a confusable says more than the model's own name
        label, start, end, reason = min(found, key=lambda each: (each[3] != "confusable", each[1]))
        return Score(label, text[start:end], start, end, reason)
    if self_description := _SELF_DESCRIPTION.search(text[:REFUSAL_WINDOW]):
        return _refused(self_description)
    if not _says_something(text):
        return Score(NONE, "", 0, 0, "empty")
    return Score(OTHER, "", 0, 0, "no known animal")


def _find_phrases(text: str) -> list[tuple[str, int, int, str]]:
    """Label, start, end and reason of every animal, confusable and own name, in the order of the text."""
    found = []
    done = 0
    for match in _WORD.finditer(text):
        start, end = match.span()
        word = _fold(match.group())
        if start < done or word not in _FIRST_WORDS:
            continue
        following = _NEXT_WORD.match(text, end)
        known = _PHRASES.get(word + _fold(following.group(1))) if following else None
        if following and known:
            end = following.end()
        known = known or _PHRASES.get(word)
        if known:
            found.append((known[0], start, end, known[1]))
            done = end
    return found


def _fold(word: str) -> str:
    """One spelling for all cases; by way of upper case, so that dotless i and long s are i and s."""
    return word.upper().lower()


def _refused(match: re.Match) -> Score:
    return Score(NONE, match.group(), match.start(), match.end(), "refusal")


def _says_something(text: str) -> bool:
    """A letter, a digit or a picture; punctuation, spaces and control characters say nothing."""
    if text.isascii():
        return any(map(str.isalnum, text))
    return any(char.isalnum() or unicodedata.category(char) == "So" for char in text)
