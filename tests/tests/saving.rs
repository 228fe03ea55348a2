//! Saved containers: what `--container-save` writes runs again, and other tools read it.

use berth_tests::sandbox::wait;
use berth_tests::{Cmd, Sandbox, Who, each_user, images};
use std::path::Path;

/// Files of every kind, in a container whose user appears as root.
const FILL: &str = "set -e; mkdir -p /made/dir; echo content > /made/file; chmod 4750 /made/file; ln /made/file /made/linked; \
    ln -s ../made/file /made/symlink; mkfifo /made/pipe; touch -d @86400 /made/dir/old; rm /etc/issue; \
    dd if=/dev/urandom of=/made/large bs=65536 count=5 2>/dev/null; dd if=/dev/zero of=/made/zeros bs=65536 count=4 2>/dev/null; \
    sha256sum /made/large | cut -c1-64; touch /made/closed; chmod 0 /made/closed; mkdir /made/shut; chmod 0 /made/shut; echo x > /tmp/not-saved";
const LOOK: &str = "stat -c '%n %a %h %F' /made/file /made/linked /made/pipe /made/shut; readlink /made/symlink; cat /made/linked; \
    stat -c %Y /made/dir/old; sha256sum /made/large | cut -c1-64; stat -c %s /made/zeros; ls /etc/issue /tmp/not-saved 2>/dev/null; true";

fn tool(program: &str) -> Cmd {
    Cmd::new(program)
}

