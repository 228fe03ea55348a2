# The OCI command line with systemd as maker of control groups, by bundle and under podman.

bundle() { # DIRECTORY PROGRAM: a bundle of busybox with a shell's program, without a terminal
    mkdir -p "$1/rootfs/bin" "$1"/rootfs/{proc,sys,dev,tmp}
    cp /bin/busybox "$1/rootfs/bin/busybox"
    for name in sh sleep cat head tail nproc; do ln -sf busybox "$1/rootfs/bin/$name"; done
    (cd "$1" && berth oci spec ${3-} && sed -i 's/"terminal": true/"terminal": false/' config.json)
    program=$2 perl -0pi -e 's/"args": \[[^\]]*\]/"args": ["sh", "-c", "$ENV{program}"]/' "$1/config.json"
}

edit() { perl -0pi -e "$2" "$1/config.json"; }

shows() { systemctl show --property="$2" --value "$1"; }
not_loaded() { [ "$(shows "$1" LoadState)" = not-found ]; }

limits='"resources": { "memory": {"limit": 33554432, "swap": 33554432}, "pids": {"limit": 20},
    "cpu": {"shares": 512, "quota": 50000, "period": 100000, "cpus": "0"},'

case_oci_systemd_scope_has_the_limits() {
    bundle /srv/s1 'cat /dev/zero | head -c 1; sleep 300'
    edit /srv/s1 's/"resources": \{/"cgroupsPath": "berthtest.slice:app:one", '"$limits"'/'
    edit /srv/s1 's/"ociVersion"/"annotations": {"org.systemd.property.TimeoutStopSec": "uint32 7"}, "ociVersion"/'
    berth oci --systemd-cgroup create --bundle /srv/s1 s1 < /dev/null > /srv/s1/out 2>&1
    unit=app-one.scope group=/sys/fs/cgroup/berthtest.slice/app-one.scope
    same group "$group" "$(group_of "$(berth oci state s1 | sed -n 's/.*"pid": \([0-9]*\).*/\1/p')")"
    same Slice berthtest.slice "$(shows $unit Slice)"
    same Delegate yes "$(shows $unit Delegate)"
    same MemoryMax 33554432 "$(shows $unit MemoryMax)"
    same MemorySwapMax 0 "$(shows $unit MemorySwapMax)"
    same TasksMax 20 "$(shows $unit TasksMax)"
    same CPUQuotaPerSecUSec 500ms "$(shows $unit CPUQuotaPerSecUSec)"
    same AllowedCPUs 0 "$(shows $unit AllowedCPUs)"
    same TimeoutStopUSec 7s "$(shows $unit TimeoutStopUSec)"
    same memory.max 33554432 "$(cat $group/memory.max)"
    same pids.max 20 "$(cat $group/pids.max)"
    same cpu.max "50000 100000" "$(cat $group/cpu.max)"
    same cpuset.cpus 0 "$(cat $group/cpuset.cpus)"
    berth oci start s1
    same cpus 1 "$(berth oci exec s1 nproc)"
    # A limit that is changed is not forgotten when systemd reads its units again, and no device is lost.
    berth oci --systemd-cgroup update --memory 67108864 --memory-swap 67108864 s1
    same "MemoryMax, changed" 67108864 "$(shows $unit MemoryMax)"
    systemctl daemon-reload
    same "memory.max, read again" 67108864 "$(cat $group/memory.max)"
    same "a device after it" 4 "$(berth oci exec s1 sh -c 'head -c 4 /dev/urandom | busybox wc -c')"
    fails berth oci exec --cap CAP_MKNOD s1 sh -c 'busybox mknod /dev/disk b 254 0 && head -c 1 /dev/disk'
    has "${said,,}" "not permitted"
    same "a node of an allowed device" 3 "$(berth oci exec --cap CAP_MKNOD s1 sh -c 'busybox mknod /dev/other c 1 5 && head -c 3 /dev/other | busybox wc -c')"
    berth oci pause s1
    same frozen 1 "$(cat $group/cgroup.freeze)"
    berth oci resume s1
    berth oci delete --force s1
    [ ! -d $group ] || fail "$group is left"
    within 10 not_loaded $unit
    systemctl stop berthtest.slice
}

