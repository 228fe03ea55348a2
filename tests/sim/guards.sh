#!/usr/bin/env bash
# Takes out one guard of the cores at a time, builds the simulator, and runs its worlds, one of which must break a promise then.
# Not part of tests/run.sh: it builds once for each guard. The table in docs/simulator.md has what was found. In a clean checkout.
# usage: tests/sim/guards.sh [--seeds N] [NAME...]
#        tests/sim/guards.sh --check    changes and builds nothing: are the texts there? Prints the names
set -euo pipefail
cd "$(dirname "$0")/../.."

die() { printf 'guards.sh: error: %s\n' "$*" >&2; exit 1; }

names=()
run=yes
seeds=10000
while [ $# -gt 0 ]; do
    case $1 in
        --check) run=no ;;
        --seeds) seeds=${2-}; shift ;;
        -*) die "unknown option $1; the first lines of this script say what there is" ;;
        *) names+=("$1") ;;
    esac
    shift
done
[[ $seeds =~ ^[1-9][0-9]*$ ]] || die "--seeds wants a number"
failures=0

if [ $run = yes ]; then
    known=$(tests/sim/guards.sh --check)
    for name in "${names[@]}"; do
        grep -qx -- "$name" <<< "$known" || die "no guard is called $name; they are: ${known//$'\n'/ }"
    done
    [ -z "$(git status --porcelain --untracked-files=no)" ] || die "the checkout has changes, which would be lost: commit them first"
    # What the tests write goes there, too.
    TMPDIR=$(mktemp -d /tmp/guards.XXXXXX)
    export TMPDIR
    log=$TMPDIR/log
    trap finish EXIT
fi
restore() { git checkout -q -- agent/core scheduler/core; }
finish() { restore; rm -rf "$TMPDIR"; }

# Replaces a text, which must be there once, in a file.
change() { # FILE OLD NEW
    local count
    count=$(OLD=$2 perl -0ne 'print scalar(() = /\Q$ENV{OLD}\E/g)' "$1")
    [ "$count" = 1 ] || die "$1 has the text $count times: $2"
    [ $run = no ] || OLD=$2 NEW=$3 perl -0pi -e 's/\Q$ENV{OLD}\E/$ENV{NEW}/' "$1"
}

# Builds, and runs the worlds: one must fail. Says which, and how.
seen() { # NAME [TEST]
    [ $run = yes ] || return 0
    local test=${2-worlds_with_faults}
    cargo test -q --offline -p berth-sim --test seeds --no-run > "$log" 2>&1 || { tail -20 "$log"; die "$1 does not build"; }
    if BERTH_SIM_SEEDS=$seeds RUST_BACKTRACE=0 cargo test -q --offline -p berth-sim --test seeds "$test" > "$log" 2>&1; then
        printf '%-22s passes %s seeds, and must not\n' "$1" "$seeds"
        failures=$((failures + 1))
    else
        # Another end than a broken promise, like too few faults, does not count.
        printf '%-22s %s\n' "$1" "$(grep -m1 -E '^seed [0-9]+: ' "$log" | cut -c1-200 || tail -3 "$log")"
        grep -qE '^seed [0-9]+: ' "$log" || failures=$((failures + 1))
    fi
    restore
}

# Whether it is to be tried; with --check its name is printed, and its texts are looked for.
wanted() { # NAME
    if [ $run = no ]; then
        echo "$1"
        return
    fi
    [ ${#names[@]} -eq 0 ] || [[ " ${names[*]} " == *" $1 "* ]]
}

c=scheduler/core/src
a=agent/core/src

if wanted session; then
    change $c/cluster/agents.rs 'if n.link != Some(Link { connection, session }) {' 'if n.link.is_none() || (connection, session.0) == (0, 0) {'
    seen session
fi

if wanted term; then
    change $a/core/term.rs '        term == self.term
    }' '        true
    }'
    seen term
fi

if wanted settling; then
    change $c/node.rs 'self.in_service() && self.link.is_some() && self.settling.is_empty()' 'self.in_service() && self.link.is_some()'
    seen settling
fi

if wanted given-up; then
    change $c/cluster/given_up.rs 'if node.link.is_none() {' 'if node.link.is_none() || node.given_up.is_none() {'
    seen given-up
fi

if wanted removed-when-clear; then
    change $c/cluster/members.rs 'if !held.is_empty() && connected {' 'if held.len() > 1000 && connected {'
    seen removed-when-clear
fi

if wanted commit-first; then
    change $c/store.rs '        store.apply(writes)?;' '        let _ = store.apply(writes);'
    seen commit-first
fi

if wanted start-once; then
    change $a/core/running.rs '        if self.steps.contains_key(&key) {
            return self.report(key);
        }' ''
    seen start-once
fi

if wanted never-again; then
    change $a/core/running.rs 'if run.finished.contains(&key.step) {' 'if run.finished.len() > 1000 {'
    change $a/core/running.rs 'if self.over.has(run_key) {' 'if newer && self.over.has(run_key) {'
    seen never-again
fi

if wanted boot-id; then
    change $c/cluster/agents.rs 'is_some_and(|n| n.row.boot_id != hello.boot_id)' 'is_some_and(|n| n.row.boot_id.is_empty())'
    seen boot-id
fi

if wanted later-connection; then
    change $c/cluster/agents.rs 'is_some_and(|n| connection < n.last_connection)' 'is_some_and(|n| n.last_connection == u64::MAX)'
    seen later-connection
fi

if wanted fresh; then
    change $c/cluster/agents.rs '(false, None) if ran && fresh => {' '(false, None) if ran && (fresh || !there) => {'
    seen fresh
fi

