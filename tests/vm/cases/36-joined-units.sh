# A machine that joins becomes a service by itself; users with a job log in to it. The controller is on the same machine, in another
# state directory, and has no agent.
state=/var/lib/berth
head=/srv/head

case_begin_joined_units() {
    mkdir -p $head
    systemd-run --unit=berth-head -p Type=notify /opt/berth/berth --state $head controller
    token=$(berth --state $head token create)
    text=$(berth join 127.0.0.1 "$token" --name vm --detach 2>&1)
    has "$text" "joined cluster" "vm is up (berth-agent.service)"
    systemctl is-active berth-agent
    systemctl is-enabled berth-agent
    export BERTH_STATE=$head
    within 60 bash -c "sinfo -h -o %T | grep -qx idle"
    same host vm "$(as ann "BERTH_STATE=$head srun sh -c 'echo \$SLURMD_NODENAME'")"
}

case_joined_units_survive_down_up_and_a_controller_that_is_away() {
    text=$(berth down)
    has "$text" "vm is down"
    same "the agent" inactive "$(systemctl is-active berth-agent || true)"
    berth up --detach
    systemctl is-active berth-agent
    # Without a controller it is ready with the configuration as it was, and finds the controller when that is back.
    systemctl stop berth-head
    systemctl restart berth-agent
    systemd-run --unit=berth-head2 -p Type=notify /opt/berth/berth --state $head controller
    within 60 bash -c "BERTH_STATE=$head sinfo -h -o %T | grep -qx idle"
}

case_joined_units_let_in_whose_jobs_run() {
    mkdir -p /run/pam.d
    line='required pam_exec.so quiet stdout /opt/berth/berth pam'
    printf 'auth sufficient pam_rootok.so\naccount %s\nsession %s\n' "$line" "$line" > /run/pam.d/su
    cp /run/pam.d/su /run/pam.d/other
    login() { unshare -m sh -c 'mount --bind /run/pam.d /etc/pam.d && exec su "$0" -s /bin/sh -c "$1"' "$1" "$2"; }
    fails login ann 'echo in'
    has "$said" "no job of ann runs on vm"
    job=$(as ann "cd /srv && BERTH_STATE=$head sbatch --parsable -c1 --mem=64M -o /dev/null --wrap 'sleep 300'")
    export BERTH_STATE=$head
    within 60 is_state "$job" RUNNING
    text=$(login ann 'cat /proc/self/cgroup; nproc')
    has "$text" "/job_$job/extern" $'\n1'
    [[ $text == *.scope/* ]] || fail "$text"
    fails login ben 'echo in'
    login ann 'setsid sleep 4321 & sleep 4000' &
    within 30 pgrep -xf 'sleep 4321'
    scancel "$job"
    within 60 bash -c '! pgrep -xf "sleep 4321"'
    within 60 is_state "$job" CANCELLED
    within 30 bash -c "[ -z \"\$(find /sys/fs/cgroup -type d -name job_$job)\" ]"
}

case_end_joined_units_leave() {
    unset BERTH_STATE
    berth down
    text=$(berth leave)
    has "$text" "left cluster"
    none systemctl is-enabled -q berth-agent
    [ ! -e /etc/systemd/system/berth-agent.service ] || fail "the unit is still there"
    # As a process of the command's, if that is asked for.
    token=$(berth --state $head token create)
    text=$(berth join 127.0.0.1 "$token" --name vm --detach --no-systemd 2>&1)
    has "$text" "vm is up (agent pid "
    none systemctl is-enabled -q berth-agent
    [ ! -e /etc/systemd/system/berth-agent.service ] || fail "a service was made of it"
    berth down
    berth leave
    systemctl stop berth-head2
    within 30 none_left
    none pgrep -af berth-step
    rm -rf $state $head /run/pam.d
}
