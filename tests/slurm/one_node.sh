#!/usr/bin/env bash
# A real Slurm on this one machine, for the tests: daemons on loopback, no systemd, nothing written to /etc.
#   one_node.sh up       install what is missing (Debian's packages; needs root), start it, wait for the node
#   one_node.sh env      print the line that points sbatch, srun and submitit to it: eval "$(one_node.sh env)"
#   one_node.sh status   the partition, the jobs and the daemons
#   one_node.sh down     stop what `up` started
# ACCOUNTING=1 adds slurmdbd and MariaDB, so that sacct answers as on most clusters. Without sacct submitit
# never learns of a job that was killed and waits for it for ever.
# SLURM_LAB is the folder that holds everything (default /tmp/fnabench-slurm); PORT the first of four ports.
set -euo pipefail

LAB=${SLURM_LAB:-/tmp/fnabench-slurm}
ACCOUNTING=${ACCOUNTING:-0}
PORT=${PORT:-27310}
NODE=$(hostname -s)
SOCKET=$LAB/munge/socket
export SLURM_CONF=$LAB/slurm.conf

install_missing() {
  local package program packages=()
  local wanted="munge:munged slurmctld:slurmctld slurmd:slurmd slurm-client:sinfo"
  [ "$ACCOUNTING" = 0 ] || wanted+=" slurmdbd:slurmdbd mariadb-server:mariadbd"
  for pair in $wanted; do
    package=${pair%:*} program=${pair#*:}
    command -v "$program" >/dev/null || packages+=("$package")
  done
  [ "${#packages[@]}" -gt 0 ] || return 0
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "one_node.sh: install these first: ${packages[*]} (done by itself as root on Debian or Ubuntu)" >&2
    return 1
  fi
  echo "one_node.sh: installing ${packages[*]}" >&2
  apt-get update -qq
  # RUNLEVEL=1 keeps the packages from starting daemons of their own
  RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${packages[@]}" >/dev/null
}

configure() {
  mkdir -p "$LAB"/{munge,state,spool,log}
  chmod 755 "$LAB" "$LAB/munge"
  [ -s "$LAB/munge/key" ] || (umask 077 && head -c 1024 /dev/urandom >"$LAB/munge/key")
  local cpus memory storage=accounting_storage/none gather=jobacct_gather/none
  cpus=$(env -u OMP_NUM_THREADS nproc) # nproc would take OMP_NUM_THREADS for the number of processors
  memory=$(awk '/^MemTotal/ { print int($2 / 1024 * 0.9) }' /proc/meminfo)
  [ "$ACCOUNTING" = 0 ] || storage=accounting_storage/slurmdbd gather=jobacct_gather/linux
  cat >"$SLURM_CONF" <<CONF
ClusterName=fnabench
SlurmctldHost=$NODE(127.0.0.1)
SlurmctldPort=$PORT
SlurmdPort=$((PORT + 1))
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$SOCKET
StateSaveLocation=$LAB/state
SlurmdSpoolDir=$LAB/spool
SlurmctldPidFile=$LAB/slurmctld.pid
SlurmdPidFile=$LAB/slurmd.pid
SlurmctldLogFile=$LAB/log/slurmctld.log
SlurmdLogFile=$LAB/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
MailProg=/bin/true
JobAcctGatherType=$gather
AccountingStorageType=$storage
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((PORT + 2))
AccountingStoragePass=$SOCKET
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,batch_sched_delay=0,bf_interval=2
KillWait=5
ReturnToService=2
NodeName=$NODE NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory State=UNKNOWN
PartitionName=test Nodes=$NODE Default=YES MaxTime=INFINITE State=UP
CONF
  # Slurm loads a cgroup plugin in any case; this one restricts nothing and mounts nothing.
  printf '%s\n' CgroupPlugin=cgroup/v1 CgroupAutomount=no >"$LAB/cgroup.conf"
  [ "$ACCOUNTING" = 0 ] || (umask 077 && cat >"$LAB/slurmdbd.conf" <<CONF
AuthType=auth/munge
AuthInfo=socket=$SOCKET
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$((PORT + 2))
SlurmUser=root
PidFile=$LAB/slurmdbd.pid
LogFile=$LAB/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$((PORT + 3))
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm
CONF
  )
}

is_running() { [ -s "$LAB/$1.pid" ] && kill -0 "$(cat "$LAB/$1.pid")" 2>/dev/null; }

wait_for() { # wait_for <what> <command...>: up to 30 s
  local what=$1
  shift
  for _ in $(seq 60); do
    if "$@" >/dev/null 2>&1; then return 0; fi
    sleep 0.5
  done
  echo "one_node.sh: $what did not come up within 30 s; see $LAB/log" >&2
  return 1
}

sql() { mariadb --no-defaults --socket="$LAB/sql.socket" "$@"; }

start_accounting() {
  if [ ! -d "$LAB/sql/mysql" ]; then
    mariadb-install-db --no-defaults --user=root --datadir="$LAB/sql" --skip-test-db \
      --auth-root-authentication-method=normal >"$LAB/log/mariadb-install.log" 2>&1
  fi
  if ! is_running mariadbd; then
    setsid mariadbd --no-defaults --user=root --datadir="$LAB/sql" --socket="$LAB/sql.socket" \
      --pid-file="$LAB/mariadbd.pid" --bind-address=127.0.0.1 --port=$((PORT + 3)) \
      --innodb-lock-wait-timeout=900 --log-error="$LAB/log/mariadbd.log" </dev/null >/dev/null 2>&1 &
  fi
  wait_for mariadbd sql -e "select 1"
  for host in 127.0.0.1 localhost; do
    sql -e "create user if not exists slurm@'$host' identified by 'slurm'; grant all on slurm.* to slurm@'$host'"
  done
  is_running slurmdbd || slurmdbd
  wait_for slurmdbd sacctmgr --noheader list cluster
  if ! sacctmgr --noheader list cluster format=cluster | grep -qw fnabench; then
    sacctmgr --immediate add cluster fnabench >/dev/null
  fi
}

node_is_ready() { sinfo --noheader --format=%t | grep -qE '^(idle|mix|alloc)'; }

up() {
  install_missing
  configure
  is_running munged || munged --force --key-file="$LAB/munge/key" --socket="$SOCKET" --seed-file="$LAB/munge/seed" \
    --pid-file="$LAB/munged.pid" --log-file="$LAB/log/munged.log"
  [ "$ACCOUNTING" = 0 ] || start_accounting
  is_running slurmctld || slurmctld
  is_running slurmd || slurmd
  wait_for "the node" node_is_ready
  sinfo
}

status() {
  sinfo || true
  squeue || true
  for daemon in munged mariadbd slurmdbd slurmctld slurmd; do
    if is_running "$daemon"; then echo "$daemon runs, process $(cat "$LAB/$daemon.pid")"; else echo "$daemon is not running"; fi
  done
}

down() {
  local daemon process
  for daemon in slurmd slurmctld slurmdbd mariadbd munged; do
    is_running "$daemon" || continue
    process=$(cat "$LAB/$daemon.pid")
    kill "$process"
    for _ in $(seq 60); do
      kill -0 "$process" 2>/dev/null || break
      sleep 0.25
    done
  done
}

case ${1:-} in
  up | down | status) "$1" ;;
  env) echo "export SLURM_CONF=$SLURM_CONF" ;;
  *) echo "usage: [ACCOUNTING=1] $0 up|down|env|status" >&2 && exit 2 ;;
esac
