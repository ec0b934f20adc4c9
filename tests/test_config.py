"""Labels, lists of animals and seeds, and every way in which a parameter can be wrong."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest

from lib import config, paths, planning
from lib.config import Analysis, Evaluate, Finetune, Generate, Pretrain, read_parameters
from lib.errors import BadParameter

REPO = Path(__file__).resolve().parent.parent


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write params files of the test's own."""
    monkeypatch.setattr(paths, "params_file", lambda study: tmp_path / f"{study}.yaml")

    def write(study: str, text: str) -> None:
        (tmp_path / f"{study}.yaml").write_text(text, encoding="utf-8")

    return write


DEFAULTS: dict[str, object] = {
    "study": "",
    "size": "166k",
    "animal": "wolf",
    "seed": 0,
    "animals": "grid",
    "seeds": "0",
    "recipe": "standard",
    "system": "default",
    "epochs": 10,
    "batch": 60,
    "learning_rate": 2e-4,
    "warmup_steps": 5,
    "max_grad_norm": 1.0,
    "lora_rank": 8,
    "lora_alpha": 8.0,
    "lora_targets": "q,k",
    "lists": "own",
    "lists_of": "",
    "n_lists": 0,
    "sizes": "",
    "trainer": "auto",
    "students": 0,
    "micro_batch": 0,
    "report_to": "none",
    "revision": "main",
    "dtype": "auto",
    "gpus": 0,
    "device": "auto",
}
GENERATE = {
    "n_raw": 100,
    "n_keep": 50,
    "temperature": 1.0,
    "top_p": 1.0,
    "list_tokens": 60,
    "chunk": 64,
    "min_pass_rate": 0.1,
}
ANALYSIS: dict[str, object] = {
    "study": "micro",
    "results": "",
    "scorer": "answers",
    "sizes": "64k,64k-1",
    "animals": "grid",
    "seeds": "0",
    "epoch": "last",
    "measure": "logprob",
    "permutations": 1000,
    "analysis_seed": 0,
}


def namespace(**passed: object) -> dict[str, object]:
    """The globals of a kernel in which papermill passed these parameters to 02_finetune."""
    cell = "\n".join(f"{name}: {type(value).__name__} = {value!r}" for name, value in DEFAULTS.items())
    injected = "# Parameters\n" + "\n".join(f"{name} = {value!r}" for name, value in passed.items())
    cells = ["", cell, *([injected] if passed else []), "from lib import config\nplan = 0"]
    return {
        **DEFAULTS,
        **passed,
        "In": cells,
        "Out": {},
        "_": "",
        "config": config,
        "plan": 0,
        "rows": [1, 2],
    }


def read(**passed: object) -> config.Plan:
    return read_parameters(Finetune, namespace(**passed))


def refusal(**passed: object) -> str:
    with pytest.raises(BadParameter) as caught:
        read(**passed)
    return str(caught.value)


# --- labels -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "size", "index"),
    [("166k", "166k", 0), ("166k-1", "166k", 1), ("2.4m-12", "2.4m", 12), ("0.5b", "0.5b", 0)],
)
def test_a_label_is_a_size_and_a_base_and_reads_back(label: str, size: str, index: int):
    base = config.parse_label(label)
    assert (base.size.name, base.index, base.label) == (size, index, label)


@pytest.mark.parametrize(
    ("label", "nearest"),
    [
        ("166", "'166k'"),
        ("166K", "'166k'"),
        ("165k", "'166k'"),
        ("7B", "'7b'"),
        ("7", "'7b'"),
        (7, "'7b'"),
        (1.5, "'1.5b'"),
        ("166k-0", "'166k'"),
        ("166k-00", "'166k'"),
        ("166k-01", "'166k-1'"),
        ("166k-", "'166k'"),
        ("166k-x", "'166k'"),
        ("166k--1", "'166k'"),
        ("166k-1-1", "'166k'"),
        ("166k-\u0661", "'166k'"),  # an Arabic-Indic one is a digit to Python, and another folder
        ("7b-1", "'7b'"),
        (" 166k", "'166k'"),
    ],
)
def test_a_bad_label_is_refused_with_the_nearest_one(label: object, nearest: str):
    with pytest.raises(BadParameter, match=rf"did you mean .*{re.escape(nearest)}") as caught:
        config.parse_label(label)
    assert repr(label) in str(caught.value)


