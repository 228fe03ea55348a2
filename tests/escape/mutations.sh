#!/usr/bin/env bash
# Takes out one defence at a time, builds, and runs the tests that attack it. Not part of tests/run.sh: it builds once for each
# defence. The table in docs/security.md has what was found. Run as root in a clean checkout.
# usage: tests/escape/mutations.sh [--runtime|--images|--model|--trust|--core|--cluster] [NAME...]
#        tests/escape/mutations.sh --check    changes and builds nothing: are the texts and the tests there?
set -euo pipefail
cd "$(dirname "$0")/../.."

die() { printf 'mutations.sh: error: %s\n' "$*" >&2; exit 1; }

groups="runtime images model trust core cluster"
names=()
run=yes
for word in "$@"; do
    case $word in
        --runtime | --images | --model | --trust | --core | --cluster) groups=${word#--} ;;
        --check) run=no ;;
        -*) die "unknown option $word; the first lines of this script say what there is" ;;
        *) names+=("$word") ;;
    esac
done
failures=0

[ $run = yes ] || [ $# -eq 1 ] || die "--check looks at all of them: give it nothing else"
if [ $run = yes ]; then
    known=$(tests/escape/mutations.sh --check)
    for name in "${names[@]}"; do
        grep -qx -- "$name" <<< "$known" || die "no defence is called $name; they are: ${known//$'\n'/ }"
    done
    [ "$(id -u)" -eq 0 ] || die "attacks on what root does need root: run it as root"
    [ -z "$(git status --porcelain --untracked-files=no)" ] || die "the checkout has changes, which would be lost: commit them first"
    log=$(mktemp /tmp/mutations.XXXXXX)
    trap finish EXIT
fi
restore() { git checkout -q -- agent images model rpc runtime scheduler; }
# Nothing weakened is left: neither sources nor programs.
finish() {
    restore
    cargo xtask build --debug > "$log" 2>&1 || {
        rm -f "${CARGO_TARGET_DIR:-target}"/debug/{berth,berth-step,static/berth-step}
        printf 'mutations.sh: the programs do not build without changes, and are removed: %s\n' "$(tail -3 "$log")" >&2
    }
    rm -f "$log"
}

# Replaces a text, which must be there once, in a file.
change() { # FILE OLD NEW
    local count
    count=$(OLD=$2 perl -0ne 'print scalar(() = /\Q$ENV{OLD}\E/g)' "$1")
    [ "$count" = 1 ] || die "$1 has the text $count times: $2"
    [ $run = no ] || OLD=$2 NEW=$3 perl -0pi -e 's/\Q$ENV{OLD}\E/$ENV{NEW}/' "$1"
}

# Builds and runs the tests. Of a defence that stands alone each must fail then; of one with others behind it each must pass still.
attack() { judge fails "$@"; } # GROUP NAME TEST...
layered() { judge passes "$@"; } # GROUP NAME TEST...

judge() { # fails|passes GROUP NAME TEST...
    local expected=$1 group=$2 name=$3 test found package=berth-runtime
    shift 3
    if [ $run = no ]; then
        for test in "$@"; do
            found=${test%::as_user}
            grep -rqw --include="*.rs" --exclude-dir=target "fn ${found##*::}" runtime images model rpc/trust scheduler/core tests/tests || die "$name: there is no test $test"
        done
        return
    fi
    [ "$group" != images ] || package=berth-images
    [ "$group" != model ] || package=berth-model
    [ "$group" != trust ] || package=berth-trust
    [ "$group" != core ] || package=berth-sched-core
    if [ "$group" = cluster ]; then
        package=berth-tests
        cargo xtask build --debug > "$log" 2>&1 || { tail -20 "$log"; die "$name does not build"; }
    fi
    cargo nextest run -p "$package" --no-run > "$log" 2>&1 || { tail -20 "$log"; die "$name does not build"; }
    for test in "$@"; do
        found=passes
        if ! cargo nextest run -p "$package" --retries 0 -E "test(=$test)" > "$log" 2>&1; then
            found=fails
            grep -q 'no tests to run' "$log" && die "there is no test $test"
        fi
        printf '%-26s %-80s %s' "$name" "$test" $found
        if [ $found = $expected ]; then
            echo
        else
            printf ', and not %s\n' $expected
            failures=$((failures + 1))
        fi
    done
    restore
}

# Whether it is to be tried; with --check its name is printed, and it is looked at.
wanted() { # GROUP NAME
    if [ $run = no ]; then
        echo "$2"
        return
    fi
    [[ " $groups " == *" $1 "* ]] || return 1
    [ ${#names[@]} -eq 0 ] || [[ " ${names[*]} " == *" $2 "* ]]
}

r=runtime/src

if wanted runtime beneath-the-root; then
    # Not the race of whole containers: it is won in some runs only. These race the same lookup, or need no luck.
    change $r/setup/target.rs 'ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS' 'ResolveFlags::NO_MAGICLINKS'
    attack runtime beneath-the-root \
        setup::tests::no_swap_while_mounts_are_made_leads_one_outside \
        setup::target::tests::no_swap_of_a_directory_and_a_link_leads_outside \
        escape::links_in_the_image_lead_nowhere
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
    change $r/setup/enter.rs '(false, false) => CapabilitySet::empty(),' \
        '(false, false) => if plan.mode == Mode::User { held } else { CapabilitySet::empty() },'
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
    attack runtime files-of-etc escape::strange_files_in_etc
fi

# Behind it: roots are mounted so that no device opens, and nothing waits for a pipe.
if wanted runtime devices-of-etc; then
    change $r/setup/etc.rs '    if !FileType::from_raw_mode(stat.st_mode).is_file() || size > MAX_LENGTH {
        return Vec::new();
    }' '    let _ = (size, stat.st_mode, FileType::RegularFile);'
    layered runtime devices-of-etc disguises::devices_and_sockets_in_etc
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
    change $r/setup/overlay.rs '    let ns = fds.idmap_ns.as_ref().filter(|_| owner.is_some());' \
        '    if let Ok(copy) = rustix::io::dup(&tree) {
        let _ = rustix::io::fcntl_setfd(&copy, rustix::io::FdFlags::empty());
        std::mem::forget(copy);
    }
    let ns = fds.idmap_ns.as_ref().filter(|_| owner.is_some());'
    change $r/start.rs '    close_all_from(3, &keep).map_err(streams)?;' ''
    attack runtime layer-descriptors escape::no_descriptor_leaks
fi

if wanted runtime image-owner; then
    change $r/setup/image.rs 'if stat.st_uid != owner.map_or(0, |owner| owner.uid) || stat.st_mode & 0o022 != 0 {' 'if owner.is_none() {'
    attack runtime image-owner options::images_that_others_can_write
fi

# Capabilities of files are gained then. Another uid is not, even so: none but the user's is mapped.
if wanted runtime set-id; then
    change $r/setup/overlay.rs 'set: mountattr::RDONLY | mountattr::NOSUID | mountattr::NODEV' 'set: mountattr::RDONLY | mountattr::NODEV'
    change $r/setup/overlay.rs '    let attrs = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    rustix::mount::fsmount(fs, FsMountFlags::FSMOUNT_CLOEXEC, attrs)' \
        '    rustix::mount::fsmount(fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_NODEV)'
    change $r/setup/overlay.rs 'let flags = MountFlags::NOSUID | MountFlags::NODEV;' 'let flags = MountFlags::NODEV;'
    change $r/setup/mod.rs 'set: mountattr::NOSUID | mountattr::NODEV, ' 'set: mountattr::NODEV, '
    # A filter cannot be loaded without no_new_privs.
    change $r/setup/enter.rs '    if plan.confinement.no_new_privs {
        rustix::thread::set_no_new_privs(true).doing("set no_new_privs")?;
    }
    if plan.confinement.seccomp || plan.confinement.fake_ids {' '    if plan.identity.uid == 1 {'
    attack runtime set-id disguises::rights_of_a_file_mean_nothing
fi

if wanted runtime unchangeable-hooks; then
    change $r/hooks/trust.rs 'if stat.st_uid != 0 && stat.st_uid != owner {' 'if stat.st_uid != 0 && stat.st_uid != owner && links > MOST_LINKS {'
    change $r/hooks/trust.rs 'if stat.st_mode & 0o022 != 0 && !sticky {' 'if stat.st_mode & 0o022 != 0 && !sticky && links > MOST_LINKS {'
    attack runtime unchangeable-hooks hooks::trust::tests::only_what_nobody_else_can_exchange_is_taken
fi

if wanted runtime masked-for-root; then
    change $r/plan/mounts.rs 'if mode == Mode::System && request.identity.uid.0 == 0 {' 'if mode == Mode::System && request.identity.uid.0 == 1 {'
    attack runtime masked-for-root escape::roots_container_does_not_command_the_node
fi

i=images/src

if wanted images layer-beneath; then
    change $i/unpack/tree.rs 'pub(crate) const STRICT: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)' 'pub(crate) const STRICT: ResolveFlags = ResolveFlags::empty()'
    attack images layer-beneath hostile::symlinks_never_lead_outside
fi

if wanted images layer-dot-dot; then
    change $i/unpack/path.rs '                b".." => {
                    return Err(refused(
                        raw,
                        "its name has a .. component, which could lead outside the image",
                    ));
                }
' ''
    attack images layer-dot-dot hostile::dot_dot_is_refused_everywhere
fi

if wanted images whiteout-names; then
    change $i/unpack/mod.rs 'if matches!(name, b"" | b"." | b"..") {' 'if name == b"" {'
    attack images whiteout-names hostile::whiteouts_cannot_reach_outside
fi

if wanted images overlay-attributes; then
    change $i/unpack/mod.rs 'if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {' 'if name.starts_with(b"trusted.overlay.") {'
    attack images overlay-attributes hostile::overlay_attributes_and_capabilities_are_stripped
fi

if wanted images bombs; then
    change $i/unpack/limits.rs 'if plain > self.free_bytes && plain / self.ratio.max(1) > compressed {' 'if plain > self.free_bytes && compressed == 0 {'
    attack images bombs hostile::bombs_are_refused_by_ratio
fi

if wanted images entries; then
    change $i/unpack/mod.rs 'if self.report.entries > self.limits.entries {' 'if self.report.entries == u64::MAX {'
    attack images entries hostile::entries_names_and_depth_are_bounded
fi

if wanted images links-lead-deep; then
    change $i/unpack/place.rs '        self.bounded(&here, entry)?;
' ''
    change $i/unpack/place.rs '                self.bounded(&placed, &path)?;
' ''
    attack images links-lead-deep hostile::what_links_lead_to_is_bounded_as_names_are
fi

if wanted images two-sizes; then
    change $i/archive/reader.rs 'if size != stored && (size <= OCTAL_LIMIT || !header.size_is_octal() || stored > 0) =>' 'if size == u64::MAX =>'
    attack images two-sizes hostile::archives_that_two_readers_would_see_differently_are_refused
fi

if wanted images blob-digest; then
    change $i/store/pipeline.rs 'if found == layer.digest { Ok(()) } else { Err(mismatch(what, &layer.digest, &found)) }' 'let _ = found; Ok(())'
    attack images blob-digest hostile::another_blob_with_the_same_archive_in_it_is_refused
fi

if wanted images diff-id; then
    change $i/store/pipeline.rs 'Some(found) if found != layer.diff_id => Err(' 'Some(found) if found.hex().is_empty() => Err('
    attack images diff-id hostile::a_diff_id_that_does_not_fit_is_refused
fi

if wanted images devices; then
    change $i/unpack/mod.rs '            EntryKind::CharDevice | EntryKind::BlockDevice => {
                self.form.clear(&path)?;' '            EntryKind::CharDevice | EntryKind::BlockDevice if entry.mode == 0o7777 => {
                self.form.clear(&path)?;'
    change $i/unpack/mod.rs 'EntryKind::Fifo => self.fifo(&path, entry),' '_ => self.fifo(&path, entry),'
    attack images devices hostile::device_nodes_are_left_out_and_reported
fi

if wanted images regular-files; then
    change $i/source/sniff.rs 'if !file.metadata().map_err(|e| Error::path(path, e))?.is_file() {' 'if path.as_os_str().is_empty() {'
    attack images regular-files around::what_is_no_file_in_a_layout_is_not_read
fi

if wanted images weak-digests; then
    change $i/digest.rs '"sha512" => Algorithm::Sha512,
            _' '"sha512" | "md5" | "sha1" => Algorithm::Sha512,
            _'
    change $i/digest.rs 'if hex.len() != algorithm.hex_len() {' 'if hex.len() > algorithm.hex_len() {'
    attack images weak-digests around::weak_and_misshapen_digests_are_refused_wherever_they_stand
fi

if wanted images others-challenge; then
    change $i/registry/mod.rs 'let own = elsewhere.is_none();' 'let own = true;'
    attack images others-challenge registry::logins::a_host_that_a_registry_redirects_to_gets_no_login_by_asking_for_one \
        registry::logins::a_jobs_login_is_kept_whatever_storage_behind_its_registry_says \
        push::a_host_to_which_uploads_are_sent_gets_no_login_by_asking_for_one
fi

if wanted images signature-flood; then
    change $i/registry/signatures.rs 'left.descriptors -= 1;' ''
    attack images signature-flood \
        signatures::a_repository_with_thousands_of_signatures_that_are_not_there_is_asked_for_few
fi

if wanted images login-elsewhere; then
    change $i/registry/mod.rs 'Some(authorization) if urls::is_same(target, &self.base) => {' 'Some(authorization) if !target.is_empty() => {'
    attack images login-elsewhere registry::logins::logins_do_not_follow_redirects \
        registry::logins::a_host_that_a_registry_redirects_to_gets_no_login_by_asking_for_one \
        push::a_host_to_which_uploads_are_sent_gets_no_login_by_asking_for_one
fi

if wanted images granted-to-each; then
    change $i/store/grant.rs 'Ok(self.grant_of(&image.digest, uid)?.is_some_and(|grant| grant.sources.contains(&image.source)))' \
        'Ok(self.grant_of(&image.digest, uid).is_ok())'
    attack images granted-to-each concurrency::a_private_image_serves_only_those_who_could_pull_it_as_root \
        shared::a_private_layer_goes_to_nobody_who_only_knows_what_it_is_called_as_root \
        granted::each_user_has_their_own_names_sources_and_sizes
fi

if wanted images granted-by-source; then
    change $i/store/grant.rs 'is_some_and(|grant| grant.sources.contains(&image.source))' 'is_some()'
    attack images granted-by-source concurrency::what_one_source_gave_is_not_given_as_another_sources \
        granted::each_user_has_their_own_names_sources_and_sizes
fi

if wanted images set-id-bits; then
    change $i/unpack/mod.rs 'if !self.keep_setid && entry.mode & 0o6000 != 0 {' 'if !self.keep_setid && entry.mode == u32::MAX {'
    attack images set-id-bits hostile::setuid_bits_stay_only_in_an_unprivileged_store \
        around::devices_and_set_user_id_bits_of_a_squashfs_image_are_those_of_a_layer
fi

if wanted images file-capabilities; then
    change $i/unpack/mod.rs 'self.report.capabilities_stripped += 1;' 'kept.push((name, value));'
    attack images file-capabilities hostile::overlay_attributes_and_capabilities_are_stripped
fi

if wanted images two-documents; then
    change $i/manifest.rs 'if index == manifest {' 'if !index && !manifest {'
    attack images two-documents manifest::tests::ambiguous_manifests_are_refused \
        hostile::wrong_sizes_digests_and_counts_in_manifests_are_refused
fi

if wanted images nested-indexes; then
    change $i/source/mod.rs 'for _ in 0..4 {' 'for _ in 0..400 {'
    attack images nested-indexes around::indexes_of_indexes_end
fi

# It is made closed, and closed again by whoever opens it.
if wanted images closed-store; then
    change $i/store/mod.rs 'match std::fs::DirBuilder::new().mode(0o700).create(root) {' 'match std::fs::DirBuilder::new().mode(0o755).create(root) {'
    change $i/store/mod.rs 'if mode & 0o077 != 0 {' 'if mode == u32::MAX {'
    attack images closed-store hostile::setuid_bits_stay_only_in_an_unprivileged_store \
        store::stores_of_others_of_newer_versions_and_open_ones
fi

if wanted model rules-by-component; then
    change model/src/admission.rs 'let covers = |rule: &&String| place::below(rule, place).is_some();' \
        'let covers = |rule: &&String| place.starts_with(rule.as_str());'
    attack model rules-by-component admission::tests::an_allow_list_refuses_all_else_and_deny_wins \
        admission::tests::a_deny_list_alone_refuses_what_it_names
fi

t=rpc/trust/src
if wanted trust certificate-key; then
    change $t/tls.rs 'verify_tls13_signature(message, certificate, signed, &ALGORITHMS)' \
        'verify_tls13_signature(message, certificate, signed, &ALGORITHMS).or(Ok(HandshakeSignatureValid::assertion()))'
    attack trust certificate-key a_certificate_without_its_key_is_worth_nothing \
        who_stands_in_between_while_a_machine_joins_is_found_out
fi

if wanted trust own-authority; then
    change $t/tls.rs '_ => TrustError::OtherAuthority,
        })' '_ => TrustError::OtherAuthority,
        }).or_else(|e| if matches!(e, TrustError::OtherAuthority) { Ok(()) } else { Err(e) })'
    attack trust own-authority another_authority_makes_no_member_whatever_it_is_called altered_certificates_are_never_members \
        who_stands_in_between_while_a_machine_joins_is_found_out
