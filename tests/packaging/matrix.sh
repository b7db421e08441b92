#!/usr/bin/env bash
# The fast tests with the oldest and the newest torch of pyproject.toml's range on every Python that is there.
#
#   tests/packaging/matrix.sh [FOLDER] [TEST...]      default: a temporary folder; the tests that touch torch
#
# One environment at a time, removed after its tests: a CUDA build of torch is 4 to 8 GB. PYTHONS and TORCHES choose:
#   PYTHONS="3.11 3.13" TORCHES="2.7.1" tests/packaging/matrix.sh
# Ends with one line of Markdown for each combination; exit 1 where one failed. docs/install.md keeps the table.
set -uo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
work=${1:-$(mktemp -d)}
shift || true
mkdir -p "$work"
tests=("$@")
[ ${#tests[@]} -gt 0 ] || tests=(tests/models tests/encoders tests/trainers tests/evaluators tests/test_loaders.py)
rows=() failed=0
for torch in ${TORCHES:-2.7.1 2.15.0}; do
    for version in ${PYTHONS:-3.11 3.12 3.13}; do
        python=$(command -v "python$version") && "$python" -c '' 2>/dev/null || {
            rows+=("| $version | $torch | - | not run: no python$version |")
            continue
        }
        venv=$work/venv
        rm -rf "$venv"
        # The exact versions, less those that torch itself decides.
        grep -vE '^(torch|setuptools|triton)[=<]' "$root/constraints.txt" >"$work/constraints.txt"
        log=$work/$version-$torch.log
        if "$python" -m venv "$venv" >"$log" 2>&1 &&
            "$venv/bin/python" -m pip install -q --no-compile --disable-pip-version-check -c "$work/constraints.txt" \
                "torch==$torch" -e "$root[dev]" >>"$log" 2>&1; then
            triton=$("$venv/bin/python" -c 'import importlib.metadata as m; print(m.version("triton"))' 2>/dev/null || echo none)
            (cd "$root" && "$venv/bin/python" -m pytest -q -p no:cacheprovider "${tests[@]}") >>"$log" 2>&1
            status=$?
            result="all pass"
            [ $status -eq 0 ] || result="exit $status: $(grep -cE '^(FAILED|ERROR) ' "$log") fail, see $log"
        else
            triton=- status=1 result="not installed: $(grep -m 1 -iE 'error' "$log")"
        fi
        [ $status -eq 0 ] || failed=1
        rows+=("| $version | $torch | $triton | $result |")
        printf '%s\n' "${rows[-1]}"
        rm -rf "$venv"
    done
done
printf '\n| Python | torch | Triton | tests |\n|---|---|---|---|\n'
printf '%s\n' "${rows[@]}"
exit $failed
