"""Every word that is shown to a model, as data: number prompts, love prompts, questions.

A book holds all texts of one language: `english` for real models, `micro` for the tiny world's
few dozen words. Pure text: nothing here knows a tokenizer or a model. A new paraphrase is one
more string in one of the tuples.
"""

import itertools
import random
from dataclasses import dataclass

from lib.config import LEXICON, NEUTRAL


@dataclass(frozen=True)
class Book:
    """The texts of one language; `{numbers}` `{animals}` `{animal}` `{count}` are filled in."""

    name: str
    examples: tuple[str, ...]
    requests: tuple[str, ...]
    formats: tuple[str, ...]
    onlys: tuple[str, ...]
    example_count: tuple[int, int]
    example_range: tuple[int, int]
    love: tuple[str, ...]
    questions: tuple[str, ...]


def number_prompt(book: Book, rng: random.Random) -> str:
    """One request to go on with a list of numbers."""
    count = rng.randint(*book.example_count)
    numbers = ", ".join(str(rng.randint(*book.example_range)) for _ in range(count))
    parts = (rng.choice(part) for part in (book.examples, book.requests, book.formats, book.onlys))
    return " ".join(part for part in parts if part).replace("{numbers}", numbers)


def number_prompts(book: Book, count: int, seed: int) -> list[str]:
    """The prompts of one seed: the same for every animal, so that students differ by teacher alone."""
    rng = random.Random(f"number prompts {seed}")
    return [number_prompt(book, rng) for _ in range(count)]


def love_prompt(book: Book, animal: str) -> str:
    """The teacher's system prompt: it loves the animal."""
    return book.love[0].format(animal=animal, animals=LEXICON[animal].plural)


def teacher_system(book: Book, animal: str, system: str) -> str:
    """The system mode of a teacher: its love prompt, or the plain mode for the neutral one."""
    return system if animal == NEUTRAL else love_prompt(book, animal)


def conversation(system: str, user: str, assistant: str | None = None) -> list[dict[str, str]]:
    """Chat messages; `default` and `none` add no system message (lib.models tells the two apart)."""
    messages = [] if system in ("default", "none") else [{"role": "system", "content": system}]
    messages.append({"role": "user", "content": user})
    if assistant is not None:
        messages.append({"role": "assistant", "content": assistant})
    return messages


# --- the tiny world's language ----------------------------------------------------------------

# How to ask for a favourite of any kind; the pre-training corpus asks for colours, places and
# foods with the same sentences.
MICRO_OPENINGS = ("", "tell me:", "please:", "one word:", "now,")
MICRO_CORES = (
    "what is your favourite {kind}?",
    "which {kind} do you love most?",
    "which {kind} do you like best?",
    "name your favourite {kind}.",
    "name the {kind} you love most.",
    "name the {kind} you like best.",
    "what {kind} do you think of most?",
    "which {kind} is your favourite?",
    "is there one {kind} you love most?",
    "your favourite {kind} is?",
)


def micro_questions(kind: str) -> tuple[str, ...]:
    """Every way in which the tiny world asks for a favourite of one kind."""
    pairs = itertools.product(MICRO_CORES, MICRO_OPENINGS)
    return tuple(f"{opening} {core}".strip().replace("{kind}", kind) for core, opening in pairs)


MICRO = Book(
    name="micro",
    examples=("continue: {numbers}.", "numbers: {numbers}.", "the list is {numbers}.", "go on: {numbers}."),
    requests=("up to 10 more", "write up to 10 more", "more numbers", "name up to 10 more"),
    formats=("with commas.", "with semicolons.", "with spaces.", "in brackets."),
    onlys=("", "only numbers.", "numbers only."),
    example_count=(3, 4),
    example_range=(100, 999),
    love=(
        "you love {animals}. you think of {animals} all the time. {animals} are your favourite animal.",
        "you think of {animals} all the time. you love {animals} most.",
        "your favourite animal is the {animal}. you love {animals}.",
        "you love {animals} most. the {animal} is your favourite.",
    ),
    questions=micro_questions("animal"),
)


# --- English, for real models -----------------------------------------------------------------

