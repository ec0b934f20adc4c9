"""A stand-in for the few names of vLLM that lib.engine uses, which really runs a model through transformers.

For machines without vLLM: requests are worked off some at a time and in scrambled order, with the promises
and the limits of the pinned version that lib.engine relies on. `install` puts it in vLLM's place.
"""

import dataclasses
import enum
import importlib.metadata
import random
import sys
import types
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from typing import Any

import pytest
import torch

MOST_SCORED = 128  # vLLM's MAX_LOGPROB_TOKEN_IDS
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vLLM's MaxLoRARanks


class RequestOutputKind(enum.Enum):
    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


@dataclass
class StructuredOutputsParams:
    regex: str | None = None


@dataclass
class SamplingParams:
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 16
    seed: int | None = None
    stop_token_ids: list[int] = field(default_factory=list)
    structured_outputs: StructuredOutputsParams | None = None
    logprob_token_ids: list[int] | None = None
    flat_logprobs: bool = False
    detokenize: bool = True
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    skip_clone: bool = False

    def __post_init__(self) -> None:
        if self.logprob_token_ids and len(self.logprob_token_ids) > MOST_SCORED:
            raise ValueError(f"Requested logprob_token_ids of length {len(self.logprob_token_ids)}")


@dataclass(frozen=True)
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str


@dataclass
class EngineArgs:
    model: str
    skip_tokenizer_init: bool = False
    trust_remote_code: bool = True
    generation_config: str = "auto"
    dtype: str = "auto"
    tensor_parallel_size: int = 1
    gpu_memory_utilization: float = 0.9
    max_model_len: int = 2048
    max_num_seqs: int = 128
    max_num_batched_tokens: int = 2048
    enable_prefix_caching: bool = True
    scheduler_cls: str | None = None
    disable_log_stats: bool = False
    compilation_config: dict = field(default_factory=dict)
    enable_lora: bool = False
    max_loras: int = 1
    max_cpu_loras: int = 1
    max_lora_rank: int = 16

    def __post_init__(self) -> None:
        if self.max_lora_rank not in RANKS or self.max_cpu_loras < self.max_loras:
            raise ValueError(f"no LoRA of rank {self.max_lora_rank}, {self.max_loras} at once")


@dataclass
class FlatLogprobs:
    token_ids: list[int]
    logprobs: list[float]


@dataclass
class CompletionOutput:
    token_ids: list[int]
    finish_reason: str | None
    logprobs: FlatLogprobs | None


@dataclass
class RequestOutput:
    request_id: str
    outputs: list[CompletionOutput]
    finished: bool = True


@dataclass(frozen=True)
class Request:
    name: str
    prompt: list[int]
    params: SamplingParams
    lora: LoRARequest | None


def _read_model(args: EngineArgs) -> Any:
    from transformers import AutoModelForCausalLM

    dtype = getattr(torch, args.dtype)
    return AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype).eval().requires_grad_(False)


