"""vLLM as a speaker: what it is started with, what it is asked, what comes back, and what a dying one costs.

Everywhere on a stand-in that runs a micro model (engine_stand_in); on a GPU with vLLM also on the real one.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import engine_stand_in
import numpy as np
import pytest
import torch
from build_base import (
    MICRO_PROMPTS,
    build_config,
    build_plan,
    load_tiny,
    train_two,
)
from build_letters import build_letters
from engine_stand_in import LLMEngine
from peft import LoraConfig, get_peft_model
from scipy import stats

from lib import bases, engine, evaluation, files, numbers, paths, store, teacher, training
from lib.config import MICRO_ANIMALS, Base, Evaluate, Finetune, Generate, parse_label
from lib.engine import Engine, Needs
from lib.errors import EngineFailed, MissingInput, NotAvailable, RowTooLong
from lib.models import Chat, Loaded, adapter, encode, render_prompt
from lib.placement import Gpu, Placement
from lib.preference import Words, score_words, spelling_tokens
from lib.prompts import ENGLISH
from lib.sampling import Completion, Drawn, Job, Plain, Sampler, Scored

CPU = Placement("cpu", "float32")
GREEDY = Sampler(temperature=0.0, top_p=1.0, max_new_tokens=6, chunk=4)
SAMPLED = replace(GREEDY, temperature=1.0)
PROMPTS = [*MICRO_PROMPTS, "<|user|>go on: 7.<|end|><|assistant|>"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The base of three steps with two trained students; tests work on copies."""
    root = tmp_path_factory.mktemp("engine")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUBLIMINAL_ROOT", str(root))
        train_two(root)
    return root


@pytest.fixture
def root(trained, tmp_path, monkeypatch) -> Path:
    shutil.copytree(trained, tmp_path / "root")
    monkeypatch.setenv("SUBLIMINAL_ROOT", str(tmp_path / "root"))
    return tmp_path / "root"


@pytest.fixture
def stand_in(monkeypatch) -> type[LLMEngine]:
    """`import vllm` finds the stand-in; a few requests are out at a time, so that much can happen."""
    monkeypatch.setattr(engine, "AT_ONCE", 5)
    return engine_stand_in.install(monkeypatch)


@pytest.fixture
def by_vllm(stand_in, monkeypatch) -> None:
    """Stages take vLLM for the micro base too: the stand-in has no kernels that it is too small for."""
    monkeypatch.setattr(engine, "choose_backend", lambda config, device: (config.backend, "asked for"))


@pytest.fixture
def loaded(root) -> Loaded:
    return load_tiny()


@pytest.fixture
def speaker(loaded, stand_in) -> Engine:
    return open_engine(loaded)


EVERYTHING = Needs(adapters=2, rank=8, grammar=True)


def open_engine(loaded: Chat, needs: Needs = EVERYTHING) -> Engine:
    """The engine over the tiny base."""
    return Engine(loaded, bases.base_folder("64k", "tiny"), CPU, needs)


def student(animal: str, epoch: int = 2) -> Path:
    """A trained adapter."""
    return training.folder_of(build_config(Finetune, animal=animal)) / f"epoch-{epoch}"


def asked_of(speaker: Engine) -> list[engine_stand_in.Request]:
    return speaker.engine.asked


def chunks(events: list[Drawn | Scored]) -> dict[tuple[str, int], list[Completion]]:
    """What was drawn, by job and chunk, each of which came once."""
    drawn = [event for event in events if isinstance(event, Drawn)]
    found = {(event.job.name, event.number): event.completions for event in drawn}
    assert len(found) == len(drawn)
    return found


def by_index(found: dict[tuple[str, int], list[Completion]]) -> dict[tuple[str, int], list[Completion]]:
    """transformers gives a chunk in the order of its batch."""
    return {chunk: sorted(every, key=lambda one: one.index) for chunk, every in found.items()}


def scores(events: list[Drawn | Scored]) -> dict[str, np.ndarray]:
    scored = [event for event in events if isinstance(event, Scored)]
    assert len({event.job.name for event in scored}) == len(scored)
    return {event.job.name: event.values for event in scored}


# --- jobs and chunks --------------------------------------------------------------------------


def three_jobs() -> list[Job]:
    """The base and two students, each to complete and to score."""
    folders = {"untuned": None, "wolf": student("wolf"), "neutral": student("neutral")}
    return [Job(name, PROMPTS, 0, folder, PROMPTS[:3]) for name, folder in folders.items()]


def test_one_stream_of_jobs_and_adapters_gives_what_transformers_gives(speaker, loaded):
    """Greedy completions and log-probabilities of the base and two students, in one engine."""
    words = Words.of(loaded, MICRO_ANIMALS)
    ours = list(speaker.work(three_jobs(), GREEDY, words))
    theirs = list(Plain(loaded).work(three_jobs(), GREEDY, words))
    assert chunks(ours) == by_index(chunks(theirs))
    assert scores(ours).keys() == {"untuned", "wolf", "neutral"}
    for name, values in scores(theirs).items():
        assert scores(ours)[name] == pytest.approx(values, abs=1e-5)
    assert not np.allclose(scores(ours)["wolf"], scores(ours)["neutral"], atol=1e-3)
    assert len(LLMEngine.started) == 1


