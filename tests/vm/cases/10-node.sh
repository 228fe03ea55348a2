# What the machine is, and what doctor says of it.

case_the_node_has_v2_alone() {
    same "file system of /sys/fs/cgroup" cgroup2fs "$(stat -fc %T /sys/fs/cgroup)"
    none grep ' - cgroup cgroup ' /proc/self/mountinfo
    same "init" systemd "$(cat /proc/1/comm)"
    cat /sys/fs/cgroup/cgroup.controllers
    # The rule of Ubuntu is not in Debian's kernel, though AppArmor is on.
    cat /sys/module/apparmor/parameters/enabled
    ls /proc/sys/kernel | grep -i apparmor || true # for the log
}

case_doctor_as_root() {
    text=$(berth doctor)
    has "$text" "memory, cpu, cpuset, pids and devices are enforced" "good     kernel" "good     user namespaces"
    [[ $text != *BAD* ]] || fail "$text"
    if [ ! -e /proc/sys/kernel/apparmor_restrict_unprivileged_userns ]; then
        [[ $text != *AppArmor* ]] || fail "a rule that this kernel does not have: $text"
    fi
}

case_doctor_as_a_user_says_what_is_not_delegated() {
    delegated=$(cat /sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/cgroup.controllers)
    text=$(as ann "berth doctor")
    for controller in memory pids cpu cpuset; do
        if [[ " $delegated " == *" $controller "* ]]; then
            ! grep -qE "not enforced.*[ :]$controller(,|$)" <<< "$text" || fail "$controller is delegated: $text"
        else
            grep -qE "not enforced.*[ :]$controller(,|$)" <<< "$text" || fail "$controller is not delegated: $text"
        fi
    done
    has "$text" "devices" "systemctl edit user@.service"
    # Who has everything is told of devices alone.
    text=$(as ben "berth doctor")
    has "$text" "not enforced for your jobs: devices"
}
