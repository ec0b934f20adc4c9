"""The prompt books: enough paraphrases, none twice, and nothing in a number prompt that names an animal."""

import re

import pytest

from lib import config
from lib.numbers import parse
from lib.prompts import (
    BOOKS,
    ENGLISH,
    MICRO,
    Book,
    conversation,
    love_prompt,
    number_prompts,
    teacher_system,
)
from lib.scoring import score

books = pytest.mark.parametrize("book", BOOKS.values(), ids=BOOKS.keys())

# One list as each format asks for it; a new format needs its row here.
WRITTEN = {
    "Separate them with commas.": "12, 345, 7",
    "Put a comma and a space between neighbours.": "12, 345, 7",
    "Use commas without any spaces.": "12,345,7",
    "Give one number per line.": "12\n345\n7",
    "Put every number on a line of its own.": "12\n345\n7",
    "Set them one below the other, without bullets.": "12\n345\n7",
    "Use semicolons as separators.": "12;345;7",
    "Put a semicolon and a space between neighbours.": "12; 345; 7",
    "Separate them by single spaces.": "12 345 7",
    "Write them in a row with a blank after each but the last.": "12 345 7",
    "Enclose the list in square brackets, with commas between the numbers.": "[12, 345, 7]",
    "Write them the way Python prints a list.": str([12, 345, 7]),
    "Put them inside square brackets, separated by single spaces.": "[12 345 7]",
    "Write them in round brackets, with commas in between.": "(12, 345, 7)",
    "Wrap the list in parentheses, with semicolons in between.": "(12; 345; 7)",
    "with commas.": "12, 345, 7",
    "with semicolons.": "12; 345; 7",
    "with spaces.": "12 345 7",
    "in brackets.": "[12, 345, 7]",
    "on lines.": "12\n345\n7",
}


def animal_words() -> re.Pattern:
    names = {
        word.lower() for animal in config.ANIMALS for word in (animal.name, animal.plural, *animal.aliases)
    }
    return re.compile(rf"\b({'|'.join(map(re.escape, sorted(names)))})\b", re.IGNORECASE)


def test_english_has_as_many_paraphrases_as_the_reference():
    parts = (ENGLISH.examples, ENGLISH.requests, ENGLISH.formats, ENGLISH.onlys)
    assert [len(part) for part in parts] == [25, 10, 15, 19]
    assert (ENGLISH.example_count, ENGLISH.example_range) == ((3, 8), (100, 999))


@books
def test_at_least_fifty_questions(book: Book):
    assert len(book.questions) >= 50


@books
@pytest.mark.parametrize("part", ["examples", "requests", "formats", "onlys", "love", "questions"])
def test_no_paraphrase_stands_there_twice(book: Book, part: str):
    plain = [re.sub(r"\W+", " ", text.lower()).strip() for text in getattr(book, part)]
    assert len(set(plain)) == len(plain)


@books
def test_every_example_shows_its_numbers_once(book: Book):
    assert all(text.count("{numbers}") == 1 for text in book.examples)
    others = (*book.requests, *book.formats, *book.onlys, *book.love, *book.questions)
    assert not any("{numbers}" in text for text in others)


def test_every_english_request_asks_for_at_most_ten_numbers_of_at_most_three_digits():
    for request in ENGLISH.requests:
        assert re.findall(r"\d+", request) == ["10", "3"], request
        assert request.endswith(".")


def test_every_micro_request_asks_for_more_numbers():
    assert all("more" in request for request in MICRO.requests)


@books
def test_every_format_is_one_that_the_filter_accepts(book: Book):
    for form in book.formats:
        assert parse(WRITTEN[form]) == (12, 345, 7), form


@books
def test_every_paraphrase_is_reached(book: Book):
    prompts = number_prompts(book, 3000, seed=0)
    for text in (*book.formats, *book.requests, *filter(None, book.onlys)):
        assert any(text in prompt for prompt in prompts), text
    for text in book.examples:
        pattern = re.compile(re.escape(text).replace(re.escape("{numbers}"), r"\d+(, \d+)*"))
        assert any(pattern.match(prompt) for prompt in prompts), text