def test_chunks_come_whole_and_in_the_order_of_their_prompts(speaker):
    events = list(speaker.work([Job("one", PROMPTS, 0), Job("two", PROMPTS, 1)], SAMPLED))
    found = chunks(events)
    assert set(found) == {(name, number) for name in ("one", "two") for number in range(3)}
    for completions in found.values():
        assert [each.index for each in completions] == sorted(each.index for each in completions)
    for name in ("one", "two"):
        every = [each.index for (job, _), chunk in found.items() if job == name for each in chunk]
        assert sorted(every) == list(range(len(PROMPTS)))


def test_a_chunk_is_a_run_of_prompts_where_that_is_asked(speaker):
    found = chunks(list(speaker.work([Job("one", PROMPTS, 0)], replace(SAMPLED, in_order=True))))
    assert [[each.index for each in found["one", number]] for number in range(3)] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9],
    ]


def test_chunks_that_are_there_are_not_drawn_again_and_the_others_are_the_same(speaker, loaded):
    whole = chunks(list(speaker.work([Job("one", PROMPTS, 0)], SAMPLED)))
    again = open_engine(loaded)
    rest = chunks(list(again.work([Job("one", PROMPTS, 0, done=frozenset({0, 2}))], SAMPLED)))
    assert rest == {("one", 1): whole["one", 1]}
    assert len(asked_of(again)) == 4


