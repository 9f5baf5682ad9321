#!/usr/bin/env bash
# Starts a Slurm on this machine, runs tests/test_slurm.py through it, and stops it again.
# ACCOUNTING=0 leaves out the database; the test of a killed job is then skipped.
set -euo pipefail
cd "$(dirname "$0")/../.."
export ACCOUNTING=${ACCOUNTING:-1}
export OMP_NUM_THREADS=1

trap 'tests/slurm/one_node.sh down' EXIT
tests/slurm/one_node.sh up
eval "$(tests/slurm/one_node.sh env)"
python -m pytest -m slurm tests/test_slurm.py "$@"
