#!/usr/bin/env bash
# Takes out one defence at a time, builds, and runs the tests that attack it: each must fail then. Not part of tests/run.sh:
# it builds once for each defence. Run as root in a clean checkout.
# usage: tests/escape/mutations.sh [--runtime|--cluster] [NAME...]
set -euo pipefail
cd "$(dirname "$0")/../.."

die() { printf 'mutations.sh: error: %s\n' "$*" >&2; exit 1; }
[ "$(id -u)" -eq 0 ] || die "attacks on what root does need root: run it as root"
[ -z "$(git status --porcelain --untracked-files=no)" ] || die "the checkout has changes, which would be lost: commit them first"

groups="runtime cluster"
names=()
for word in "$@"; do
    case $word in
        --runtime | --cluster) groups=${word#--} ;;
        -*) die "unknown option $word" ;;
        *) names+=("$word") ;;
    esac
done

log=$(mktemp /tmp/mutations.XXXXXX)
restore() { git checkout -q -- agent model rpc runtime scheduler; }
trap 'restore; rm -f "$log"' EXIT
failures=0

# Replaces a text, which must be there once, in a file.
change() { # FILE OLD NEW
    OLD=$2 NEW=$3 perl -0pi -e '
        my $n = () = /\Q$ENV{OLD}\E/g;
        die "mutations.sh: error: the text is there $n times in $ARGV\n" if $n != 1;
        s/\Q$ENV{OLD}\E/$ENV{NEW}/' "$1"
}

# Builds and runs the tests, each of which must fail; a build that fails shows nothing.
attack() { # GROUP NAME TEST...
    local group=$1 name=$2 test package=berth-runtime
    shift 2
    if [ "$group" = cluster ]; then
        package=berth-tests
        cargo xtask build --debug > "$log" 2>&1 || { tail -20 "$log"; die "$name does not build"; }
    fi
    cargo nextest run -p "$package" --no-run > "$log" 2>&1 || { tail -20 "$log"; die "$name does not build"; }
    for test in "$@"; do
        if cargo nextest run -p "$package" --retries 0 -E "test(=$test)" > "$log" 2>&1; then
            printf '%-26s %-70s PASSES, so the test shows nothing\n' "$name" "$test"
            failures=$((failures + 1))
        elif grep -q 'no tests to run' "$log"; then
            die "there is no test $test"
        else
            printf '%-26s %-70s fails\n' "$name" "$test"
        fi
    done
    restore
}

