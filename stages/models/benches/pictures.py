#!/usr/bin/env python3
"""Picture processing: mpcc beside transformers' default (torchvision's) processors and Pillow's decoder, in alternating rounds.

    cargo build --release -p mpcc-models --example pictures
    python3 stages/models/benches/pictures.py target/release/examples/pictures [--threads 1 2] [--rounds 5 --times 30]

needs torch, torchvision, Pillow and transformers. Each figure is the least time of all rounds, in milliseconds: ours with Pillow's
filter (the default), ours with torchvision's, theirs, and how many times as fast ours by default is. The last rows are decoding, by Pillow there.
"""

import argparse, io, json, pathlib, sys, tempfile

from beside import least, run

SIZES = [(168, 112), (480, 480), (640, 427), (1024, 768)]
CLIP = dict(image_mean=[0.48145466, 0.4578275, 0.40821073], image_std=[0.26862954, 0.26130258, 0.27577711])
IMAGENET = dict(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])


def pictures(folder):
    """Smooth colours with some grain, once as PNG and once as JPEG."""
    from PIL import Image

    for width, height in SIZES:
        data = bytes(((x * (3 + k) + y * 5 >> 2) + (x * y * 2654435761 >> 27) % 9) % 256 for y in range(height) for x in range(width) for k in range(3))
        image = Image.frombytes("RGB", (width, height), data)
        image.save(folder / f"{width}x{height}.png")
        image.save(folder / f"{width}x{height}.jpg", quality=90)
    return sorted(folder.iterdir())


def processors():
    from transformers import AutoImageProcessor  # noqa: F401: the parts below are lazy without it
    from transformers import GotOcr2ImageProcessor, LlavaNextImageProcessor, Qwen2VLImageProcessor

    square = lambda side: dict(height=side, width=side)
    return {
        "qwen2_5_vl": Qwen2VLImageProcessor(size=dict(shortest_edge=3136, longest_edge=448 * 448), **CLIP),
        "llava_next": LlavaNextImageProcessor(size=dict(shortest_edge=336), crop_size=square(336), **CLIP,
                                              image_grid_pinpoints=[[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]),
        "internvl": GotOcr2ImageProcessor(size=square(448), crop_to_patches=True, min_patches=1, max_patches=12, **IMAGENET),
    }


def transformers_side(threads, times, paths):
    import torch
    from PIL import Image

    torch.set_num_threads(threads)
    figures = {}
    with torch.inference_mode():
        for path in map(pathlib.Path, paths):
            data = path.read_bytes()
            decode = lambda: Image.open(io.BytesIO(data)).convert("RGB")
            figures[f"{path.name} decode"] = least(times, decode)
            image = decode()
            for family, processor in processors().items():
                figures[f"{path.name} {family}"] = least(times, lambda: processor(images=[image], return_tensors="pt"))
    print(json.dumps(figures))


def compare(binary, threads, rounds, times):
    with tempfile.TemporaryDirectory() as folder:
        paths = pictures(pathlib.Path(folder))
        for number in threads:
            tail = [str(number), str(times)]
            ours, theirs = [], []
            for _ in range(rounds):
                ours.append(run([binary, *tail, *map(str, paths)], number))
                theirs.append(run([sys.executable, __file__, "--side", *tail, *map(str, paths)], number))
            least = lambda side, name: 1e3 * min(figures[name] for figures in side)
            print(f"\n{number} threads: ours (Pillow's filter), ours (torchvision's), theirs, ratio", flush=True)
            for name in (name for name in theirs[0] if name.split(".")[1].startswith("png") and "decode" not in name):
                a, b, c = least(ours, name + " pillow"), least(ours, name + " torchvision"), least(theirs, name)
                print(f"| {name.replace('.png', '')} | {a:.3f} | {b:.3f} | {c:.3f} | {c / a:.1f} |")
            for name in (name for name in theirs[0] if "decode" in name):
                a, c = least(ours, name), least(theirs, name)
                print(f"| {name} | {a:.3f} | | {c:.3f} | {c / a:.1f} |")


def main():
    if sys.argv[1:2] == ["--side"]:
        return transformers_side(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--times", type=int, default=30, help="repetitions in a round")
    given = parser.parse_args()
    compare(given.binary, given.threads, given.rounds, given.times)


if __name__ == "__main__":
    main()