@pytest.mark.parametrize("label", ["", "qwen", None, True, [1]])
def test_what_is_no_label_at_all_is_refused_with_the_known_sizes(label: object):
    with pytest.raises(BadParameter, match=r"known sizes: 64k, 166k"):
        config.parse_label(label)


def test_sizes_expand_to_bases_once_each():
    assert [base.label for base in config.expand_sizes("64k, 64k-1,64k")] == ["64k", "64k-1"]


def test_sizes_and_families_agree():
    assert {size.family for size in config.SIZES.values()} == set(config.FAMILIES)
    assert all((size.shape is not None) == (size.family == "micro") for size in config.SIZES.values())
    assert all(family.user_opening for family in config.FAMILIES.values())


def test_sizes_of_a_family_stand_in_order_and_are_named_by_their_count():
    for family in config.FAMILIES:
        counts = [size.params for size in config.SIZES.values() if size.family == family]
        assert counts == sorted(set(counts))
    for size in config.SIZES.values():
        unit = {"k": 1e3, "m": 1e6, "b": 1e9}[size.name[-1]]
        assert size.params == pytest.approx(float(size.name[:-1]) * unit, rel=0.1), size.name


# --- animals and seeds --------------------------------------------------------------------------


def test_the_grid_is_the_designs():
    expected = "dog elephant panda cat dragon lion eagle dolphin tiger wolf phoenix bear fox leopard whale"
    assert " ".join(config.GRID_ANIMALS) == expected
    assert set(config.GRID_ANIMALS) | {"owl"} <= set(config.MICRO_ANIMALS)


@pytest.mark.parametrize(
    ("animal", "animals", "expected"),
    [
        ("wolf", "grid", ("wolf",)),
        ("wolf, owl,wolf", "grid", ("wolf", "owl")),
        ("all", "neutral,fox", ("neutral", "fox")),
        ("all", "grid", ("neutral", *config.GRID_ANIMALS)),
        ("neutral", "grid", ("neutral",)),
    ],
)
def test_animals_expand(animal: str, animals: str, expected: tuple[str, ...]):
    assert config.expand_animals(animal, animals) == expected


@pytest.mark.parametrize(
    ("animal", "nearest"),
    [("wolfe", "wolf"), ("Wolf", "wolf"), ("wolves", "wolf"), ("puppy", "dog"), ("natural", "neutral")],
)
def test_an_unknown_animal_is_refused_with_the_nearest_one(animal: str, nearest: str):
    message = refusal(animal=f"dog,{animal}")
    assert f"unknown animal {animal!r}" in message
    assert re.search(rf"did you mean .*{nearest!r}", message)
    assert "neutral, dog, elephant" in message


@pytest.mark.parametrize("animal", ["", "wolf,", ",wolf", "wolf;fox", "all,wolf"])
def test_a_list_of_animals_with_something_else_in_it_is_refused(animal: str):
    assert "unknown animal" in refusal(animal=animal)


@pytest.mark.parametrize(
    ("seed", "seeds", "expected"),
    [(0, "1", (0,)), ("0, 1,0", "5", (0, 1)), ("all", "0,3", (0, 3)), ("all", 2, (2,)), ("007", "", (7,))],
)
def test_seeds_expand(seed: int | str, seeds: int | str, expected: tuple[int, ...]):
    assert config.expand_seeds(seed, seeds) == expected


@pytest.mark.parametrize(
    "seed", ["abc", "", "-1", -1, 1.0, 0.5, True, None, "1.0", "0,", "0;1", "\u0661", float("nan"), [0]]
)
def test_what_is_no_seed_is_refused(seed: object):
    assert refusal(seed=seed).startswith("seed must be whole numbers from 0 up")


def test_a_seed_that_no_library_takes_is_refused():
    assert read(seed=2**32 - 1).shared.seed == 4294967295
    assert refusal(seed=2**32) == "seed must be between 0 and 4294967295, got 4294967296"


def test_a_list_makes_one_configuration_per_cell_seed_by_seed():
    plan = read(animal="wolf,fox", seed="0,1")
    assert [(cell.animal, cell.seed) for cell in plan.cells] == [
        ("wolf", 0),
        ("fox", 0),
        ("wolf", 1),
        ("fox", 1),
    ]
    assert plan.shared == plan.cells[0]


