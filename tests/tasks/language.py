"""Tiny language models and tokenizers: word pieces for masks, words with an end of text and a chat template for decoders."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from tests.tiny import SPECIAL, WORDS, bert_config, tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ '[MASK] ' + m['role'] + ' ' + m['content'] + ' [SEP] ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[MASK] assistant ' }}{% endif %}"
)


def pieces() -> PreTrainedTokenizerFast:
    """Words of letters a–d: every word is cut into as many pieces as it has letters, "ab" into "a" and "##b"."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *"abcd", *(f"##{x}" for x in "abcd")])}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
                                   sep_token="[SEP]", mask_token="[MASK]")  # fmt: skip


def words(*, template: str | None = None, begin: bool = False) -> PreTrainedTokenizerFast:
    """A decoder's tokenizer: w0 … w89 and the roles; its end of text is "[SEP]"; "[CLS]" begins a text if asked for."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS, "user", "assistant", "system"])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if begin:
        made.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 2)])
    found = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", eos_token="[SEP]")
    found.chat_template = template
    return found


def gpt2(seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    return GPT2LMHeadModel(GPT2Config(vocab_size=98, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=3,
                                      eos_token_id=3)).eval()  # fmt: skip


def llama(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=98, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
                         max_position_embeddings=64, bos_token_id=2, eos_token_id=3, pad_token_id=None,
                         initializer_range=0.5)  # fmt: skip  # its output embedding is frozen, so it must be able to decide
    return LlamaForCausalLM(config).eval()


def masked_directory(folder: Path, seed: int = 0) -> Path:
    """A base that was published with its masked-LM head."""
    torch.manual_seed(seed)
    BertForMaskedLM(bert_config()).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def sentences(count: int, seed: int = 0) -> list[str]:
    """Learnable text: words count up from where a sentence begins."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        first = rng.randrange(80)
        made.append(" ".join(WORDS[first : first + rng.randint(3, 10)]))
    return made
