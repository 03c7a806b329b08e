#!/usr/bin/env bash
# Writes the plans of scenarios/validation anew from plans.txt beside them: bash tests/tools/update_validation.sh
# --check: writes nothing, and fails where a plan is not what shardplan emits today.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../scenarios/validation"
shardplan=${SHARDPLAN:-../../build/bin/shardplan}
check=${1:-}
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT

while read -r name scenario arguments; do
    [[ -z $name || $name == \#* ]] && continue
    read -ra words <<<"$arguments"
    "$shardplan" compare "$scenario" "${words[@]}" >"$fresh/$name.plan.json"
done <plans.txt

if [[ $check == --check ]]; then
    stale=$(diff -rq "$fresh" . | grep '\.plan\.json' || true) # diff's own exit status says that there are others
    [[ -z $stale ]] || { echo "$stale"; echo "run tests/tools/update_validation.sh"; exit 1; }
    echo "validation plans: as shardplan emits them today"
else
    rm -f ./*.plan.json
    mv "$fresh"/*.plan.json .
fi
