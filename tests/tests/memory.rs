//! What importing an image takes in memory, however large its layer is and however many files it has.

use berth_tests::{Cmd, Registry, Sandbox, Who, images};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// An image of one layer, of an archive that a script writes; then what compresses it, and how media types call that.
/// `headers` is for archives of empty files: it reads a name and a type of ustar from each line.
const MAKE: &str = r#"set -e
headers() {
    perl -ane '
        my $header = pack("a100a8a8a8a12a12A8a1a100a6a2x247",
            $F[0], "0000755", "0000000", "0000000", "00000000000", "14000000000", "", $F[1], "", "ustar", "00");
        substr($header, 148, 8) = sprintf("%06o\0 ", unpack("%32C*", $header));
        print $header;
        END { print "\0" x 1024 }'
}
export -f headers
mkdir image image/blobs image/blobs/sha256
mkfifo whole
sha256sum < whole > sum &
bash -e -c "$1" | tee whole | $2 > image/layer
wait
id=$(cut -d' ' -f1 < sum)
put() { digest=$(sha256sum "$1" | cut -d' ' -f1); size=$(stat -c %s "$1"); mv "$1" "image/blobs/sha256/$digest"; }
put image/layer
layer="{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar+$3\",\"digest\":\"sha256:$digest\",\"size\":$size}"
case $(uname -m) in aarch64) machine=arm64 ;; *) machine=amd64 ;; esac
printf '{"architecture":"%s","os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' $machine $id > image/config
put image/config
config="{\"mediaType\":\"application/vnd.oci.image.config.v1+json\",\"digest\":\"sha256:$digest\",\"size\":$size}"
printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":%s,"layers":[%s]}' "$config" "$layer" > image/manifest
put image/manifest
printf '{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:%s","size":%s}]}' $digest $size > image/index.json
printf '{"imageLayoutVersion":"1.0.0"}' > image/oci-layout
rm whole sum"#;

/// Bytes that were promised for all processes of an import together.
const MOST: u64 = 150_000_000;

/// What an image is made of.
#[derive(Clone, Copy)]
struct Made {
    name: &'static str,
    /// Prints the archive.
    archive: &'static str,
    compressor: &'static str,
    /// How media types call what that makes.
    called: &'static str,
}

/// Much that does not compress at all, and much that compresses to nothing.
const ZSTD: Made = Made {
    name: "heavy-zstd",
    archive: "mkdir root; head -c 300M /dev/urandom > root/noise; yes 'a line that comes again and again' | head -c 2G > root/text
              tar -c --owner=0 --group=0 -C root noise text; rm -r root",
    compressor: "zstd -q -1",
    called: "zstd",
};
/// Three times what may be taken; gzip itself takes its time.
const GZIP: Made = Made {
    name: "heavy-gzip",
    archive: "mkdir root; head -c 40M /dev/urandom > root/noise; yes 'a line that comes again and again' | head -c 400M > root/text
              tar -c --owner=0 --group=0 -C root noise text; rm -r root",
    compressor: "gzip -1",
    called: "gzip",
};
/// A million empty files, a thousand in each directory.
const FILES: Made = Made {
    name: "heavy-files",
    archive: r#"seq 0 999999 | awk '{ directory = sprintf("d%03d", $1 / 1000) }
                                  $1 % 1000 == 0 { print directory, 5 }
                                  { printf "%s/file-%07d 0\n", directory, $1 }' | headers"#,
    compressor: "gzip -1",
    called: "gzip",
};
/// A million entries of which something is remembered also where files are files: directories, and devices, which are left out.
const ENTRIES: Made = Made {
    name: "heavy-entries",
    archive: r#"seq 0 999999 | awk '{ printf "entry-%07d %d\n", $1, $1 % 10 ? 3 : 5 }' | headers"#,
    compressor: "gzip -1",
    called: "gzip",
};

/// The layout of such an image. To make it takes as long as to import it, and several tests do that.
fn layout(made: Made) -> PathBuf {
    let words = [made.archive, made.compressor, made.called];
    let of = [MAKE, words[0], words[1], words[2]].map(str::as_bytes);
    let kept = images::kept(made.name, &of, |path| {
        std::fs::create_dir(path).unwrap();
        Cmd::new("bash").args(["-c", MAKE, "make"]).args(words).dir(path).limit(200).ok();
    });
    kept.join("image")
}

