#!/usr/bin/env python3
"""Writes tests/fixtures: a tiny random Qwen2.5-VL and what PyTorch computes with it.

    python3 -m venv venv && venv/bin/pip install torch torchvision transformers safetensors pillow
    venv/bin/python make_fixtures.py

fixtures/tiny/             the model directory, as transformers writes it (nested config, processor_config.json)
fixtures/images/*.png      pictures of odd sizes: one over the pixel budget, one under it
fixtures/cases.json        conversations with their text, ids, positions and greedy continuation; the SFT and GRPO set-ups and losses
fixtures/reference.safetensors
    <case>.logits          the last 48 rows, [48, vocabulary]
    <case>.pixels          every 7th processed value
    sft.<weight>, grpo.<weight>
                           gradient of the loss, flattened, every (numel // 512)-th value (at least every one)

All weights are drawn, biases and norms too, so that a forgotten one shows. The reference policy of GRPO is the same model with
every weight multiplied by 0.97.
"""
import copy
import json
import os
import pathlib
import sys

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
import numpy as np
import torch
import transformers as tf
from PIL import Image
from safetensors.torch import save_file

from making import qwen_tokenizer

HERE = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent / "fixtures")
TINY = HERE / "tiny"
PICTURES = {"wide.png": (197, 131), "tall.png": (61, 120), "small.png": (37, 30)}
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
TEXTS = [
    "What is hidden behind the black box in the picture? Think first, then answer.",
    "<think> this is a kitchen, so the box near the sink is likely a bowl </think><answer>bowl</answer>",
    "You are a helpful assistant. Compare the three pictures, naïve café 12,345 times: it's the 2nd one!\n\n  Yes.",
]
TEMPLATE = """{%- for message in messages %}
    {%- if loop.first and message.role != 'system' %}
        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' }}
    {%- if message['content'] is string %}
        {{- message['content'] }}
    {%- else %}
        {%- for part in message['content'] %}
            {%- if part['type'] == 'image' %}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- elif 'text' in part %}{{- part['text'] }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""


def picture(name, size):
    width, height = size
    rng = np.random.RandomState(len(name) + width)
    y, x = np.mgrid[0:height, 0:width]
    image = np.stack([255 * x / width, 255 * y / height, 200 * ((x // 9 + y // 7) % 2)], -1)
    image[height // 3 : height // 2, width // 4 : width // 2] = [220, 30, 30]
    image = Image.fromarray(np.clip(image + rng.randn(height, width, 1) * 4, 0, 255).astype(np.uint8))
    image.save(HERE / "images" / name)
    return image


def build(tok):
    ids = tok.convert_tokens_to_ids
    text = dict(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=4096, rms_norm_eps=1e-6, bos_token_id=ids("<|endoftext|>"), eos_token_id=ids("<|im_end|>"),
        pad_token_id=ids("<|endoftext|>"), rope_parameters=dict(rope_type="default", rope_theta=1e6, mrope_section=[1, 1, 2]),
    )
    vision = dict(
        depth=3, hidden_size=16, intermediate_size=24, num_heads=2, patch_size=14, spatial_merge_size=2, temporal_patch_size=2,
        window_size=56, fullatt_block_indexes=[1], out_hidden_size=32, tokens_per_second=2,
    )
    config = tf.Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=ids("<|image_pad|>"), video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"), vision_end_token_id=ids("<|vision_end|>"), tie_word_embeddings=False,
    )
    model = tf.Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation="eager").float().eval()
    generator = torch.Generator().manual_seed(20260117)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            draw = torch.randn(weight.shape, generator=generator)
            if name.endswith("bias"):
                weight.copy_(0.1 * draw)
            elif weight.ndim == 1:
                weight.copy_(1 + 0.1 * draw)
            elif "embed_tokens" in name:
                weight.copy_(0.5 * draw)
            else:
                weight.copy_(draw * 1.3 / weight[0].numel() ** 0.5)
    model.generation_config.do_sample = False
    model.generation_config.eos_token_id = [ids("<|im_end|>"), ids("<|endoftext|>")]
    return model


def case(name, processor, model, images, turns):
    """Runs one conversation: turns are (role, [text or picture name])."""
    messages = [
        {"role": role, "content": [{"type": "image"} if part in images else {"type": "text", "text": part} for part in parts]}
        for role, parts in turns
    ]
    shown = [images[part] for _, parts in turns for part in parts if part in images]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(text=[text], images=shown or None, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits[0]
    generated = model.generate(**inputs, max_new_tokens=14, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    kinds = {k: inputs[k] for k in ("input_ids", "image_grid_thw", "attention_mask", "mm_token_type_ids") if k in inputs}
    kinds.pop("attention_mask")
    positions = model.model.get_rope_index(**kinds)[0][:, 0]
    parts = [[{"image": p} if p in images else {"text": p} for p in parts] for _, parts in turns]
    entry = dict(
        name=name, turns=[{"role": r, "parts": p} for (r, _), p in zip(turns, parts)], text=text, ids=inputs["input_ids"][0].tolist(),
        positions=positions.tolist(), greedy=generated.tolist(), decoded=processor.tokenizer.decode(generated, skip_special_tokens=True),
        grids=inputs["image_grid_thw"].tolist() if shown else [],
    )
    tensors = {f"{name}.logits": logits[-48:]}
    if shown:
        tensors[f"{name}.pixels"] = inputs["pixel_values"].flatten()[::7]
    return entry, tensors, inputs


def completion_logps(model, inputs, ids):
    """Log-probabilities of ids after a prompt."""
    extra = torch.tensor([ids])
    full = dict(inputs)
    full["input_ids"] = torch.cat([inputs["input_ids"], extra], 1)
    full["attention_mask"] = torch.ones_like(full["input_ids"])
    if "mm_token_type_ids" in inputs:
        full["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(extra)], 1)
    logits = model(**full).logits[0, -len(ids) - 1 : -1]
    return logits.log_softmax(-1).gather(1, extra[0][:, None])[:, 0]


def gradients(prefix, model, loss):
    model.zero_grad()
    loss.backward()
    # Names as in a published checkpoint: model.layers..., visual..., lm_head.
    found = {}
    for name, weight in model.named_parameters():
        name = name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
        flat = weight.grad.flatten()
        found[f"{prefix}.{name}"] = flat[:: max(1, flat.numel() // 512)].clone()
    return found


def sft(model, inputs, examples):
    logps = [completion_logps(model, inputs[prompt], target) for prompt, target in examples]
    loss = -torch.cat(logps).mean()
    entry = dict(
        examples=[{"prompt": p, "target": t} for p, t in examples], loss=loss.item(),
        logps=[row.tolist() for row in logps],
    )
    return entry, gradients("sft", model, loss)


def grpo(model, inputs, groups, beta):
    """Per-sequence token mean, then mean over sequences; ratio one, k3 penalty against the scaled reference."""
    reference = copy.deepcopy(model)
    with torch.no_grad():
        for weight in reference.parameters():
            weight.mul_(0.97)
    terms, ref_logps = [], []
    for prompt, completions in groups:
        for ids, advantage in completions:
            logp = completion_logps(model, inputs[prompt], ids)
            with torch.no_grad():
                ref = completion_logps(reference, inputs[prompt], ids)
            ref_logps.append(ref.tolist())
            kl = torch.exp(ref - logp) - (ref - logp) - 1
            terms.append((-torch.exp(logp - logp.detach()) * advantage + beta * kl).mean())
    loss = torch.stack(terms).mean()
    entry = dict(
        groups=[{"prompt": p, "completions": [{"ids": i, "advantage": a} for i, a in c]} for p, c in groups],
        beta=beta, reference_scale=0.97, loss=loss.item(), reference_logps=ref_logps,
    )
    return entry, gradients("grpo", model, loss)


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    (HERE / "images").mkdir(parents=True, exist_ok=True)
    images = {name: picture(name, size) for name, size in PICTURES.items()}
    tok = qwen_tokenizer(TEXTS, 300, SPECIAL)
    model = build(tok)
    pixels = tf.models.qwen2_vl.image_processing_pil_qwen2_vl.Qwen2VLImageProcessorPil(
        size={"shortest_edge": 28 * 28 * 4, "longest_edge": 28 * 28 * 24}
    )
    processor = tf.Qwen2_5_VLProcessor(
        image_processor=pixels, tokenizer=tok, video_processor=tf.Qwen2VLVideoProcessor(), chat_template=TEMPLATE
    )
    model.save_pretrained(TINY)
    processor.save_pretrained(TINY)
    for extra in ("README.md", "video_preprocessor_config.json"):
        (TINY / extra).unlink(missing_ok=True)

    cases = [
        ("text", [("user", [TEXTS[0]])]),
        ("one", [("system", [TEXTS[2]]), ("user", ["wide.png", TEXTS[0]])]),
        ("three", [("user", ["tall.png", "small.png", "Compare."]), ("assistant", ["Yes."]), ("user", ["And ", "wide.png", " this?"])]),
    ]
    out, tensors, inputs = dict(cases=[]), {}, {}
    for name, turns in cases:
        entry, more, inputs[name] = case(name, processor, model, images, turns)
        out["cases"].append(entry)
        tensors.update(more)
    target = tok(TEXTS[1] + "<|im_end|>")["input_ids"]
    short = tok("<answer>bowl</answer><|im_end|>")["input_ids"]
    out["encodings"] = [{"text": t, "ids": tok(t)["input_ids"]} for t in TEXTS + ["<think>é</think> <|im_end|>", "e\u0301 ﬁ 中文 😀"]]
    out["sft"], grads = sft(model, inputs, [("one", target), ("text", short)])
    tensors.update(grads)
    groups = [
        ("one", [(target, 1.25), (short, -0.5), (target[:9], -0.75)]),
        ("text", [(short, 0.8), (target[3:12], 0.4), (target[:5], -1.2)]),
    ]
    out["grpo"], grads = grpo(model, inputs, groups, beta=0.04)
    tensors.update(grads)
    save_file({k: v.contiguous().float() for k, v in tensors.items()}, HERE / "reference.safetensors")
    (HERE / "cases.json").write_text(json.dumps(out, ensure_ascii=False, indent=1) + "\n")
    size = sum(path.stat().st_size for path in HERE.rglob("*") if path.is_file())
    print(f"transformers {tf.__version__}, torch {torch.__version__}, {sum(p.numel() for p in model.parameters())} weights, {size} bytes")
    for entry in out["cases"]:
        print(entry["name"], len(entry["ids"]), entry["grids"], entry["greedy"])


main()
