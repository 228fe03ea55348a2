# A cluster of the machine, started by root in a login session: systemd gives it a scope.
state=/var/lib/berth

case_begin_root_starts_in_a_login_session() {
    printf '[[node]]\nname = "ALL"\nmemory_reserved = 100\n[[node.gres]]\nname = "gpu"\nfiles = ["/dev/loop-control", "/dev/fuse"]\n' > /run/berth.toml
    modprobe fuse
    modprobe loop
    mkdir -p $state
    cp /run/berth.toml $state
    text=$(as root "cat /proc/self/cgroup; berth up --detach" 2>&1)
    has "$text" session "is up" "system mode"
    [[ $text != *warning* ]] || fail "$text"
    group=$(group_of "$(pid_of $state agent)")
    [[ $group == /sys/fs/cgroup/system.slice/berth-*.scope/berth-agent ]] || fail "the agent is in $group"
    systemctl status "$(basename "$(dirname "$group")")" --no-pager
    chmod 1777 /srv
}

case_a_step_runs() {
    same out here "$(srun echo here)"
    as ann "srun id -un" | grep -x ann
}

case_a_step_runs_in_an_image() {
    # Two layers of the store, which are mapped to the user and mounted by one string before 6.8.
    text=$(as ann "srun --container-image=/srv/image sh -c 'id -u; cat /data/replaced; ls /data/gone 2>&1; echo x > /data/new; stat -c %u /data/new /bin/busybox; grep overlay /proc/mounts'")
    has "$text" $'1000\nupper\n' "No such file" $'1000\n1000\n' "userxattr"
    as ann "srun --container-image=/srv/image test ! -e /data/new"
    fails as ann "srun --container-image=/srv/image --container-readonly touch /data/new"
    has "$said" "Read-only"
}

case_writing_goes_to_disk_within_a_limit() {
    fails as ann "srun --container-image=/srv/image --container-writable-layer=disk:20M dd if=/dev/zero of=/big bs=1M count=40"
    has "$said" "No space left"
}

case_mounts_and_home() {
    mkdir -p /srv/shared/deep && chmod 777 /srv/shared/deep
    text=$(as ann "srun --container-image=/srv/image --container-mounts=/srv/shared:/in:ro,/srv/shared/deep:/out --container-mount-home sh -c 'touch /in/x 2>&1; touch /out/y && echo wrote; touch ~/z && echo home'")
    has "$text" "Read-only" wrote home
    same "owner" ann "$(stat -c %U /srv/shared/deep/y)"
}

case_root_in_a_container_is_the_user() {
    text=$(as ann "srun --container-image=/srv/image --container-remap-root --container-writable sh -c 'id -u; touch /root/x && stat -c %u /root/x'")
    same out $'0\n0' "$text"
}

case_too_much_memory_ends_in_out_of_memory_and_nothing_else_dies() {
    by=$(sbatch --parsable --mem=32M -c1 -o /dev/null --wrap 'sleep 300')
    within 60 is_state "$by" RUNNING
    agent=$(pid_of $state agent) controller=$(pid_of $state controller)
    job=$(sbatch --parsable --mem=48M -c1 -o /dev/null --wrap 'head -c 300M /dev/zero | tail | wc -c')
    within 120 is_state "$job" OUT_OF_MEMORY
    fails srun --mem=48M -c1 --container-image=/srv/image sh -c 'head -c 300000000 /dev/zero | tail | wc -c'
    has "${said,,}" oom
    is_state "$by" RUNNING
    same agent "$agent" "$(pid_of $state agent)"
    same controller "$controller" "$(pid_of $state controller)"
    kill -0 "$agent" "$controller"
    dmesg | grep -i 'memory cgroup out of memory' | tail -2
    scancel "$by"
}

case_limits_are_in_the_groups() {
    job=$(sbatch --parsable --mem=64M -c1 -o /dev/null --wrap 'sleep 300')
    within 60 is_state "$job" RUNNING
    group=$(step_group "$job")
    [[ $group == /sys/fs/cgroup/system.slice/berth-*.scope/berth-*/job_$job/step_* ]] || fail "the step's group is $group"
    for dir in "$group" "$(dirname "$group")"; do
        same memory.max 67108864 "$(cat "$dir/memory.max")"
        same memory.swap.max 0 "$(cat "$dir/memory.swap.max")"
        [[ $(cat "$dir/cpuset.cpus") =~ ^[01]$ ]] || fail "cpuset $(cat "$dir/cpuset.cpus")"
    done
    has "$(cat "$group/cgroup.controllers")" cpuset cpu memory pids
    scancel "$job"
}