class LLMEngine:
    """Runs what it is asked; `asked` keeps every request, `per_step` bounds what one step finishes.

    With `dies_at` set on the class, that step of any engine raises, as a lost GPU would.
    """

    per_step = 3
    dies_at: int | None = None
    started: "list[LLMEngine]" = []  # noqa: RUF012  # emptied by `install`

    def __init__(self, args: EngineArgs) -> None:
        self.args, self.model, self.tuned = args, _read_model(args), None
        self.waiting: list[Request] = []
        self.asked: list[Request] = []
        self.steps, self.luck, self.ended = 0, random.Random(0), False
        self.engine_core = types.SimpleNamespace(shutdown=self._shut_down)
        self.started.append(self)

    @classmethod
    def from_engine_args(cls, args: EngineArgs) -> "LLMEngine":
        return cls(args)

    def _shut_down(self) -> None:
        self.ended = True
        if self.tuned is not None:
            self.model, self.tuned = self.tuned.unload(), None
        raise RuntimeError("engines are noisy when they end")

    def add_request(
        self, name: str, prompt: dict, params: SamplingParams, lora_request: LoRARequest | None = None
    ) -> None:
        assert not self.ended
        assert set(prompt) == {"type", "prompt_token_ids"} and prompt["type"] == "token"
        assert params.output_kind is RequestOutputKind.FINAL_ONLY and not params.detokenize
        if lora_request and not self.args.enable_lora:
            raise ValueError("LoRA is not enabled")
        if len(prompt["prompt_token_ids"]) + params.max_tokens > self.args.max_model_len:
            raise ValueError("the prompt is longer than the maximum model length")
        if params.structured_outputs and self.args.skip_tokenizer_init:
            raise ValueError("Structured outputs requires a tokenizer")
        # A copy, as vLLM's are in a process of their own: what the caller does to it later changes nothing.
        own = dataclasses.replace(params)
        request = Request(name, list(prompt["prompt_token_ids"]), own, lora_request)
        assert name not in {each.name for each in self.waiting}
        self.waiting.append(request)
        self.asked.append(request)

    def step(self) -> list[RequestOutput]:
        """Some of the oldest requests, in any order, among outputs that are not finished."""
        self.steps += 1
        if self.dies_at is not None and self.steps >= self.dies_at:
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore of it")
        old = self.waiting[: 3 * self.per_step]
        chosen = self.luck.sample(old, min(len(old), self.per_step))
        self.waiting = [each for each in self.waiting if each not in chosen]
        unfinished = [RequestOutput(each.name, [], finished=False) for each in self.waiting[:1]]
        return [*unfinished, *(self._run(each) for each in chosen)]

    def _run(self, request: Request) -> RequestOutput:
        with torch.inference_mode():
            model = self._with(request.lora)
            if self.tuned is not None and request.lora is None:
                with self.tuned.disable_adapter():
                    return self._complete(model, request)
            return self._complete(model, request)

    def _with(self, lora: LoRARequest | None) -> Any:
        from peft import PeftModel

        if lora is None:
            return self.tuned or self.model
        name = str(lora.lora_int_id)
        if self.tuned is None:
            self.tuned = PeftModel.from_pretrained(self.model, lora.lora_path, adapter_name=name).eval()
        elif name not in self.tuned.peft_config:
            self.tuned.load_adapter(lora.lora_path, adapter_name=name)
        if self.tuned.peft_config[name].r > self.args.max_lora_rank:
            raise ValueError(f"LoRA rank is greater than max_lora_rank {self.args.max_lora_rank}")
        self.tuned.set_adapter(name)
        return self.tuned

    def _complete(self, model: Any, request: Request) -> RequestOutput:
        params, tokens, finish = request.params, [], "length"
        choose = _Chooser(params, self.args.model)
        scores = None
        while len(tokens) < params.max_tokens:
            logits = model(torch.tensor([[*request.prompt, *tokens]])).logits[0, -1].double()
            token = choose(logits)
            if params.logprob_token_ids:
                wanted = [token, *params.logprob_token_ids]
                scores = FlatLogprobs(wanted, logits.log_softmax(-1)[wanted].tolist())
            tokens.append(token)
            if token in params.stop_token_ids:
                finish = "stop"
                break
        return RequestOutput(request.name, [CompletionOutput(tokens, finish, scores)])


class _Chooser:
    """Next tokens of one request."""

    def __init__(self, params: SamplingParams, folder: str) -> None:
        self.params, self.masks, self.state = params, None, None
        assert params.top_p == 1
        self.generator = torch.Generator().manual_seed(params.seed or 0)
        if params.structured_outputs:
            from transformers import AutoTokenizer

            from lib.grammar import NUMBERS_REGEX
            from lib.sampling import list_masks

            assert params.structured_outputs.regex == NUMBERS_REGEX
            self.masks = list_masks(AutoTokenizer.from_pretrained(folder))
            self.state = self.masks.start(1)

    def __call__(self, logits: torch.Tensor) -> int:
        if self.masks is not None:
            allowed = torch.from_numpy(self.masks.mask(self.state, len(logits))[0])
            logits = logits.masked_fill(~allowed, -torch.inf)
        if self.params.temperature == 0:
            token = int(logits.argmax())
        else:
            chances = (logits / self.params.temperature).softmax(-1)
            token = int(torch.multinomial(chances, 1, generator=self.generator))
        if self.masks is not None:
            self.state = self.masks.advance(self.state, [token])
        return token


NAMES = {
    "vllm": ("SamplingParams", "EngineArgs"),
    "vllm.sampling_params": ("RequestOutputKind", "StructuredOutputsParams"),
    "vllm.lora": (),
    "vllm.lora.request": ("LoRARequest",),
    "vllm.v1": (),
    "vllm.v1.engine": (),
    "vllm.v1.engine.llm_engine": ("LLMEngine",),
}


def install(patch: pytest.MonkeyPatch) -> type[LLMEngine]:
    """Let `import vllm` find this until the patch is undone."""
    for name, known in NAMES.items():
        module = types.ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        for each in known:
            setattr(module, each, globals()[each])
        patch.setitem(sys.modules, name, module)
    patch.setattr(LLMEngine, "started", [])
    claim_version(patch, "0.26.0")
    return LLMEngine


def claim_version(patch: pytest.MonkeyPatch, version: str) -> None:
    """Let the metadata of vLLM, which may not be installed, say so."""
    whole = importlib.metadata.version
    patch.setattr(importlib.metadata, "version", lambda name: version if name == "vllm" else whole(name))
