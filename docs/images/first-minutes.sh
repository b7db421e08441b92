#!/usr/bin/env bash
# The session behind docs/images/first-minutes.gif, in an empty folder:
#   python docs/images/record.py first-minutes.gif bash docs/images/first-minutes.sh
set -euo pipefail
say() {
  printf '\033[32m$\033[0m %s\n' "$*"
  "$@"
}
say statevla collect tabletop --episodes 60 --out raw
say statevla ingest tabletop --source raw --language hashed
say statevla stats > /dev/null
say statevla train --phase 1 --recipe tabletop --set training.max_steps=60
say statevla train --phase 2 --recipe tabletop --set training.max_steps=60
say statevla runs
