//! GPUs of AMD's and Intel's: what the kernel says of them is recorded, and their files are real character devices.

use berth_tests::{Cmd, Sandbox, Who, images, machine, sandbox};
use std::fs;
use std::path::{Path, PathBuf};

/// Files of devices that any program may open: what all of AMD's have in common, two of AMD's, two of Intel's.
const FILES: [(&str, &str); 5] = [
    ("/dev/kfd", "10 229"),
    ("/dev/dri/renderD240", "10 200"),
    ("/dev/dri/renderD241", "10 237"),
    ("/dev/dri/renderD242", "7 1"),
    ("/dev/dri/renderD243", "7 0"),
];

/// Those files, for as long as this lives.
struct Made(Vec<PathBuf>);

impl Made {
    fn make() -> Made {
        let mut made = Made(Vec::new());
        let dir = Path::new("/dev/dri");
        if !dir.exists() {
            fs::create_dir(dir).unwrap();
            made.0.push(dir.into());
        }
        for (file, number) in FILES {
            assert!(!Path::new(file).exists(), "{file} is there: an earlier test left it");
            Cmd::new("mknod").args(["-m", "666", file, "c"]).args(number.split(' ')).ok();
            made.0.push(file.into());
        }
        made
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in self.0.iter().rev() {
            // The directory goes when nobody else has put something there.
            let _ = if path.is_dir() { fs::remove_dir(path) } else { fs::remove_file(path) };
        }
    }
}

/// What the kernel says of them: the addresses of AMD's fall while their files' numbers rise.
fn record(tree: &Path) {
    let write = |path: &str, text: &str| {
        let file = tree.join(path.trim_start_matches('/'));
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    };
    for (file, _) in FILES {
        write(file, "");
    }
    for (node, render, place) in [(1, 240, 0x8300), (2, 241, 0x4300)] {
        let dir = format!("/sys/class/kfd/kfd/topology/nodes/{node}");
        let properties = format!(
            "simd_count 440\ndrm_render_minor {render}\nlocation_id {place}\ndomain 0\nunique_id 1234{node}\n"
        );
        write(&format!("{dir}/properties"), &properties);
        write(&format!("{dir}/gpu_id"), &format!("5111{node}\n"));
        write(&format!("/sys/class/drm/renderD{render}/device/product_name"), "AMD Instinct MI250X\n");
    }
    for (render, bus) in [(242, "0000:9a:00.0"), (243, "0000:9b:00.0")] {
        let dir = format!("/sys/class/drm/renderD{render}/device");
        write(&format!("{dir}/vendor"), "0x8086\n");
        write(&format!("{dir}/device"), "0x0bda\n");
        write(&format!("{dir}/uevent"), &format!("DRIVER=i915\nPCI_SLOT_NAME={bus}\n"));
    }
}

/// What a process reaches, by the files and by others of the same numbers, and what it is told.
fn look() -> String {
    let mut script = "cd /tmp; ls -d /dev/kfd /dev/dri/* 2>/dev/null; ".to_string();
    for (file, number) in FILES {
        script += &format!(
            "(exec 3<{file}) 2>/dev/null && echo opens {file}; \
             mknod made c {number} 2>/dev/null && (exec 3<made) 2>/dev/null && echo made {file}; rm -f made; "
        );
    }
    script
        + "echo rocr=$ROCR_VISIBLE_DEVICES ordinal=$GPU_DEVICE_ORDINAL ze=$ZE_AFFINITY_MASK cuda=$CUDA_VISIBLE_DEVICES; echo end"
}

/// Demands that a process in a container had these files alone, and was told this.
fn has(text: &str, files: &[&str], told: &str) {
    let lines: Vec<&str> = text.lines().collect();
    let made = |line: &&&str| line.starts_with("made ");
    let opens: Vec<String> = files.iter().map(|file| format!("opens {file}")).collect();
    let mut expected: Vec<&str> = files.iter().copied().chain(opens.iter().map(String::as_str)).collect();
    expected.extend([told, "end"]);
    expected.sort_unstable();
    let mut rest: Vec<&str> = lines.iter().filter(|line| !made(line)).copied().collect();
    rest.sort_unstable();
    assert_eq!(rest, expected, "{text}");
    for line in lines.iter().filter(made) {
        assert!(files.iter().any(|file| line.ends_with(file)), "it made what is another's: {text}");
    }
}