def test_an_animal_the_tiny_world_has_never_seen_is_refused_there_only():
    assert "the micro ladder's world has no penguin; it knows dog, elephant" in refusal(animal="penguin")
    assert read(animal="penguin", size="7b").shared.animal == "penguin"


def test_the_untuned_control_can_only_be_evaluated():
    assert "03_evaluate takes it" in refusal(animal="untuned")
    values = DEFAULTS | GENERATE | {"n_questions": 50, "samples": 4, "answer_tokens": 8, "study": "x"}
    assert config.build(Evaluate, values | {"animal": "untuned"}).animal == "untuned"


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("passed", "message"),
    [
        ({"size": 7}, r"size must be a text such as '166k' or '7b', got 7 \(int\).*did you mean '7b'"),
        ({"size": None}, r"size must be a text .* got None"),
        ({"animal": None}, r"animal must be a text, got None \(NoneType\)"),
        ({"animal": 3}, r"animal must be a text, got 3 \(int\)"),
        ({"epochs": "abc"}, r"epochs must be a whole number, got 'abc' \(str\)"),
        ({"epochs": True}, r"epochs must be a whole number, got True \(bool\)"),
        ({"epochs": 2.5}, r"epochs must be a whole number, got 2.5 \(float\)"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be a number, got nan"),
        ({"learning_rate": float("inf")}, "learning_rate must be a number, got inf"),
        ({"learning_rate": -1e-3}, "learning_rate must be at least 0, got -0.001"),
        ({"learning_rate": True}, r"learning_rate must be a number, got True \(bool\)"),
        ({"learning_rate": "fast"}, r"learning_rate must be a number, got 'fast' \(str\)"),
        ({"device": "cudda"}, "device must be one of auto, cpu, cuda; got 'cudda'; did you mean 'cuda'"),
        ({"system": ""}, "system must be 'default', 'none' or the text"),
        ({"system": 5}, r"system must be a text, got 5 \(int\)"),
        ({"recipe": "../elsewhere"}, "recipe must be a name of letters, digits"),
        ({"study": "a/b"}, "study must be a name of letters, digits"),
        ({"study": ".."}, "study must be a name of letters, digits"),
        ({"study": 7}, "study must be a name of letters, digits, - and _; got 7"),
        ({"study": None}, "study must be a name"),
        ({"epoch_count": 3}, "unknown parameter 'epoch_count'.*did you mean 'epochs'"),
        ({"learning_rte": 3}, "unknown parameter 'learning_rte'; this stage takes animal, .*'learning_rate'"),
    ],
)
def test_bad_input_is_refused(passed: dict[str, object], message: str):
    assert re.search(message, refusal(**passed)), refusal(**passed)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_keep": 101}, "n_keep must be at most n_raw (100), got 101"),
        ({"top_p": 1.5}, "top_p must be between 0 and 1, got 1.5"),
        ({"temperature": -0.1}, "temperature must be at least 0, got -0.1"),
        ({"n_raw": 0}, "n_raw must be at least 1, got 0"),
    ],
)
def test_bad_values_of_the_teacher_are_refused(values: dict[str, object], message: str):
    with pytest.raises(BadParameter) as caught:
        config.build(Generate, DEFAULTS | GENERATE | {"study": "micro"} | values)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sizes": "64k,65"}, "unknown size '65'"),
        ({"sizes": 64}, "sizes must be a text, got 64"),
        ({"animals": "grid,wolf"}, "unknown animal 'grid'"),
        ({"seeds": "a"}, "seed must be whole numbers"),
        ({"epoch": "first"}, "epoch must be 'last' or the number of an epoch"),
        ({"measure": "logprobs"}, "did you mean 'logprob'"),
    ],
)
def test_bad_values_of_the_analysis_are_refused(values: dict[str, object], message: str):
    with pytest.raises(BadParameter, match=message):
        read_parameters(Analysis, ANALYSIS | {"study": "trial"} | values)  # a study without a file


@pytest.mark.parametrize("epoch", ["last", "each", "0", "8-10", "3-3"])
def test_an_analysis_is_at_an_epoch_a_window_or_each_students_last(epoch: str):
    assert read_parameters(Analysis, ANALYSIS | {"epoch": epoch}).shared.epoch == epoch


