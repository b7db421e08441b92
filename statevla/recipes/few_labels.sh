#!/usr/bin/env bash
# How far do few labels go, and does the motion of the episodes without them help? Five arms of one policy on the store
# of `systems.sh`, tried on the same layouts and compared: docs/systems.md, "With few labels". One process; every step
# goes on where an interrupted call stopped.
#
#   statevla/recipes/few_labels.sh [FOLDER]      (default runs/systems, where systems.sh left its store)
#
# SHARE    of the episodes whose actions are seen (default 0.2)
# TIMES    that a labelled step is drawn for each time of another (default: what gives one labelled row in five)
# SEEDS    of the trainings (default "0 1 2")
# SYSTEM   the policy (default film)
# STEPS    its optimizer steps (default 3000)
# ENCODER  whose states tell motion (default temporal_jepa, which learns from actions and so sees the labelled episodes
#          alone, other ones with every seed: one encoder a seed; stamo sees the pictures of all, one for all seeds);
#          ENCODER_STEPS, its optimizer steps (default 2500)
# TARGET   of the head that foretells (default motion: the one until the horizon; motions: a chunk of them)
# TRIALS   layouts (default 100)
#
#   labels   the labelled episodes alone          motion     and the motion of the others
#   all      every label                          shuffled   and the motion of other episodes: a control
#   latent   and a latent action of the others, learned by inverse dynamics between states
set -euo pipefail
cd "$(dirname "$0")/../.."

folder=${1:-runs/systems}
share=${SHARE:-0.2} kind=${ENCODER:-temporal_jepa}
times=${TIMES:-$(awk -v share="$share" 'BEGIN { often = int((1 - share) / (4 * share) + 0.5); print (often > 1) ? often : 1 }')}
system=${SYSTEM:-film} target=${TARGET:-motion} out=$folder/few-labels
statevla=${STATEVLA:-statevla}
[[ -z ${STATEVLA:-} && -x .venv/bin/statevla ]] && statevla=.venv/bin/statevla
if [[ ! -f $folder/.ready ]]; then
  echo "few_labels.sh: $folder has no finished store; statevla/recipes/systems.sh $folder makes it" >&2
  exit 2
fi

train() { # SYSTEM RUN SEED STEPS [OPTION...]
  local kind=$1 run=$2 seed=$3 steps=$4
  shift 4
  if compgen -G "$run/checkpoints/*$kind/checkpoint_latest" > /dev/null; then
    $statevla train --resume "$run" --system "$kind" --set "training.max_steps=$steps"
  else
    $statevla train --system "$kind" --recipe systems --store "$folder/store" --run "$run" \
      --set "training.seed=$seed" --set "training.max_steps=$steps" "$@"
  fi
}

arm() { # NAME SEED [OPTION...]: train and try it, unless that is done
  local run=$out/$1-$2 seed=$2
  shift 2
  [[ -f $run/eval/results.json ]] && return
  train "$system" "$run" "$seed" "${STEPS:-3000}" "$@"
  $statevla eval tabletop --episodes "${TRIALS:-100}" --checkpoint "$run" --videos 1 --out "$run/eval"
}

few=(--set "data.labelled_share=$share")

encoder() { # SEED: where it is; trained, unless that is done
  local seed=$1 seen=("${few[@]}")
  encoder=$out/encoder-$kind-$seed
  [[ $kind == stamo ]] && encoder=$out/encoder-$kind seed=0 seen=()
  [[ -f $encoder/.done ]] && return
  train "$kind" "$encoder" "$seed" "${ENCODER_STEPS:-2500}" ${seen[@]+"${seen[@]}"}
  touch "$encoder/.done"
}

shuffled=shuffled
[[ $target == motion ]] || shuffled=$target-shuffled
tried=()
for seed in ${SEEDS:-0 1 2}; do
  encoder "$seed"
  pseudo=("${few[@]}" --set data.unlabelled=keep --set "data.labelled_times=$times"
    --encoder "$encoder" --set "$system.encoder=$kind")
  moving=("${pseudo[@]}" --set "$system.world_target=$target" --set "$system.world_weight=1")
  latent=("${pseudo[@]}" --set "$system.world_target=latent" --set "$system.world_weight=1")
  arm labels "$seed" "${few[@]}"
  arm "$target-$kind" "$seed" "${moving[@]}"
  arm all "$seed"
  arm "$shuffled-$kind" "$seed" "${moving[@]}" --set "$system.world_shuffled=true"
  arm "latent-$kind" "$seed" "${latent[@]}"
  for name in labels "$target-$kind" all "$shuffled-$kind" "latent-$kind"; do tried+=("$out/$name-$seed/eval"); done
done
$statevla compare "${tried[@]}" --out "$out/compare"
