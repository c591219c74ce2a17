#!/bin/sh
# `make install`: .venv with everything in it. Needs python3 >= 3.11 and the package index; no root, nothing activated.
# Safe to repeat, to interrupt and to start twice at once. PYTHON=/path/to/python3.12 chooses the interpreter.
set -eu
cd "$(dirname "$0")/.."
venv=.venv
stamp=$venv/.installed
torch=$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' envs/requirements.in)
started=$(date +%s)

say() { printf '[%3d s] %s\n' "$(($(date +%s) - started))" "$*"; }
stop() { printf 'make install: %s\n' "$*" >&2; exit 2; }

# The wheels in the lock exist for 3.11 to 3.13; a newer python3 has to compile some of them.
at_least_311() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }
has_wheels() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' >/dev/null 2>&1; }
python=
if [ -n "${PYTHON:-}" ]; then
  at_least_311 "$PYTHON" || stop "PYTHON=$PYTHON is not a Python >= 3.11 that runs; name another one"
  python=$PYTHON
else
  for candidate in python3 python3.13 python3.12 python3.11; do
    if has_wheels "$candidate"; then python=$candidate; break; fi
  done
  if [ -z "$python" ] && at_least_311 python3; then python=python3; fi
fi
found=$(command -v python3 >/dev/null && python3 -V 2>&1 || echo missing)
[ -n "$python" ] || stop "python3 is $found but must be Python >= 3.11;" \
  "install one (Debian: apt install python3 python3-venv) or name it: make install PYTHON=/path/to/python3.12"
"$python" -c 'import ensurepip, venv' >/dev/null 2>&1 ||
  stop "$python has no venv module; install it (Debian: apt install python3-venv) and run make install again"

mkdir -p "$venv"
if command -v flock >/dev/null 2>&1; then
  exec 9>"$venv/.install.lock" # not .lock, which is uv's own
  flock -n 9 || { say "another install is at work in this folder, waiting for it"; flock 9; }
fi

say "1/4 virtual environment with $("$python" -V) (about 1 min left, more where torch is a CUDA build)"
if [ "$(cat "$stamp" 2>/dev/null)" != "$PWD" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  # --clear empties a half-made environment, or one that was copied along with its folder and points elsewhere.
  "$python" -m venv --clear "$venv"
fi
rm -f "$stamp"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check --no-input "$@"; }
quiet=
[ -t 1 ] || quiet=--quiet

# torch by version, from whatever index pip is configured for: its builds differ in hash from index to index.
say "2/4 $torch: 0.2 GB as a CPU build, 3 GB and more as a CUDA build (about 50 s left with the former)"
pip install $quiet --no-deps "$torch"

lock=envs/requirements.lock
glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null | sed 's/^glibc //')
if [ "$(printf '2.35\n%s\n' "${glibc:-0}" | sort -V | head -n 1)" != 2.35 ]; then
  say "the C library (glibc ${glibc:-unknown}) is older than BornAgain's wheel needs (2.35): all but BornAgain is installed." \
    "Engine dwba works; cross_check and engine bornagain need the container or conda, see envs/README.md"
  awk '/^[a-zA-Z0-9]/ { wanted = !/^bornagain==/ } wanted' $lock >"$venv/requirements.lock"
  lock=$venv/requirements.lock
fi
count=$(grep -c '^[a-zA-Z0-9]' "$lock")
say "3/4 $count packages of envs/requirements.lock, checked by hash (about 20 s left)"
uv_only=$venv/uv.lock
awk '/^[a-zA-Z0-9]/ { wanted = /^uv==/ } wanted' envs/requirements.lock >"$uv_only"
pip install $quiet --no-deps --require-hashes -r "$uv_only"
# uv does not read pip's configuration: tell it the index; what else it needs and cannot find, pip does in its place.
index=${UV_DEFAULT_INDEX:-${PIP_INDEX_URL:-$(pip config get global.index-url 2>/dev/null || :)}}
[ -z "$index" ] || export UV_DEFAULT_INDEX="$index"
"$venv/bin/uv" pip install $quiet --python "$venv/bin/python" --no-deps --require-hashes -r "$lock" || {
  say "uv could not install them; pip does it (about 1 min left)"
  pip install $quiet --no-deps --require-hashes -r "$lock"
}
# Nothing left to do for a CPU build; a CUDA build brings its own libraries.
pip install $quiet "$torch"

say "4/4 scatterflow itself, and byte code of what it uses (about 15 s left)"
pip install $quiet --no-deps --no-build-isolation --editable .
# uv writes no byte code, and with PYTHONDONTWRITEBYTECODE set, as in many containers, nobody would: every process of a run
# would compile all it imports. Importing it here compiles that and nothing else; two processes, as their parts are disjoint.
byte_code() { env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 "$venv/bin/python" -c "$1" || say "'scatterflow doctor' says what is wrong"; }
byte_code 'import lightning.pytorch, sklearn.decomposition, snakemake.cli' &
byte_code 'import pkgutil, scatterflow
for module in pkgutil.walk_packages(scatterflow.__path__, "scatterflow."): __import__(module.name)'
wait
printf '%s\n' "$PWD" >"$stamp"
say "installed in $venv"