if wanted lost-is-lost; then
    change $c/cluster/agents.rs '(false, None) if ran && fresh => {' '(false, None) if ran && fresh && ending.is_some() => {'
    seen lost-is-lost
fi

if wanted one-submission; then
    change $c/cluster/submit.rs 'if let Some(job) = self.submitted_before(uid, &spec.submission) {' \
        'if let Some(job) = self.submitted_before(uid, &spec.submission).filter(|_| uid.0 == 1) {'
    seen one-submission
fi

if wanted full-store; then
    change $c/cluster/submit.rs 'self.store_full.as_ref().filter(|_| !test_only)' 'self.store_full.as_ref().filter(|_| test_only)'
    seen full-store
fi

if wanted clock-mark; then
    change $c/pace.rs 'pace.now = sure.0.max(wall.0);' 'pace.now = wall.0;'
    seen clock-mark
fi

if wanted clock-leap; then
    change $c/cluster/timers.rs 'Some(run.limit? + self.leapt_since(run.started))' 'run.limit.filter(|_| self.leapt_since(run.started) >= Span(0))'
    seen clock-leap
fi

if wanted last-rows; then
    change $c/cluster/ending.rs '        self.write_last(steps.values());
' ''
    seen last-rows
fi

if wanted adopted-limit; then
    change $a/core/running.rs '        if run.limit.is_none() {
            run.limit = start' '        if fresh {
            run.limit = start'
    seen adopted-limit
fi

if wanted prolog-first; then
    change $a/core/running.rs 'is_none_or(|run| run.prolog == Prolog::Done)' 'is_none_or(|run| run.prolog != Prolog::Ahead)'
    seen prolog-first
fi

if wanted taken-cores; then
    change $c/node.rs '            self.free_cores[*core] = false;' '            let _ = core;'
    seen taken-cores
fi

if wanted freed-when-gone; then
    change $c/cluster/ending.rs '        for node in nodes {
            self.send(
                &node,
                ToAgent::EndJob {' '        for node in nodes {
            self.nodes.get_mut(&node).map(Arc::make_mut).map(|n| n.release((id, attempt)));
            self.send(
                &node,
                ToAgent::EndJob {'
    seen freed-when-gone
fi

if wanted login-wiped; then
    change $c/cluster/ending.rs '        job.row.phase = Phase::Ended { run: Some(run.clone()), result: result.clone() };
        self.wipe_login(id);' '        job.row.phase = Phase::Ended { run: Some(run.clone()), result: result.clone() };'
    seen login-wiped
fi

if wanted lease-told; then
    change $c/launch.rs 'lease: run.lease.map(|span|' 'lease: run.lease.filter(|span| span.0 < 0).map(|span|'
    seen lease-told
fi

if wanted lease-margin; then
    change $c/cluster/leases.rs 'Span(span.0 / 5 + 5_000_000)' 'Span(0 * span.0)'
    seen lease-margin
fi

if wanted counts-anew; then
    change $c/node.rs '            asked_at: now,' '            asked_at: Time(0),'
    seen counts-anew
fi

if wanted one-image; then
    change $c/cluster/images.rs 'kept.unwrap_or(found)' 'kept.map_or(found.clone(), |_| found)'
    seen one-image
fi

if wanted fence-after; then
    change $c/cluster/fencing.rs 'let due = (n.last_heard + after)' 'let due = (n.last_heard + self.config.node_timeout)'
    seen fence-after
fi

if wanted fence-once-more; then
    change $c/cluster/fencing.rs 'if second.is_none() {' 'if second.is_none() && !n.row.condition.not_responding {'
    seen fence-once-more
fi

if wanted fence-held-up; then
    change $c/cluster/fencing.rs 'if look + LATE < now {' 'if look + LATE < due {'
    seen fence-held-up
fi

if wanted fence-failed; then
    change $c/cluster/fencing.rs 'silent && result.is_ok());
        match result {' 'silent && result.is_ok());
        match result.or(Ok::<(), String>(())) {'
    seen fence-failed
fi

if wanted fence-heard; then
    change $c/cluster/fencing.rs 'n.row.condition.not_responding && n.last_heard < asked;' 'n.last_heard.0 >= 0;'
    seen fence-heard
fi

if wanted durable-term; then
    change $a/event.rs 'matches!(self, AgentEffect::RememberTerm(_) | AgentEffect::RememberHighest(_))' 'matches!(self, AgentEffect::RememberHighest(_))'
    seen durable-term
fi

if wanted durable-numbers; then
    change $a/event.rs 'matches!(self, AgentEffect::RememberTerm(_) | AgentEffect::RememberHighest(_))' 'matches!(self, AgentEffect::RememberTerm(_))'
    seen durable-numbers
fi

b=a_controller_that_is_made_of_a_backup

if wanted restored-runs; then
    change $c/cluster/restored.rs 'Attempt(attempt.0.max(self.attempts))' 'attempt'
    seen restored-runs $b
fi

if wanted restored-hold; then
    change $c/cluster/restored.rs '        self.may_yet_come() || self.restored.awaited.values().any(|state| *state != Awaited::Gone)' '        self.restored.awaited.len() > 1000'
    seen restored-hold $b
fi

if wanted restored-numbers; then
    change $c/cluster/numbers.rs 'let told = jobs.chain([highest.job]);' 'let told = jobs.chain([JobId(highest.job.0 / 1000)]);'
    seen restored-numbers $b
fi

if wanted restored-ids; then
    change $c/cluster/awaiting.rs 'let most = self.restored.base.0.saturating_add(UNASKED);' 'let most = self.next_job.saturating_add(UNASKED);'
    seen restored-ids $b
fi

[ $failures -eq 0 ] || die "$failures guards are not missed"