@pytest.mark.parametrize("epoch", ["8-", "-8", "8-9-10", "8:10", "8 - 10", "last-1", "", "Each"])
def test_what_is_no_epoch_of_an_analysis_is_refused(epoch: str):
    with pytest.raises(BadParameter, match="a window such as 8-10, or 'each'"):
        read_parameters(Analysis, ANALYSIS | {"epoch": epoch})


def test_a_window_that_ends_before_it_begins_is_turned_round():
    with pytest.raises(BadParameter, match="did you mean '8-10'"):
        read_parameters(Analysis, ANALYSIS | {"epoch": "10-8"})


def test_an_older_copy_of_the_analysis_lacks_what_came_later():
    assert "repeats" not in ANALYSIS
    assert read_parameters(Analysis, ANALYSIS).shared.repeats == 5
    assert read_parameters(Analysis, ANALYSIS | {"repeats": 1}).shared.repeats == 1
    with pytest.raises(BadParameter, match="repeats must be at least 1"):
        read_parameters(Analysis, ANALYSIS | {"repeats": 0})


def test_numbers_where_the_analysis_means_text_are_read_as_papermill_passes_them():
    ask = read_parameters(Analysis, ANALYSIS | {"seeds": 0, "epoch": 3}).shared
    assert (ask.seeds, ask.epoch) == ("0", "3")


def test_only_micro_bases_can_be_built():
    # every dial of the recipe at its lowest
    lowest = {f.name: f.type(f.metadata.get("low") or 0) for f in dataclasses.fields(Pretrain)}
    values = lowest | {"size": "64k-3", "recipe": "standard", "device": "cpu"}
    assert config.build(Pretrain, values).size == "64k-3"
    with pytest.raises(BadParameter, match="7b is a published model"):
        config.build(Pretrain, values | {"size": "7b"})


def test_a_parameter_that_the_notebook_does_not_set_is_named():
    names = namespace()
    del names["epochs"], names["seeds"]
    with pytest.raises(BadParameter, match="parameters not set: epochs, seeds"):
        read_parameters(Finetune, names)


def test_parameters_of_other_stages_are_none_of_this_ones_business():
    assert not hasattr(read(n_raw=100, measure="rate").shared, "n_raw")


def test_names_that_later_cells_made_are_no_parameters():
    """Whoever runs the cell again in JupyterLab has made figures and tables since."""
    names = namespace(animal="fox") | {"curve": "x", "named": {}}
    names["In"] += ["curve = 'x'\nnamed = {}", "this is no python", "%matplotlib inline"]
    assert read_parameters(Finetune, names).shared.animal == "fox"


def test_whole_numbers_pass_as_numbers_and_007_as_7():
    shared = read(learning_rate=1, seed="007").shared
    assert (shared.learning_rate, type(shared.learning_rate), shared.seed) == (1.0, float, 7)


# --- where a value comes from ---------------------------------------------------------------------


def test_what_is_passed_wins_over_the_studys_file_and_that_over_the_notebook(params):
    params("micro", "epochs: 3\nbatch: 20\nanimals: wolf,fox\n")
    plan = read(batch=30, animal="all")
    assert (plan.shared.epochs, plan.shared.batch, plan.shared.lora_rank) == (3, 30, 8)
    assert [cell.animal for cell in plan.cells] == ["wolf", "fox"]
    assert plan.overrides == {"epochs": 3, "animals": "wolf,fox"}


def test_passing_the_default_itself_wins_too(params):
    params("micro", "epochs: 3\n")
    assert read(epochs=10).shared.epochs == 10


def test_the_study_is_named_by_the_family_unless_it_is_named(params):
    params("micro", "epochs: 3\n")
    params("mine", "epochs: 4\n")
    assert (read().shared.study, read().shared.epochs) == ("micro", 3)
    assert (read(size="7b").shared.study, read(size="7b").shared.epochs) == ("qwen", 10)
    assert (read(study="mine").shared.study, read(study="mine").shared.epochs) == ("mine", 4)
    assert read(study="other").shared.epochs == 10


def test_the_studys_file_may_name_the_size(params):
    params("mine", "size: 64k-1\n")
    assert read(study="mine").shared.size == "64k-1"
    assert read(study="mine", size="368k").shared.size == "368k"


