#!/usr/bin/env python3
"""Writes tests/fixtures/families: tiny random models of every family and what PyTorch computes with them.

    python3 -m venv venv && venv/bin/pip install torch torchvision transformers peft safetensors pillow
    venv/bin/python make_families.py                    # the committed ones: seed 1, pictures of fixtures/images
    venv/bin/python make_families.py OUT SEED [NAME..]  # others, into another folder; pictures of other odd sizes too

OUT/<name>/                the model directory, as transformers writes it
OUT/<name>/images/*.png    pictures, where they are not those of fixtures/images
OUT/<name>/cases.json      conversations with their text, ids, positions and greedy continuation of 32 tokens; the loss of one answer
OUT/<name>/adapter/        a low-rank adapter of the language model, where peft is there
OUT/<name>/reference.safetensors
    <case>.logits          the last 16 rows, [16, vocabulary]
    <case>.pixels          every 31st processed value, patch after patch
    adapted.logits         those of the case `one` under the adapter
    sft.<weight>           gradient of the loss, flattened, every (numel // 48)-th value (at least every one)

All weights are drawn, biases, norms and scales too, so that a forgotten one shows.
"""
import json
import os
import pathlib
import shutil
import sys

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
import numpy as np
import torch
import transformers as tf
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from making import parts, qwen_tokenizer

HERE = pathlib.Path(__file__).parent / "fixtures"
OUT = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "families"
SEED = int(sys.argv[2]) if len(sys.argv) > 2 else 1
COMMITTED = len(sys.argv) <= 1
NEW = 32
TEXTS = [
    "What is hidden behind the black box in the picture? Think first, then answer.",
    "<think> this is a kitchen, so the box near the sink is likely a bowl </think><answer>bowl</answer>",
    "You are a helpful assistant. Compare the pictures, naïve café 12,345 times: it's the 2nd one!\n\n  Yes.",
]
QWEN = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
INTERN = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}IMAGE{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VICUNA = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'][0]['text'] }} {% else %}{{ m['role'].upper() + ': ' }}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] + ' ' }}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
MISTRAL = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' }}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] }}{% endfor %}{{ ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'][0]['text'] + '</s> ' }}{% endif %}{% endfor %}"
)
NORM = dict(image_mean=[0.48145466, 0.4578275, 0.40821073], image_std=[0.26862954, 0.26130258, 0.27577711])


def llama_tokenizer():
    """With a first token put in front of every text, as the published ones have it."""
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(TEXTS * 4, trainers.BpeTrainer(vocab_size=318, special_tokens=special, show_progress=False))
    vocabulary, merges = parts(trained)
    made = tf.LlamaTokenizer(vocab=vocabulary, merges=merges, legacy=False)
    made.pad_token = "<unk>"
    made.add_tokens([tf.AddedToken("<image>", special=True, normalized=False)])
    made._tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    return made


def text_config(cls, tok, **extra):
    ids = tok.convert_tokens_to_ids
    eos = ids(tok.eos_token)
    return cls(**dict(dict(
        vocab_size=len(tok) + 3, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=2048, rms_norm_eps=1e-6, bos_token_id=1, eos_token_id=eos, pad_token_id=0,
        rope_parameters=dict(rope_type="default", rope_theta=1e6), tie_word_embeddings=False,
    ), **extra))


