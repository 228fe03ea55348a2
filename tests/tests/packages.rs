//! A package manager in a container whose user appears as root: what an ordinary user types to add software.

use berth_tests::{Sandbox, each_user, images};

/// Builds a package that makes a user and two groups, gives files away and makes a device, puts it into a repository of
/// its own, and installs it as anybody would. Nothing is fetched.
pub const INSTALL: &str = r#"set -e
mkdir -p /repo/pkg/DEBIAN /repo/pkg/usr/share/keeper /repo/pkg/var/lib/keeper
cd /repo
echo content > pkg/usr/share/keeper/data
cat > pkg/DEBIAN/control <<END
Package: keeper
Version: 1.0
Architecture: all
Maintainer: Nobody <nobody@example.invalid>
Description: makes a user and two groups
END
cat > pkg/DEBIAN/postinst <<END
#!/bin/sh
set -e
groupadd --system keepers
useradd --system --gid keepers --home-dir /var/lib/keeper --shell /usr/sbin/nologin keeper
groupadd --system watchers
usermod --append --groups watchers keeper
chown keeper:keepers /var/lib/keeper
chmod 2750 /var/lib/keeper
chgrp watchers /usr/share/keeper/data
mknod /var/lib/keeper/null c 1 3
END
chmod 755 pkg/DEBIAN/postinst
dpkg-deb --root-owner-group -b pkg keeper.deb >/dev/null
{ cat pkg/DEBIAN/control
  echo "Filename: ./keeper.deb"
  echo "Size: $(stat -c %s keeper.deb)"
  echo "SHA256: $(sha256sum keeper.deb | cut -d' ' -f1)"
} > Packages
rm -rf /etc/apt/sources.list.d/*
echo 'deb [trusted=yes] file:/repo ./' > /etc/apt/sources.list
apt-get update -qq >/dev/null
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq keeper >/dev/null
id -un keeper; id -Gn keeper; getent group watchers | cut -d: -f1,4; dpkg -s keeper | grep Status; cat /usr/share/keeper/data
"#;

each_user! {
    fn apt_installs_a_package_that_makes_users_and_groups(who) {
        let sandbox = Sandbox::start(who);
        let words = ["--container-remap-root", "--container-writable", "sh", "-c", INSTALL];
        let text = sandbox.srun_in(images::debian(), words).limit(120).ok().text();
        let expected = "keeper\nkeepers watchers\nwatchers:keeper\nStatus: install ok installed\ncontent";
        assert!(text.ends_with(expected), "{text}");
    }

    fn what_is_written_goes_where_it_was_asked_for(who) {
        let sandbox = Sandbox::start(who.clone());
        let image = images::busybox();
        let layers = || -> Vec<std::path::PathBuf> {
            let scratch = sandbox.state().join("scratch");
            let jobs = std::fs::read_dir(&scratch).unwrap().map(|job| job.unwrap().path());
            jobs.chain([scratch.clone()])
                .flat_map(|dir| std::fs::read_dir(dir).into_iter().flatten())
                .map(|entry| entry.unwrap().path())
                .filter(|path| path.file_name().unwrap().to_string_lossy().contains("layer-"))
                .collect()
        };
        let kind = "awk '$5 == \"/\" {print $NF}' /proc/self/mountinfo | tr , '\n' | grep upperdir >/dev/null && echo overlay; \
                    dd if=/dev/zero of=/large bs=1M count=24 2>/dev/null && echo whole";
        let text = sandbox.srun_in(&image, ["--container-writable-layer=disk", "sh", "-c", kind]).ok().text();
        assert_eq!(text, "overlay\nwhole");
        for layer in ["tmpfs:8M", "disk:8M"] {
            let option = format!("--container-writable-layer={layer}");
            let fill = "echo small > /small; dd if=/dev/zero of=/large bs=1M count=24";
            let line = sandbox.srun_in(&image, [&option, "sh", "-c", fill]);
            if layer == "disk:8M" && !who.is_root() {
                line.fails().says(&["--container-writable-layer", "only root can bound", "tmpfs:SIZE"]);
            } else {
                line.fails().says(&["No space left on device", "writable layer is full: 8 MiB"]);
            }
        }
        // A step's layer goes with the step, while its job lives on.
        let script = "#!/bin/sh\nsrun --container-writable-layer=disk sh -c 'echo x > /x'\necho ended; sleep 60\n";
        let image = format!("--container-image={}", image.display());
        let job = sandbox.sbatch(&[&image, "--output=out"], script);
        sandbox.wait_file("out", "ended", 30);
        assert!(layers().is_empty(), "{:?}", layers());
        sandbox.cmd("scancel").arg(job.to_string()).ok();
        sandbox.srun_in(images::busybox(), ["--container-readonly", "--container-writable-layer=disk", "true"])
            .fails().says(&["--container-readonly", "--container-writable-layer"]);
        sandbox.srun_in(images::busybox(), ["--container-writable-layer=memory", "true"])
            .fails().says(&["'memory'", "tmpfs, disk, tmpfs:SIZE or disk:SIZE"]);
    }
}