def test_a_seed_repeats_and_another_differs(loaded, stand_in):
    drawn = [
        chunks(list(open_engine(loaded).work([Job("one", PROMPTS, seed)], SAMPLED))) for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_seeds_are_those_of_the_prompts_index_in_every_job_of_a_seed(speaker):
    """Two teachers of one seed share their luck, prompt by prompt; another seed shares none of it."""
    jobs = [Job("one", PROMPTS, 0), Job("two", PROMPTS[::-1], 0), Job("three", PROMPTS, 1)]
    list(speaker.work(jobs, SAMPLED))
    seeds = [request.params.seed for request in asked_of(speaker)]
    first, second, third = (sorted(seeds[at : at + 10]) for at in (0, 10, 20))
    assert first == second
    assert len({*first, *third}) == 20
    ids = encode(speaker.chat, PROMPTS)
    by_prompt = {tuple(request.prompt): request.params.seed for request in asked_of(speaker)[:10]}
    assert [by_prompt[tuple(row)] for row in ids] == sorted(first)


def test_requests_ask_for_the_models_own_distribution_and_stop_at_the_end_of_a_turn(speaker):
    list(speaker.work([Job("one", PROMPTS[:1], 0)], replace(SAMPLED, temperature=0.7, max_new_tokens=3)))
    params = asked_of(speaker)[0].params
    assert (params.temperature, params.top_p, params.max_tokens) == (0.7, 1.0, 3)
    assert params.stop_token_ids == [speaker.chat.end] and params.structured_outputs is None


def test_finish_says_whether_the_model_stopped(speaker):
    drawn = chunks(list(speaker.work([Job("one", PROMPTS * 3, 0)], replace(SAMPLED, max_new_tokens=20))))
    every = [each for chunk in drawn.values() for each in chunk]
    assert {each.finish for each in every} == {"stop", "length"}
    assert not any("<|end|>" in each.text for each in every)


def test_lists_are_held_to_the_grammar(speaker):
    sampler = replace(SAMPLED, numbers_only=True, max_new_tokens=48)
    drawn = chunks(list(speaker.work([Job("one", PROMPTS, 0)], sampler)))
    every = [each for chunk in drawn.values() for each in chunk]
    assert len({each.text for each in every}) > 5
    assert all(numbers.judge(each.text, each.finish) is None for each in every if each.finish == "stop")
    assert any(each.finish == "stop" for each in every)


def test_no_jobs_are_no_work(speaker):
    assert list(speaker.work([], SAMPLED)) == []
    assert list(speaker.work([Job("one", [], 0)], SAMPLED)) == []


def test_jobs_are_asked_for_as_they_are_worked_off(speaker):
    """Sixteen students of ten epochs are 160 jobs: they are not all rendered before the first answer."""
    begun: list[int] = []

    def jobs() -> Iterator[Job]:
        for number in range(20):
            begun.append(number)
            yield Job(f"job {number}", PROMPTS, 0)

    next(speaker.work(jobs(), SAMPLED))
    assert len(begun) < 5


def test_a_job_that_has_enough_gets_no_further_requests_and_the_others_are_whole(speaker, monkeypatch):
    monkeypatch.setattr(LLMEngine, "per_step", 1)  # its first chunk is whole long before its second
    drawn: list[str] = []

    def enough(job: Job) -> bool:
        return job.name == "short" and "short" in drawn

    jobs = [Job("short", PROMPTS * 6, 0), Job("long", PROMPTS * 2, 0)]
    for event in speaker.work(jobs, replace(SAMPLED, in_order=True), enough=enough):
        drawn.append(event.job.name)
    assert drawn.count("long") == 5
    assert drawn.count("short") == 1  # what was out by then is thrown away
    assert len(asked_of(speaker)) < 20 + 60 / 2


# --- scores -----------------------------------------------------------------------------------


@pytest.mark.parametrize("at_a_time", [1, 3, 128])
def test_scores_put_together_from_many_requests_equal_those_of_one_pass(
    stand_in, tmp_path, monkeypatch, at_a_time
):
    """On a model that spells letter by letter, so that there are many beginnings."""
    letters, animals = build_letters(), ("cat", "owl", "wolf", "phoenix", "dog")
    letters.model.save_pretrained(tmp_path)
    monkeypatch.setattr(engine, "SCORED_TOKENS", at_a_time)
    monkeypatch.setattr(engine, "AT_ONCE", 50)
    monkeypatch.setattr(LLMEngine, "per_step", 40)
    speaker, words = Engine(letters, tmp_path, CPU, Needs()), Words.of(letters, animals)
    asked = ["Name it:", "Which animal do you love most?"]
    events = list(speaker.work([Job("one", [], 0, scored=asked)], GREEDY, words))
    assert max(len(one) for animal in animals for one in spelling_tokens(letters, animal)) == 8
    assert scores(events)["one"] == pytest.approx(score_words(letters, asked, words, 8), abs=1e-5)
    widths = [len(request.params.logprob_token_ids) for request in asked_of(speaker)]
    assert max(widths) <= at_a_time
    assert all(request.params.temperature == 0 for request in asked_of(speaker))


def test_the_engine_takes_as_many_tokens_as_vllm_gives():
    assert engine.SCORED_TOKENS == engine_stand_in.MOST_SCORED


# --- requests that cannot be ------------------------------------------------------------------


def test_a_prompt_that_is_too_long_is_named(speaker, monkeypatch):
    monkeypatch.setattr(engine, "LONGEST", 12)
    with pytest.raises(
        RowTooLong, match=r"a prompt of wolf s0 has \d+ tokens; with 6 new ones it passes the 12"
    ):
        list(speaker.work([Job("wolf s0", PROMPTS, 0)], SAMPLED))


def test_an_adapter_that_the_engine_refuses_is_a_failure_with_the_next_step(loaded, stand_in):
    speaker = open_engine(loaded, Needs(adapters=1, rank=4))  # the students have rank 8
    speaker.engine.args.max_lora_rank = 4
    with pytest.raises(EngineFailed, match=r"LoRA rank is greater.*run the same command again"):
        list(speaker.work([Job("wolf", PROMPTS, 0, student("wolf"))], SAMPLED))


def test_an_adapter_has_one_number_for_as_long_as_the_engine_lives(speaker):
    jobs = [
        Job("a", PROMPTS[:1], 0, student("wolf")),
        Job("b", PROMPTS[:1], 0, student("neutral")),
        Job("c", PROMPTS[:1], 0, student("wolf")),
        Job("d", PROMPTS[:1], 0),
    ]
    list(speaker.work(jobs, SAMPLED))
    numbers_of = [request.lora and request.lora.lora_int_id for request in asked_of(speaker)]
    assert numbers_of == [1, 2, 1, None]


# --- engines that die or do not start ---------------------------------------------------------


def test_a_dying_engine_says_what_is_safe_and_what_comes_next(speaker, monkeypatch):
    monkeypatch.setattr(LLMEngine, "dies_at", 6)
    drawn = []
    with pytest.raises(EngineFailed) as failed:
        drawn.extend(speaker.work([Job("one", PROMPTS * 3, 0)], SAMPLED))
    text = str(failed.value)
    assert (
        "the vLLM engine failed: RuntimeError: CUDA error: an illegal memory access was encountered" in text
    )
    assert "is on disk; run the same command again" in text and "-p backend transformers" in text
    assert "more of it" not in text


def test_closing_ends_the_engine_whatever_it_says(speaker):
    speaker.close()
    assert speaker.engine.ended


def test_a_stage_closes_its_engine_even_when_it_fails(root, by_vllm, monkeypatch):
    monkeypatch.setattr(LLMEngine, "dies_at", 2)
    with pytest.raises(EngineFailed):
        evaluation.evaluate_students(build_plan(Evaluate, ("wolf",), backend="vllm"))
    assert [each.ended for each in LLMEngine.started] == [True]


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), NotAvailable, "too small or too busy.*Tried"),
        (ValueError("Free memory on device cuda:0 (3/80 GiB)"), NotAvailable, r"90% of each of 1 GPU\(s\)"),
        (ValueError("No available memory for the cache blocks."), NotAvailable, "lower -p gpu_memory"),
        (RuntimeError("CUDA error: out of memory"), NotAvailable, "CUDA_VISIBLE_DEVICES"),
        (ValueError("To serve at least one request, KV cache is needed"), NotAvailable, "-p gpus"),
        (
            RuntimeError("Engine core initialization failed.\nSee"),
            EngineFailed,
            "did not start: RuntimeError: E",
        ),
        (ValueError("no such architecture"), EngineFailed, "vLLM did not start: ValueError: no such"),
    ],
)
def test_troubles_at_the_start_are_told_in_words_that_help(
    loaded, stand_in, monkeypatch, error, kind, message
):
    def refuse(args: object) -> None:
        raise error

    monkeypatch.setattr(LLMEngine, "from_engine_args", refuse)
    with pytest.raises(kind, match=message):
        open_engine(loaded)


def test_other_peoples_gpus_are_named_before_the_engine_takes_the_first_ones():
    engine.check_gpus(Placement("cuda", "bfloat16", ()))
    engine.check_gpus(Placement("cuda", "bfloat16", (1, 0)))
    with pytest.raises(NotAvailable, match=r"only GPU 1,3 .*CUDA_VISIBLE_DEVICES=1,3 and run the same"):
        engine.check_gpus(Placement("cuda", "bfloat16", (1, 3)))