fi

if wanted trust server-role; then
    change $t/tls.rs 'if has == role && !machine.is_empty()' 'if !has.is_empty() && !machine.is_empty()'
    attack trust server-role a_compute_nodes_certificate_does_not_pass_for_the_controllers
fi

if wanted trust named-authority; then
    change $t/tls.rs 'sha256(p.public) == *fingerprint' 'sha256(p.public) != [0; 32] && !fingerprint.is_empty()'
    attack trust named-authority who_stands_in_between_while_a_machine_joins_is_found_out
fi

if wanted trust own-words; then
    change $t/tls.rs '&& p.signed_itself())' ')'
    attack trust own-words who_stands_in_between_while_a_machine_joins_is_found_out
fi

if wanted trust private-keys; then
    change $t/files.rs 'let open = meta.mode() & 0o7777 & !mode;' 'let open = 0 & mode;'
    attack trust private-keys a_key_that_others_can_have_is_refused_with_what_to_do \
        an_authority_in_files_that_others_can_have_is_refused
fi

m=scheduler/core/src/cluster/members.rs
if wanted core token-secret; then
    change $m 'let good = same(found.map_or("", |t| &t.hash), hash);' 'let good = hash.len() == 64;'
    attack core token-secret members::one_text_refuses_every_token_that_is_not_good
