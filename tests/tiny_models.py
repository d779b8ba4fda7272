"""Small models of transformers, made on the spot: nothing is fetched."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from limbeck.rng import Rng, seeded

NOUNS = {"cat": "purrs", "dog": "barks", "cow": "moos", "owl": "hoots"}
SIZES = ("small", "large", "old", "young")
WORDS = ("the", "and", *SIZES, *NOUNS, *NOUNS.values())


def sentences(n: int, seed: int = 0) -> list[str]:
    """Lines of a small grammar: what each animal does follows from what it is, as far back as the line's start."""
    rng = Rng(("sentences", seed))
    picks = [rng.integers(n, 4).tolist() for _ in range(4)]
    nouns = [*NOUNS]
    lines = list[str]()
    for a, b, c, d in zip(*picks, strict=True):
        one, two = nouns[a], nouns[b]
        lines.append(f"the {SIZES[c]} {one} and the {SIZES[d]} {two} {NOUNS[one]} and {NOUNS[two]}")
    return lines


def tokenizer(words: tuple[str, ...] = WORDS, length: int = 32) -> Any:
    """A tokenizer of whole words."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    special = {"pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>", "eos_token": "<end>"}
    known = Tokenizer(models.WordLevel({w: i for i, w in enumerate((*special.values(), *words))}, unk_token="<unk>"))
    known.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=known, model_max_length=length, **special)


def model(kind: str, *, layers: int = 3, width: int = 32, vocab: int = 4 + len(WORDS)) -> nn.Module:
    """A small GPT-2, Llama, BERT or ViT with random weights."""
    import transformers as t

    with seeded("tiny", kind, layers, width):
        if kind == "gpt2":
            sizes = {"n_layer": layers, "n_embd": width, "n_head": 2, "n_positions": 32}
            none = {"bos_token_id": 3, "eos_token_id": 3, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
            return t.GPT2LMHeadModel(t.GPT2Config(vocab_size=vocab, **sizes, **none)).eval()
        sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 2, "intermediate_size": 64}
        if kind == "llama":
            more = {"max_position_embeddings": 32, "bos_token_id": 3, "eos_token_id": 3, "pad_token_id": 0}
            return t.LlamaForCausalLM(t.LlamaConfig(vocab_size=vocab, **sizes, **more)).eval()
        none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        if kind == "bert":
            config = t.BertConfig(vocab_size=vocab, **sizes, **none, max_position_embeddings=32, pad_token_id=0)
            return t.BertForMaskedLM(config).eval()
        image = {"image_size": 8, "patch_size": 2, "num_channels": 1, "num_labels": 10}
        return t.ViTForImageClassification(t.ViTConfig(**sizes, **none, **image)).eval()


def saved(net: nn.Module, folder: Path, *, words: tuple[str, ...] | None = WORDS) -> Path:
    """A model in transformers' format, with its tokenizer."""
    net.save_pretrained(folder)  # type: ignore[operator]
    if words is not None:
        tokenizer(words).save_pretrained(folder)
    return folder


def texts(path: Path, n: int = 400) -> Path:
    """A file of `sentences`."""
    path.write_text("\n".join(sentences(n)) + "\n")
    return path


def same(a: nn.Module, b: nn.Module) -> bool:
    """Whether two models have the same weights."""
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