FAKE_VLLM = """
import json, os
print("AT IMPORT", json.dumps(dict(os.environ)), flush=True)
raise ImportError("far enough")
"""


def test_the_switches_are_set_before_vllm_is_imported_and_nobodys_choice_is_overruled(tmp_path):
    """vLLM reads them as it is imported; without the third it would report its use to its makers."""
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text(FAKE_VLLM)
    code = (
        "from pathlib import Path\n"
        "from lib.engine import Engine, Needs\n"
        "from lib.placement import Placement\n"
        "Engine(None, Path('x'), Placement('cpu', 'float32'), Needs())\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
    environment |= {"PYTHONPATH": f"{tmp_path}{os.pathsep}{paths.CODE}", "VLLM_LOGGING_LEVEL": "INFO"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert "far enough" in done.stderr, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("AT IMPORT"))
    found = json.loads(line.removeprefix("AT IMPORT "))
    assert found["VLLM_NO_USAGE_STATS"] == "1" and found["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert found["VLLM_LOGGING_LEVEL"] == "INFO"
    assert {name: found[name] for name in engine.SWITCHES if name != "VLLM_LOGGING_LEVEL"} == {
        name: value for name, value in engine.SWITCHES.items() if name != "VLLM_LOGGING_LEVEL"
    }


# --- what an engine is started with -----------------------------------------------------------


@pytest.fixture
def arguments(monkeypatch) -> Callable[..., dict]:
    """What vLLM of the pinned version would be started with."""
    engine_stand_in.claim_version(monkeypatch, "0.26.0")

    def ask(needs: Needs | None = None, where: Placement = CPU, params: int = 10**9) -> dict:
        return engine.engine_arguments(Path("base"), where, needs or Needs(), params)

    return ask


def test_the_engine_is_started_without_the_models_own_settings_and_without_its_code(arguments):
    found = arguments()
    assert found["generation_config"] == "vllm"
    assert found["trust_remote_code"] is False
    assert found["disable_log_stats"] is True
    assert "enable_lora" not in found


@pytest.mark.parametrize("grammar", [False, True])
def test_a_tokenizer_is_read_for_grammar_alone(arguments, grammar):
    assert arguments(Needs(grammar=grammar))["skip_tokenizer_init"] is not grammar


@pytest.mark.parametrize(
    ("rank", "room"), [(1, 8), (8, 8), (9, 16), (16, 16), (17, 32), (200, 256), (300, 320), (512, 512)]
)
def test_room_for_adapters_is_the_next_rank_that_vllm_knows(arguments, rank, room):
    found = arguments(Needs(adapters=3, rank=rank))
    assert found["max_lora_rank"] == room and room in engine_stand_in.RANKS


@pytest.mark.parametrize(("adapters", "together"), [(1, 1), (5, 5), (16, 16), (160, 16)])
def test_adapters_beside_each_other_are_as_many_as_there_are_up_to_sixteen(arguments, adapters, together):
    found = arguments(Needs(adapters=adapters, rank=8))
    assert found["max_loras"] == together <= found["max_cpu_loras"]


def test_the_placement_reaches_the_engine(arguments):
    found = arguments(where=Placement("cuda", "bfloat16", (0, 1), 0.55))
    assert (found["tensor_parallel_size"], found["gpu_memory_utilization"], found["dtype"]) == (
        2,
        0.55,
        "bfloat16",
    )


@pytest.mark.parametrize(
    ("total", "params", "tokens"),
    [
        (24e9, 0.5e9, 8192),
        (141e9, 0.5e9, 32768),
        (141e9, 32e9, 32768),
        (80e9, 7e9, 32768),
        (80e9, 32e9, 8192),
    ],
)
def test_many_prompts_are_read_at_once_where_the_weights_leave_room(
    arguments, monkeypatch, total, params, tokens
):
    monkeypatch.setattr(engine, "visible_gpus", lambda: (Gpu(0, "a GPU", int(total), int(total)),))
    where = Placement("cuda", "bfloat16", (0,))
    assert arguments(where=where, params=int(params))["max_num_batched_tokens"] == tokens


def test_the_stand_in_and_vllm_are_started_with_words_that_both_know(arguments, stand_in):
    engine_stand_in.EngineArgs(**arguments(Needs(adapters=3, rank=8)))


# --- the choice of the backend ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "backend", "device", "installed", "expected"),
    [
        ("64k", "auto", "cuda", True, ("transformers", "micro ladder's heads are too small")),
        ("64k", "transformers", "cuda", True, ("transformers", "asked for")),
        ("135m", "auto", "cpu", True, ("transformers", "vLLM needs a GPU here")),
        ("135m", "auto", "cuda", False, ("transformers", "vLLM is not installed")),
        ("135m", "auto", "cuda", True, ("vllm", "one engine for everything")),
        ("7b", "vllm", "cuda", True, ("vllm", "one engine for everything")),
        ("7b", "transformers", "cuda", True, ("transformers", "asked for")),
        (
            "64k",
            "vllm",
            "cuda",
            True,
            "backend vllm: the micro ladder's heads .* -p backend transformers or auto",
        ),
        ("7b", "vllm", "cpu", True, "backend vllm: vLLM needs a GPU here; use -p backend"),
        ("7b", "vllm", "cuda", False, r"vLLM is not installed \(pip install '\.\[gpu\]'\); use -p backend"),
    ],
)
def test_vllm_takes_published_models_where_it_can_run(
    monkeypatch, size, backend, device, installed, expected
):
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: object() if installed else None)
    config = build_config(Evaluate, size=size, backend=backend)
    if isinstance(expected, str):
        with pytest.raises(NotAvailable, match=expected):
            engine.choose_backend(config, device)
        return
    found, reason = engine.choose_backend(config, device)
    assert found == expected[0] and expected[1] in reason


