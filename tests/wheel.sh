#!/usr/bin/env bash
# Builds the wheel, installs it into a fresh venv and runs a job from it in an empty folder, beside stray folders named
# tasks/ and conf/ that must not be taken for ours. Then the same for an editable install and for a bare clone.
#   BIN=<bin folder of the venv that make setup made> tests/wheel.sh
# The fresh venvs borrow the dependencies of that venv through a .pth file, to save minutes and gigabytes. fnabench
# itself they do not see there: Python reads no .pth file in a folder that comes from one. FULL=1 installs everything.
set -euo pipefail

ROOT=$(cd "$(dirname "$0")/.." && pwd)
BIN=${BIN:-$ROOT/.venv/bin}
FULL=${FULL:-0}
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
unset PYTHONPATH

WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT

fail() {
  echo "tests/wheel.sh: $*" >&2
  exit 1
}

fresh_venv() { # fresh_venv <name>
  "$BIN/python" -m venv --without-pip "$WORK/$1" # the pip and setuptools it would bring are old
}

borrow_dependencies() { # borrow_dependencies <name>
  "$BIN/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
    >"$("$WORK/$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/borrowed.pth"
}

pip() { # pip <venv> <arguments...>
  "$BIN/python" -m pip --python "$WORK/$1/bin/python" --quiet --disable-pip-version-check "${@:2}"
}

check_imports() { # check_imports <folder that fnabench must come from> <python...>
  "${@:2}" - "$1" <<'PYTHON'
import sys
from pathlib import Path

import fnabench

expected, found = Path(sys.argv[1]).resolve(), Path(fnabench.__file__).resolve()
if not found.is_relative_to(expected):
    sys.exit(f"fnabench comes from {found}, not from {expected}")
heavy = {"torch", "timm", "wandb", "transformers", "open_clip", "faiss", "datasets", "hydra"} & set(sys.modules)
if heavy:
    sys.exit(f"import fnabench imports {', '.join(sorted(heavy))}")
sys.argv = ["fnabench", "--help"]
from fnabench.__main__ import main

try:
    main()
except SystemExit as done:
    if done.code:
        raise
if "torch" in sys.modules:
    sys.exit("fnabench --help imports torch")
PYTHON
}

check_job() { # check_job <name> <command...>: in an empty folder with stray tasks/ and conf/
  local name=$1 code=0
  shift
  mkdir -p "$WORK/run-$name"/{tasks,conf}
  cd "$WORK/run-$name"
  "$@" --help >help.txt
  grep -q '^attention: .*fna' help.txt || fail "$name: --help does not list attention=fna: $(head -30 help.txt)"
  "$@" task=retrieval model=clip attention=fna data.limit=32 probe=none tracker=none \
    format=json >out.txt 2>err.txt || code=$?
  [ "$code" = 0 ] || fail "$name: exit code $code: $(tail -3 err.txt)"
  "$BIN/python" - <<'PYTHON' || fail "$name: not the record that was asked for: $(cat out.txt)"
import json
from pathlib import Path

told = json.loads(Path("out.txt").read_text().splitlines()[-1])
assert told["new"] and told["num_samples"] == 32 and told["attention"] == "fna", told
assert Path(told["record"], "record.json").is_file(), told["record"]
print(f"  R@1 {told['score']:.3f}, exact {told['exact']:.3f}, record {told['record']}")
PYTHON
  cd "$ROOT"
}

echo "wheel, in a fresh venv"
cd "$ROOT"
"$BIN/python" -m hatchling build -t wheel -d "$WORK/dist" >"$WORK/build.txt" 2>&1 || fail "no wheel: $(cat "$WORK/build.txt")"
fresh_venv wheel
if [ "$FULL" = 1 ]; then
  pip wheel install -c constraints.txt "$WORK"/dist/*.whl
else
  pip wheel install --no-deps "$WORK"/dist/*.whl
  borrow_dependencies wheel
  pip wheel install --no-index -c constraints.txt "$WORK"/dist/*.whl # downloads nothing: fails if a dependency lacks
fi
cd "$WORK" && check_imports "$WORK/wheel" "$WORK/wheel/bin/python" >/dev/null
check_job wheel "$WORK/wheel/bin/fnabench"

echo "editable install, from another folder"
fresh_venv editable
borrow_dependencies editable
pip editable install --no-deps --no-index --no-build-isolation -e "$ROOT"
cd "$WORK" && check_imports "$ROOT/fnabench" "$WORK/editable/bin/python" >/dev/null
check_job editable "$WORK/editable/bin/fnabench"

echo "bare clone, from another folder"
fresh_venv clone
borrow_dependencies clone
cd "$WORK" && check_imports "$ROOT/fnabench" env PYTHONPATH="$ROOT" "$WORK/clone/bin/python" >/dev/null
check_job clone env PYTHONPATH="$ROOT" "$WORK/clone/bin/python" -m fnabench

echo "all three work"