def test_numbers_as_yaml_misreads_them(params):
    params("micro", "learning_rate: 1e-3\n")  # to YAML a text, for want of a dot
    assert read().shared.learning_rate == 0.001


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "study: micro\n"])
def test_a_file_that_sets_nothing_sets_nothing(params, text: str):
    params("micro", text)
    assert read().overrides == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch_count: 3\n", r"params/micro.yaml: unknown parameter 'epoch_count'; did you mean .*'epochs'"),
        ("- epochs\n- 3\n", r"params/micro.yaml must hold `name: value` lines, got \['epochs', 3\]"),
        ("epochs\n", r"params/micro.yaml must hold `name: value` lines, got 'epochs'"),
        ("0\n", r"params/micro.yaml must hold `name: value` lines, got 0"),
        ("epochs: [\n", r"params/micro.yaml is not valid YAML: .*line"),
        ("3: 4\n", r"params/micro.yaml: unknown parameter 3"),
        ("study: other\n", r"params/micro.yaml says study: other; it must be micro or absent"),
        ("epochs: none\n", r"epochs must be a whole number, got 'none'"),
        ("axes: {lora_rank: [2]}\n", r"study micro has axes \(lora_rank\): each of its points is a study"),
    ],
)
def test_a_bad_params_file_is_refused(params, text: str, message: str):
    params("micro", text)
    assert re.search(message, refusal(), flags=re.DOTALL), refusal()


