"""vLLM behind sampling's signature: one engine for all conditions and all adapters of a base.

Also the choice between the two backends. vLLM is imported only where it is used. Requests are fed as they
are worked off, whichever job they belong to, so that the batch is full from the first prompt of the first job
to the last of the last; an adapter is a property of a request, never a reason to start anew.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.metadata
import importlib.util
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lib.bases import base_folder
from lib.config import Evaluate, Generate, parse_label
from lib.errors import EngineFailed, NotAvailable, RowTooLong
from lib.grammar import NUMBERS_REGEX
from lib.models import Chat, encode, load_base, load_chat, place
from lib.placement import BYTES, Placement, choose_device, visible_gpus
from lib.preference import Head, Words
from lib.sampling import (
    Completion,
    Drawn,
    Job,
    Plain,
    Sampler,
    Scored,
    Speaker,
    count_chunks,
    never,
    order_prompts,
)

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.llm_engine import LLMEngine

AT_ONCE = 1024  # requests that the engine runs side by side
QUEUED = 2  # times as many are handed over: the engine never waits for this process
TOGETHER = 16  # adapters in one batch
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM has room for
GRAPHS = (1, 8, 32, 64, 128, 256, 512, 768, AT_ONCE)  # batch sizes with a CUDA graph; others are padded up
SCORED_TOKENS = 128  # whose log-probabilities vLLM gives at a time
LONGEST = 4096  # tokens of prompt and answer: a study's are a few hundred
# Tokens of prompts that are read in one step: the more, the fewer steps go without a CUDA graph, which at
# 0.5B nearly halves the time of 10,000 lists on an H200. It takes room beside the weights, bytes on each GPU.
READ_AT_ONCE, ROOM_TO_READ = {True: 32768, False: 8192}, 30e9
# Switches of vLLM and its bars, where nobody has set them: quiet, private, in this process.
SWITCHES = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TQDM_DISABLE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}


@dataclass(frozen=True)
class Needs:
    """What an engine is to be prepared for: `adapters` of at most `rank` beside each other."""

    adapters: int = 0
    rank: int = 0
    grammar: bool = False


# --- which backend ----------------------------------------------------------------------------


def choose_backend(config: Generate | Evaluate, device: str) -> tuple[str, str]:
    """The backend and why: vLLM for published models where it can run."""
    family = parse_label(config.size).family
    installed = importlib.util.find_spec("vllm") is not None
    if config.backend == "transformers":
        return "transformers", "asked for"
    problem = ""
    if family.name == "micro":
        problem = "the micro ladder's heads are too small for vLLM's kernels"
    elif device == "cpu":
        problem = "vLLM needs a GPU here"
    elif not installed:
        problem = "vLLM is not installed (pip install '.[gpu]')"
    if problem and config.backend == "vllm":
        raise NotAvailable(f"backend vllm: {problem}; use -p backend transformers or auto")
    return ("transformers", problem) if problem else ("vllm", "one engine for everything that is asked here")


def backend_of(config: Generate | Evaluate) -> str:
    """The backend that a stage will use here."""
    return choose_backend(config, choose_device(config.device))[0]


@contextlib.contextmanager
def open_speaker(config: Generate | Evaluate, needs: Needs) -> Iterator[Speaker]:
    """The base of a stage, ready to work off jobs."""
    backend, reason = choose_backend(config, choose_device(config.device))
    print(f"backend {backend}: {reason}", flush=True)
    placement = place(config, "sample", backend)
    if backend == "transformers":
        yield Plain(load_base(config.size, config.recipe, placement, config.revision))
        return
    chat = load_chat(config.size, config.recipe, config.revision)
    engine = Engine(chat, base_folder(config.size, config.recipe, config.revision), placement, needs)
    try:
        yield engine
    finally:
        engine.close()


# --- the engine -------------------------------------------------------------------------------


def engine_arguments(folder: Path, placement: Placement, needs: Needs, params: int) -> dict[str, Any]:
    """What vLLM is started with for a model of so many weights."""
    adapters = {
        "enable_lora": True,
        "max_loras": min(TOGETHER, needs.adapters),
        "max_cpu_loras": 2 * TOGETHER,
        "max_lora_rank": next((rank for rank in RANKS if rank >= needs.rank), needs.rank),
    }
    return {
        "model": str(folder),
        "skip_tokenizer_init": not needs.grammar,
        "trust_remote_code": False,
        "generation_config": "vllm",  # else the model's own top_p and repetition penalty would reach in
        "dtype": placement.dtype,
        "tensor_parallel_size": placement.tensor_parallel,
        "gpu_memory_utilization": placement.gpu_memory,
        "max_model_len": LONGEST,
        "max_num_seqs": AT_ONCE,
        "max_num_batched_tokens": READ_AT_ONCE[_has_room(placement, params)],
        "enable_prefix_caching": True,
        "disable_log_stats": True,
        # Compiling would take a minute at every start; graphs of the decoding step alone take seconds.
        "compilation_config": {
            "mode": 0,
            "cudagraph_mode": "FULL_DECODE_ONLY",
            "cudagraph_capture_sizes": list(GRAPHS),
        },
        **(adapters if needs.adapters else {}),
        **({"scheduler_cls": "lib.scheduling.LeanScheduler"} if _is_known_vllm() else {}),
    }


def _is_known_vllm() -> bool:
    """The lean scheduler follows the insides of one version; under any other vLLM's own does."""
    return importlib.metadata.version("vllm").startswith("0.26.")