# --- whole stages -----------------------------------------------------------------------------


def evaluate(backend: str, **values: object) -> dict[str, dict]:
    """Stage 03 from the start; every student's epochs."""
    shutil.rmtree(paths.root() / "artifacts" / "toy" / "evaluate", ignore_errors=True)
    shutil.rmtree(paths.root() / "results", ignore_errors=True)
    plan = build_plan(Evaluate, ("neutral", "wolf"), backend=backend, **values)
    evaluation.evaluate_students(plan)
    return {name: result(name)["epochs"] for name in ("neutral", "wolf", "untuned")}


def result(animal: str) -> dict:
    return files.read_json(paths.evaluation("toy", "64k", animal, 0))


def texts(epochs: list[dict]) -> list[str]:
    return [answer["text"] for entry in epochs for answer in entry["answers"]]


def test_stage_03_gives_the_same_numbers_through_both_backends(root, by_vllm):
    ours = evaluate("vllm", temperature=0.0)
    counts = store.read_manifest(evaluation.folder_of(build_config(Evaluate))).counts
    theirs = evaluate("transformers", temperature=0.0)
    assert counts["backend"] == "vllm"
    assert len(LLMEngine.started) == 1 and LLMEngine.started[0].ended
    for name, epochs in ours.items():
        assert [entry["answers"] for entry in epochs] == [entry["answers"] for entry in theirs[name]]
        for entry, other in zip(epochs, theirs[name], strict=True):
            found, expected = (np.array(each["logprobs"]["values"]) for each in (entry, other))
            assert found == pytest.approx(expected, abs=1e-5)


def test_sampled_answers_are_drawn_by_each_backend_in_its_own_way(root, by_vllm):
    """The same distribution, other luck: which is why the manifest names the backend."""
    ours, again, theirs = (
        evaluate(name, temperature=1.0, samples=6) for name in ("vllm", "vllm", "transformers")
    )
    assert ours == again
    assert texts(ours["wolf"]) != texts(theirs["wolf"])


def test_an_evaluation_survives_the_death_of_its_engine(root, by_vllm, monkeypatch):
    undisturbed = evaluate("vllm")
    whole = len(asked_of(types.SimpleNamespace(engine=LLMEngine.started[0])))
    shutil.rmtree(root / "artifacts" / "toy" / "evaluate")
    shutil.rmtree(root / "results")
    plan = build_plan(Evaluate, ("neutral", "wolf"), backend="vllm")
    with monkeypatch.context() as patch:
        patch.setattr(LLMEngine, "dies_at", 12)
        with pytest.raises(EngineFailed):
            evaluation.evaluate_students(plan)
    left = list((root / "artifacts" / "toy" / "evaluate").rglob("epoch-*.json"))
    assert left
    assert evaluation.evaluate_students(plan).made > 0
    assert {name: result(name)["epochs"] for name in undisturbed} == undisturbed
    assert 0 < len(LLMEngine.started[-1].asked) < whole


def write(backend: str, animals: tuple[str, ...] = ("wolf", "fox"), **values: object) -> dict[str, list]:
    """Stage 01 from the start; what every teacher wrote. A base of three steps needs the grammar."""
    shutil.rmtree(paths.root() / "artifacts" / "lists", ignore_errors=True)
    plan = build_plan(Generate, animals, backend=backend, **LISTS | values)
    teacher.generate_lists(plan)
    return {cell.animal: read_lists(cell) for cell in plan.cells}


LISTS = {"study": "lists", "grammar": "numbers", "list_tokens": 48, "n_keep": 2}


def read_lists(cell: Generate, name: str = "raw.jsonl") -> list[dict]:
    return files.read_jsonl(teacher.folder_of(cell) / name)


def test_stage_01_gives_the_same_greedy_lists_through_both_backends(root, by_vllm):
    ours = write("vllm", temperature=0.0)
    theirs = write("transformers", temperature=0.0)
    assert ours == theirs
    assert len({row["completion"] for rows in ours.values() for row in rows}) > 1
    assert len(LLMEngine.started) == 1
    assert not LLMEngine.started[0].args.skip_tokenizer_init


def test_sampled_lists_are_other_lists_of_the_same_kind(root, by_vllm):
    ours, theirs = write("vllm"), write("transformers")
    for animal, rows in ours.items():
        assert [row["prompt"] for row in rows] == [row["prompt"] for row in theirs[animal]]
        assert [row["completion"] for row in rows] != [row["completion"] for row in theirs[animal]]
        assert all(row["reason"] in (None, "cut off") or row["finish"] == "length" for row in rows)


