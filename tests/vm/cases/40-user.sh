# Clusters of ordinary users: Ann's manager has what Debian delegates, Ben's has all controllers.

case_a_user_gets_a_scope_and_what_is_delegated() {
    text=$(as ann "berth up --detach" 2>&1)
    has "$text" "user mode" "limits on" devices
    group=$(group_of "$(pid_of /home/ann/.local/state/berth agent)")
    [[ $group == */user@1000.service/*berth-*.scope/berth-agent ]] || fail "the agent is in $group"
    same out $'1000\nupper' "$(as ann "srun --container-image=/srv/image sh -c 'id -u; cat /data/replaced'")"
    # Memory is delegated; cores are bound by affinity.
    fails as ann "srun --mem=48M -c1 sh -c 'head -c 300M /dev/zero | tail | wc -c'"
    has "${said,,}" oom
    same "a step of one core" 1 "$(as ann "srun -n1 -c1 nproc")"
    as ann "berth down"
    within 30 none_left
}

case_a_user_with_all_controllers_is_held_to_all() {
    text=$(as ben "berth up --detach" 2>&1)
    has "$text" "limits on devices are not enforced"
    same "after asking for both cores" 1 "$(as ben "srun -n1 -c1 sh -c 'taskset -pc 0-1 \$\$ >/dev/null; nproc'")"
    job=$(as ben "sbatch --parsable -c1 --mem=64M -o /dev/null --wrap 'sleep 300'")
    within 60 bash -c "[ -n \"\$(find /sys/fs/cgroup -type d -path '*/job_$job/step_*')\" ]"
    group=$(step_group "$job")
    [[ $group == */user@1001.service/*/berth-*.scope/* ]] || fail "the step's group is $group"
    same memory.max 67108864 "$(cat "$group/memory.max")"
    [[ $(cat "$group/cpuset.cpus") =~ ^[01]$ ]] || fail "cpuset $(cat "$group/cpuset.cpus")"
    as ben "scancel $job"
    job=$(as ben "sbatch --parsable -c1 --mem=48M -o /dev/null --wrap 'head -c 300M /dev/zero | tail | wc -c'")
    within 120 bash -c "su -l ben -c 'PATH=/opt/berth:\$PATH sacct -nXP -o State -j $job' | grep -q OUT_OF_ME"
}

case_a_users_steps_outlive_the_agent() {
    state=/home/ben/.local/state/berth
    job=$(as ben "sbatch --parsable -c1 -o /home/ben/outlive --wrap 'sleep 20; echo done'")
    within 60 pgrep -x -u ben sleep
    kill -9 "$(pid_of $state agent)"
    text=$(as ben "berth up --detach" 2>&1)
    [[ $text != *"of its own"* ]] || fail "$text"
    [[ $(group_of "$(pid_of $state agent)") == *berth-*.scope/berth-agent ]] || fail "$(group_of "$(pid_of $state agent)")"
    within 90 grep -q done /home/ben/outlive
    same "a new step" 1 "$(as ben "srun -c1 nproc")"
}

case_a_users_down_leaves_nothing() {
    as ben "berth down"
    within 30 none_left
    none pgrep -af berth-step
}

case_a_user_in_a_delegated_scope_of_his_own() {
    # As the guide has it for machines where berth may not ask by itself.
    as ben "XDG_RUNTIME_DIR=/run/user/1001 systemd-run --user --scope -p Delegate=yes --unit=mine bash -c 'berth up --detach && cat /proc/\$(pgrep -u ben -f \"[a]gent --background\")/cgroup && srun -c1 --mem=64M nproc && berth down'" > /run/cases/own-scope
    has "$(cat /run/cases/own-scope)" /mine.scope/berth-agent
    within 30 none_left
}

case_without_a_manager_a_user_is_told() {
    useradd -m -s /bin/bash cleo
    text=$(setpriv --reuid cleo --regid cleo --clear-groups env -i HOME=/home/cleo PATH="$PATH" USER=cleo berth up --detach 2>&1)
    has "$text" "loginctl enable-linger" "limits on memory, cpu, cpuset, pids, devices are not enforced"
    same out cleo "$(setpriv --reuid cleo --regid cleo --clear-groups env -i HOME=/home/cleo PATH="$PATH" USER=cleo srun id -un)"
    setpriv --reuid cleo --regid cleo --clear-groups env -i HOME=/home/cleo PATH="$PATH" USER=cleo berth down
}