/// A process and its descendants.
fn family(root: i32) -> Vec<i32> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let stat = std::fs::read(entry.path().join("stat")).unwrap_or_default();
        let stat = String::from_utf8_lossy(&stat).into_owned();
        // Behind the name, which may hold anything, come the state and the parent.
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse().ok());
        if let Some(parent) = parent {
            children.entry(parent).or_default().push(pid);
        }
    }
    let (mut left, mut found) = (vec![root], Vec::new());
    while let Some(pid) = left.pop() {
        left.extend(children.get(&pid).into_iter().flatten());
        found.push(pid);
    }
    found
}

/// How many of these processes there are, and the bytes that they have in memory; what several of them have counts once (Pss of
/// proc(5)).
fn together(family: &[i32]) -> (usize, u64) {
    let mut found = (0, 0);
    for pid in family {
        // Of one that has ended there is nothing.
        let shown = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let kib = shown.lines().find_map(|line| line.strip_prefix("Pss:")?.split_whitespace().next());
        if let Some(kib) = kib {
            found = (found.0 + 1, found.1 + kib.parse::<u64>().unwrap() * 1024);
        }
    }
    found
}

fn bounded(who: Who, form: &str, made: Made) {
    // Root's import has a process that is the user and one that is the store's owner, beside the one that was started.
    let processes = if who.is_root() { 3 } else { 1 };
    let sandbox = Sandbox::empty(who);
    if processes == 3 && form == "directory" {
        std::fs::write(sandbox.state().join("berth.toml"), "[images]\nlayer_form = \"directory\"\n").unwrap();
    }
    let registry = Registry::open();
    let image = registry.push(&layout(made), "heavy:1", &[]);
    // What one of them has for a moment, between two looks, is bounded too: by its writable memory, stacks of threads among it.
    let limit = format!("--data={MOST}");
    let pull = ["berth", "image", "pull", "--insecure", &image];
    let mut pull = sandbox.cmd("prlimit").arg(limit).args(pull).limit(200).spawn();
    let (mut most, mut seen, mut relatives) = (0, 0, Vec::new());
    for look in 0_u32.. {
        if !pull.alive() {
            break;
        }
        // Who there is takes longer to see than what they have, and changes seldom.
        if look.is_multiple_of(8) {
            relatives = family(pull.pid());
        }
        let (count, bytes) = together(&relatives);
        (most, seen) = (most.max(bytes), seen.max(count));
        std::thread::sleep(Duration::from_millis(5));
    }
    let pulled = pull.finish();
    assert_eq!(pulled.rc, 0, "{pulled}");
    println!("{form}, {}: {most} bytes in {seen} processes", made.name);
    assert!(most < MOST, "{seen} processes together had {most} bytes in memory");
    // It was looked at what works, and not only at what waits for it.
    assert!(seen >= processes && most > MOST / 10, "{most} bytes were seen, in {seen} processes");
    let shown = sandbox.cmd("berth").args(["image", "inspect", &image]).ok().text();
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["layers"][0]["form"], form);
    // A million files go one by one.
    sandbox.cmd("berth").args(["image", "rm", &image]).limit(240).ok();
}

#[test]
fn a_layer_of_gigabytes_is_imported_in_150_megabytes_by_a_user() {
    bounded(Who::user(), "directory", ZSTD);
}

#[test]
fn a_layer_of_gigabytes_becomes_an_image_in_150_megabytes_as_root() {
    bounded(Who::root(), "erofs", ZSTD);
}

#[test]
fn a_layer_in_gzip_is_imported_in_150_megabytes_by_a_user() {
    bounded(Who::user(), "directory", GZIP);
}

#[test]
fn a_layer_in_gzip_becomes_an_image_in_150_megabytes_as_root() {
    bounded(Who::root(), "erofs", GZIP);
}

#[test]
fn a_layer_of_a_million_files_becomes_an_image_in_150_megabytes_as_root() {
    bounded(Who::root(), "erofs", FILES);
}

#[test]
fn a_layer_of_a_million_entries_is_imported_in_150_megabytes_by_a_user() {
    bounded(Who::user(), "directory", ENTRIES);
}

/// Where the kernel mounts no images, root's layers are directories, too.
#[test]
fn a_layer_of_gigabytes_is_imported_in_150_megabytes_as_root() {
    bounded(Who::root(), "directory", ZSTD);
}

#[test]
fn a_layer_of_a_million_entries_is_imported_in_150_megabytes_as_root() {
    bounded(Who::root(), "directory", ENTRIES);
}