def _has_room(placement: Placement, params: int) -> bool:
    smallest = min((gpu.total for gpu in visible_gpus() if gpu.index in placement.gpus), default=0)
    weights = params * BYTES[placement.dtype] / placement.tensor_parallel
    return placement.gpu_memory * smallest - weights > ROOM_TO_READ


def check_gpus(placement: Placement) -> None:
    """vLLM takes the first GPUs that a process sees: if others have the room, they must be made the first."""
    if sorted(placement.gpus) != list(range(len(placement.gpus))):
        wanted = ",".join(str(index) for index in placement.gpus)
        raise NotAvailable(
            f"only GPU {wanted} has the memory free, and vLLM would take the first ones; set "
            f"CUDA_VISIBLE_DEVICES={wanted} and run the same command again"
        )


@contextlib.contextmanager
def starting(placement: Placement) -> Iterator[None]:
    """vLLM's troubles at its start in words that help."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise NotAvailable(_too_small(placement, error)) from error
    except (ImportError, ValueError, RuntimeError) as error:
        text = str(error)
        small = ("Free memory on device", "No available memory", "KV cache", "out of memory")
        if any(each in text for each in small):
            raise NotAvailable(_too_small(placement, error)) from error
        raise EngineFailed(f"vLLM did not start: {_first_line(error)}") from error


def _too_small(placement: Placement, error: BaseException) -> str:
    return (
        f"the GPU is too small or too busy for vLLM: {_first_line(error)}. It was to take "
        f"{placement.gpu_memory:.0%} of each of {placement.tensor_parallel} GPU(s). Wait until it is free, "
        "name another with CUDA_VISIBLE_DEVICES, lower -p gpu_memory if the model needs less, or spread it "
        "with -p gpus"
    )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


@dataclass
class Task:
    """A job at work: which completions and scores are there already."""

    job: Job
    ids: list[list[int]]
    scored: list[list[int]]
    chunk_of: dict[int, int]  # prompt -> chunk
    left: dict[int, int]  # chunk -> prompts still out
    drawn: dict[int, list[tuple[int, list[int], str]]] = field(default_factory=dict)
    after: dict[Head, np.ndarray] = field(default_factory=dict)
    scores_left: int = 0
    ended: bool = False  # it had enough: what is still out is thrown away


@dataclass(frozen=True)
class Ask:
    """One request: a prompt to complete, or the tokens to score after a beginning."""

    task: Task
    index: int
    tokens: list[int]
    head: Head | None = None
    wanted: tuple[int, ...] = ()
    column: int = 0


class Engine:
    """A vLLM engine as a Speaker."""

    name = "vllm"

    def __init__(self, chat: Chat, folder: Path, placement: Placement, needs: Needs, **more: object) -> None:
        """`more` goes to vLLM as it is."""
        check_gpus(placement)
        for name, value in SWITCHES.items():
            os.environ.setdefault(name, value)
        if importlib.util.find_spec("flashinfer") is None:
            os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
        began = time.monotonic()
        self._chat = chat
        self._adapters: dict[Path, LoRARequest] = {}
        with starting(placement):
            from vllm import EngineArgs
            from vllm.v1.engine.llm_engine import LLMEngine

            arguments = engine_arguments(folder, placement, needs, chat.base.size.params) | more
            self.engine: LLMEngine = LLMEngine.from_engine_args(EngineArgs(**arguments))
        self.start_seconds = time.monotonic() - began

    @property
    def chat(self) -> Chat:
        return self._chat

    def close(self) -> None:
        """End the engine; the GPU itself is free once the process has ended."""
        with contextlib.suppress(Exception):  # a dead engine cannot be ended, and its results are kept
            self.engine.engine_core.shutdown()

    def work(
        self,
        jobs: Iterable[Job],
        sampler: Sampler,
        words: Words | None = None,
        enough: Callable[[Job], bool] = never,
    ) -> Iterator[Drawn | Scored]:
        """See Speaker. Whatever comes out of the engine's insides is told as a failure of the engine."""
        template = self._template(sampler)
        asks = self._asks(jobs, sampler, words)
        out: dict[str, Ask] = {}
        count, more = 0, True
        while more or out:
            while more and len(out) < QUEUED * AT_ONCE:
                ask = next(asks, None)
                if ask is None:
                    more = False
                elif not self._unwanted(ask.task, enough):
                    count += 1
                    out[str(count)] = ask
                    self._add(str(count), ask, template)
            for answer in self._step() if out else ():
                yield from self._read(out.pop(answer.request_id), answer, words)

    # --- what is asked

    def _template(self, sampler: Sampler) -> SamplingParams:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        held = StructuredOutputsParams(regex=NUMBERS_REGEX) if sampler.numbers_only else None
        return SamplingParams(
            temperature=sampler.temperature,
            top_p=sampler.top_p,
            max_tokens=sampler.max_new_tokens,
            stop_token_ids=[self._chat.end],
            structured_outputs=held,
            detokenize=False,  # texts are made at the end, many at a time
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _asks(self, jobs: Iterable[Job], sampler: Sampler, words: Words | None) -> Iterator[Ask]:
        """Requests of all jobs, one job after another, in the order of their chunks."""
        for job in jobs:
            task, order = _begin(self._chat, job, sampler)
            for index in order:
                if task.chunk_of[index] in task.left:
                    yield Ask(task, index, task.ids[index])
            if not (job.scored and words):
                continue
            asks = list(_scoring(task, words))
            task.scores_left = len(asks)
            yield from asks

    def _unwanted(self, task: Task, enough: Callable[[Job], bool]) -> bool:
        task.ended = task.ended or enough(task.job)
        return task.ended

    def _add(self, name: str, ask: Ask, template: SamplingParams) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        if ask.head is None:
            params = copy.copy(template)
            # Prompts of one index share a seed in all jobs of one seed.
            params.seed = ask.task.job.seed * 1_000_003 + ask.index
        else:
            params = SamplingParams(
                temperature=0.0,
                max_tokens=1,
                logprob_token_ids=list(ask.wanted),
                flat_logprobs=True,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
        params.skip_clone = True  # it is ours alone
        if len(ask.tokens) + params.max_tokens > LONGEST:
            raise RowTooLong(
                f"a prompt of {ask.task.job.name} has {len(ask.tokens)} tokens; with {params.max_tokens} new "
                f"ones it passes the {LONGEST} of the engine: use a shorter system prompt"
            )
        with failing():
            self.engine.add_request(
                name,
                {"type": "token", "prompt_token_ids": ask.tokens},
                params,
                lora_request=self._adapter(ask.task.job.adapter),
            )

    def _adapter(self, folder: Path | None) -> LoRARequest | None:
        """An adapter by a number that stays its own as long as the engine lives."""
        if folder is None:
            return None
        if folder not in self._adapters:
            from vllm.lora.request import LoRARequest

            number = len(self._adapters) + 1
            self._adapters[folder] = LoRARequest(f"adapter-{number}", number, str(folder))
        return self._adapters[folder]

    # --- what comes back

    def _step(self) -> list[RequestOutput]:
        with failing():
            return [each for each in self.engine.step() if each.finished]

    def _read(self, ask: Ask, answer: RequestOutput, words: Words | None) -> Iterator[Drawn | Scored]:
        task, output = ask.task, answer.outputs[0]
        if task.ended:
            return
        if ask.head is not None:
            found = _scores(output.logprobs)
            values = [found[token] for token in ask.wanted]
            task.after[ask.head][ask.index, ask.column : ask.column + len(values)] = values
            task.scores_left -= 1
            if task.scores_left == 0 and words:
                yield Scored(task.job, words.join(task.after))
            return
        chunk = task.chunk_of[ask.index]
        task.drawn.setdefault(chunk, []).append((ask.index, output.token_ids, output.finish_reason))
        task.left[chunk] -= 1
        if task.left[chunk] == 0:
            yield Drawn(task.job, chunk, self._texts(task.drawn.pop(chunk)))

    def _texts(self, rows: list[tuple[int, list[int], str]]) -> list[Completion]:
        """Completions of a chunk in the order of their prompts."""
        end, rows = self._chat.end, sorted(rows)
        cut = [[token for token in tokens if token != end] for _, tokens, _ in rows]
        texts = self._chat.tokenizer.batch_decode(cut, skip_special_tokens=True)
        return [
            Completion(index, text, "stop" if finish == "stop" else "length")
            for (index, _, finish), text in zip(rows, texts, strict=True)
        ]


def _begin(chat: Chat, job: Job, sampler: Sampler) -> tuple[Task, list[int]]:
    """A job's tokens, and its prompts in the order in which they are asked."""
    distinct = list(dict.fromkeys((*job.prompts, *job.scored)))  # an evaluation asks each many times
    tokens = dict(zip(distinct, encode(chat, distinct), strict=True))
    ids = [tokens[prompt] for prompt in job.prompts]
    order = order_prompts(ids, sampler)
    chunk_of = {index: place // sampler.chunk for place, index in enumerate(order)}
    chunks = [number for number in range(count_chunks(len(ids), sampler)) if number not in job.done]
    left = {number: min(sampler.chunk, len(ids) - number * sampler.chunk) for number in chunks}
    return Task(job, ids, [tokens[prompt] for prompt in job.scored], chunk_of, left), order


def _scoring(task: Task, words: Words) -> Iterator[Ask]:
    """Every beginning of every scored prompt, with the tokens that may follow it."""
    for head, tokens in words.follows.items():
        task.after[head] = np.full((len(task.scored), len(tokens)), np.nan)
    for index, prompt in enumerate(task.scored):
        for head, tokens in words.follows.items():
            for column in range(0, len(tokens), SCORED_TOKENS):
                wanted = tuple(tokens[column : column + SCORED_TOKENS])
                yield Ask(task, index, [*prompt, *head], head, wanted, column)


def _scores(logprobs: Any) -> Mapping[int, float]:
    """Token -> log-probability of the one position that was asked for."""
    return dict(zip(logprobs.token_ids, logprobs.logprobs, strict=True))


@contextlib.contextmanager
def failing() -> Iterator[None]:
    """What comes out of a dying engine, told as what it means for the study."""
    try:
        yield
    except Exception as error:  # vLLM raises whatever broke inside it, in types of its own and others'
        raise EngineFailed(
            f"the vLLM engine failed: {_first_line(error)}. What it had finished is on disk; run the same "
            "command again and it goes on from there. If it fails at the same place: -p backend "
            "transformers, or a lower -p gpu_memory"
        ) from error