case_oci_systemd_stop_ends_the_container() {
    bundle /srv/s2 'trap exit TERM; while :; do sleep 1; done'
    berth oci --systemd-cgroup create --bundle /srv/s2 s2 < /dev/null > /srv/s2/out 2>&1
    berth oci start s2
    [ -d /sys/fs/cgroup/system.slice/berth-oci-s2.scope ] || fail "not where the default is"
    systemctl stop berth-oci-s2.scope
    has "$(berth oci state s2)" stopped
    berth oci delete s2
    within 10 not_loaded berth-oci-s2.scope
    # The name is free again, and what runs to its end leaves no unit.
    bundle /srv/s3 'cat /proc/self/cgroup; exit 5' && rm -rf /srv/s2
    status=0
    berth oci --systemd-cgroup run --bundle /srv/s3 s2 < /dev/null || status=$?
    same "exit status" 5 $status
    within 10 not_loaded berth-oci-s2.scope
}

case_oci_systemd_out_of_memory_leaves_no_unit() {
    bundle /srv/s4 'head -c 300000000 /dev/zero | tail -n 1'
    edit /srv/s4 's/"resources": \{/"resources": { "memory": {"limit": 16777216, "swap": 16777216},/'
    status=0
    berth oci --systemd-cgroup run --bundle /srv/s4 s4 < /dev/null > /srv/s4/out 2>&1 || status=$?
    [ $status -ne 0 ] || fail "it was not ended: $(cat /srv/s4/out)"
    within 10 not_loaded berth-oci-s4.scope
}

case_oci_systemd_refusals_leave_nothing() {
    bundle /srv/s5 'exit 0'
    edit /srv/s5 's/"resources": \{/"cgroupsPath": "\/a\/b", "resources": {/'
    fails berth oci --systemd-cgroup run --bundle /srv/s5 s5
    has "$said" /a/b slice:prefix:name
    edit /srv/s5 's/"\/a\/b"/"system.slice:a b:c"/'
    fails berth oci --systemd-cgroup run --bundle /srv/s5 s5
    has "$said" "a b-c.scope" "linux.cgroupsPath"
    edit /srv/s5 's/a b:c/a:c/; s/"ociVersion"/"annotations": {"org.systemd.property.NoSuchThing": "true"}, "ociVersion"/'
    fails berth oci --systemd-cgroup run --bundle /srv/s5 s5
    has "$said" NoSuchThing
    # Another's unit of that name is left alone.
    systemd-run --quiet --scope --unit=a-c sleep 600 < /dev/null > /dev/null 2>&1 &
    within 10 systemctl is-active --quiet a-c.scope
    edit /srv/s5 's/"org.systemd.property.NoSuchThing": "true"//'
    fails berth oci --systemd-cgroup run --bundle /srv/s5 s5
    has "$said" a-c.scope already
    systemctl is-active --quiet a-c.scope || fail "a-c.scope was ended"
    systemctl stop a-c.scope
    same left "" "$(ls /run/berth-oci)"
}

case_oci_systemd_for_an_ordinary_user() {
    rm -rf /home/ben/s && mkdir /home/ben/s
    bundle /home/ben/s/b 'sleep 300' && rm /home/ben/s/b/config.json && chown -R ben: /home/ben/s
    as ben "cd s/b && berth oci spec --rootless && sed -i 's/\"terminal\": true/\"terminal\": false/' config.json"
    edit /home/ben/s/b 's/"args": \[[^\]]*\]/"args": ["sh", "-c", "sleep 300"]/'
    edit /home/ben/s/b 's/"linux": \{/"linux": { "cgroupsPath": "user.slice:app:ben", "resources": { "memory": {"limit": 33554432}, "cpu": {"cpus": "1"} },/'
    oci='XDG_RUNTIME_DIR=/run/user/1001 berth oci --systemd-cgroup'
    as ben "cd s/b && $oci create u1 > out 2>&1" || fail "$(cat /home/ben/s/b/out)"
    group=/sys/fs/cgroup/user.slice/user-1001.slice/user@1001.service/user.slice/app-ben.scope
    same memory.max 33554432 "$(cat $group/memory.max)"
    same cpuset.cpus 1 "$(cat $group/cpuset.cpus)"
    same MemoryMax 33554432 "$(as ben "XDG_RUNTIME_DIR=/run/user/1001 systemctl --user show --property=MemoryMax --value app-ben.scope")"
    as ben "$oci start u1"
    # What is added comes from a login session, out of which a user moves nothing without systemd.
    as ben "$oci exec --detach u1 sleep 299"
    same processes 2 "$(wc -l < $group/cgroup.procs)"
    as ben "$oci update --memory 67108864 u1"
    same "memory.max, changed" 67108864 "$(cat $group/memory.max)"
    as ben "$oci delete --force u1"
    [ ! -d $group ] || fail "$group is left"
    # Ann's manager has no cpuset to give: that is said, and nothing stays.
    rm -rf /home/ann/s && cp -r /home/ben/s /home/ann/s && rm /home/ann/s/b/out && chown -R ann: /home/ann/s
    sed -i 's/1001/1000/' /home/ann/s/b/config.json
    fails as ann "cd s/b && XDG_RUNTIME_DIR=/run/user/1000 berth oci --systemd-cgroup create u1"
    has "$said" cpuset.cpus
    [ -z "$(find /sys/fs/cgroup -name app-ben.scope)" ] || fail "the group is left"
}