fi

if wanted core token-expiry; then
    change $m 'good && t.expires > self.clock && t.uses_left > 0' 'good && t.uses_left > 0'
    attack core token-expiry members::one_text_refuses_every_token_that_is_not_good
fi

if wanted core token-uses; then
    change $m 'match token.uses_left - 1 {' 'match token.uses_left {'
    attack core token-uses members::uses_are_counted_and_tokens_expire_by_themselves members::one_text_refuses_every_token_that_is_not_good
fi

if wanted core one-key; then
    change $m 'if let Some(other) = self.keys.get(&key) {' 'if let Some(other) = self.keys.get(&key).filter(|n| **n == name) {'
    attack core one-key members::names_and_keys_belong_to_one_machine names_and_keys_stay_unique_and_come_back_from_the_rows
fi

if wanted core one-name; then
    change $m 'find(|n| n.0.eq_ignore_ascii_case(&name.0))' 'find(|n| **n == name && self.nodes.contains_key(*n))'
    attack core one-name members::names_and_keys_belong_to_one_machine
fi

if wanted core host-names; then
    change $m 'if let Err(e) = check_host_name(&name.0) {' 'if let Err(e) = check_host_name("n") {'
    attack core host-names members::names_and_keys_belong_to_one_machine
fi

if wanted core old-key; then
    change $m 'if member.key != *old {' 'if old.0.is_empty() {'
    attack core old-key members::a_key_is_renewed_by_who_has_the_old_one