#[test]
fn steps_reach_their_own_cards_of_amd_and_intel_and_no_others() {
    if !machine::is_root() {
        return;
    }
    let _alone = machine::lock("gpus");
    let _made = Made::make();
    let mut node = Sandbox::empty(Who::root());
    record(&node.work().join("tree"));
    let tree = format!("BERTH_GPU_TREE={}", node.work().join("tree").display());
    node.up_by("env", &[tree, "berth".into(), "up".into(), "--detach".into()]);
    let gres = node.cmd("sinfo").args(["-h", "-N", "-o", "%G"]).ok().text();
    assert!(gres.contains("amd_instinct_mi250x:2") && gres.contains("intel_max_1100:2"), "{gres}");
    let image = format!("--container-image={}", images::debian().display());
    let look = look();
    let cards = [
        ("amd_instinct_mi250x", "rocr=0 ordinal=0 ze= cuda=", ["/dev/dri/renderD241", "/dev/dri/renderD240"]),
        ("intel_max_1100", "rocr= ordinal= ze=0 cuda=", ["/dev/dri/renderD242", "/dev/dri/renderD243"]),
    ];
    for (kind, told, files) in cards {
        let with = |file: &'static str| match kind.starts_with("amd") {
            true => vec!["/dev/kfd", file],
            false => vec![file],
        };
        let gres = format!("--gres=gpu:{kind}:1");
        let words = [gres.as_str(), "-n1", "--mem=50M"];
        // One job has the first card, and so another one the second.
        let held = format!("held-{kind}");
        let script = format!("#!/bin/sh\n{look}\nsleep 600\n");
        let holder = node.sbatch(&[&words[..], &["-o", &held, &image]].concat(), &script);
        node.wait_file(&held, "end\n", 60);
        has(&node.read(&held), &with(files[0]), told);
        let text = node.srun(words.iter().copied().chain([&image[..], "sh", "-c", &look])).ok().text();
        has(&text, &with(files[1]), told);
        // Tasks that share a step have one each.
        node.cmd("scancel").arg(holder.to_string()).ok();
        node.wait_state(holder, "CANCELLED", 30);
        let both = format!("--gres=gpu:{kind}:2");
        let tasks = [both.as_str(), "-n2", "--mem=50M", "--gpu-bind=single:1", &image, "-o", "task%t"];
        node.srun(tasks.into_iter().chain(["sh", "-c", &look])).ok();
        for task in 0..2 {
            let text = node.read(&format!("task{task}"));
            let own = format!("opens {}", files[task]);
            let other = format!("opens {}", files[1 - task]);
            assert!(text.contains(&own) && !text.contains(&other) && text.contains(told), "{text}");
        }
        // On the node's own filesystem all are there, and the others do not open.
        let text = node.srun(words.iter().copied().chain(["sh", "-c", &look])).ok().text();
        let opened: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("opens ")).collect();
        let own = *files.iter().find(|file| opened.contains(file)).unwrap_or_else(|| panic!("{text}"));
        assert_eq!(opened, with(own), "{text}");
    }
    // Without a GPU not even what all of AMD's have in common.
    for container in [None, Some(image.as_str())] {
        let words = ["--mem=50M"].into_iter().chain(container).chain(["sh", "-c", &look]);
        let text = node.srun(words).ok().text();
        let reached = text.lines().filter(|line| line.starts_with("opens ") || line.starts_with("made "));
        assert_eq!(reached.count(), 0, "{container:?}: {text}");
    }
    let left = || node.cmd("squeue").args(["-h"]).ok().text();
    assert!(sandbox::wait(30, || left().is_empty().then_some(())).is_some(), "{}", left());
}
