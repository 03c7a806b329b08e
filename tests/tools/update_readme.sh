#!/usr/bin/env bash
# Renews the outputs that README.md shows: after each line "<!-- shardplan ARGUMENTS -->", up to the line
# "<!-- end of output -->", it puts what build/bin/shardplan prints for these arguments; likewise of shardrun, whose
# Markdown it takes as it is.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

renewed=$(mktemp)
trap 'rm -f "$renewed"' EXIT
within=false
while IFS= read -r line; do
    [[ $line != '<!-- end of output -->' ]] || within=false
    $within || printf '%s\n' "$line"
    if [[ $line =~ ^'<!-- shardplan '(.*)' -->'$ ]]; then
        read -ra arguments <<<"${BASH_REMATCH[1]}"
        printf '```\n$ shardplan %s\n' "${BASH_REMATCH[1]}"
        build/bin/shardplan "${arguments[@]}"
        printf '```\n'
        within=true
    elif [[ $line =~ ^'<!-- shardrun '(.*)' -->'$ ]]; then
        read -ra arguments <<<"${BASH_REMATCH[1]}"
        build/bin/shardrun "${arguments[@]}"
        within=true
    fi
done <README.md >"$renewed"
cat "$renewed" >README.md