case_a_step_of_one_core_sees_one() {
    same "the machine" 2 "$(nproc)"
    same "a step without an image" 1 "$(srun -n1 -c1 nproc)"
    same "in a container" 1 "$(srun -n1 -c1 --container-image=/srv/image nproc)"
    # The affinity can be asked for, the other core cannot be had.
    text=$(srun -n1 -c1 sh -c 'taskset -pc 0-1 $$ >/dev/null; nproc')
    same "after asking for both" 1 "$text"
}

case_a_device_that_was_not_allocated_is_refused() {
    open='for d in /dev/loop-control /dev/fuse; do (exec 3<$d) 2>/dev/null && echo opens; done; (exec 3</dev/null) && echo end'
    same "none" end "$(srun -c1 sh -c "$open")"
    same "one" $'opens\nend' "$(srun -c1 --gres=gpu:1 sh -c "$open")"
    same "two" $'opens\nopens\nend' "$(srun -c1 --gres=gpu:2 sh -c "$open")"
    look='for d in /dev/loop-control /dev/fuse; do [ -e $d ] && echo $d; done; echo end'
    same "in a container" end "$(srun -c1 --container-image=/srv/image sh -c "$look")"
    same "one in a container" 2 "$(srun -c1 --gres=gpu:1 --container-image=/srv/image sh -c "$look" | wc -l)"
    # Nor does a device file of one's own making, though it does outside.
    mknod /srv/fuse c 10 229
    look='for d in /srv/fuse /srv/own; do (exec 3<$d) && echo opens; done; rm -f /srv/own; echo end'
    same "outside" $'opens\nopens\nend' "$(sh -c "mknod /srv/own c 10 229; $look")"
    text=$(srun -c1 sh -c "mknod /srv/own c 10 229; $look" 2>&1)
    has "$text" "/srv/fuse: Operation not permitted" end
    [[ $text != *opens* ]] || fail "a device opens: $text"
    text=$(srun -c1 --container-image=/srv/image --container-mounts=/srv:/others sh -c 'ls /others/fuse; (exec 3< /others/fuse) && echo opens; echo end' 2>&1)
    has "$text" "/others/fuse" end
    [[ $text != *opens* ]] || fail "a device opens in a container that was given a file of its number: $text"
    rm /srv/fuse
    text=$(srun -c1 --container-image=/srv/image sh -c 'mknod /tmp/fuse c 10 229 && cat /tmp/fuse; echo end' 2>&1)
    has "$text" "not permitted" end
}

case_two_jobs_have_devices_of_their_own_and_reach_no_others() {
    # What is there, what opens, and what of the same numbers opens that it made itself: in the script and in a step of its own.
    cat > /srv/two.sh <<'END'
#!/bin/sh
probe='cd /tmp; for d in "loop-control 237" "fuse 229"; do set -- $d
if [ -e /dev/$1 ]; then (exec 3< /dev/$1) 2> /dev/null && echo "$at opens $1" || echo "$at refused $1"; fi
rm -f own.$$; mknod own.$$ c 10 $2 2> /dev/null && (exec 3< own.$$) 2> /dev/null && echo "$at made $1"; rm -f own.$$; done'
at=script; eval "$probe"
srun sh -c "at=step; $probe"
echo end
sleep 600
END
    for where in host: /srv/image; do
        jobs=()
        for n in 1 2; do
            jobs+=("$(sbatch --parsable -c1 --mem=64M --gres=gpu:1 --container-image=$where -o /srv/two.$n /srv/two.sh)")
        done
        for n in 1 2; do
            within 90 grep -q end /srv/two.$n
        done
        is_state "${jobs[0]}" RUNNING && is_state "${jobs[1]}" RUNNING || fail "they do not run beside each other"
        first=$(sed -n 's/.* opens //p' /srv/two.1 | sort -u) second=$(sed -n 's/.* opens //p' /srv/two.2 | sort -u)
        same "devices in $where" $'fuse\nloop-control' "$(printf '%s\n' "$first" "$second" | sort)"
        for n in 1 2; do
            [ $n = 1 ] && own=$first other=$second || own=$second other=$first
            same "$n in $where" "script opens $own step opens $own" "$(grep opens /srv/two.$n | xargs)"
            ! grep -q "made $other" /srv/two.$n || fail "$n in $where opens the other's by its numbers: $(cat /srv/two.$n)"
            [ $where = host: ] && left="script refused $other step refused $other" || left=
            same "what $n sees of the other's in $where" "$left" "$(grep refused /srv/two.$n | xargs)"
        done
        scancel "${jobs[@]}"
        for job in "${jobs[@]}"; do
            within 60 is_state "$job" CANCELLED
        done
    done
}

