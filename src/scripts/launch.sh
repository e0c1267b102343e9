#!/usr/bin/env bash
# Start one process a GPU, on this node or on all nodes of a SLURM allocation.
#
#   bash src/scripts/launch.sh --nodes 1 --processes-per-node 8 src/scripts/train.py edge_posttrain
#   bash src/scripts/launch.sh --nodes 1 --processes-per-node 2 src/scripts/train.py demo_edge_posttrain   # a laptop
#
# Options, before the script:
#   --nodes N                 1 starts torchrun here; more start one torchrun a node through srun
#   --processes-per-node P    processes on each node
#   --python PATH             interpreter; default: python3
#   --gres NAME               passed to srun; by default a step gets all that its job has
#   --cpus-per-task N         passed to srun
# OMP_NUM_THREADS is set to the node's cores for each process, at most 8, unless it is set.
#
# Every step replaces its predecessor with exec, so that a signal to this process reaches torchrun, which passes it on.
set -euo pipefail

nodes=""
processes=""
python=python3
inside=""
srun_options=()
while [[ $# -gt 0 ]]; do
  case "$1" in
    --nodes) nodes=$2; shift 2 ;;
    --processes-per-node) processes=$2; shift 2 ;;
    --python) python=$2; shift 2 ;;
    --gres) srun_options+=("--gres=$2"); shift 2 ;;
    --cpus-per-task) srun_options+=("--cpus-per-task=$2"); shift 2 ;;
    --inside) inside=yes; shift ;;
    -*) echo "error: launch.sh knows no option $1; see its first lines" >&2; exit 2 ;;
    *) break ;;
  esac
done
if [[ ! $nodes =~ ^[1-9][0-9]*$ || ! $processes =~ ^[1-9][0-9]*$ || $# -eq 0 ]]; then
  echo "error: launch.sh needs --nodes N --processes-per-node P SCRIPT [ARGUMENTS]" >&2
  exit 2
fi

if [[ $nodes -gt 1 && -z $inside ]]; then
  # The processes of a node share all of its cores, so srun must not bind the one task it sees to one of them.
  exec srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --kill-on-bad-exit=1 --cpu-bind=none \
    "${srun_options[@]}" bash "${BASH_SOURCE[0]}" \
    --inside --nodes "$nodes" --processes-per-node "$processes" --python "$python" "$@"
fi

if [[ -z ${OMP_NUM_THREADS:-} ]]; then
  threads=$(($(nproc) / processes))
  threads=$((threads < 1 ? 1 : threads > 8 ? 8 : threads))
  export OMP_NUM_THREADS=$threads
fi

# torchrun kills its processes 30 s after a signal by default; a large model's step and checkpoint take longer.
# As variables, which a version without these options passes over.
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1
export PET_SHUTDOWN_TIMEOUT=600
# torchrun, but the reason of a failure comes last.
torchrun=("$python" "$(dirname "${BASH_SOURCE[0]}")/launch.py" --nproc_per_node="$processes" --max-restarts=0)
if [[ $nodes -eq 1 ]]; then
  exec "${torchrun[@]}" --standalone "$@"
fi

# Read inside srun: a job that was submitted through the workflow's executor has no node list outside it.
read -r head < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
exec "${torchrun[@]}" --nnodes="$nodes" --node-rank="$SLURM_NODEID" --rdzv-backend=c10d \
  --rdzv-id="$SLURM_JOB_ID.$SLURM_STEP_ID" --rdzv-endpoint="$head:$((20000 + SLURM_JOB_ID % 10000))" "$@"
