#!/usr/bin/env python3
"""mpcc beside transformers on the CPU, in f32: the same weights, picture and questions, in alternating rounds.

    cargo build --release -p mpcc-models --example beside
    python3 stages/models/benches/beside.py target/release/examples/beside [--model DIR] [--threads 1 2] [--rounds 3 --times 3]

needs torch and transformers. Models are drawn on the spot over the tokenizer of --model (a small Qwen2.5-VL directory, a committed
fixture by default): `tiny` is that model, `141m` one of 141 million parameters over the real vocabulary's size. Each figure is the
least time or highest rate of all rounds.
"""

import argparse, json, os, pathlib, shutil, subprocess, sys, tempfile, time

HERE = pathlib.Path(__file__).resolve().parent
# Ahead of whatever else the machine does, where that is allowed.
PREFIX = ["chrt", "-f", "10"]
TOKENS, SHORT = 32, 4
QUESTIONS = ["Which one is in the masked part of the image? a bus, a car", "Which one is in the masked part of the image? a bus, a stop sign"] + [
    f"Is it true that object {n} is in the masked part of the image?" for n in range(7)]
PIXELS = 448 * 448


def draw(source, size, target):
    """Writes a model directory of a size, every weight drawn."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
    config = AutoConfig.from_pretrained(source)
    if size == "141m":
        text, vision = config.text_config, config.vision_config
        for key, value in dict(vocab_size=151936, hidden_size=512, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=8,
                               num_key_value_heads=2, layer_types=["full_attention"] * 12, tie_word_embeddings=True).items():
            setattr(text, key, value)
        text.rope_parameters["mrope_section"] = [8, 12, 12]
        for key, value in dict(depth=8, hidden_size=384, intermediate_size=1024, num_heads=6, fullatt_block_indexes=[1, 3, 5, 7],
                               out_hidden_size=512).items():
            setattr(vision, key, value)
        config.tie_word_embeddings = True
    config.text_config.max_position_embeddings = 4096
    torch.manual_seed(1)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    model.save_pretrained(target)
    for name in ["preprocessor_config.json", "processor_config.json"]:
        path = target / name
        if path.exists():
            value = json.loads(path.read_text())
            for part in [value, value.get("image_processor", {})]:
                if "patch_size" in part:
                    part["size"] = {"shortest_edge": 3136, "longest_edge": PIXELS}
                    part.pop("min_pixels", None), part.pop("max_pixels", None)
            path.write_text(json.dumps(value))
    # An end token that no greedy answer reaches: all answers have one length on both sides.
    end = config.text_config.pad_token_id
    (target / "generation_config.json").write_text(json.dumps({"eos_token_id": end, "pad_token_id": end}))
    return sum(p.numel() for p in model.parameters())


def picture(path):
    from PIL import Image

    data = bytes((x * (3 + k) + y * 5 + (x * y >> 6)) % 256 for y in range(480) for x in range(480) for k in range(3))
    Image.frombytes("RGB", (480, 480), data).save(path)


def least(times, work):
    work()
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)


def transformers_side(model_dir, path, threads, times):
    import resource

    import torch
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    torch.set_num_threads(threads)
    model = AutoModelForImageTextToText.from_pretrained(model_dir, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(model_dir)
    image = Image.open(path).convert("RGB")

    def ask(words, rows=1):
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": words}]}
        text = processor.apply_chat_template([turn], add_generation_prompt=True)
        return processor(text=[text] * rows, images=[image] * rows, return_tensors="pt")

    def answer(inputs, tokens):
        return model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)

    with torch.inference_mode():
        one, eight = ask("Detect every bus in the image."), ask("Detect every bus in the image.", 8)
        preprocessing = least(times, lambda: processor.image_processor(images=[image], return_tensors="pt"))
        prefill = least(times, lambda: model(**one, use_cache=True, logits_to_keep=1))
        first, whole = least(times, lambda: answer(one, 1)), least(times, lambda: answer(one, 1 + TOKENS))
        first8, whole8 = least(times, lambda: answer(eight, 1)), least(times, lambda: answer(eight, 1 + TOKENS))
        nine = least(times, lambda: [answer(ask(words), SHORT) for words in QUESTIONS])
        ids = answer(one, 1 + TOKENS)[0, one["input_ids"].shape[1]:].tolist()
    print(json.dumps({
        "tokens": one["input_ids"].shape[1], "preprocessing": preprocessing, "prefill": prefill,
        "decode 1": TOKENS / (whole - first), "decode 8": 8 * TOKENS / (whole8 - first8), "nine questions": nine,
        "peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "ids": ids}))


def run(command, threads):
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"}
    prefix = PREFIX if shutil.which("chrt") and subprocess.run(PREFIX + ["true"], capture_output=True).returncode == 0 else []
    output = subprocess.run(prefix + command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if output.returncode:
        sys.exit(f"{command}: {output.stderr}")
    return json.loads(output.stdout.strip().splitlines()[-1])


def best(rounds):
    pick = lambda name: max if name.startswith("decode") else min
    return {name: pick(name)(one[name] for one in rounds) for name in rounds[0] if name not in ("ids", "tokens")}


def compare(binary, sizes, source, threads, rounds, times):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        picture(folder / "picture.png")
        for size in sizes:
            count = draw(source, size, folder / size)
            for number in threads:
                ours, theirs = [], []
                tail = [str(folder / size), str(folder / "picture.png"), str(number), str(times)]
                for _ in range(rounds):
                    ours.append(run([binary, *tail], number))
                    theirs.append(run([sys.executable, __file__, "--side", *tail], number))
                assert ours[0]["tokens"] == theirs[0]["tokens"], (ours[0]["tokens"], theirs[0]["tokens"])
                same = ours[0]["ids"] == theirs[0]["ids"]
                print(f"\n{size}: {count / 1e6:.1f}M parameters, {number} threads, prompt of {ours[0]['tokens']} tokens, equal answers: {same}")
                a, b = best(ours), best(theirs)
                for name in a:
                    ratio = a[name] / b[name] if name.startswith("decode") else b[name] / a[name]
                    print(f"| {name} | {a[name]:.4g} | {b[name]:.4g} | {ratio:.2f} |", flush=True)


def main():
    if sys.argv[1:2] == ["--side"]:
        return transformers_side(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--model", type=pathlib.Path, default=HERE.parent / "tests/fixtures/tiny")
    parser.add_argument("--sizes", nargs="+", default=["tiny", "141m"], choices=["tiny", "141m"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--times", type=int, default=3, help="repetitions in a round")
    given = parser.parse_args()
    compare(given.binary, given.sizes, given.model, given.threads, given.rounds, given.times)


if __name__ == "__main__":
    main()