case_login_sessions_open_no_devices_where_the_administrator_says_so() {
    open='for d in /dev/loop-control /dev/fuse; do (exec 3<$d) 2>/dev/null && echo opens; done; echo end'
    opens() { [ "$(as "$1" "$open")" = "$2" ]; }
    mode=$(stat -c %a /dev/loop-control)
    chmod 666 /dev/loop-control
    has "$(as ann 'cat /proc/self/cgroup')" user.slice
    opens ann $'opens\nopens\nend' || fail "before: $(as ann "$open")"
    (cat /run/berth.toml; printf '[gpus]\nkept_from = ["user.slice"]\n') > $state/berth.toml
    scontrol reconfigure
    within 60 opens ann end
    opens root $'opens\nopens\nend' || fail "root is no exception: $(as root "$open")"
    same "a job of hers" $'opens\nend' "$(as ann "srun -c1 --gres=gpu:1 sh -c '$open'")"
    # Nobody else's doing takes it away.
    systemctl daemon-reload
    systemctl daemon-reexec
    systemctl set-property --runtime user.slice CPUWeight=100
    opens ann end || fail "systemd took it away: $(as ann "$open")"
    cp /run/berth.toml $state
    scontrol reconfigure
    within 60 opens ann $'opens\nopens\nend'
    chmod "$mode" /dev/loop-control
}

case_tasks_have_devices_of_their_own_and_reach_no_others() {
    # What opens, and what of the same numbers opens that it made itself: by a program that the task starts.
    cat > /srv/task.sh <<'END'
cd /tmp; for d in "loop-control 237" "fuse 229"; do set -- $d
(exec 3< /dev/$1) 2> /dev/null && echo "opens $1" || echo "refused $1"
f=own.$SLURM_PROCID; rm -f $f; mknod $f c 10 $2 2> /dev/null && (exec 3< $f) 2> /dev/null && echo "made $1"; rm -f $f; done
echo end
END
    for where in host: /srv/image; do
        rm -f /srv/task.0 /srv/task.1
        srun -n2 -c1 --mem=64M --gpus-per-task=1 --container-image=$where -o /srv/task.%t sh -c "sh -c '$(cat /srv/task.sh)'; true"
        for task in 0 1; do
            [ $task = 0 ] && own=loop-control other=fuse || own=fuse other=loop-control
            same "task $task in $where" "end opens $own refused $other" \
                "$(grep -v "^made $own\$" /srv/task.$task | sort | xargs)"
        done
    done
}

case_a_daemon_reload_takes_no_device_away() {
    for where in host: /srv/image; do
        rm -f /srv/reload
        job=$(sbatch --parsable -c1 --mem=64 --gres=gpu:2 --container-image=$where -o /srv/reload --wrap 'for i in $(seq 2000); do for d in /dev/loop-control /dev/fuse; do (exec 3<$d) && echo opens || echo refused; done; sleep 0.5; done')
        within 60 is_state "$job" RUNNING
        within 60 grep -q opens /srv/reload
        systemctl daemon-reload
        before=$(wc -l < /srv/reload)
        within 60 bash -c "[ \$(wc -l < /srv/reload) -gt $((before + 8)) ]"
        systemctl daemon-reexec
        before=$(wc -l < /srv/reload)
        within 60 bash -c "[ \$(wc -l < /srv/reload) -gt $((before + 8)) ]"
        ! grep -q refused /srv/reload || fail "devices went in $where: $(tail -4 /srv/reload)"
        # Nor limits.
        text=$(cat /sys/fs/cgroup/system.slice/berth-*.scope/berth-*/job_"$job"/cpuset.cpus)
        [[ $text =~ ^[01]$ ]] || fail "cpuset $text in $where"
        # What is not the job's does not begin to open either.
        same "another's in $where" end "$(srun -c1 --mem=64 --container-image=$where sh -c 'for d in /dev/loop-control /dev/fuse; do (exec 3<$d) 2>/dev/null && echo opens; done; echo end')"
        scancel "$job"
        within 60 is_state "$job" CANCELLED
    done
}

case_a_start_writes_to_no_cgroup_procs() {
    srun true # what is made for the first time is
    zygote=$(pgrep -f 'berth-step zygote' | head -1)
    agent=$(pid_of $state agent)
    strace -f -e trace=openat,clone3 -o /run/cases/strace -p "$agent" -p "$zygote" &
    tracer=$!
    sleep 5
    srun -c1 --container-image=/srv/image true
    sleep 1
    kill -INT $tracer
    wait $tracer || true # it ends by the signal
    grep -c clone3 /run/cases/strace
    grep -q CLONE_INTO_CGROUP /run/cases/strace || fail "no process was cloned into a group"
    # What is read to see who is left is not written.
    ! grep 'cgroup.procs' /run/cases/strace | grep -E 'O_WRONLY|O_RDWR' || fail "a process was moved"
}