def qwen(windowed, tied=False, sliding=False):
    tok = qwen_tokenizer(TEXTS, 290, QWEN)
    ids = tok.convert_tokens_to_ids
    extra = dict(use_sliding_window=True, sliding_window=21, max_window_layers=1) if sliding else {}
    T = tf.models.qwen2_5_vl.configuration_qwen2_5_vl.Qwen2_5_VLTextConfig if windowed else tf.models.qwen2_vl.configuration_qwen2_vl.Qwen2VLTextConfig
    text = text_config(T, tok, rope_parameters=dict(rope_type="default", rope_theta=1e6, mrope_section=[1, 1, 0]), **extra)
    shape = dict(depth=3, num_heads=2, patch_size=14, spatial_merge_size=2, temporal_patch_size=2)
    if windowed:
        vision = dict(shape, hidden_size=16, intermediate_size=24, window_size=56, fullatt_block_indexes=[1], out_hidden_size=16)
    else:
        vision = dict(shape, embed_dim=16, hidden_size=16, mlp_ratio=2)
    cls, model, processor = (
        (tf.Qwen2_5_VLConfig, tf.Qwen2_5_VLForConditionalGeneration, tf.Qwen2_5_VLProcessor)
        if windowed
        else (tf.Qwen2VLConfig, tf.Qwen2VLForConditionalGeneration, tf.Qwen2VLProcessor)
    )
    config = cls(
        text_config=text.to_dict(), vision_config=vision, image_token_id=ids("<|image_pad|>"), video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"), vision_end_token_id=ids("<|vision_end|>"), tie_word_embeddings=tied,
    )
    pixels = tf.models.qwen2_vl.image_processing_pil_qwen2_vl.Qwen2VLImageProcessorPil(
        size={"shortest_edge": 28 * 28 * 4, "longest_edge": 28 * 28 * 16}
    )
    template = CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    return model._from_config(config, attn_implementation="eager"), processor(
        image_processor=pixels, tokenizer=tok, video_processor=tf.Qwen2VLVideoProcessor(), chat_template=template
    )


def llava(mistral, window=None):
    tok = llama_tokenizer()
    if mistral:
        text = text_config(tf.MistralConfig, tok, sliding_window=window)
    else:
        text = text_config(tf.LlamaConfig, tok, num_key_value_heads=4, rope_parameters=dict(rope_type="linear", factor=2.0, rope_theta=1e4))
    vision = tf.CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, image_size=42, patch_size=14, projection_dim=16
    )
    pins = [[42, 84], [84, 42], [84, 84], [126, 42], [42, 126]]
    config = tf.LlavaNextConfig(
        vision_config=vision, text_config=text, image_token_id=tok.convert_tokens_to_ids("<image>"), image_grid_pinpoints=pins,
        vision_feature_layer=-2, vision_feature_select_strategy="default", image_seq_length=9, tie_word_embeddings=False,
    )
    side = {"height": 42, "width": 42}
    pixels = tf.models.llava_next.image_processing_pil_llava_next.LlavaNextImageProcessorPil(
        size={"shortest_edge": 42}, crop_size=side, image_grid_pinpoints=pins, **NORM
    )
    processor = tf.LlavaNextProcessor(
        image_processor=pixels, tokenizer=tok, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=MISTRAL if mistral else VICUNA,
    )
    return tf.LlavaNextForConditionalGeneration._from_config(config, attn_implementation="eager"), processor


def internvl(large):
    """`large` has what InternViT-6B has: root mean square norms, normed queries and keys, no bias."""
    tok = qwen_tokenizer(TEXTS, 290, INTERN)
    tok._set_model_specific_special_tokens(
        special_tokens=dict(start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>", video_token="<video>")
    )
    text = text_config(tf.Qwen2Config, tok, rope_parameters=dict(rope_type="dynamic", factor=2.0, rope_theta=1e6))
    vision = tf.InternVLVisionConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, attention_bias=not large, use_qk_norm=large,
        norm_type="rms_norm" if large else "layer_norm", image_size=[56, 56], patch_size=[14, 14], use_mean_pooling=True,
    )
    config = tf.InternVLConfig(
        vision_config=vision, text_config=text, image_token_id=tok.convert_tokens_to_ids("<IMG_CONTEXT>"), image_seq_length=4,
        downsample_ratio=0.5, vision_feature_layer=-1, vision_feature_select_strategy="default", tie_word_embeddings=False,
    )
    side = {"height": 56, "width": 56}
    pixels = tf.models.got_ocr2.image_processing_pil_got_ocr2.GotOcr2ImageProcessorPil(
        size=side, crop_to_patches=True, min_patches=1, max_patches=6, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
    )
    processor = tf.InternVLProcessor(
        image_processor=pixels, tokenizer=tok, video_processor=tf.InternVLVideoProcessor(size=side), image_seq_length=4,
        chat_template=CHATML.replace("IMAGE", "<IMG_CONTEXT>\n"),
    )
    return tf.InternVLForConditionalGeneration._from_config(config, attn_implementation="eager"), processor


