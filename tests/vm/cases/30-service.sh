# A cluster of the machine in a unit with Delegate=yes: systemd-run stands for a unit file.
state=/var/lib/berth

case_begin_a_delegated_service() {
    mkdir -p $state
    printf '[[node]]\nname = "ALL"\nmemory_reserved = 100\n' > $state/berth.toml
    systemd-run --unit=berth-cluster -p Delegate=yes -p KillMode=mixed -p TasksMax=infinity /opt/berth/berth up
    within 60 berth status
    within 60 srun true
    [[ $(group_of "$(pid_of $state agent)") == /sys/fs/cgroup/system.slice/berth-cluster.service/berth-agent ]] ||
        fail "the agent is in $(group_of "$(pid_of $state agent)")"
    # The whole service went into the leaf: v2 gives controllers to no group whose parent holds processes.
    same "processes beside the leaf" "" "$(cat /sys/fs/cgroup/system.slice/berth-cluster.service/cgroup.procs)"
}

case_limits_hold_in_a_service() {
    same "a step of one core" 1 "$(srun -n1 -c1 nproc)"
    fails srun --mem=48M -c1 sh -c 'head -c 300M /dev/zero | tail | wc -c'
    has "${said,,}" oom
    same out alive "$(srun echo alive)"
    systemctl is-active berth-cluster
}

case_end_stopping_the_service_leaves_nothing() {
    sbatch -c1 -o /dev/null --wrap 'sleep 4000'
    within 60 pgrep -x sleep
    systemctl stop berth-cluster
    within 30 none_left
    none pgrep -ax sleep
    none pgrep -af berth-step
}