case_usage_is_recorded() {
    job=$(sbatch --parsable -c1 -W -o /dev/null --wrap 'x=$(head -c 30000000 /dev/zero | tr "\0" x); end=$((SECONDS+3)); while [ $SECONDS -lt $end ]; do :; done')
    row=$(sacct -nP -j "$job" -o JobID,TotalCPU,MaxRSS | grep batch)
    IFS='|' read -r _ cpu rss <<< "$row"
    [[ $cpu =~ ^00:0[1-9] || $cpu =~ ^00:[1-9] ]] || fail "TotalCPU of three busy seconds: $row"
    [[ $rss =~ ^[0-9.]+[KM]$ ]] || fail "MaxRSS: $row"
}

case_kill_takes_everything_at_once() {
    job=$(sbatch --parsable -c1 -o /dev/null --wrap 'for i in $(seq 40); do setsid sleep 4000 & done; trap "" TERM; sleep 4000; sleep 4000')
    within 60 bash -c '[ $(pgrep -cx sleep) -ge 40 ]'
    # One that is no child of the job's: it is found by the group alone.
    setsid sleep 5000 &
    echo $! > "$(step_group "$job")/cgroup.procs"
    mapfile -t parts < <(pgrep -f berth-step)
    strace -f -e trace=openat,kill,pidfd_send_signal -o /run/cases/strace-kill -p "$(pid_of $state agent)" "${parts[@]/#/-p}" &
    tracer=$!
    sleep 4
    scancel --signal=KILL "$job"
    within 60 bash -c '[ $(pgrep -cx sleep) -eq 0 ]'
    within 60 bash -c "! ls -d /sys/fs/cgroup/system.slice/berth-*.scope/berth-*/job_$job 2>/dev/null"
    kill -INT $tracer
    wait $tracer || true # it ends by the signal
    # Where another thread's call comes between, strace tells the result apart from the name.
    grep -E 'cgroup.kill.*(= [0-9]|<unfinished)' /run/cases/strace-kill
}

case_a_fork_bomb_stays_in_its_job() {
    job=$(sbatch --parsable -c1 --mem=64M -o /dev/null --wrap 'for i in $(seq 150); do sleep 3000 & done; wait')
    within 120 bash -c '[ $(pgrep -cx sleep) -ge 100 ]' || true # memory may end it before
    scancel "$job"
    within 60 bash -c '[ $(pgrep -cx sleep) -eq 0 ]'
    same out alive "$(srun echo alive)"
}

case_steps_outlive_agent_and_session() {
    job=$(sbatch --parsable -c1 --mem=64M -o /srv/outlive --wrap 'sleep 25; srun echo inner; echo done')
    within 60 is_state "$job" RUNNING
    group=$(step_group "$job")
    [ -n "$group" ] || fail "no group of job $job"
    kill -9 "$(pid_of $state agent)"
    sleep 1
    # From another session: the agent comes back into the scope that its steps keep.
    text=$(as root "berth up --detach" 2>&1)
    [[ $text != *warning* ]] || fail "$text"
    [[ $(group_of "$(pid_of $state agent)") == "$(dirname "$(dirname "$(dirname "$group")")")/berth-agent" ]] ||
        fail "the agent is in $(group_of "$(pid_of $state agent)"), the step in $group"
    same "a new step" 1 "$(srun -c1 nproc)"
    within 120 is_state "$job" COMPLETED
    same output $'inner\ndone' "$(grep -v ^srun: /srv/outlive)"
    within 30 bash -c "[ ! -d $group ]"
}

case_a_user_cannot_leave_or_change_the_group() {
    look='d=$(find /sys/fs/cgroup -type d -path "*/job_*/step_*" | head -1); echo $d; echo $$ > $d/../../cgroup.procs; echo max > $d/memory.max; mkdir $d/own; echo 1 > $d/cgroup.kill'
    printf '%s\n' "$look" > /srv/look
    fails as ann "srun -c1 bash /srv/look"
    text=$said
    has "$text" /job_
    same "refusals" 4 "$(grep -ciE 'denied|not permitted|read-only' <<< "$text")"
}

case_end_down_leaves_nothing() {
    job=$(sbatch --parsable -c1 -o /dev/null --wrap 'sleep 4000')
    within 60 is_state "$job" RUNNING
    text=$(as root "berth down" 2>&1)
    has "$text" "is down"
    within 30 none_left
    none pgrep -ax sleep
    none pgrep -af berth-step
    none grep -E 'overlay|berth' /proc/mounts
    same "spool, jobs and scratch" "" "$(find $state/spool $state/jobs $state/scratch -mindepth 1)"
}
