#!/usr/bin/env bash
# Measures vit_jax on one GPU within 12 minutes: training steps, compared with timm and torchvision
# with torch.compile and with their lower bound; vectorised seeds; the time to 90 % on CIFAR-10.
#
#   scripts/measure_gpu.sh FOLDER [PEER_PYTHON]
#
# Writes FOLDER/results.jsonl, a log per part, and the run FOLDER/speedrun. PEER_PYTHON has torch,
# timm and torchvision; without it there is no peer. CIFAR-10 is read from $TFDS_DATA_DIR or
# downloaded. A part that fails or takes too long is reported, and the next one starts.
set -uo pipefail
fail() {
  echo "error: $1" >&2
  exit 1
}

# find_python NAME: print its absolute path; links, which lead out of an environment, stay
find_python() {
  local found
  found=$(command -v "$1") || fail "$1 is no Python interpreter"
  realpath -s "$found"
}

[ $# -gt 0 ] || fail "usage: scripts/measure_gpu.sh FOLDER [PEER_PYTHON]"
out=$(mkdir -p "$1" && realpath "$1") || exit
python=$(find_python "${PYTHON:-python}") || exit
peer=()
if [ $# -gt 1 ]; then
  other=$(find_python "$2") || exit
  peer=(--compile --peer-python="$other")
fi
cd "$(dirname "$0")/.." || exit
failed=0

# part NAME SECONDS COMMAND...
part() {
  local name=$1 seconds=$2 started=$SECONDS
  shift 2
  echo "== $name: $*"
  if ! timeout -k 10 "$seconds" "$@" 2>&1 | tee "$out/$name.log"; then
    echo "== $name failed, or took more than $seconds s: $out/$name.log"
    failed=1
  fi
  echo "== $name: $((SECONDS - started)) s"
}

benchmark() {
  local name=$1 seconds=$2
  shift 2
  part "$name" "$seconds" "$python" -u scripts/benchmark.py "$@" --json="$out/results.jsonl"
}

benchmark vit_b 200 step --model=vit_b --batch-size=128 --rounds=20 "${peer[@]}"
benchmark vit_l 80 step --model=vit_l --batch-size=32 --rounds=20
benchmark cifar_vit 60 step --model=cifar_vit --rounds=50
benchmark seeds 80 seeds --model=cifar_vit --rounds=50
part speedrun 200 "$python" -u -m vit_jax.main --config=configs/cifar_speedrun.py \
  --config.train.num_seeds=1 --workdir="$out/speedrun"
benchmark resnet18 100 step --model=resnet18 --batch-size=512 --rounds=20 "${peer[@]}"
exit $failed