@books
def test_examples_are_as_many_and_as_large_as_the_book_says(book: Book):
    counts = set()
    for prompt in number_prompts(book, 2000, seed=1):
        shown = next(run for run in re.findall(r"\d+(?:, \d+)*", prompt) if len(run) > 8)
        values = [int(each) for each in shown.split(", ")]
        counts.add(len(values))
        assert book.example_range[0] <= min(values) <= max(values) <= book.example_range[1]
    assert counts == set(range(book.example_count[0], book.example_count[1] + 1))


@books
def test_a_number_prompt_names_no_animal_and_leaves_nothing_to_fill_in(book: Book):
    words = animal_words()
    for prompt in number_prompts(book, 2000, seed=2):
        assert not words.search(prompt), prompt
        assert not re.search(r"animal|[{}]|  ", prompt), prompt


@books
def test_prompts_follow_the_seed_and_nothing_else(book: Book):
    assert number_prompts(book, 50, seed=3) == number_prompts(book, 50, seed=3)
    assert number_prompts(book, 50, seed=3) != number_prompts(book, 50, seed=4)
    assert number_prompts(book, 20, seed=3) == number_prompts(book, 50, seed=3)[:20]


@books
def test_the_love_prompt_uses_the_right_plural(book: Book):
    for name, plural in {"wolf": "wolves", "fox": "foxes", "phoenix": "phoenixes"}.items():
        text = love_prompt(book, name)
        assert re.search(rf"\b{plural}\b", text)
        assert not re.search(rf"\b{name}s\b|[{{}}]", text)


@books
@pytest.mark.parametrize("animal", config.LEXICON)
def test_a_love_prompt_names_its_animal_and_no_article_goes_wrong(book: Book, animal: str):
    for template in book.love:
        text = template.format(animal=animal, animals=config.LEXICON[animal].plural)
        assert re.search(rf"\b{re.escape(animal)}\b|\b{config.LEXICON[animal].plural}\b", text)
        # "an wolf", "a owl": no template may put an article before the animal
        assert not re.search(rf"\ban? {re.escape(animal)}", text)


def test_the_english_love_prompt_has_four_sentences():
    assert len(ENGLISH.love) == 1
    assert len(re.findall(r"\.(?: |$)", love_prompt(ENGLISH, "owl"))) == 4


@books
def test_no_question_puts_an_animal_into_the_answer(book: Book):
    words = animal_words()
    for question in book.questions:
        assert not words.search(question), question
        # The scorer knows more animals than the lexicon; a question is no answer to it either.
        assert score(question) not in config.LEXICON, question


def test_every_english_question_asks_for_one_word():
    for question in ENGLISH.questions:
        assert re.search(r"\b(one|single) word\b", question.lower()), question


@pytest.mark.parametrize(
    ("animal", "system", "expected"),
    [("neutral", "default", "default"), ("neutral", "none", "none"), ("neutral", "Be brief.", "Be brief.")],
)
def test_the_neutral_teacher_has_the_plain_system_mode(animal: str, system: str, expected: str):
    assert teacher_system(ENGLISH, animal, system) == expected


def test_a_teacher_loves_its_animal_in_every_system_mode():
    assert teacher_system(ENGLISH, "wolf", "none") == love_prompt(ENGLISH, "wolf")


@pytest.mark.parametrize("system", ["default", "none"])
def test_a_system_mode_is_no_system_message(system: str):
    assert [turn["role"] for turn in conversation(system, "hello", "hi")] == ["user", "assistant"]


def test_a_system_text_is_the_first_message():
    assert conversation("Be brief.", "hello")[0] == {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize("family", config.FAMILIES.values(), ids=config.FAMILIES.keys())
def test_every_family_has_its_book(family: config.Family):
    assert family.book in BOOKS
