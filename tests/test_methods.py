"""lib.methods: what a study's files record of its making is told, what they do not is said to be unknown."""

import json
import re
import shlex

import pytest
from build_study import ANIMALS, build_document, write_document
from papermill.cli import papermill as papermill_command

from lib import commands, config, files, methods, paths, published

MODELS, LISTS, STUDENTS, ANSWERS, _, MAKING, HOURS = range(7)


def ask_for(study, sizes, animals, **options):
    known = commands.read_defaults(commands.ANALYSIS)
    asked = known | {"study": study, "sizes": sizes, "animals": animals} | options
    return config.build(config.Analysis, asked)


@pytest.fixture(scope="module")
def micro():
    """Two students and their controls of the study that the project carries."""
    ask = ask_for("micro", "64k,64k-1", "neutral,wolf,cat")
    return published.load_results(ask), ask


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """A study whose lineage a test can write; seconds are of two students that went together."""
    monkeypatch.setenv("SUBLIMINAL_ROOT", str(tmp_path))

    def build(**lineage):
        for animal in ("untuned", "neutral", *ANIMALS):
            document = build_document("toy", "64k", animal, 0)
            if animal != "untuned":
                document["lineage"].update(lineage)
            write_document(document)
        ask = ask_for("toy", "64k", ",".join(ANIMALS))
        return methods.describe_methods(published.load_results(ask), ask)

    return build


def test_settings_counts_and_hashes_are_those_of_the_files(micro):
    box = methods.describe_methods(*micro)
    parts = [dict(rows) for _, rows in box.parts]
    document = json.loads(paths.evaluation("micro", "64k", "wolf", 0).read_text())
    chain = document["lineage"]["chain"]
    assert f"{chain['base']['counts']['parameters']:,} parameters" in parts[MODELS]["64k"]
    assert chain["base"]["identity"][:16] in parts[MODELS]["64k"]
    assert parts[LISTS]["n_keep"] == str(chain["generate"]["config"]["n_keep"])
    assert parts[STUDENTS]["lora_rank"] == "8"
    assert parts[STUDENTS]["learning_rate"] == str(chain["finetune"]["config"]["learning_rate"])
    assert parts[STUDENTS]["runs"] == "6"
    assert parts[ANSWERS]["samples"] == str(document["config"]["samples"])
    assert f"torch {document['lineage']['packages']['torch']}" in str(box)
    assert "Linux" in parts[MAKING]["hardware of 8 evaluations"]


def test_reading_stops_before_the_answers_and_finds_the_same(micro):
    path = paths.evaluation("micro", "64k", "wolf", 0)
    whole = files.read_json(path)
    assert methods.read_head(path) == {"config": whole["config"], "lineage": whole["lineage"]}


def test_packed_evaluations_say_the_same(toy, tmp_path):
    plain = toy(**link(60.0))
    for path in files.list_documents(tmp_path, "results/toy/*/*/s*.json"):
        files.write_bytes(files.packed_name(path), files.pack(path.read_bytes()))
        path.unlink()
    ask = ask_for("toy", "64k", ",".join(ANIMALS))
    packed = methods.describe_methods(published.load_results(ask), ask)
    assert str(packed) == str(plain) and "finetune" in str(methods.read_heads(published.load_results(ask)))


def test_a_file_in_another_order_is_read_whole(tmp_path):
    path = tmp_path / "s0.json"
    path.write_text(
        json.dumps({"epochs": ["x" * methods.HEAD], "lineage": {"chain": {}}, "config": {"a": 1}})
    )
    assert methods.read_head(path) == {"config": {"a": 1}, "lineage": {"chain": {}}}


def link(seconds, **counts):
    stage = {"config": {"epochs": 3}, "counts": counts, "identity": "f" * 64}
    return {"chain": {"finetune": stage}, "seconds": seconds}


def test_hours_of_students_that_went_together_are_shared(toy):
    parts = toy(**link({"finetune": 7200.0}, together=2)).parts
    assert dict(parts[HOURS][1])["students"] == "1.0 hours in 1 runs"


