"""A random model that spells letter by letter, so that an animal takes one to many tokens."""

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from lib import config
from lib.models import Loaded


def build_letters() -> Loaded:
    """Byte-level tokens with a few merges; its shape and its words are its own, its name is Qwen's."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("c", "a"), ("ca", "t"), ("o", "w"), ("Ġ", "o"), ("Ġ", "cat"), ("d", "o"), ("do", "g")]
    words = [*alphabet, *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(BPE({word: number for number, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>")
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(fast),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.3,
        )
    )
    return Loaded(config.parse_label("0.5b"), fast, "", model.eval())