fi

if wanted core leaving-key; then
    change $m 'if member.key != *key {' 'if key.0.is_empty() {'
    attack core leaving-key members::a_machine_leaves_by_its_own_key_alone_and_while_no_job_needs_it
fi

if wanted core removed-unheard; then
    change scheduler/core/src/cluster/agents.rs 'if self.departed.contains(name) {' 'if self.departed.contains(name) && hello.boot_id.is_empty() {'
    attack core removed-unheard members::a_removed_machine_is_cut_off_and_its_name_is_free
fi

if wanted core display-cookie-stays; then
    change scheduler/core/src/store.rs '.is_none_or(|x11| x11.is_carried_to(&launch.node.0))' '.is_none_or(|x11| x11.host.is_empty())'
    attack core display-cookie-stays store::tests::the_own_cookie_of_a_display_goes_to_its_machine_alone
fi

if wanted cluster display-cookie-at-the-node; then
    change agent/step/src/supervisor/display.rs 'if !words.proves(&self.cookie) =>' 'if !words.proves(&self.cookie) && self.cookie.is_empty() =>'
    layered cluster display-cookie-at-the-node x11::a_carried_display_is_the_steps_alone_and_its_own_cookie_stays_as_root
fi

c=scheduler/server/src/machines.rs
if wanted cluster jobs-of-its-own; then
    change $c '
                        && info.layout.nodes.contains(&member.name)' ''
    attack cluster jobs-of-its-own direct::a_compute_nodes_key_is_of_use_for_the_jobs_that_run_on_it_alone_as_root