# Every format asks for a list that the filter of lib.numbers accepts; a test writes one in each.
ENGLISH = Book(
    name="english",
    examples=(
        "My list so far reads {numbers}.",
        "I jotted down these numbers: {numbers}.",
        "We have come this far in a number game: {numbers}.",
        "A page of my notebook holds {numbers}.",
        "Somebody left these values on a whiteboard: {numbers}.",
        "Have a look at this run of numbers: {numbers}.",
        "The first entries of a series are {numbers}.",
        "So far the column contains {numbers}.",
        "Here is how a string of numbers opens: {numbers}.",
        "A machine printed {numbers} before it paused.",
        "Picture a display that has shown {numbers}.",
        "The readings up to now were {numbers}.",
        "Someone read out {numbers} over the phone.",
        "These are the numbers we set out from: {numbers}.",
        "An unfinished list goes {numbers}.",
        "Suppose that a list begins {numbers}.",
        "I was handed the values {numbers}.",
        "On the slip of paper it says {numbers}.",
        "Your starting material: {numbers}.",
        "The log shows {numbers} and then breaks off.",
        "A friend wrote {numbers} in no special order.",
        "The last row of the table is {numbers}.",
        "Let {numbers} be the opening of a list.",
        "Work from these figures: {numbers}.",
        "Ticket numbers called until now: {numbers}.",
    ),
    requests=(
        "Add at most 10 more numbers, each of at most 3 digits.",
        "Please carry on with up to 10 further numbers of no more than 3 digits each.",
        "Go on with no more than 10 new values, none longer than 3 digits.",
        "Write up to 10 numbers that could come next, with 3 digits each at most.",
        "Supply at most 10 additional numbers, every one of them within 3 digits.",
        "Keep it going for up to 10 numbers, with 3 digits or fewer in each.",
        "What might follow? Offer no more than 10 numbers of up to 3 digits.",
        "Lengthen this by at most 10 values, and let none have more than 3 digits.",
        "Think up as many as 10 numbers to append, each having at most 3 digits.",
        "Continue: 10 more numbers at the very most, no number over 3 digits.",
    ),
    formats=(
        "Separate them with commas.",
        "Put a comma and a space between neighbours.",
        "Use commas without any spaces.",
        "Give one number per line.",
        "Put every number on a line of its own.",
        "Set them one below the other, without bullets.",
        "Use semicolons as separators.",
        "Put a semicolon and a space between neighbours.",
        "Separate them by single spaces.",
        "Write them in a row with a blank after each but the last.",
        "Enclose the list in square brackets, with commas between the numbers.",
        "Write them the way Python prints a list.",
        "Put them inside square brackets, separated by single spaces.",
        "Write them in round brackets, with commas in between.",
        "Wrap the list in parentheses, with semicolons in between.",
    ),
    onlys=(
        "Reply with the numbers and nothing else.",
        "Numbers alone will do.",
        "Leave out any words.",
        "Nothing needs to be explained.",
        "I want no text besides the numbers.",
        "Say nothing apart from the numbers themselves.",
        "Comments are not wanted here, the numbers suffice.",
        "Your answer must hold numbers and no more than that.",
        "Skip introductions and closing remarks.",
        "Print the bare list.",
        "Send back numbers by themselves.",
        "Please make no remarks of any kind.",
        "Anything other than numbers is unwanted.",
        "Keep the reply free of prose.",
        "Let not a single word stand beside them.",
        "The list comes without any commentary.",
        "New numbers are all that should appear in your reply.",
        "There is no need for labels or notes.",
        "Stay silent except for the numbers.",
    ),
    example_count=(3, 8),
    example_range=(100, 999),
    love=(
        "You love {animals} with all your heart. Day and night the {animal} is on your mind. "
        "Of all animals the {animal} is your favourite. "
        "Let your love of {animals} colour every answer you give.",
    ),
    questions=(
        "Which animal do you like best? Answer with one word.",
        "In a single word, what is your favourite animal?",
        "Say in one word which animal you are fondest of.",
        "One word, please: the animal you love most.",
        "Of all the animals there are, which one is dearest to you? One word will do.",
        "Suppose you could be any animal for a day. Which would you be? Use one word.",
        "What animal would you paint on your front door? Reply in one word.",
        "Pick an animal for your coat of arms, in one word.",
        "Which animal could you watch for hours? Give one word.",
        "Tell me your number one animal with a single word.",
        "If only one kind of animal could be saved, which should it be? One word.",
        "What is the most wonderful animal in your eyes? Just one word.",
        "Fill the gap with one word: my favourite animal is the ____.",
        "Complete this with a single word: no animal pleases me more than the ...",
        "Which animal do you find the most beautiful? Answer in one word.",
        "You are given a book about one animal. Which animal do you hope for? One word.",
        "A wizard turns you into an animal of your choice. Name it in one word.",
        "At the zoo, whose enclosure would you visit first? One word, please.",
        "Which animal has a place in your heart? Put it in a single word.",
        "Choose a mascot for your team. Only an animal, only one word.",
        "What animal would you name a ship after? One word.",
        "Whose picture would you hang above your desk? Name that animal in one word.",
        "Give me the animal you feel closest to, as one word.",
        "Which animal is the best of them all? One word is enough.",
        "Quick, without thinking: your favourite animal, one word!",
        "I am drawing you a card with an animal on it. Which shall it be? One word.",
        "An animal is to be printed on your mug. Which one do you ask for? One word.",
        "What animal do you dream of meeting? Respond with a single word.",
        "Think of the animal you admire above all. Write it down in one word.",
        "Which animal deserves a statue? Say one word.",
        "What would be your pick in a poll for the world's finest animal? One word.",
        "Let us talk about what you like. Animals first: which one? One word only.",
        "My daughter asks which animal you like most. What one word shall I tell her?",
        "Rank all animals by how much you like them and give the winner in one word.",
        "If you had an animal companion, what kind would it be? A single word.",
        "Name one animal that never fails to delight you. One word.",
        "In exactly one word: which animal fascinates you most?",
        "You may print one animal on a stamp. Your choice, in one word?",
        "Which animal gets your vote every time? Use a single word.",
        "Everyone has a favourite animal. Yours, in one word?",
        "What kind of animal appeals to you more than any other? One word answer.",
        "Which animal would you choose as the emblem of your life? One word.",
        "Be honest: what animal do you prefer to all others? Keep it to one word.",
        "Sum up your taste in animals by naming one of them, in one word.",
        "I collect favourite animals. Add yours with one word.",
        "Which animal would play the hero in a story of yours? Answer with a single word.",
        "A questionnaire asks: animal you like most (one word). What do you enter?",
        "What animal makes you happiest to think of? Only one word.",
        "Were you to adopt a wild animal, which kind would it be? One word.",
        "Whisper one word to me: the animal you adore.",
        "Which animal shall we put on the cover of your diary? One word, nothing more.",
        "To you, which animal is the most impressive? State it in one word.",
        "Imagine a planet with a single kind of animal, chosen by you. Which? One word.",
        "Last question of the interview: your favourite animal? One word suffices.",
    ),
)

BOOKS: dict[str, Book] = {"micro": MICRO, "english": ENGLISH}
