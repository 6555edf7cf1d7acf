#!/usr/bin/env bash
# Runs each fuzz target of the module for a while: .github/fuzz.sh [60s]. With "list"
# it only names them.
set -euo pipefail
cd "$(dirname "$0")/.."

duration=${1:-60s}
found=0
while IFS=: read -r file line; do
  target=${line#func }
  target=${target%%(*}
  found=$((found + 1))
  echo "$target in $file"
  [ "$duration" = list ] || go test -run='^$' -fuzz="^$target\$" -fuzztime="$duration" "./$(dirname "$file")"
done < <(git grep --untracked -HE '^func Fuzz[A-Za-z0-9_]*\(' -- '*_test.go')
[ "$found" -gt 0 ] || { echo "there is no fuzz target" >&2; exit 1; }