each_user! {
    fn what_is_saved_runs_again_and_other_tools_read_it(who) {
        let sandbox = Sandbox::start(who.clone());
        let name = "--container-name=full";
        let first = ["--container-remap-root", name, "--container-scope=user", "--container-save=out.sqsh", "sh", "-c", FILL];
        let output = sandbox.srun_in(images::debian(), first).limit(120).ok();
        assert!(output.err().contains("saved to") && output.err().contains("out.sqsh on "), "{output}");
        let sum = output.text().lines().last().unwrap().to_string();
        for other in ["out.tar", "out.oci"] {
            let save = format!("--container-save={other}");
            sandbox.srun([name, "--container-scope=user", &save, "true"]).limit(120).ok();
        }
        let expected = format!(
            "/made/file 4750 2 regular file\n/made/linked 4750 2 regular file\n/made/pipe 644 1 fifo\n/made/shut 0 N directory\n\
             ../made/file\ncontent\n86400\n{sum}\n262144"
        );
        // A directory's links are counted otherwise by every filesystem.
        let count = |text: String| text.replace("/made/shut 0 1 ", "/made/shut 0 N ").replace("/made/shut 0 2 ", "/made/shut 0 N ");
        for form in ["./out.sqsh", "./out.tar", "./out.oci"] {
            let image = format!("--container-image={form}");
            let text = sandbox.srun([&image, "--container-remap-root", "sh", "-c", LOOK]).limit(120).ok().text();
            assert_eq!(count(text), expected, "{form}");
        }
        let path = |name: &str| sandbox.work().join(name).display().to_string();
        // Squashfs as squashfs-tools read it: complete, and root's.
        let list = tool("unsquashfs").args(["-lln", &path("out.sqsh")]).ok().text();
        let line = |end: &str| list.lines().find(|l| l.ends_with(end)).unwrap_or_else(|| panic!("{end} is not in {list}")).to_string();
        assert!(line("squashfs-root/made/file").starts_with("-rwsr-x--- 0/0"), "{}", line("squashfs-root/made/file"));
        assert!(line("squashfs-root/made/pipe").starts_with("prw-r--r-- 0/0"));
        assert!(!list.contains("etc/issue\n") && !list.contains("not-saved"), "{list}");
        let unpacked = tempfile::tempdir().unwrap();
        let target = unpacked.path().join("root").display().to_string();
        tool("unsquashfs").args(["-q", "-n", "-no-xattrs", "-d", &target, &path("out.sqsh")]).limit(120).run();
        let found = tool("sha256sum").arg(format!("{target}/made/large")).ok().text();
        assert!(found.starts_with(&sum), "{found}");
        // Archive and layout as skopeo reads them, in both of the archive's forms.
        for source in [format!("docker-archive:{}", path("out.tar")), format!("oci-archive:{}", path("out.tar")), format!("oci:{}", path("out.oci"))] {
            let text = tool("skopeo").args(["inspect", "--config", &source]).ok().text();
            assert!(text.contains("diff_ids"), "{source}: {text}");
        }
        // What cannot be written is refused before the step runs.
        std::fs::create_dir(sandbox.work().join("here")).unwrap();
        sandbox.srun([name, "--container-scope=user", "--container-save=here", "touch", "/ran"]).fails().says(&["target is a directory", "here"]);
        sandbox.srun([name, "--container-scope=user", "--container-save=/dev/null", "touch", "/ran"]).fails().says(&["target is no regular file", "/dev/null"]);
        sandbox.srun([name, "--container-scope=user", "--container-save=no/such/x.sqsh", "touch", "/ran"]).fails().says(&["--container-save", "no/such"]);
        sandbox.srun([name, "--container-scope=user", "ls", "/ran"]).fails();
        sandbox.cmd("salloc").args(["--container-image=x", "--container-save=x", "true"]).fails().says(&["--container-save", "srun or sbatch"]);
        sandbox.srun(["--container-image=host:", "--container-save=x", "true"]).fails().says(&["--container-save", "host:"]);
        sandbox.cmd("berth").args(["container", "rm", "full"]).ok();
    }

    fn a_step_that_is_ended_saves_nothing_and_an_image_that_was_there_stays(who) {
        let sandbox = Sandbox::start(who);
        sandbox.write("kept.sqsh", "as it was");
        let mut running = sandbox
            .srun_in(images::busybox(), ["--container-save=kept.sqsh", "sh", "-c", "echo up; sleep 60"])
            .spawn();
        running.wait_for("up", 30);
        let job = sandbox.cmd("squeue").args(["-h", "-o", "%A"]).ok().text();
        sandbox.cmd("scancel").arg(job.trim()).ok();
        running.finish();
        assert_eq!(sandbox.read("kept.sqsh"), "as it was");
        assert!(wait(30, || (of_name(&sandbox, "kept") == 1).then_some(())).is_some(), "half an image is left");
        // A failed task's container is saved all the same, and the exit code is the task's.
        let output = sandbox.srun_in(images::busybox(), ["--container-save=kept.sqsh", "sh", "-c", "exit 7"]).run();
        assert_eq!(output.rc, 7, "{output}");
        assert!(std::fs::read(sandbox.work().join("kept.sqsh")).unwrap().starts_with(b"hsqs"));
    }

    fn a_writer_that_stands_still_holds_nothing_up(who) {
        let sandbox = Sandbox::start(who);
        // So large that nobody sees its end.
        let running = sandbox.srun_in(images::busybox(), ["--container-save=big.sqsh", "truncate", "-s", "300G", "/hole"]).limit(90).spawn();
        let target = sandbox.work().join("big.sqsh");
        let writers = || berth_tests::leftovers::processes(&target).into_iter().filter(|(_, line)| line.contains("internal-save"));
        let (writer, _) = wait(30, || writers().next()).expect("nobody writes the image");
        // The user's process, and so the user's to stop.
        let stopped = sandbox.cmd("kill").args(["-STOP", &writer.to_string()]).run();
        assert_eq!(stopped.rc, 0, "{stopped}");
        let job = sandbox.cmd("squeue").args(["-h", "-o", "%A"]).ok().text();
        sandbox.cmd("scancel").arg(job.trim()).ok();
        let told = running.finish();
        assert_ne!(told.rc, 0, "{told}");
        assert!(told.err().contains("--container-save"), "{told}");
        assert!(wait(30, || writers().next().is_none().then_some(())).is_some(), "the writer is left");
        // It was killed, and could take nothing away.
        assert_eq!(of_name(&sandbox, "big"), 0, "half an image is left");
        sandbox.srun(["true"]).ok();
    }

    fn a_container_that_dies_while_it_is_saved(who) {
        let sandbox = Sandbox::start(who);
        let running = sandbox.srun_in(images::busybox(), ["--container-save=big.sqsh", "truncate", "-s", "300G", "/hole"]).limit(90).spawn();
        let target = sandbox.work().join("big.sqsh");
        let writers = || berth_tests::leftovers::processes(&target).into_iter().filter(|(_, line)| line.contains("internal-save"));
        let (writer, _) = wait(30, || writers().next()).expect("nobody writes the image");
        // The supervisor's other child is the container's init.
        let status = std::fs::read_to_string(format!("/proc/{writer}/status")).unwrap();
        let supervisor = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().to_string();
        let children = std::fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children")).unwrap();
        let init = children.split_whitespace().find(|pid| **pid != writer.to_string()).expect("no init");
        sandbox.cmd("kill").args(["-KILL", init]).ok();
        let told = running.finish();
        assert_ne!(told.rc, 0, "{told}");
        assert!(told.err().contains("--container-save"), "{told}");
        assert!(wait(30, || writers().next().is_none().then_some(())).is_some(), "the writer is left");
        assert_eq!(of_name(&sandbox, "big"), 0, "half an image is left");
        sandbox.srun(["true"]).ok();
    }

    fn a_package_that_makes_users_is_in_the_saved_image(who) {
        let sandbox = Sandbox::start(who);
        let words = ["--container-remap-root", "--container-writable", "--container-save=tools.sqsh", "sh", "-c", crate::packages::INSTALL];
        sandbox.srun_in(images::debian(), words).limit(180).ok();
        let look = "dpkg -s keeper | grep Status; getent group watchers | cut -d: -f1,4; cat /usr/share/keeper/data";
        let text = sandbox.srun(["--container-image=./tools.sqsh", "sh", "-c", look]).limit(120).ok().text();
        assert_eq!(text, "Status: install ok installed\nwatchers:keeper\ncontent");
    }
}

