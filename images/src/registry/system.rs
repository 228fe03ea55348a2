//! The authorities that a system has, read once in a process for as long as they stay the same: of the file that has all of them,
//! and not of the some 150 others from which it is made.

use std::fs::DirEntry;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::pki_types::CertificateDer;
use rustls_native_certs::{load_certs_from_paths, load_native_certs};
use ureq::tls::Certificate;

/// Where distributions have all of them in one file: Debian, Ubuntu, Arch and Alpine; Red Hat and Fedora, now and before; SUSE.
const BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// Where they have them one by one. A file there, or a link that leads elsewhere, is one that somebody put there by hand, who means it to
/// count.
const DIRECTORIES: [&str; 2] = ["/etc/ssl/certs", "/etc/pki/tls/certs"];
/// What the bundle was made of, to which the distribution's own links lead: Debian and Alpine, with what a site adds there; Red Hat and
/// Fedora; SUSE; Arch.
const SOURCES: [&str; 5] = [
    "/usr/share/ca-certificates",
    "/usr/local/share/ca-certificates",
    "/etc/pki/ca-trust",
    "/var/lib/ca-certificates",
    "/etc/ca-certificates",
];
/// By which OpenSSL is told of others, which count in their place then.
const VARIABLES: [&str; 2] = ["SSL_CERT_FILE", "SSL_CERT_DIR"];

/// A file as it was when it was read.
#[derive(PartialEq, Eq)]
struct Seen {
    path: PathBuf,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Seen {
    fn of(path: PathBuf) -> Option<Self> {
        let found = std::fs::metadata(&path).ok().filter(std::fs::Metadata::is_file)?;
        let modified = (found.mtime(), found.mtime_nsec());
        Some(Self { path, inode: found.ino(), size: found.size(), modified })
    }
}

type Authorities = Arc<Vec<Certificate<'static>>>;

/// What was read last: a process that stays learns of new ones all the same.
static READ: Mutex<Option<(Vec<Seen>, Authorities)>> = Mutex::new(None);

/// The system's authorities; none where it has none.
pub(super) fn authorities() -> Authorities {
    let mut read = READ.lock().unwrap_or_else(PoisonError::into_inner);
    let named = VARIABLES.iter().any(|name| std::env::var_os(name).is_some());
    let files = match named {
        true => Vec::new(),
        false => files(&BUNDLES.map(Path::new), &DIRECTORIES.map(Path::new), &SOURCES.map(Path::new)),
    };
    let known = read.as_ref().filter(|(seen, _)| *seen == files && !files.is_empty());
    if let Some((_, authorities)) = known {
        return Arc::clone(authorities);
    }
    let mut found = certificates(&files);
    if found.is_empty() {
        found = load_native_certs().certs;
    }
    let owned = found.iter().map(|certificate| Certificate::from_der(certificate).to_owned());
    let authorities: Authorities = Arc::new(owned.collect());
    *read = Some((files, Arc::clone(&authorities)));
    authorities
}

/// The first bundle that there is, and what stands in the directories beside links to what it was made of; nothing without a bundle.
fn files(bundles: &[&Path], directories: &[&Path], sources: &[&Path]) -> Vec<Seen> {
    let Some(bundle) = bundles.iter().find_map(|path| Seen::of(path.to_path_buf())) else {
        return Vec::new();
    };
    let mut all = vec![bundle];
    let known = directories.iter().chain(sources);
    let known = known.flat_map(|path| [Some(path.to_path_buf()), path.canonicalize().ok()]).flatten();
    let known: Vec<PathBuf> = known.collect();
    let counts = |entry: &DirEntry| {
        let Ok(kind) = entry.file_type() else { return false };
        kind.is_file() || kind.is_symlink() && leads_elsewhere(&entry.path(), &known)
    };
    for entry in directories.iter().filter_map(|path| std::fs::read_dir(path).ok()).flatten().flatten() {
        if counts(&entry)
            && let Some(file) = Seen::of(entry.path())
            // One directory may be the other, and one bundle a link to another.
            && !all.iter().any(|other| (other.inode, other.size) == (file.inode, file.size))
        {
            all.push(file);
        }
    }
    // A directory has no order.
    all[1..].sort_by(|a, b| a.path.cmp(&b.path));
    all
}

/// Whether a link leads out of these directories.
fn leads_elsewhere(link: &Path, known: &[PathBuf]) -> bool {
    let is_known = |path: &Path| known.iter().any(|known| path.starts_with(known));
    let Ok(target) = std::fs::read_link(link) else { return false };
    // Almost all lead to another one beside them, by a hash of its name, or right to what the distribution has: that shows without a look.
    let plain = !target.components().any(|part| part == Component::ParentDir);
    if plain && (target.components().count() == 1 || is_known(&target)) {
        return false;
    }
    link.canonicalize().is_ok_and(|path| !is_known(&path))
}

/// The certificates of files. What is no certificate is passed over, as in a directory of them.
fn certificates(files: &[Seen]) -> Vec<CertificateDer<'static>> {
    files.iter().flat_map(|file| load_certs_from_paths(Some(&file.path), None).certs).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// PEM of something that has these bytes.
    fn pem(base64: &str) -> String {
        format!("-----BEGIN CERTIFICATE-----\n{base64}\n-----END CERTIFICATE-----\n")
    }