wanted() { # GROUP NAME
    [[ " $groups " == *" $1 "* ]] || return 1
    [ ${#names[@]} -eq 0 ] || [[ " ${names[*]} " == *" $2 "* ]]
}

r=runtime/src

if wanted runtime beneath-the-root; then
    change $r/setup/target.rs 'ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS' 'ResolveFlags::NO_MAGICLINKS'
    attack runtime beneath-the-root \
        setup::tests::no_swap_while_mounts_are_made_leads_one_outside \
        setup::target::tests::no_swap_of_a_directory_and_a_link_leads_outside \
        races::no_swap_in_the_root_leads_outside escape::links_in_the_image_lead_nowhere
fi

if wanted runtime device-numbers; then
    change $r/setup/dev.rs 'if fits { Ok(fd) } else { Err(Errno::NXIO) }' 'if fits || number.is_some() { Ok(fd) } else { Err(Errno::NXIO) }'
    attack runtime device-numbers \
        setup::tests::no_swap_makes_another_device_of_the_null_device disguises::a_false_null_device_is_refused
fi

if wanted runtime own-procfs; then
    change $r/setup/enter.rs 'userns::write_own(proc, file, text)' \
        '{ let _ = proc; std::fs::write(format!("/proc/self/{file}"), text).map_err(|_| Errno::IO) }'
    attack runtime own-procfs disguises::a_false_proc_is_not_written_to
fi

if wanted runtime close-descriptors; then
    change $r/init.rs '    std::mem::forget(null);
    close_all_from(3, &keep)' '    std::mem::forget(null);
    Ok(())'
    change $r/start.rs '    close_all_from(3, &keep).map_err(streams)?;' ''
    attack runtime close-descriptors escape::no_descriptor_leaks
fi

if wanted runtime working-directory; then
    # The check is the second line: without the first nothing is open that it could refuse.
    change $r/init.rs '    std::mem::forget(null);
    close_all_from(3, &keep)' '    std::mem::forget(null);
    Ok(())'
    change $r/setup/enter.rs "if now.as_bytes().first() == Some(&b'/') { Ok(()) } else { Err(Errno::XDEV) }" 'let _ = now; Ok(())'
    attack runtime working-directory disguises::no_descriptor_is_a_working_directory
fi

if wanted runtime init-not-dumpable; then
    change $r/setup/enter.rs 'set_dumpable_behavior(DumpableBehavior::NotDumpable)' 'set_dumpable_behavior(DumpableBehavior::Dumpable)'
    attack runtime init-not-dumpable escape::init_cannot_be_traced_or_overwritten
fi

if wanted runtime drop-capabilities; then
    change $r/setup/enter.rs 'let keep = if id.keep_caps {' 'let keep = if id.keep_caps || plan.mode == Mode::User {'
    attack runtime drop-capabilities escape::no_capability_is_left
fi

if wanted runtime inheritable; then
    change $r/setup/enter.rs 'permitted: keep, inheritable: CapabilitySet::empty() }' 'permitted: keep, inheritable: keep }'
    attack runtime inheritable escape::no_capability_is_left
fi

if wanted runtime deny-list; then
    change $r/seccomp/mod.rs '    if deny {' '    if deny && rules.len() > 1000 {'
    attack runtime deny-list escape::denied_system_calls
fi

if wanted runtime files-of-etc; then
    change $r/setup/etc.rs 'OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK' 'OFlags::RDONLY | OFlags::NONBLOCK'
    change $r/setup/etc.rs '    if !FileType::from_raw_mode(stat.st_mode).is_file() || size > MAX_LENGTH {
        return Vec::new();
    }' '    let _ = size;'
    attack runtime files-of-etc disguises::devices_and_sockets_in_etc
fi

if wanted runtime users-rights; then
    change $r/setup/mod.rs '    rights::act_as_user(plan)?;
    let sources' '    let sources'
    attack runtime users-rights escape::the_users_rights_open_the_sources races::no_swap_of_a_source_shows_what_is_closed \
        rights::no_mount_target_is_made_in_a_directory_of_roots
fi

if wanted runtime device-paths; then
    change $r/plan/mounts.rs "if !path.0.starts_with(b\"/dev/\") {" "if !device.0.starts_with(b\"/dev\") {"
    attack runtime device-paths disguises::device_paths_are_taken_by_component
fi

if wanted runtime layer-descriptors; then
    change $r/setup/overlay.rs '    let ns = fds.idmap_ns.as_ref().filter(|_| idmap);' \
        '    if let Ok(copy) = rustix::io::dup(&tree) {
        let _ = rustix::io::fcntl_setfd(&copy, rustix::io::FdFlags::empty());
        std::mem::forget(copy);
    }
    let ns = fds.idmap_ns.as_ref().filter(|_| idmap);'
    change $r/start.rs '    close_all_from(3, &keep).map_err(streams)?;' ''
    attack runtime layer-descriptors escape::no_descriptor_leaks
fi

if wanted runtime masked-for-root; then
    change $r/plan/mounts.rs 'if mode == Mode::System && request.identity.uid.0 == 0 {' 'if mode == Mode::System && request.identity.uid.0 == 1 {'
    attack runtime masked-for-root escape::roots_container_does_not_command_the_node
fi

if wanted cluster attach-owner; then
    change agent/src/clients.rs '            Some(((owner, _), _)) if *owner != peer.uid && peer.uid.0 != 0 => {' \
        '            Some(((owner, _), _)) if *owner == peer.uid && peer.uid.0 == 1 => {'
    attack cluster attach-owner escape::supervisor::another_user_is_not_attached_to_a_step_as_root
fi

if wanted cluster killed-is-killed; then
    change agent/step/src/supervisor/step.rs 'let killed = ExitStatus { code: 0, signal: 9 };' 'let killed = ExitStatus::OK;'
    attack cluster killed-is-killed escape::supervisor::killing_what_runs_a_task_is_no_success::as_user
fi

if wanted cluster closed-spool; then
    change agent/src/start.rs 'make(&paths.spool(), 0o700)?;' 'make(&paths.spool(), 0o777)?;'
    attack cluster closed-spool escape::supervisor::a_user_writes_nothing_by_which_an_exit_is_told_as_root
fi

if wanted cluster read-only-client; then
    change agent/step/src/supervisor/processes.rs '            target: target.clone(),
            read_only: true,' '            target: target.clone(),
            read_only: false,'
    attack cluster read-only-client escape::node::the_programs_of_the_node_cannot_be_written::as_user
fi

[ $failures -eq 0 ] || die "$failures tests pass without the defence that they are for"