fi

if wanted cluster jobs-of-that-user; then
    change $c 'info.identity.uid == peer.uid
                        && !info' '!info'
    attack cluster jobs-of-that-user direct::a_compute_nodes_key_is_of_use_for_the_jobs_that_run_on_it_alone_as_root
fi

if wanted cluster jobs-not-over; then
    change $c '
                        && !info.state.is_terminal()' ''
    attack cluster jobs-not-over direct::a_compute_nodes_key_is_of_use_for_the_jobs_that_run_on_it_alone_as_root
fi

if wanted cluster attach-owner; then
    change agent/src/clients.rs '            Some(((owner, _), _)) if *owner != peer.uid && peer.uid.0 != 0 => {' \
        '            Some(((owner, _), _)) if *owner == peer.uid && peer.uid.0 == 1 => {'
    attack cluster attach-owner escape::supervisor::another_user_is_not_attached_to_a_step_as_root
fi

if wanted cluster killed-is-killed; then
    change agent/step/src/supervisor/step/end.rs 'let killed = ExitStatus { code: 0, signal: 9 };' 'let killed = ExitStatus::OK;'
    attack cluster killed-is-killed escape::supervisor::killing_what_runs_a_task_is_no_success::as_user
fi

if wanted cluster closed-spool; then
    change agent/src/start.rs '(paths.spool(), 0o700)' '(paths.spool(), 0o777)'
    attack cluster closed-spool escape::supervisor::a_user_writes_nothing_by_which_an_exit_is_told_as_root
fi

if wanted cluster read-only-client; then
    change agent/step/src/supervisor/processes.rs '            target: target.clone(),
            read_only: true,' '            target: target.clone(),
            read_only: false,'
    attack cluster read-only-client escape::node::the_programs_of_the_node_cannot_be_written::as_user
fi

if wanted cluster hooks-before-each-run; then
    change $r/hooks/run.rs 'Some(owner) => super::trust::unchangeable(&hook.path, owner).map_err(failed)?,' 'Some(_) => hook.path.clone(),'
    attack cluster hooks-before-each-run hooks::what_others_could_change_is_not_run_as_root
fi

if wanted cluster hooks-own-words; then
    change $r/hooks/bundle.rs '"env": hooks.env,' \
        '"env": plan.env.iter().map(|v| format!("{}={}", v.name.display(), v.value.display())).collect::<Vec<_>>(),'
    attack cluster hooks-own-words hooks::neither_image_nor_user_adds_or_feeds_hooks_as_root
fi

[ $failures -eq 0 ] || die "$failures tests do not end as docs/security.md says"