MODELS = {
    "qwen2_vl": lambda: qwen(False),
    "llava_next_vicuna": lambda: llava(False),
    "llava_next_mistral": lambda: llava(True, window=23),
    "internvl": lambda: internvl(False),
}
MORE = {
    "qwen2_vl_tied": lambda: qwen(False, tied=True),
    "qwen2_5_vl": lambda: qwen(True),
    "qwen2_vl_sliding": lambda: qwen(False, sliding=True),
    "llava_next_mistral_full": lambda: llava(True),
    "internvl_large": lambda: internvl(True),
}


def draw(model):
    generator = torch.Generator().manual_seed(20260117 + SEED)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            value = torch.randn(weight.shape, generator=generator)
            if name.endswith("bias"):
                weight.copy_(0.1 * value)
            elif "lambda" in name:
                weight.copy_(0.7 * (1 + 0.1 * value))
            elif "newline" in name or "class_embedding" in name or "cls_token" in name or "position" in name or "embed_tokens" in name:
                weight.copy_(0.5 * value)
            elif weight.ndim == 1:
                weight.copy_(1 + 0.1 * value)
            else:
                weight.copy_(value * 1.3 / weight[0].numel() ** 0.5)
    model.tie_weights()
    return model.float().eval()


def pictures(folder):
    """Name -> picture: the shared ones, or newly drawn ones of odd sizes, one of a single pixel's height among them."""
    if COMMITTED:
        return {path.name: Image.open(path).convert("RGB") for path in sorted((HERE / "images").glob("*.png"))}
    rng = np.random.RandomState(SEED)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    found = {}
    for name, size in [("wide.png", (rng.randint(90, 330), rng.randint(31, 90))), ("tall.png", (rng.randint(17, 80), rng.randint(90, 270))), ("small.png", (rng.randint(1, 40), rng.randint(2, 40)))]:
        width, height = size
        y, x = np.mgrid[0:height, 0:width]
        image = np.stack([255 * x / width, 255 * y / height, 200 * ((x // 9 + y // 7) % 2)], -1)
        image = Image.fromarray(np.clip(image + rng.randn(height, width, 1) * 6, 0, 255).astype(np.uint8))
        image.save(folder / "images" / name)
        found[name] = image
    return found


def patch_rows(name, model, inputs):
    """Processed values in the order of our rows: patch after patch, channel after channel."""
    pixels = inputs["pixel_values"]
    if name.startswith("qwen"):
        return pixels
    if name.startswith("llava"):
        config = model.config
        counts = [tf.models.llava_next.modeling_llava_next.image_size_to_num_patches(size, config.image_grid_pinpoints, config.vision_config.image_size) for size in inputs["image_sizes"]]
        pixels = torch.cat([image[:count] for image, count in zip(pixels, counts)])
    tiles, channels, height, width = pixels.shape
    rows = pixels.reshape(tiles, channels, height // 14, 14, width // 14, 14).permute(0, 2, 4, 1, 3, 5)
    return rows.reshape(-1, channels * 14 * 14)


def case(family, name, processor, model, images, turns):
    messages = [
        {"role": role, "content": [{"type": "image"} if part in images else {"type": "text", "text": part} for part in parts]}
        for role, parts in turns
    ]
    shown = [images[part] for _, parts in turns for part in parts if part in images]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(text=[text], images=shown or None, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits[0]
    generated = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    parts = [[{"image": p} if p in images else {"text": p} for p in parts] for _, parts in turns]
    entry = dict(
        name=name, turns=[{"role": r, "parts": p} for (r, _), p in zip(turns, parts)], text=text,
        ids=inputs["input_ids"][0].tolist(), greedy=generated.tolist(),
    )
    if family.startswith("qwen"):
        kinds = {k: inputs[k] for k in ("input_ids", "image_grid_thw", "mm_token_type_ids") if k in inputs}
        entry["positions"] = model.model.get_rope_index(**kinds)[0][:, 0].tolist()
    tensors = {f"{name}.logits": logits[-16:]}
    if shown:
        tensors[f"{name}.pixels"] = patch_rows(family, model, inputs).flatten()[::31]
    return entry, tensors, inputs


def published(family, name):
    """Our name on disk of a parameter of transformers."""
    pairs = {
        "qwen": [("model.language_model.", "model."), ("model.visual.", "visual.")],
        "llav": [("model.language_model.", "language_model.model."), ("lm_head.", "language_model.lm_head."), ("model.vision_tower.", "vision_tower.vision_model."), ("model.", "")],
        "inte": [("model.language_model.", "language_model.model."), ("lm_head.", "language_model.lm_head."), ("model.", "")],
    }[family[:4]]
    for theirs, ours in pairs:
        if name.startswith(theirs):
            return ours + name[len(theirs) :]
    return name


def gradients(family, model, inputs, target):
    extra = torch.tensor([target])
    full = dict(inputs)
    full["input_ids"] = torch.cat([inputs["input_ids"], extra], 1)
    full["attention_mask"] = torch.ones_like(full["input_ids"])
    if "mm_token_type_ids" in inputs:
        full["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(extra)], 1)
    model.zero_grad()
    logits = model(**full).logits[0, -len(target) - 1 : -1]
    loss = -logits.log_softmax(-1).gather(1, extra[0][:, None]).mean()
    loss.backward()
    found = {}
    for name, weight in model.named_parameters():
        if weight.grad is not None:
            flat = weight.grad.flatten()
            found["sft." + published(family, name)] = flat[:: max(1, flat.numel() // 48)].clone()
    return loss.item(), found


def adapt(model, inputs, folder):
    """Puts a drawn adapter on the language model, saves it, and returns the logits under it."""
    try:
        import peft
    except ImportError:
        return {}
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=r".*language_model.*(q_proj|v_proj|gate_proj|down_proj)")
    adapted = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(99 + SEED)
    with torch.no_grad():
        for name, weight in sorted(adapted.named_parameters()):
            if "lora_" in name:
                weight.copy_(0.4 * torch.randn(weight.shape, generator=generator))
        logits = adapted.eval()(**inputs).logits[0, -16:]
    adapted.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    written = json.loads((folder / "adapter_config.json").read_text())
    written["base_model_name_or_path"] = None
    (folder / "adapter_config.json").write_text(json.dumps(written, indent=1) + "\n")
    return {"adapted.logits": logits}


def write(family, make):
    torch.manual_seed(0)
    folder = OUT / family
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    images = pictures(folder)
    model, processor = make()
    draw(model)
    tok = processor.tokenizer
    model.generation_config.do_sample = False
    model.generation_config.eos_token_id = [tok.eos_token_id]
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    for extra in ("README.md", "video_preprocessor_config.json"):
        (folder / extra).unlink(missing_ok=True)
    system = [] if "mistral" in family else [("system", [TEXTS[2]])]
    cases = [
        ("text", [("user", [TEXTS[0]])]),
        ("one", system + [("user", ["wide.png", TEXTS[0]])]),
        ("four", [("user", ["tall.png", "small.png", "Compare."]), ("assistant", ["Yes."]), ("user", ["wide.png", "small.png", "And this?"])]),
    ]
    out, tensors, inputs = dict(cases=[]), {}, {}
    for name, turns in cases:
        entry, more, inputs[name] = case(family, name, processor, model, images, turns)
        out["cases"].append(entry)
        tensors.update(more)
    target = tok("<answer>bowl</answer>", add_special_tokens=False)["input_ids"] + [tok.eos_token_id]
    loss, grads = gradients(family, model, inputs["one"], target)
    tensors.update(grads)
    out["sft"] = dict(prompt="one", target=target, loss=loss)
    tensors.update(adapt(model, inputs["one"], folder / "adapter"))
    save_file({k: v.contiguous().float() for k, v in tensors.items()}, folder / "reference.safetensors")
    (folder / "cases.json").write_text(json.dumps(out, ensure_ascii=False) + "\n")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(family, f"{sum(p.numel() for p in model.parameters())} weights, {size} bytes", [(len(c["ids"]), len(c["greedy"])) for c in out["cases"]])


def main():
    torch.set_num_threads(1)
    wanted = sys.argv[3:]
    known = MODELS if COMMITTED else {**MODELS, **MORE}
    for family, make in known.items():
        if not wanted or family in wanted:
            write(family, make)


main()
