#!/bin/sh
# Builds mpcc with candle's CUDA kernels into a binary that also starts without a driver: the second way of docs/cuda.md.
#
#   CUDA_HOME=/usr/local/cuda CUDA_COMPUTE_CAP=90 scripts/build-cuda.sh [more arguments of cargo build]
#
# candle-core asks cudarc to link the driver at build time. A copy of it in the target directory, two words of its manifest changed, has
# the driver loaded at run time instead, as our own inventory of GPUs does. No source is changed; Cargo.lock is put back.
set -eu
cd "$(dirname "$0")/.."
: "${CUDA_HOME:?set it to the CUDA toolkit (13.0), such as /usr/local/cuda}"
target=${CARGO_TARGET_DIR:-$PWD/target}
mkdir -p "$target"
target=$(cd "$target" && pwd)

manifest=$(cargo metadata --format-version 1 --locked |
    grep -o '"manifest_path":"[^"]*/candle-core-[0-9][^"/]*/Cargo\.toml"' | head -n 1 | cut -d'"' -f4)
[ -n "$manifest" ] || { echo "build-cuda: cargo metadata names no candle-core" >&2; exit 1; }
copy=$target/candle-core-loading
if [ ! -d "$copy" ] || [ "$(cat "$copy/.of" 2>/dev/null)" != "$manifest" ]; then
    rm -rf "$copy"
    cp -R "$(dirname "$manifest")" "$copy"
    chmod -R u+w "$copy"
    sed -i 's/"dynamic-linking"/"dynamic-loading"/; s/"cuda-version-from-build-system"/"cuda-13000"/' "$copy/Cargo.toml"
    grep -q '"dynamic-loading"' "$copy/Cargo.toml" && grep -q '"cuda-13000"' "$copy/Cargo.toml" ||
        { echo "build-cuda: $manifest asks cudarc for something else than this script knows" >&2; exit 1; }
    printf '\n[workspace]\n' >>"$copy/Cargo.toml" # It lies inside our workspace and is none of it.
    echo "$manifest" >"$copy/.of"
fi

# The toolkit from PyPI has no libcudart.so to link with, but the static library.
if [ -f "$CUDA_HOME/lib/libcudart_static.a" ] && [ ! -e "$CUDA_HOME/lib/libcudart.so" ]; then
    mkdir -p "$target/cudart"
    ln -sf "$CUDA_HOME/lib/libcudart_static.a" "$target/cudart/libcudart.a"
    LIBRARY_PATH=$target/cudart${LIBRARY_PATH:+:$LIBRARY_PATH}
    export LIBRARY_PATH
fi
export PATH="$CUDA_HOME/bin:$PATH"

# A patched dependency is written to Cargo.lock.
lock=$(mktemp)
cp Cargo.lock "$lock"
trap 'cp "$lock" Cargo.lock; rm -f "$lock"' EXIT
trap 'exit 130' INT TERM
cargo build --release --features cuda --config "patch.crates-io.candle-core.path=\"$copy\"" "$@"
echo "build-cuda: $target/release/mpcc"
