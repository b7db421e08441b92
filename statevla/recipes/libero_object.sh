#!/usr/bin/env bash
# Collect, ingest, train and evaluate in the LIBERO simulator: everything behind the first sections of docs/results-libero-earlier.md.
#
#   statevla/recipes/libero_object.sh [FOLDER]      (default runs/libero-object; the simulator comes from `make libero`)
#
# Demonstrations start from initial states 0-29, trials from 30-49. Every step goes on where an interrupted call
# stopped, so the script can be called again.
#
# TASKS, EPISODES   tasks of libero_object, demonstrations of each. Default: 30 of tasks 0-2 and 20 of tasks 3-9
# STEPS1, STEPS2    optimizer steps of the two phases (default 6000 and 20000)
# TRIALS            trials a task, at most 20 (default 20)
# WORKERS           simulator processes, up to 2.4 GiB each (default 2)
set -euo pipefail
cd "$(dirname "$0")/../.."

folder=${1:-runs/libero-object}
tasks=${TASKS:-0-9} workers=${WORKERS:-2}
steps=(0 "${STEPS1:-6000}" "${STEPS2:-20000}")
statevla=statevla
[[ -x .venv/bin/statevla ]] && statevla=.venv/bin/statevla

collect() { # TASKS EPISODES
  "$statevla" collect libero_object --tasks "$1" --episodes "$2" --workers "$workers" --out "$folder/raw"
}
if [[ -n ${TASKS:-}${EPISODES:-} ]]; then
  collect "$tasks" "${EPISODES:-20}"
else
  collect 0-2 30
  collect 3-9 20
fi
"$statevla" ingest libero_object --source "$folder/raw" --out "$folder/store" --language hashed --train-split 0.95 \
  --workers "$workers"
"$statevla" stats --store "$folder/store"

for phase in 1 2; do
  latest=$(echo "$folder/run/checkpoints/phase${phase}_"*/checkpoint_latest)
  if [[ -d $latest ]]; then
    "$statevla" train --resume "$latest" --set "training.max_steps=${steps[$phase]}"
  else
    "$statevla" train --phase "$phase" --store "$folder/store" --run "$folder/run" --recipe libero \
      --set "training.max_steps=${steps[$phase]}"
  fi
done

for checkpoint in "$folder"/run/checkpoints/phase2_flow_matching/checkpoint_*; do
  trials=5
  [[ $checkpoint == *_best ]] && continue # chosen by a loss over few episodes: the last one is the result
  [[ $checkpoint == *_latest ]] && trials=${TRIALS:-20}
  "$statevla" eval libero --checkpoint "$checkpoint" --tasks "$tasks" --num-trials "$trials" --first-init 30 --replan 5 \
    --workers "$workers" --videos 1 --out "$folder/eval/$(basename "$checkpoint")"
done
