# Controller and agent as services: the units that berth writes.
state=/var/lib/berth

agent_group() { group_of "$(systemctl show -p MainPID --value berth-agent)"; }

case_begin_units() {
    mkdir -p $state
    printf '[[node]]\nname = "ALL"\nmemory_reserved = 100\n' > $state/berth.toml
    text=$(berth install-units)
    has "$text" /etc/systemd/system/berth-controller.service /etc/systemd/system/berth-agent.service "systemctl enable --now"
    systemctl enable --now berth-controller berth-agent
    # Ready means that it answers.
    berth status
    within 60 srun true
    same "the agent's group" /sys/fs/cgroup/system.slice/berth-agent.service "$(agent_group)"
    systemctl status berth-controller berth-agent --no-pager
}

case_units_limits_reach_jobs() {
    same memlock unlimited "$(srun sh -c 'ulimit -l')"
    same "open files" 131072 "$(as ann "srun sh -c 'ulimit -n'")"
    same "the stack's hard limit" unlimited "$(srun sh -c 'ulimit -Hs')"
    same "a task can be killed for memory" 0 "$(srun cat /proc/self/oom_score_adj)"
    same "the agent is protected" -900 "$(cat "/proc/$(pid_of $state agent)/oom_score_adj")"
    same "the controller too" -900 "$(cat "/proc/$(pid_of $state controller)/oom_score_adj")"
    same "the controller gets no privilege" 1 "$(sed -n 's/^NoNewPrivs:\t//p' "/proc/$(pid_of $state controller)/status")"
    same "a step of one core" 1 "$(srun -n1 -c1 nproc)"
    fails srun --mem=48M -c1 sh -c 'head -c 300M /dev/zero | tail | wc -c'
    has "${said,,}" oom
}

case_units_stopped_restarted_and_upgraded_kill_no_step() {
    job=$(sbatch --parsable -c1 --mem=64M -o /srv/units --wrap 'trap "" HUP; sleep 40; srun echo inner; echo done')
    within 60 is_state "$job" RUNNING
    group=$(step_group "$job")
    [[ $group == /sys/fs/cgroup/system.slice/berth-*.scope/berth-*/job_$job/step_* ]] || fail "the step's group is $group"
    before=$(pid_of $state agent)
    systemctl restart berth-agent
    [ "$before" != "$(systemctl show -p MainPID --value berth-agent)" ] || fail "not restarted"
    # As a package does: the programs are replaced, and the units started again.
    systemctl stop berth-agent berth-controller
    same "the agent" inactive "$(systemctl is-active berth-agent || true)"
    [ -n "$(cat "$group/cgroup.procs")" ] || fail "the step went with its agent"
    cp /opt/berth/berth /opt/berth/berth.new && mv /opt/berth/berth.new /opt/berth/berth
    cp /opt/berth/berth-step /opt/berth/berth-step.new && mv /opt/berth/berth-step.new /opt/berth/berth-step
    systemctl daemon-reload
    systemctl start berth-controller berth-agent
    same "the agent's group" /sys/fs/cgroup/system.slice/berth-agent.service "$(agent_group)"
    same "a new step beside it" 1 "$(srun -c1 nproc)"
    # kill -9: the unit comes back by itself, the step knows nothing of it.
    before=$(pid_of $state agent)
    kill -9 "$before"
    within 60 bash -c "[ \"\$(systemctl show -p MainPID --value berth-agent)\" -gt 0 ] && systemctl is-active -q berth-agent"
    [ "$before" != "$(pid_of $state agent)" ] || fail "the agent did not come back"
    before=$(pid_of $state controller)
    kill -9 "$before"
    within 60 berth status
    [ "$before" != "$(pid_of $state controller)" ] || fail "the controller did not come back"
    within 180 is_state "$job" COMPLETED
    same output $'inner\ndone' "$(grep -v ^srun: /srv/units)"
    within 30 bash -c "[ ! -d $group ]"
}

case_units_reload_and_log() {
    printf '[[node]]\nname = "ALL"\nmemory_reserved = 110\n' > $state/berth.toml
    systemctl reload berth-controller
    within 60 bash -c "scontrol show node | grep -q MemSpecLimit=110"
    systemctl is-active berth-agent
    journalctl -u berth-agent -o cat --no-pager | grep 'agent of node'
    # The journal has the time: lines begin with the level.
    journalctl -u berth-controller -o cat --no-pager | grep -E '^ ?(INFO|WARN)'
}

case_units_serve_up_and_down() {
    text=$(berth down)
    has "$text" "is down"
    same "the agent" inactive "$(systemctl is-active berth-agent || true)"
    text=$(berth up --detach)
    has "$text" "is up"
    systemctl is-active berth-agent berth-controller
    text=$(berth up --detach)
    has "$text" "already up"
}

case_units_of_others_stay() {
    fails berth --state /srv/other install-units
    has "$said" "$state" --remove
    mkdir -p /run/units
    printf '[Service]\nExecStart=/bin/true\n' > /run/units/berth-agent.service
    fails berth install-units --dir /run/units agent
    has "$said" "not of berth's making"
}

case_end_units_are_removed() {
    job=$(sbatch --parsable -c1 -o /dev/null --wrap 'sleep 4000')
    within 60 is_state "$job" RUNNING
    scancel "$job"
    berth down
    text=$(berth install-units --remove)
    has "$text" removed
    none systemctl is-enabled -q berth-agent
    [ ! -e /etc/systemd/system/berth-agent.service ] || fail "the unit is still there"
    within 30 none_left
    none pgrep -af berth-step
    rm -rf $state
}