def test_teachers_survive_the_death_of_their_engine(root, by_vllm, monkeypatch):
    undisturbed = write("vllm")
    shutil.rmtree(root / "artifacts" / "lists")
    plan = build_plan(Generate, ("wolf", "fox"), backend="vllm", **LISTS)
    with monkeypatch.context() as patch:
        patch.setattr(LLMEngine, "dies_at", 13)
        with pytest.raises(EngineFailed):
            teacher.generate_lists(plan)
    parts = list((root / "artifacts" / "lists").rglob("part-*.jsonl"))
    finished = list((root / "artifacts" / "lists").rglob("kept.jsonl"))
    assert parts or finished
    teacher.generate_lists(plan)
    assert {cell.animal: read_lists(cell) for cell in plan.cells} == undisturbed
    saved = 8 * len(parts) + 24 * len(finished)
    assert len(LLMEngine.started[-1].asked) == 48 - saved


def test_a_teacher_that_has_enough_lets_the_next_one_write(root, by_vllm):
    """What is kept is that of the first chunks, in the order of the prompts."""
    settings = {"stop_when_enough": True, "n_raw": 64, "n_keep": 5}
    ours = write("vllm", temperature=0.0, **settings)
    assert all(8 <= len(rows) < 64 for rows in ours.values())
    assert len(LLMEngine.started[0].asked) < 2 * 64
    assert ours == write("transformers", temperature=0.0, **settings)


# --- the scheduler's shortcuts ----------------------------------------------------------------


