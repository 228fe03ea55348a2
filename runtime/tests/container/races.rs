//! A mutator changes the root directory under a container that is being made, as fast as it can.

use crate::Test;
use crate::helper::{As, Dir, Order, busybox, each, fingerprint, give, is_root, launch, request, uid};
use crate::options::mount;
use berth_model::ByteStr;
use berth_runtime::Rootfs;
use rustix::fs::{CWD, RenameFlags};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

pub const TESTS: &[Test] = &[
    ("races::no_swap_in_the_root_leads_outside", no_swap_in_the_root_leads_outside),
    ("races::no_swap_of_a_source_shows_what_is_closed", no_swap_of_a_source_shows_what_is_closed),
];

/// More by `BERTH_RACE_CONTAINERS`.
fn rounds() -> u32 {
    std::env::var("BERTH_RACE_CONTAINERS").map_or(200, |n| n.parse().unwrap())
}

/// Makes containers while each pair of names changes places; what they said, and how often one was made and refused.
fn race(mut order: Order, mode: As, pairs: &[(PathBuf, PathBuf)]) -> (String, u32, u32) {
    order.rounds = rounds();
    /// A failed launch must end the mutator too, or the scope would wait for it.
    struct Done<'a>(&'a AtomicBool);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let stop = AtomicBool::new(false);
    let outcome = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for (a, b) in pairs {
                    rustix::fs::renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).unwrap();
                }
            }
        });
        let _done = Done(&stop);
        launch(&order, mode)
    });
    assert_eq!(outcome.code, 0, "{outcome:?}");
    let (said, counts) = outcome.out.trim_end().rsplit_once('\n').unwrap_or(("", outcome.out.trim_end()));
    let numbers: Vec<u32> = counts.split(' ').filter_map(|w| w.parse().ok()).collect();
    (said.to_string(), numbers[0], numbers[1])
}

fn no_swap_in_the_root_leads_outside() {
    each(|mode| {
        let dir = Dir::new();
        // The user's own directory, which the user can change while root mounts into it.
        let root = busybox(&dir, As::User);
        let outside = dir.at("outside");
        for name in ["dev", "etc", "swap"] {
            std::fs::create_dir_all(outside.join(name)).unwrap();
        }
        for name in ["dev", "etc", "swap", "proc"] {
            std::fs::create_dir_all(root.join(name)).unwrap();
            symlink(format!("../outside/{name}"), root.join(format!("{name}-link"))).unwrap();
        }
        std::fs::copy(root.join("etc/passwd"), outside.join("etc/passwd")).unwrap();
        let file = dir.at("file");
        std::fs::write(&file, "").unwrap();
        give(&root, uid());
        // If a lookup went there, the user's own rights would be enough to make things in it.
        give(&outside, uid());
        let before = fingerprint(&outside);
        let pairs = ["dev", "etc", "swap"].map(|n| (root.join(n), root.join(format!("{n}-link"))));
        for in_place in [true, false] {
            let mut r = request(&root, mode);
            r.root = Rootfs::Dir(ByteStr::from(root.as_path()));
            r.writable = Some(in_place);
            r.mounts =
                vec![mount("tmpfs", "/swap/one", &[]), mount(file.to_str().unwrap(), "/swap/two/deep", &[])];
            // A mount that went elsewhere is missing here.
            let look = "n=$(grep -c -E ' /swap(-link)?/(one|two/deep) ' /proc/self/mountinfo); [ $n = 2 ] || echo won: $n; \
                        [ -e /outside ] && echo won; t=$(stat -Lc %F /dev/null) && [ \"$t\" != \"character special file\" ] && echo won: null; true";
            let (said, made, refused) = race(Order::new(r, look), mode, &pairs);
            println!("{mode:?}, in place {in_place}: {made} made, {refused} refused");
            assert_eq!(said, "", "{mode:?} in place {in_place}");
            assert_eq!(fingerprint(&outside), before, "{mode:?} in place {in_place}: changed outside");
            assert!(made > 0 && refused > 0, "{mode:?} in place {in_place}: {made} made, {refused} refused");
        }
    });
}

fn no_swap_of_a_source_shows_what_is_closed() {
    if !is_root() {
        return; // There is nobody else's right to borrow.
    }
    let dir = Dir::new();
    let layer = busybox(&dir, As::Root);
    let (open, closed) = (dir.at("open"), dir.at("closed"));
    for d in [open.join("source"), closed.join("source")] {
        std::fs::create_dir_all(d).unwrap();
    }
    std::fs::write(closed.join("source/secret"), "secret").unwrap();
    give(&open, uid());
    std::fs::set_permissions(&closed, PermissionsExt::from_mode(0o700)).unwrap();
    let link = dir.at("link");
    symlink("closed", &link).unwrap();
    let mut r = request(&layer, As::Root);
    r.mounts = vec![mount(open.join("source").to_str().unwrap(), "/data", &["rbind"])];
    let order = Order::new(r, "cat /data/secret 2>/dev/null; true");
    let (said, made, refused) = race(order, As::Root, &[(open, link)]);
    println!("{made} made, {refused} refused");
    assert_eq!(said, "");
    assert!(made > 0 && refused > 0, "{made} made, {refused} refused");
}
