#!/usr/bin/env bash
# The benchmarks that need a GPU, each under two minutes. One that fails stops none of the others.
here=$(cd "$(dirname "$0")" && pwd)
bench() { echo "=== $*"; local start=$SECONDS; timeout 120 python3 "$@" 2>&1 | tail -20; echo "--- exit ${PIPESTATUS[0]}, $((SECONDS - start)) s"; }
bench "$here/bench_gpu.py" --models classifier
bench "$here/bench_gpu.py" --models detector
bench "$here/bench_gpu.py" --models clip
bench "$here/bench_gpu.py" --models elic
bench "$here/bench_diffusion.py" --codecs diff-icmh --device cuda --dtype bfloat16 --repeats 2 --batch 1
bench "$here/bench_diffusion.py" --codecs resulic cadc --device cuda --dtype bfloat16 --repeats 2 --batch 1
