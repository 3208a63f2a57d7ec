"""What make_fixtures.py and make_families.py share."""
import json

import transformers as tf
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers


def qwen_tokenizer(texts, size, special):
    """A tokenizer of Qwen's form, of at most `size` tokens learned from a few texts, and some special ones."""
    base = Tokenizer(models.BPE())
    base.normalizer = normalizers.NFC()
    pattern = Regex(tf.models.qwen2.tokenization_qwen2.PRETOKENIZE_REGEX)
    split = pre_tokenizers.Split(pattern, behavior="isolated")
    base.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    base.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    base.train_from_iterator(texts * 4, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False))
    vocabulary, merges = parts(base)
    made = tf.Qwen2Tokenizer(vocab=vocabulary, merges=merges, eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token="<|endoftext|>")
    made.add_special_tokens({"additional_special_tokens": special})
    return made


def parts(tokenizer):
    """Vocabulary and merges of a BPE tokenizer."""
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(m) if not isinstance(m, str) else tuple(m.split(" ")) for m in model["merges"]]
