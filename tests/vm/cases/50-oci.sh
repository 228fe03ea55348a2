# The OCI command line on v2.

bundle() { # DIRECTORY: a bundle of busybox, without a terminal
    mkdir -p "$1/rootfs/bin" "$1"/rootfs/{proc,sys,dev,tmp}
    cp /bin/busybox "$1/rootfs/bin/busybox"
    ln -sf busybox "$1/rootfs/bin/sh"
    (cd "$1" && berth oci spec && sed -i 's/"terminal": true/"terminal": false/' config.json)
}

# edit DIRECTORY PERL: changes config.json
edit() { perl -0pi -e "$2" "$1/config.json"; }

case_oci_runs_with_limits_in_a_path() {
    bundle /srv/b1
    edit /srv/b1 's/"args": \[[^\]]*\]/"args": ["sh", "-c", "cat \/proc\/self\/cgroup; busybox sleep 30"]/'
    edit /srv/b1 's/"resources": \{/"cgroupsPath": "\/berth-oci\/one", "resources": { "memory": {"limit": 33554432, "swap": 33554432}, "pids": {"limit": 20}, "cpu": {"quota": 50000, "period": 100000, "cpus": "0"},/'
    berth oci create --bundle /srv/b1 one < /dev/null > /srv/b1/out 2>&1
    group=/sys/fs/cgroup/berth-oci/one
    same memory.max 33554432 "$(cat $group/memory.max)"
    same memory.swap.max 0 "$(cat $group/memory.swap.max)"
    same pids.max 20 "$(cat $group/pids.max)"
    same cpu.max "50000 100000" "$(cat $group/cpu.max)"
    same cpuset.cpus 0 "$(cat $group/cpuset.cpus)"
    berth oci start one
    berth oci pause one
    same frozen 1 "$(cat $group/cgroup.freeze)"
    berth oci resume one
    berth oci update --memory 67108864 one
    same "after update" 67108864 "$(cat $group/memory.max)"
    has "$(berth oci events --stats one)" memory
    berth oci kill one KILL
    within 20 bash -c 'berth oci state one | grep -q stopped'
    berth oci delete one
    [ ! -d $group ] || fail "$group is left"
    rmdir /sys/fs/cgroup/berth-oci
}

case_oci_runs_from_a_login_session_without_a_path() {
    bundle /srv/b2
    edit /srv/b2 's/"args": \[[^\]]*\]/"args": ["sh", "-c", "echo ran"]/'
    same root ran "$(as root "cd /srv/b2 && berth oci run two")"
    rm -rf /home/ann/b && cp -r /srv/b2 /home/ann/b && rm /home/ann/b/config.json && chown -R ann: /home/ann/b
    as ann "cd b && berth oci spec --rootless && sed -i 's/\"terminal\": true/\"terminal\": false/' config.json"
    edit /home/ann/b 's/"args": \[[^\]]*\]/"args": ["sh", "-c", "echo ran"]/'
    same user ran "$(as ann "cd b && XDG_RUNTIME_DIR=/run/user/1000 berth oci run three")"
}