def read_by(lists, **settings):
    """The chain of students that read lists of the ladder."""
    student = {"study": "toy", "epochs": 3, "lists_of": "ladder", **settings}
    student |= {"lists": lists} if lists else {}
    numbers = {"study": "ladder", "n_keep": 9}
    return {
        "chain": {
            "generate": {"config": numbers, "counts": {}, "identity": "e" * 64},
            "finetune": {"config": student, "counts": {}, "identity": "f" * 64},
        }
    }


@pytest.mark.parametrize(
    ("lists", "words"),
    [
        ("", "their teacher's lists as they were written"),
        ("shuffled", "a control: all numbers of a teacher's lists in random order over all of them"),
        ("foreign", "a control: lists that the teacher of the same animal wrote as another base"),
        ("sorted", r"sorted \(unknown to this version\)"),
    ],
)
def test_which_control_this_was_and_whose_lists_were_read_is_told(toy, lists, words):
    parts = toy(**read_by(lists)).parts
    students, numbers = dict(parts[STUDENTS][1]), dict(parts[LISTS][1])
    assert re.match(words, students["what they read"])
    assert students["lists_of"] == numbers["written for study"] == "ladder"
    assert students.get("lists", "") == lists


def test_a_study_of_its_own_lists_names_no_other(micro):
    parts = dict(methods.describe_methods(*micro).parts)
    assert "written for study" not in dict(parts["Teachers' lists"])


def test_the_study_whose_lists_are_read_is_made_first():
    lines = list(methods.list_commands(ask_for("epochs", "64k", "wolf")))
    making = [line for line in lines if line.startswith("make study")]
    assert making == ["make study STUDY=ladder  # whose lists are read here", "make study STUDY=epochs"]


def test_what_no_file_records_is_unknown(toy):
    parts = toy(**link(1.0)).parts
    hours = dict(parts[HOURS][1])
    assert hours["students"] == hours["bases"] == "unknown"
    assert hours["answers"].startswith("unknown")
    assert dict(parts[LISTS][1])["lists written"] == "unknown"
    assert "unknown" in dict(parts[MAKING][1])["hardware of 7 evaluations"]


def test_settings_that_differ_are_counted():
    rows = dict(methods.list_values([{"batch": 60}, {"batch": 60}, {"batch": 30, "size": "64k"}]))
    assert rows == {"batch": "60 (2 times), 30 (1 times)"}


def test_the_way_to_make_it_again_is_one_that_papermill_takes(micro):
    box = methods.describe_remake(*micro)
    command = str(dict(box.parts)["Commands"]).splitlines()[-1]
    words = shlex.split(command.partition("&& ")[2])
    assert words[0] == "papermill"
    with papermill_command.make_context("papermill", words[1:]) as parsed:
        given = dict(parsed.params["parameters"])
    assert given["study"] == "micro"
    assert given["sizes"] == "64k,64k-1"


def test_one_changed_answer_changes_the_hash_of_what_was_read(toy):
    def read():
        ask = ask_for("toy", "64k", ",".join(ANIMALS))
        return dict(methods.describe_remake(published.load_results(ask), ask).parts[0][1])["their hash"]

    toy()
    before = read()
    document = build_document("toy", "64k", "dog", 0)
    document["epochs"][0]["answers"][0]["text"] = "another"
    write_document(document)
    assert read() != before


def test_foreign_text_of_a_lineage_is_escaped():
    box = methods.Box((("<b>", (("<i>", "<script>"),)), ("c", "<pre>")))
    assert "<script>" not in box._repr_html_()
    assert "&lt;script&gt;" in box._repr_html_()


def test_the_citation_is_that_of_the_citation_file():
    text = (paths.CODE / "CITATION.cff").read_text()
    for name in ("title", "version"):
        value = re.search(rf"{name} = {{(.+)}}", methods.cite_software())[1]
        assert re.search(rf'^{name}: "?{re.escape(value)}"?$', text, flags=re.MULTILINE)
    assert "2507.14805" in methods.CLOUD