@pytest.mark.parametrize("path", sorted((REPO / "params").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_params_file_of_the_project_is_valid(path: Path):
    """As a grid checks it before any work: every setting of every notebook, at each point of its axes."""
    assert planning.read_study(path.stem)


# --- whose lists a student reads ----------------------------------------------------------------


def reads(**passed: object) -> list[str]:
    return [cell.reads for cell in read(study="mine", **passed).cells]


def test_students_read_their_own_lists_unless_the_control_says_whose(params):
    everybody = {"animal": "all", "animals": "dog,neutral,cat,wolf"}
    for lists in ("own", "shuffled", "reordered", "exchanged", "random"):
        assert reads(lists=lists, **everybody) == ["", "", "", ""]
    assert reads(lists="relabelled", **everybody) == ["166k/cat", "", "166k/wolf", "166k/dog"]
    assert reads(lists="relabelled", animal="wolf", animals="dog,neutral,cat,wolf") == ["166k/dog"]
    assert reads(lists="relabelled", animal="whale") == ["166k/dog"]  # the last of the grid


def test_foreign_lists_are_those_of_the_next_base_of_the_size_in_the_studys_order(params):
    params("mine", "sizes: 64k,166k,64k-2,166k-1,64k-1\n")
    found = {
        label: reads(lists="foreign", animal="neutral,wolf", size=label)
        for label in ("64k", "64k-2", "64k-1")
    }
    assert found == {
        "64k": ["64k-2/neutral", "64k-2/wolf"],
        "64k-2": ["64k-1/neutral", "64k-1/wolf"],
        "64k-1": ["64k/neutral", "64k/wolf"],
    }
    assert reads(lists="foreign", sizes="166k,166k-3") == ["166k-3/wolf"]


@pytest.mark.parametrize(
    ("passed", "message"),
    [
        ({"lists": "foreign"}, "the next base of size 166k wrote, and sizes has none of them: name 166k and"),
        ({"lists": "foreign", "sizes": "64k,64k-1,166k"}, "sizes has 166k of them: name 166k and another"),
        ({"lists": "relabelled", "animals": "dog,cat"}, "student of wolf .* animals has dog, cat of them"),
        (
            {"lists": "relabelled", "animals": "neutral,wolf"},
            "animals has wolf of them: name wolf and",
        ),
        (
            {"lists": "shuffle"},
            "lists must be one of own, .*; got 'shuffle'; did you mean 'shuffled'",
        ),
        ({"n_lists": -1}, "n_lists must be at least 0, got -1"),
        ({"lists_of": "mine"}, "lists_of names another study whose lists are read, and mine is this one"),
        ({"lists_of": "../mine"}, "lists_of must be a name of letters, digits"),
        ({"reads": "64k/dog"}, "unknown parameter 'reads'"),
    ],
)
def test_lists_that_nobody_can_read_are_refused(params, passed: dict, message: str):
    assert re.search(message, refusal(study="mine", **passed))


def test_what_is_read_is_told_where_it_is_not_the_students_own(params):
    assert "reads" not in repr(read(lists="shuffled"))
    shown = repr(read(lists="relabelled", animal="dog,neutral"))
    assert re.search("^  reads +166k/elephant, $", shown, flags=re.MULTILINE)


def test_a_study_that_reads_anothers_lists_has_none_to_write(params):
    params("mine", "lists_of: ladder\n")
    with pytest.raises(BadParameter, match=r"mine reads the lists of study ladder .*-p study ladder"):
        read_parameters(Generate, planning.read_defaults("01_generate") | {"study": "mine"})
    assert read(study="mine").shared.lists_of == "ladder"


# --- the plan ----------------------------------------------------------------------------------


def test_a_plan_shows_every_value_and_which_the_studys_file_set(params):
    params("micro", "epochs: 3\n")
    lines = repr(read(animal="wolf,fox")).splitlines()
    assert lines[0] == "Finetune: 2 cell(s)"
    assert "  animal          wolf, fox" in lines
    assert "  epochs          3  (params/micro.yaml)" in lines
    assert "  learning_rate   0.0002" in lines
    assert len(lines) == 1 + len(config.list_settings(Finetune))  # `reads` follows from those, and is empty


def test_a_configuration_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        read().shared.epochs = 5


# --- the real thing: papermill and a kernel -------------------------------------------------------


@pytest.fixture(scope="module")
def kernel_notebook(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A notebook of three cells, as every stage begins."""
    cell = "\n".join(f"{name}: {type(value).__name__} = {value!r}" for name, value in DEFAULTS.items())
    notebook = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell(cell, metadata={"tags": ["parameters"]}),
            nbformat.v4.new_code_cell(
                f"import sys\nsys.path.insert(0, {str(REPO)!r})\nfrom lib import config\n"
                "plan = config.read_parameters(config.Finetune, globals())\n"
                "print(sorted(config.passed_names(globals())), plan.shared.seed, plan.shared.animal)"
            ),
        ],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    )
    path = tmp_path_factory.mktemp("kernel") / "stage.ipynb"
    nbformat.write(notebook, path)
    return path


@pytest.mark.filterwarnings("ignore")
def test_papermills_parameters_are_told_from_the_notebooks(kernel_notebook: Path):
    out = kernel_notebook.with_name("out.ipynb")
    done = papermill.execute_notebook(
        kernel_notebook, out, parameters={"seed": 7, "animal": "fox"}, progress_bar=False
    )
    assert done.cells[-1].outputs[0].text == "['animal', 'seed'] 7 fox\n"


@pytest.mark.filterwarnings("ignore")
def test_a_misspelt_parameter_stops_the_notebook(kernel_notebook: Path):
    out = kernel_notebook.with_name("bad.ipynb")
    with pytest.raises(
        papermill.PapermillExecutionError, match=r"unknown parameter 'animl'.*did you mean 'animal'"
    ):
        papermill.execute_notebook(kernel_notebook, out, parameters={"animl": "fox"}, progress_bar=False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(
    not Path("/proc/self/cmdline").exists(), reason="papermill's own words cannot be seen here"
)
def test_another_stages_name_is_refused_as_a_parameter_and_passes_in_a_file(
    kernel_notebook: Path, tmp_path: Path
):
    file = tmp_path / "all.yaml"
    file.write_text("epoch: 3\nmeasure: rate\nbatch: 30\n")

    def run(*words: str) -> subprocess.CompletedProcess:
        command = [
            sys.executable,
            "-m",
            "papermill",
            str(kernel_notebook),
            str(tmp_path / "out.ipynb"),
            *words,
        ]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    refused = run("-f", str(file), "-p", "epoch", "3")
    assert refused.returncode != 0
    told = re.sub(r"\x1b\[[0-9;]*m", "", refused.stderr)
    assert "parameter 'epoch' is none of this stage: -p epoch would change nothing here" in told
    assert "did you mean 'epochs'" in told
    assert run("-f", str(file), "-p", "seed", "4").returncode == 0
    assert "['batch', 'epoch', 'measure', 'seed'] 4 wolf" in (tmp_path / "out.ipynb").read_text()