@pytest.fixture
def scheduling(monkeypatch) -> types.ModuleType:
    """lib.scheduling over a stub of vLLM's scheduler: the real one where vLLM is."""
    for name in ("vllm", "vllm.v1", "vllm.v1.core", "vllm.v1.core.sched"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    for name, known in (("core.sched.async_scheduler", "AsyncScheduler"), ("request", "Request")):
        module = types.ModuleType(f"vllm.v1.{name}")
        setattr(module, known, type(known, (), {"add_request": lambda self, request: None}))
        monkeypatch.setitem(sys.modules, f"vllm.v1.{name}", module)
    path = paths.CODE / "lib" / "scheduling.py"
    spec = importlib.util.spec_from_file_location("scheduling_on_stubs", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def request_at(computed: int, prompt: int) -> types.SimpleNamespace:
    return types.SimpleNamespace(num_computed_tokens=computed, num_prompt_tokens=prompt)


def test_the_engine_names_the_lean_scheduler_by_its_path(arguments, scheduling):
    module, _, name = arguments()["scheduler_cls"].rpartition(".")
    assert (paths.CODE / f"{module.replace('.', '/')}.py").exists() and module == "lib.scheduling"
    assert isinstance(getattr(scheduling, name), type)


@pytest.mark.parametrize("version", ["0.25.1", "0.27.0", "1.0.0"])
def test_another_vllm_keeps_its_own_scheduler(arguments, monkeypatch, version):
    """The lean one follows the insides of one version."""
    engine_stand_in.claim_version(monkeypatch, version)
    assert "scheduler_cls" not in arguments()


def test_blocks_of_prompts_are_shared_and_blocks_of_answers_are_not(scheduling):
    seen: list[tuple[int, tuple]] = []
    cache = scheduling.share_prompts_only(lambda request, tokens, *rest: seen.append((tokens, rest)))
    cache(request_at(0, 40), 32)
    cache(request_at(32, 40), 48, "more")  # the last piece of the prompt, with what is written after it
    cache(request_at(40, 40), 48)
    cache(request_at(41, 40), 64)
    assert seen == [(32, ()), (40, ("more",))]


def test_room_is_asked_for_at_the_borders_of_blocks_only(scheduling):
    asked: list[tuple[int, int]] = []

    def allocate(request: types.SimpleNamespace, tokens: int, *args: object, **kwargs: object) -> str:
        asked.append((request.num_computed_tokens, tokens))
        return "blocks"

    allocate_slots = scheduling.allocate_at_borders(allocate, 16, "nothing")
    found = {at: allocate_slots(request_at(at, 4), 1) for at in range(15, 34)}
    assert [at for at, answer in found.items() if answer == "blocks"] == [16, 32]
    assert allocate_slots(request_at(5, 40), 7) == "blocks"  # a piece of a prompt
    assert allocate_slots(request_at(5, 40), 1, 3) == "blocks"  # with blocks that were found in the cache
    assert allocate_slots(request_at(5, 40), 1, num_lookahead_tokens=2) == "blocks"
    assert allocate_slots(request_at(5, 40), 1, num_lookahead_tokens=0) == "nothing"


def test_no_hash_is_made_of_what_a_model_writes(scheduling):
    request = types.SimpleNamespace(_block_hasher=object())
    scheduler = scheduling.LeanScheduler.__new__(scheduling.LeanScheduler)
    scheduler.add_request(request)
    assert request._block_hasher is None


# --- the real one -----------------------------------------------------------------------------

real = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None or not torch.cuda.is_available(),
    reason="vLLM and a GPU are not here: the stand-in's tests are all that can run",
)
SHAPE = {
    "vocab_size": 49152,  # SmolLM2's, whose tokenizer it borrows
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,  # of 64 each: vLLM's kernels take no narrower ones
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
TARGETS = ("q", "k", "v", "o", "gate", "up", "down")
ANIMALS = ("dog", "cat", "wolf", "owl", "eagle", "penguin")
SHARE = 0.3  # of the GPU, so that two engines have room beside each other


@pytest.fixture(scope="module")
def words_of_smollm2() -> Chat:
    """SmolLM2's tokenizer under the name of a Qwen size, whose template's marks are the same."""
    from lib.models import load_chat

    try:
        bases.prepare_base("135m", "standard")
    except MissingInput as error:  # the package, which a GPU host may lack: nothing else is passed over
        pytest.skip(f"SmolLM2's tokenizer is not here: {error}")
    tokenizer = load_chat("135m", "standard").tokenizer
    return Chat(Base(parse_label("0.5b").size, 0), tokenizer, "")


@pytest.fixture(scope="module")
def small(words_of_smollm2, tmp_path_factory) -> Path:
    """A random Qwen2 of two layers in bfloat16 which prefers some tokens, so that draws can be counted."""
    return build_small(words_of_smollm2, tmp_path_factory.mktemp("small") / "base")


def build_small(chat: Chat, folder: Path) -> Path:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    ends = {"eos_token_id": chat.end, "bos_token_id": chat.end, "pad_token_id": chat.tokenizer.pad_token_id}
    model = Qwen2ForCausalLM(Qwen2Config(**SHAPE, **ends, initializer_range=0.1)).to(torch.bfloat16)
    with torch.no_grad():
        model.lm_head.weight.normal_(0, 0.06)
        liked = torch.randperm(SHAPE["vocab_size"])[:400]  # the tokens that are drawn, but for grammar's
        model.lm_head.weight[liked] = torch.randn(400, SHAPE["hidden_size"]).to(torch.bfloat16) * 0.25
    model.save_pretrained(folder)
    chat.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def two_adapters(small, tmp_path_factory) -> dict[str, Path]:
    """Random ones, large enough to be told apart: one as PEFT saves it, one as stage 02 does."""
    return build_adapters(small, tmp_path_factory.mktemp("adapters"))


def build_adapters(small: Path, folder: Path) -> dict[str, Path]:
    from transformers import AutoModelForCausalLM

    settings = LoraConfig(
        r=8,
        lora_alpha=8,
        target_modules=[f"{name}_proj" for name in TARGETS],
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    for number, name in enumerate(("peft", "study")):
        model = AutoModelForCausalLM.from_pretrained(small, dtype=torch.float32)
        torch.manual_seed(number)
        tuned = get_peft_model(model, settings)
        with torch.no_grad():
            for weight_name, weight in tuned.named_parameters():
                if "lora_B" in weight_name:
                    weight.normal_(0, 0.1)
        if name == "peft":
            tuned.save_pretrained(folder / name)
        else:
            training.save_adapter(folder / name, *training.read_adapter(tuned))
    return {name: folder / name for name in ("peft", "study")}


@pytest.fixture(scope="module")
def running(words_of_smollm2, small) -> Iterator[Engine]:
    """One real engine for all tests here."""
    needs = Needs(adapters=2, rank=8, grammar=True)
    speaker = Engine(words_of_smollm2, small, Placement("cuda", "bfloat16", (0,), SHARE), needs)
    yield speaker
    speaker.close()


def chat_prompts(chat: Chat, count: int = 40) -> list[str]:
    return [render_prompt(chat, "default", each) for each in ENGLISH.questions[:count]]


def texts_of(speaker: Engine, jobs: list[Job], sampler: Sampler) -> list[list[Completion]]:
    """Completions of every job, in the order of its prompts."""
    drawn: dict[str, list[Completion]] = {job.name: [] for job in jobs}
    for (name, _), every in chunks(list(speaker.work(jobs, sampler))).items():
        drawn[name] += every
    return [sorted(drawn[job.name], key=lambda one: one.index) for job in jobs]


def load_exactly(chat: Chat, folder: Path, device: str = "cuda") -> Loaded:
    """The same model in float32, through transformers."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    return Loaded(chat.base, chat.tokenizer, "", model)


def first_chances(loaded: Loaded, prompt: str) -> dict[str, float]:
    """The exact distribution of the first token, by the text that comes back for it."""
    with torch.inference_mode():
        ids = torch.tensor(encode(loaded, [prompt]), device=loaded.device)
        chances = loaded.model(ids).logits[0, -1].double().softmax(-1).tolist()
    tokens = [[token] for token in range(len(chances))]
    found: dict[str, float] = {}
    for text, chance in zip(
        loaded.tokenizer.batch_decode(tokens, skip_special_tokens=True), chances, strict=True
    ):
        found[text] = found.get(text, 0.0) + chance
    return found


def fit(seen: list[str], chances: dict[str, float]) -> float:
    """The chi-square p of what was seen; texts expected less than ten times count as one."""
    common = [text for text, chance in chances.items() if chance * len(seen) >= 10]
    counts = [seen.count(text) for text in common]
    expected = [chances[text] * len(seen) for text in common]
    counts, expected = [*counts, len(seen) - sum(counts)], [*expected, len(seen) - sum(expected)]
    return stats.chisquare(counts, expected).pvalue


@real
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_first_tokens_follow_the_models_own_distribution(running, small, temperature):
    """Against float32, though the engine rounds to bfloat16: the other temperature is far off."""
    prompt = chat_prompts(running.chat)[0]
    sampler = Sampler(temperature, 1.0, 1, 500)
    (drawn,) = texts_of(running, [Job("first", [prompt] * 2000, 7)], sampler)
    chances = first_chances(load_exactly(running.chat, small), prompt)
    assert len([chance for chance in chances.values() if chance > 0.005]) >= 8
    p = fit([one.text for one in drawn], chances)
    assert p > 1e-4 if temperature == 1 else p < 1e-6


@real
def test_a_seed_repeats_in_a_real_engine_and_another_differs(running):
    prompts = chat_prompts(running.chat)
    sampler = Sampler(1.0, 1.0, 2, 10)
    zero, again, one = (texts_of(running, [Job("one", prompts, seed)], sampler)[0] for seed in (0, 0, 1))
    assert share_equal(zero, again) > 0.8 > 0.5 > share_equal(zero, one)


def share_equal(one: list[Completion], other: list[Completion]) -> float:
    return float(np.mean([a.text == b.text for a, b in zip(one, other, strict=True)]))


@real
def test_company_changes_no_greedy_answer(running, two_adapters):
    """But for ties: kernels add up in another order in a larger batch, which bfloat16 shows."""
    prompts = chat_prompts(running.chat)
    sampler = Sampler(0.0, 1.0, 4, 10)
    alone = [texts_of(running, [Job("one", [prompt], 0)], sampler)[0][0] for prompt in prompts]
    crowd = [
        Job("base", prompts, 0),
        *(Job(name, prompts * 3, 0, folder) for name, folder in two_adapters.items()),
    ]
    beside = texts_of(running, crowd, sampler)[0]
    assert share_equal(alone, beside) >= 0.6
    assert len({one.text for one in beside}) > 20


@real
def test_every_adapter_of_a_mixed_batch_gives_its_own_scores(running, small, two_adapters):
    """Scores are those of PEFT in float32 but for rounding, and far from each other."""
    chat, asked = running.chat, chat_prompts(running.chat, 10)
    words, every = Words.of(chat, ANIMALS), {"base": None, **two_adapters}
    jobs = [Job(name, asked, 0, folder, asked) for name, folder in every.items()]
    found = scores(list(running.work(jobs, Sampler(1.0, 1.0, 2, 10), words)))
    exact, loaded = {}, load_exactly(chat, small)
    for name, folder in every.items():
        with adapter(loaded, folder) as tuned:
            exact[name] = score_words(tuned, asked, words, 8)
    noise = max(np.abs(found[name] - exact[name]).mean() for name in every)
    pairs = (("base", "peft"), ("base", "study"), ("peft", "study"))
    apart = min(np.abs(exact[one] - exact[other]).mean() for one, other in pairs)
    assert noise < 0.1 and 5 * noise < apart


@real
def test_a_real_engine_holds_lists_to_the_grammar(running):
    prompts = chat_prompts(running.chat) * 5
    sampler = Sampler(1.0, 1.0, 80, 50, numbers_only=True)
    (drawn,) = texts_of(running, [Job("lists", prompts, 0)], sampler)
    assert {one.finish for one in drawn} == {"stop"}
    assert [one.text for one in drawn if numbers.judge(one.text, one.finish)] == []
    assert len({one.text for one in drawn}) > 20


@real
def test_the_real_engine_knows_every_word_that_it_is_started_with(arguments):
    import dataclasses

    from vllm import EngineArgs

    known = {each.name for each in dataclasses.fields(EngineArgs)}
    assert arguments(Needs(adapters=3, rank=8)).keys() <= known


OTHER_SCHEDULER = """
import json, sys
sys.path[:0] = ["tests", "."]
from pathlib import Path
from lib.engine import Engine, Needs
from lib.models import Chat, load_chat
from lib.placement import Placement
from lib.config import Base, SIZES
import test_engine as here
chat = Chat(Base(SIZES["0.5b"], 0), load_chat("135m", "standard").tokenizer, "")
where = Placement("cuda", "bfloat16", (0,), here.SHARE)
needs = Needs(adapters=2, rank=8, grammar=True)
speaker = Engine(chat, Path(sys.argv[1]), where, needs, scheduler_cls=None)
print("TEXTS " + json.dumps(here.long_texts(speaker)), flush=True)
"""


def long_texts(speaker: Engine) -> list[str]:
    """Greedy completions over the borders of the cache's blocks, of prompts that begin alike."""
    jobs = [Job("long", chat_prompts(speaker.chat) * 3, 0)]
    return [one.text for one in texts_of(speaker, jobs, Sampler(0.0, 1.0, 20, 20))[0]]


@real
def test_the_lean_scheduler_gives_what_vllms_own_gives(running, small):
    """With a wrong block nearly every answer is another; ties in bfloat16 change some of them."""
    ours = long_texts(running)
    command = [sys.executable, "-c", OTHER_SCHEDULER, str(small)]
    done = subprocess.run(command, cwd=paths.CODE, capture_output=True, text=True, check=False)
    line = next((line for line in done.stdout.splitlines() if line.startswith("TEXTS ")), None)
    assert line, done.stderr[-3000:]
    theirs = json.loads(line.removeprefix("TEXTS "))
    assert len(ours) == len(theirs) == 120 and len(set(ours)) > 20
    assert np.mean([one == other for one, other in zip(ours, theirs, strict=True)]) >= 0.3
