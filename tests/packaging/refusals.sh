#!/usr/bin/env bash
# What every command says where a quota is used up, or where folders belong to somebody else: for real, as another user.
#
#   tests/packaging/refusals.sh [FOLDER]      as root; needs mkfs.btrfs, btrfs (btrfs-progs) and setpriv
#
# Mounts a small file system in FOLDER, gives a folder of it to user 65534 ("nobody") with a quota, works there, lets the
# quota run out, and works on. Prints commands, the ends of their outputs and exit statuses, and which file that was
# there before is lost or altered (none). docs/reliability.md says what it gave.
set -uo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
work=${1:-$(mktemp -d)}
bin=${STATEVLA:-$root/.venv/bin/statevla}
mine=$work/disk/mine user=(setpriv --reuid=65534 --regid=65534 --clear-groups)
mkdir -p "$work/disk" "$work/home" "$work/theirs"
chown 65534 "$work/home"
truncate -s 400M "$work/image"
mkfs.btrfs -q "$work/image" && mount -o loop "$work/image" "$work/disk" || exit 2
trap 'cd / && umount "$work/disk"' EXIT
btrfs quota enable "$work/disk" && btrfs -q subvolume create "$mine" && chown 65534:65534 "$mine" || exit 2
allow() { btrfs qgroup limit "$1" "$mine"; }
run() {
    echo "\$ statevla $*"
    HOME=$work/home OMP_NUM_THREADS=1 "${user[@]}" timeout 300 "$bin" "$@" 2>&1 | tail -2
    echo "[exit ${PIPESTATUS[0]}]"
}
cd "$mine" || exit 2

allow 120M
run collect tabletop --episodes 40 --out raw
run ingest tabletop --source raw --out store --language hashed
run stats --store store
small=(--preset tiny --set training.batch_size=16 --set training.max_steps=3)
run train --phase 1 --store store --run run "${small[@]}"
run train --phase 2 --store store --run run --set training.max_steps=3

echo "--- the quota is used up"
"${user[@]}" sh -c 'head -c 130M /dev/zero >fill' 2>/dev/null
allow 1M
find "$mine" -type f ! -name fill -exec md5sum {} + >"$work/before"
run ingest tabletop --source raw --out second --language hashed
run ingest tabletop --source raw --out second --language hashed --workers 2
run collect tabletop --episodes 80 --out raw --append
run export lerobot store exported
run train --system film --store store --run other "${small[@]}"
run train --resume run --system flow_matching --set training.max_steps=6
run eval tabletop --checkpoint run --episodes 2 --out trials
run eval probes --checkpoint run --store store --out probes
run report run --out page.html
run verify store

echo "--- there is room again"
btrfs quota disable "$work/disk"
rm -f fill
run train --resume run --system flow_matching --set training.max_steps=6

echo "--- folders of somebody else"
cp -r store "$work/theirs/store" && cp -r raw run "$work/theirs" && chown -R 0:0 "$work/theirs"
run stats --store "$work/theirs/store"
run ingest tabletop --source raw --out "$work/theirs/new" --language hashed
run train --phase 1 --store store --run "$work/theirs/new" "${small[@]}"
run collect tabletop --episodes 2 --out "$work/theirs/new"
run report run --out "$work/theirs/page.html"
chmod -R go-rwx "$work/theirs"
run verify "$work/theirs/store"
run train --phase 1 --store "$work/theirs/store" --run own "${small[@]}"
run ingest tabletop --source "$work/theirs/raw" --out second --language hashed
run eval tabletop --checkpoint "$work/theirs/run" --episodes 2

echo "--- lost or altered:"
md5sum --check --quiet <(grep -v "/run/" "$work/before")