case_oci_apparmor_profiles_hold() {
    grep -q ^Y /sys/module/apparmor/parameters/enabled || fail "this kernel has no AppArmor in force"
    bundle /srv/aa 'cat /proc/self/attr/current; echo x > /tmp/x || echo refused'
    edit /srv/aa 's/"readonly": true/"readonly": false/'
    profiled() { # PROFILE: what its program says
        edit /srv/aa 's/("apparmorProfile": "[^"]*", )?"args"/"apparmorProfile": "'"$1"'", "args"/'
        berth oci run --bundle /srv/aa aa < /dev/null 2>&1
    }
    same unconfined unconfined "$(profiled unconfined)"
    fails profiled berth-not-loaded
    has "$said" berth-not-loaded 'apparmor_parser -r'
    printf 'profile berth-case flags=(attach_disconnected,mediate_deleted) {\n  file,\n  signal,\n  deny /tmp/** w,\n}\n' |
        apparmor_parser -r -K
    said=$(profiled berth-case)
    has "$said" 'berth-case (enforce)' refused
    # A process that is added has it too.
    edit /srv/aa 's/"args": \[[^\]]*\]/"args": ["sh", "-c", "sleep 300"]/'
    berth oci run --detach --bundle /srv/aa aa < /dev/null > /srv/aa/out 2>&1
    same added 'berth-case (enforce)' "$(berth oci exec aa cat /proc/self/attr/current)"
    berth oci delete --force aa
    # Podman asks for its own profile, which it loads, unless it is told otherwise.
    ln -sf /opt/berth/berth /usr/local/bin/berth-oci
    podman='podman --runtime /usr/local/bin/berth-oci --cgroup-manager systemd --events-backend none'
    with="--rm --network none --log-driver none --rootfs /srv/aa/rootfs cat /proc/self/attr/current"
    has "$($podman run $with)" 'containers-default' '(enforce)'
    same podman unconfined "$($podman run --security-opt apparmor=unconfined $with)"
}

case_oci_systemd_under_podman() {
    bundle /srv/p 'exit 0'
    ln -sf /opt/berth/berth /usr/local/bin/berth-oci
    podman='podman --runtime /usr/local/bin/berth-oci --cgroup-manager systemd --events-backend none'
    $podman run -d --name p1 --network none --log-driver none --memory 48m --cpus 0.5 --rootfs /srv/p/rootfs sleep 600
    unit=libpod-$($podman inspect --format '{{.Id}}' p1).scope
    same Slice machine.slice "$(shows "$unit" Slice)"
    same MemoryMax 50331648 "$(shows "$unit" MemoryMax)"
    same memory.max 50331648 "$(cat "/sys/fs/cgroup/machine.slice/$unit/memory.max")"
    same exec hello "$($podman exec p1 busybox echo hello)"
    $podman rm -f -t 0 p1
    within 10 not_loaded "$unit"
    [ ! -d "/sys/fs/cgroup/machine.slice/$unit" ] || fail "the group is left"
}

case_oci_systemd_under_a_users_podman() {
    rm -rf /home/ben/p && mkdir /home/ben/p && cp -r /srv/p/rootfs /home/ben/p && chown -R ben: /home/ben/p
    podman='XDG_RUNTIME_DIR=/run/user/1001 podman --runtime /usr/local/bin/berth-oci --cgroup-manager systemd --events-backend none'
    as ben "$podman run -d --name p2 --network none --log-driver none --memory 48m --rootfs /home/ben/p/rootfs sleep 600"
    id=$(as ben "$podman inspect --format '{{.Id}}' p2")
    group=$(find /sys/fs/cgroup/user.slice/user-1001.slice/user@1001.service -type d -name "libpod-$id.scope")
    same memory.max 50331648 "$(cat "$group/memory.max")"
    same exec hello "$(as ben "$podman exec p2 busybox echo hello")"
    as ben "$podman rm -f -t 0 p2"
    [ ! -d "$group" ] || fail "$group is left"
}
