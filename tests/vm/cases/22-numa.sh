# Memory of two NUMA nodes, each with one processor: what --mem-bind and --cpu-bind give is what the kernel takes.
state=/var/lib/berth-numa
export BERTH_STATE=$state

# on_nodes NODES TEXT: of the tasks 0, 1, ... each stack is bound to, and on, its own of these NUMA nodes, as `srun -l` printed it.
on_nodes() {
    local task=0 node
    same "stacks in: $2" "$(wc -w <<< "$1")" "$(grep -c stack <<< "$2")"
    for node in $1; do
        grep -qE "^$task: .* bind:$node .* N$node=" <<< "$2" || fail "task $task is not on node $node: $2"
        none grep -E "^$task: .* N$((1 - node))=" <<< "$2"
        task=$((task + 1))
    done
}

case_begin_a_machine_of_two_numa_nodes() {
    same "NUMA nodes with memory" 0-1 "$(cat /sys/devices/system/node/has_memory)"
    same "processors of the first" 0 "$(cat /sys/devices/system/node/node0/cpulist)"
    same "processors of the second" 1 "$(cat /sys/devices/system/node/node1/cpulist)"
    mkdir -p $state
    printf '[[node]]\nname = "ALL"\nmemory_reserved = 100\n' > $state/berth.toml
    as root "BERTH_STATE=$state berth up --detach"
}

case_memory_is_of_the_numa_nodes_that_were_named() {
    look='grep stack /proc/self/numa_maps; true'
    for where in "" --container-image=/srv/image; do
        step="BERTH_STATE=$state srun -l -n2 -c1 --mem=64M $where"
        on_nodes "0 1" "$(as ann "$step --mem-bind=map_mem:0,1 sh -c '$look'")"
        on_nodes "1 0" "$(as ann "$step --mem-bind=map_mem:1,0 sh -c '$look'")"
        on_nodes "1 1" "$(as ann "$step --mem-bind=mask_mem:0x2 sh -c '$look'")"
        on_nodes "0 1" "$(as ann "$step --mem-bind=rank sh -c '$look'")"
        # That of the processor on which the task is.
        on_nodes "0 1" "$(as ann "$step --cpu-bind=map_cpu:0,1 --mem-bind=local sh -c '$look'")"
        on_nodes "1 0" "$(as ann "$step --cpu-bind=map_cpu:1,0 --mem-bind=local sh -c '$look'")"
        text=$(as ann "$step --mem-bind=mask_mem:0x3 sh -c '$look'")
        same "tasks bound to both" 2 "$(grep -c ' bind:0-1 ' <<< "$text")"
        text=$(as ann "$step --mem-bind=prefer,map_mem:1 sh -c '$look'")
        same "tasks that prefer one" 2 "$(grep -cE ' prefer[^ ]*:1 .* N1=' <<< "$text")"
        text=$(as ann "$step --mem-bind=none sh -c '$look'")
        same "tasks that are not bound" 2 "$(grep -c ' default ' <<< "$text")"
    done
}

case_what_is_bound_is_said_and_what_is_not_there_is_refused() {
    text=$(as ann "BERTH_STATE=$state srun -n2 -c1 --mem=64M --mem-bind=verbose,map_mem:0,1 true" 2>&1)
    has "${text,,}" "mem-bind=map - " "mask 0x1 set" "mask 0x2 set"
    fails as ann "BERTH_STATE=$state srun -n1 --mem=64M --mem-bind=map_mem:2 true"
    has "${said,,}" "cannot be bound by --mem-bind" "numa node 2 has no memory"
}

case_processors_are_of_the_numa_nodes_that_were_named() {
    look='taskset -pc $$ | grep -o "[0-9-]*$"'
    text=$(as ann "BERTH_STATE=$state srun -l -n2 -c1 --mem=64M --cpu-bind=map_ldom:1,0 sh -c '$look'" | sort)
    same "processors of tasks" $'0: 1\n1: 0' "$text"
}

case_end_of_the_machine_of_two_numa_nodes() { as root "BERTH_STATE=$state berth down"; }
