#!/usr/bin/env bash
# Train every system on one suite with the same steps and seeds, try all of them on the same layouts, and compare them:
# everything behind docs/systems.md. One process; every step goes on where an interrupted call stopped.
#
#   statevla/recipes/systems.sh [FOLDER]      (default runs/systems)
#
# SUITE      tabletop (default), or libero_object, libero_goal, libero_spatial, libero_10: the real simulator (`make
#            libero`), trials from initial states 30 on
# EPISODES   demonstrations: of tabletop in all (default 1000), of LIBERO's of each task (default 20)
# TASKS      of LIBERO's (default 0-2)
# NOISE      of half of LIBERO's demonstrations (default 0; `statevla collect --noise`)
# REPLAN     actions that are executed of each chunk (default: the suite's)
# STEPS      optimizer steps of each system, an encoder's and its policy's each (default: the recipe's)
# SEEDS      of the trainings (default "0 1 2")
# SYSTEMS    policies (default "film act vla goal flow_matching"); flow_matching trains its encoder first
# CONTROLS   policies that are also trained with shuffled instructions, seed 0 (default: all of SYSTEMS)
# TRIALS     that each policy gets: of tabletop in all (default 100), of LIBERO's of each task (default 20)
set -euo pipefail
cd "$(dirname "$0")/../.."

folder=${1:-runs/systems}
suite=${SUITE:-tabletop} tasks=${TASKS:-0-2}
systems=${SYSTEMS:-film act vla goal flow_matching}
read -ra seeds <<< "${SEEDS:-0 1 2}"
steps=()
[[ -n ${STEPS:-} ]] && steps=(--set "training.max_steps=$STEPS")
statevla=${STATEVLA:-statevla}
[[ -z ${STATEVLA:-} && -x .venv/bin/statevla ]] && statevla=.venv/bin/statevla

if [[ $suite == tabletop ]]; then
  collect=(tabletop --episodes "${EPISODES:-1000}")
  split=0.975
  try=(tabletop --episodes "${TRIALS:-100}")
elif [[ $suite =~ ^libero_(object|goal|spatial|10)$ ]]; then
  collect=("$suite" --tasks "$tasks" --episodes "${EPISODES:-20}" --init-states 30 --image-size 64)
  [[ -n ${NOISE:-} ]] && collect+=(--noise "$NOISE" --noise-share 0.5)
  split=0.95
  try=(libero --suite "$suite" --tasks "$tasks" --num-trials "${TRIALS:-20}" --first-init 30)
else
  echo "systems.sh: SUITE=$suite: expected tabletop, libero_object, libero_goal, libero_spatial or libero_10" >&2
  exit 2
fi
[[ -n ${REPLAN:-} ]] && try+=(--replan "$REPLAN")

if [[ ! -f $folder/.ready ]]; then
  $statevla collect "${collect[@]}" --workers 1 --out "$folder/raw"
  $statevla ingest "$suite" --source "$folder/raw" --out "$folder/store" --language hashed --train-split "$split"
  $statevla stats --store "$folder/store"
  touch "$folder/.ready"
fi

train() { # SYSTEM RUN SEED [SET...]
  local system=$1 run=$2 seed=$3
  shift 3
  if compgen -G "$run/checkpoints/*$system/checkpoint_latest" > /dev/null; then
    $statevla train --resume "$run" --system "$system" "${steps[@]}"
  else
    $statevla train --system "$system" --recipe systems --store "$folder/store" --run "$run" \
      --set "training.seed=$seed" "${steps[@]}" "$@"
  fi
}

make() { # SYSTEM SEED [SET...]: train and try one policy, unless that is done
  local system=$1 seed=$2 name=$1-$2
  shift 2
  [[ $# -gt 0 ]] && name=$name-shuffled
  local run=$folder/$name
  local told=("$suite")
  [[ $system == goal ]] && told=(language image)
  [[ -f $run/eval/${told[-1]}/results.json ]] && return
  [[ $system == flow_matching ]] && train temporal_jepa "$run" "$seed"
  train "$system" "$run" "$seed" "$@"
  for how in "${told[@]}"; do
    local goals=()
    [[ $system == goal ]] && goals=(--goals "$how")
    $statevla eval "${try[@]}" --checkpoint "$run/checkpoints"/*"$system/checkpoint_latest" "${goals[@]}" \
      --videos 1 --out "$run/eval/$how"
  done
}

for seed in "${seeds[@]}"; do
  for system in $systems; do make "$system" "$seed"; done
  if [[ $seed == "${seeds[0]}" ]]; then
    for system in ${CONTROLS-$systems}; do make "$system" "$seed" --set data.shuffle_instructions=true; done
  fi
done

runs=()
for system in $systems; do runs+=("$folder/$system-${seeds[0]}/eval"/*/); done
$statevla compare "${runs[@]}" --out "$folder/compare"