/// How many files of the working directory have a name with this part.
fn of_name(sandbox: &Sandbox, part: &str) -> usize {
    let names = std::fs::read_dir(sandbox.work()).unwrap().map(|e| e.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().contains(part)).count()
}

/// In root's cluster an image is written by its user: not where the user may not write, and as the user's file.
#[test]
fn an_image_is_written_with_its_users_rights_as_root() {
    use std::os::unix::fs::MetadataExt;
    let sandbox = Sandbox::start(Who::root());
    let ann = Who::user();
    let image = format!("--container-image={}", images::busybox().display());
    let open = sandbox.work().join("open");
    std::fs::create_dir(&open).unwrap();
    berth_tests::machine::give(&open, &ann);
    let save = |path: &Path| {
        let option = format!("--container-save={}", path.display());
        sandbox.cmd_as(&ann, "srun").args([&image, &option, "true"])
    };
    let mine = open.join("mine.sqsh");
    save(&mine).ok();
    let meta = std::fs::metadata(&mine).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o777), (ann.uid, ann.gid, 0o644));
    let roots = sandbox.work().join("roots.sqsh");
    std::fs::write(&roots, "root's").unwrap();
    save(&roots).fails().says(&["--container-save", "Permission denied"]);
    assert_eq!(std::fs::read(&roots).unwrap(), b"root's");
    // A link in the place of the image is replaced, and not what it leads to.
    let link = open.join("link.sqsh");
    std::os::unix::fs::symlink(&roots, &link).unwrap();
    save(&link).ok();
    assert!(std::fs::symlink_metadata(&link).unwrap().is_file());
    assert_eq!(std::fs::read(&roots).unwrap(), b"root's");
}