    #[test]
    fn the_bundle_is_read_and_what_was_put_beside_it_and_no_link_to_what_it_was_made_of() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("certs/java")).unwrap();
        std::fs::create_dir(at("share")).unwrap();
        std::fs::write(at("share/one.crt"), pem("AAAA")).unwrap();
        std::fs::write(at("certs/all.crt"), pem("AAAA") + &pem("BBBB")).unwrap();
        std::os::unix::fs::symlink("../share/one.crt", at("certs/one.pem")).unwrap();
        std::os::unix::fs::symlink("certs", at("again")).unwrap();
        let (bundle, certs, again, none) = (at("certs/all.crt"), at("certs"), at("again"), at("none"));
        let share = at("share");
        let read = || {
            let files = files(&[&none, &bundle], &[&certs, &again, &none], &[&share]);
            let paths: Vec<PathBuf> = files.iter().map(|file| file.path.clone()).collect();
            (paths, certificates(&files).iter().map(|c| c.as_ref().to_vec()).collect::<Vec<_>>())
        };
        assert_eq!(read(), (vec![bundle.clone()], vec![vec![0, 0, 0], vec![4, 16, 65]]));
        let own = certs.join("site.pem");
        std::fs::write(&own, pem("CCCC")).unwrap();
        std::fs::write(certs.join("README"), "no certificate").unwrap();
        let (paths, found) = read();
        assert_eq!(paths, [bundle.clone(), certs.join("README"), own]);
        assert_eq!(found, [vec![0, 0, 0], vec![4, 16, 65], vec![8, 32, 130]]);
        // A link to what the site has elsewhere counts as the file would, and once.
        std::fs::create_dir(at("site")).unwrap();
        std::fs::write(at("site/own.crt"), pem("DDDD")).unwrap();
        std::os::unix::fs::symlink("../site/own.crt", certs.join("linked.pem")).unwrap();
        std::os::unix::fs::symlink(at("share/one.crt"), certs.join("two.pem")).unwrap();
        std::os::unix::fs::symlink("linked.pem", certs.join("1234abcd.0")).unwrap();
        let (paths, found) = read();
        assert_eq!(paths[2], certs.join("linked.pem"));
        assert_eq!(found, [vec![0, 0, 0], vec![4, 16, 65], vec![12, 48, 195], vec![8, 32, 130]]);
        // Without a bundle the directories are read as a whole, by who does that.
        assert!(files(&[&none], &[&certs], &[]).is_empty());
        let before = files(&[&bundle], &[&certs], &[&share]);
        std::fs::write(&bundle, pem("AAAA")).unwrap();
        assert!(before != files(&[&bundle], &[&certs], &[&share]), "what has changed is read anew");
    }

    #[test]
    fn a_process_reads_them_once() {
        let (first, second) = (authorities(), authorities());
        let named = VARIABLES.iter().any(|name| std::env::var_os(name).is_some());
        if !named && BUNDLES.iter().any(|bundle| Path::new(bundle).is_file()) {
            assert!(Arc::ptr_eq(&first, &second));
            assert!(!first.is_empty());
        }
    }
}
