#!/usr/bin/env bash
# The whole proof (docs/explanation-proof.md): data, minutes, trainings, tables, pictures. The same line goes on where it stopped.
#   benchmarks/proof.sh TASK04_HIPPOCAMPUS TEACHER ACDC FOLDER
# The first three are what proof.py prepare names. FOLDER takes all values. An empty one trains everything anew. A copy of
# benchmarks/results trains only what is lacking there; that needs the code of its rows (git checkout the commit in runs.csv).
# Other machines have other minutes: if plain-longer's epochs do not fit them, it stops and says which to write. Needs nnU-Net's
# three variables, and this clone's environment first in PATH. About 30 hours on two cores; nothing else may run while the
# minutes are measured. Stop it with Ctrl-C.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$4"
python "$here/proof.py" prepare --data "$1" --teacher "$2" --acdc "$3" --keep "$4"
python "$here/proof_minutes.py" --keep "$4"      # what is measured already is left
python "$here/proof.py" train --jobs 2 --keep "$4"
python "$here/proof_tables.py" --kept "$4"
python "$here/draw_proof.py" --kept "$4" --images "$4"
