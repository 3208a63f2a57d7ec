#!/usr/bin/env python3
"""mpcc beside ninja and make on one DAG of small commands: `python3 benches/engines.py [--stages 1000] [--rounds 3]`.

Ten layers of STAGES/10 columns; each stage copies the file above it. Every stage of mpcc carries a variable of its own, so
that no two have one recipe (otherwise equal inputs and commands would run once). Printed are the medians of the rounds:
wall seconds, CPU seconds of the whole process tree, largest resident set of any process in MB.

cold    everything runs, in a fresh folder      noop    nothing has changed
plan    mpcc plan, nothing has changed          edit    one input was edited: ten stages run
"""
import argparse, os, pathlib, resource, shutil, statistics, subprocess, tempfile, time

LAYERS = 10


def name(layer, column):
    return f"out/{layer}/{column}.txt" if layer >= 0 else f"in/{column}.txt"


def ninja(folder, columns):
    lines = ["rule cp", "  command = cp $in $out"]
    for layer in range(LAYERS):
        lines += [f"build {name(layer, c)}: cp {name(layer - 1, c)}" for c in range(columns)]
    (folder / "build.ninja").write_text("\n".join(lines) + "\n")


def make(folder, columns):
    lines = [".PHONY: all", "all: " + " ".join(name(LAYERS - 1, c) for c in range(columns))]
    for layer in range(LAYERS):
        for c in range(columns):
            lines += [f"{name(layer, c)}: {name(layer - 1, c)}", f"\t@cp {name(layer - 1, c)} {name(layer, c)}"]
    (folder / "Makefile").write_text("\n".join(lines) + "\n")


def mpcc(folder, columns):
    lines = ["mpcc: 1", "name: bench", "stages:"]
    for layer in range(LAYERS):
        for c in range(columns):
            source = f"s{layer - 1}_{c}" if layer else f"{{ file: {name(-1, c)} }}"
            lines.append(
                f"  s{layer}_{c}: {{ run: [cp, \"${{inputs.x}}\", \"${{outputs.y}}\"], inputs: {{ x: {source} }}, "
                f"env: {{ STAGE: \"{layer}-{c}\" }}, outputs: {{ y: {{ type: file, path: {name(layer, c)} }} }} }}"
            )
    (folder / "pipeline.yaml").write_text("\n".join(lines) + "\n")


def fresh(root, write, columns):
    shutil.rmtree(root, ignore_errors=True)
    for layer in range(-1, LAYERS):
        (root / name(layer, 0)).parent.mkdir(parents=True)
    for c in range(columns):
        (root / name(-1, c)).write_text(f"column {c}\n")
    write(root, columns)


def timed(command, folder):
    """Through time(1): a child of Python would inherit Python's resident set as its floor."""
    log = folder / ".time"
    begin = time.perf_counter()
    subprocess.run(["/usr/bin/time", "-q", "-o", log, "-f", "%U %S %M", *command], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    wall = time.perf_counter() - begin
    user, system, kib = log.read_text().split()
    return wall, float(user) + float(system), int(kib) / 1024


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--stages", type=int, default=1000)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--mpcc", default=str(pathlib.Path(__file__).parent.parent / "target/release/mpcc"))
    given = arguments.parse_args()
    program = os.path.abspath(given.mpcc)
    tools = {
        "make": (make, ["make", "-s", "-j2", "all"]),
        "ninja": (ninja, ["ninja", "-j2"]),
        "mpcc": (mpcc, [program, "run", "pipeline.yaml"]),
    }
    for tool, (write, command) in tools.items():
        if not shutil.which(command[0]):
            print(f"{tool}: not installed, left out")
            continue
        with tempfile.TemporaryDirectory() as folder:
            root, rows = pathlib.Path(folder) / "bench", {}
            for _ in range(given.rounds):
                fresh(root, write, given.stages // LAYERS)
                rows.setdefault("cold", []).append(timed(command, root))
                time.sleep(0.1)
                timed(command, root)
                rows.setdefault("noop", []).append(timed(command, root))
                if tool == "mpcc":
                    rows.setdefault("plan", []).append(timed([program, "plan", "pipeline.yaml"], root))
                with open(root / name(-1, 3), "a") as edited:
                    edited.write("edit\n")
                time.sleep(0.1)
                rows.setdefault("edit", []).append(timed(command, root))
            for what, values in rows.items():
                wall, cpu, mb = (statistics.median(column) for column in zip(*values))
                print(f"{tool:6} {given.stages:6} stages  {what:5} {wall:8.3f} s  {cpu:7.2f} CPU-s  {mb:6.1f} MB", flush=True)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
