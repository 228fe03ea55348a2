//! Logins that travel with jobs: the key to which clients seal them, who may submit which, and opening them on the way to a
//! node.

use crate::ControllerError;
use berth_model::Uid;
use berth_model::login::{Login, SealedLogin};
use berth_model::request::{Refusal, RefusalCode, Request};
use berth_model::spec::{ContainerSpec, ImageRef, ResolvedImage};
use berth_seal::SecretKey;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

/// The cluster's key.
#[derive(Debug)]
pub(crate) struct Logins {
    key: SecretKey,
}

impl Logins {
    /// Reads the key from its file, which nobody else may read, or makes both.
    pub(crate) fn open(path: &Path) -> Result<Logins, ControllerError> {
        let trouble = |why: String| ControllerError::State { path: path.to_path_buf(), why };
        let again = "move it away: a new one is made, and jobs that wait lose the logins that came with them";
        let file = std::fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW).open(path);
        match file {
            Ok(mut file) => {
                let meta = file.metadata().map_err(|e| trouble(e.to_string()))?;
                if meta.mode() & 0o077 != 0 || meta.uid() != nix::unistd::geteuid().as_raw() {
                    return Err(trouble(format!("others may read it, or it is theirs; {again}")));
                }
                let mut bytes = Vec::new();
                Read::by_ref(&mut file)
                    .take(1024)
                    .read_to_end(&mut bytes)
                    .map_err(|e| trouble(e.to_string()))?;
                let key = SecretKey::from_bytes(&bytes).map_err(|e| trouble(format!("{e}; {again}")))?;
                Ok(Logins { key })
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let key = SecretKey::make().map_err(|e| trouble(e.to_string()))?;
                write_new(path, &key.to_bytes()).map_err(|e| trouble(e.to_string()))?;
                Ok(Logins { key })
            }
            Err(e) => Err(trouble(e.to_string())),
        }
    }

    /// What clients seal to.
    pub(crate) fn public(&self) -> Vec<u8> {
        self.key.public().to_vec()
    }

    /// Refuses a login that its sender did not seal, or that is for another registry than the image's: it would be shown
    /// to a stranger.
    pub(crate) fn check(&self, uid: Uid, request: &Request) -> Result<(), Refusal> {
        match request {
            Request::Submit { spec, payload, first_step, .. } => {
                self.check_one(uid, payload.login.as_ref(), spec.container.as_ref())?;
                let step = first_step.as_ref();
                self.check_one(
                    uid,
                    step.and_then(|s| s.login.as_ref()),
                    step.and_then(|s| s.container.as_ref()),
                )
            }
            Request::CreateStep { spec, .. } => {
                self.check_one(uid, spec.login.as_ref(), spec.container.as_ref())
            }
            Request::SubmitHet { components, .. } => components.iter().try_for_each(|(spec, payload)| {
                self.check_one(uid, payload.login.as_ref(), spec.container.as_ref())
            }),
            Request::CreateHetStep { parts } => parts
                .iter()
                .try_for_each(|(_, spec)| self.check_one(uid, spec.login.as_ref(), spec.container.as_ref())),
            Request::PullImage { image, login, .. } => {
                self.check_for(uid, login.as_ref(), registry_of(image))
            }
            _ => Ok(()),
        }
    }

    fn check_one(
        &self,
        uid: Uid,
        login: Option<&SealedLogin>,
        container: Option<&ContainerSpec>,
    ) -> Result<(), Refusal> {
        // A name that nodes are to look up: who uses the login shows it to the registry for which it was sealed, and to no other.
        let of = match container.map(|container| &container.image) {
            Some(ImageRef { resolved: None, .. }) => login.map(|login| login.registry.as_str()),
            Some(ImageRef { resolved: Some(image), .. }) => registry_of(image),
            None => None,
        };
        self.check_for(uid, login, of)
    }

    fn check_for(&self, uid: Uid, login: Option<&SealedLogin>, of: Option<&str>) -> Result<(), Refusal> {
        let Some(login) = login else { return Ok(()) };
        let registry = &login.registry;
        if of != Some(registry.as_str()) {
            let why = format!(
                "the login that came with it is for registry {registry:?}, from which the image is not"
            );
            return Err(Refusal::new(RefusalCode::Invalid, why));
        }
        self.key.open(uid.0, registry, &login.sealed.0).map(drop).map_err(|e| {
            let why = format!(
                "Access/permission denied: the login for registry {registry:?} that came with it: {e}; submit again with \
                 'berth', 'sbatch' or 'srun' of this cluster, as the user whose login it is"
            );
            Refusal::new(RefusalCode::Denied, why)
        })
    }

    /// The login of a job's owner, for the owner's node; `None` when it cannot be opened any more.
    pub(crate) fn unseal(&self, owner: Uid, login: &SealedLogin) -> Option<Login> {
        let secret = self.key.open(owner.0, &login.registry, &login.sealed.0).ok()?;
        Some(Login { registry: login.registry.clone(), secret: secret.into() })
    }
}

/// `host:port` of `docker://host:port/repository`, of `docker://host#repository` where the host does not look like one, and of
/// `docker://user@host:port#repository`, which names another login of the registry.
fn registry_of(image: &ResolvedImage) -> Option<&str> {
    let ResolvedImage::Manifest { source, .. } = image else { return None };
    let (registry, _) = source.strip_prefix("docker://")?.split_once(['/', '#'])?;
    Some(registry.rsplit_once('@').map_or(registry, |(_, host)| host))
}

/// The file with its bytes, whole or not at all.
fn write_new(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let fresh = path.with_extension("new");
    match std::fs::remove_file(&fresh) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&fresh, path)?;
    std::fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_key_stays_the_same_and_nobody_elses_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("login.key");
        let first = Logins::open(&path).unwrap().public();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(Logins::open(&path).unwrap().public(), first);
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        assert!(Logins::open(&path).unwrap_err().to_string().contains("others may read it"));
        std::fs::write(&path, "short").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        assert!(Logins::open(&path).unwrap_err().to_string().contains("move it away"));
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        Logins::open(&path).unwrap_err();
    }

    #[test]
    fn registries_of_images() {
        let of = |source: &str| {
            let (source, digest) = (source.to_string(), String::new());
            let image =
                ResolvedImage::Manifest { source, digest, insecure: false, indexes: Vec::new(), pin: None };
            registry_of(&image).map(str::to_string)
        };
        assert_eq!(of("docker://r.io:5/team/app").as_deref(), Some("r.io:5"));
        // As the image library writes sources: with a user, and of a host that does not look like one.
        assert_eq!(of("docker://bob@r.io:5#team/app").as_deref(), Some("r.io:5"));
        assert_eq!(of("docker://build#team/app").as_deref(), Some("build"));
        assert_eq!(of("docker://bob@build#app").as_deref(), Some("build"));
        assert_eq!((of("oci:/r.io/app"), of("docker://r.io")), (None, None));
    }

    #[test]
    fn a_login_goes_with_images_of_its_registry_and_with_names_that_are_looked_up_later() {
        let dir = tempfile::tempdir().unwrap();
        let logins = Logins::open(&dir.path().join("login.key")).unwrap();
        let sealed = berth_seal::seal(&logins.public(), 7, "r.io", b"secret").unwrap();
        let login = SealedLogin { registry: "r.io".into(), sealed: sealed.into() };
        let pull = |source: &str| {
            let (source, digest) = (source.to_string(), String::new());
            let image =
                ResolvedImage::Manifest { source, digest, insecure: false, indexes: Vec::new(), pin: None };
            let login = Some(login.clone());
            Request::PullImage { image: Box::new(image), nodes: Vec::new(), login }
        };
        logins.check(Uid(7), &pull("docker://r.io/x")).unwrap();
        let elsewhere = logins.check(Uid(7), &pull("docker://evil.io/x")).unwrap_err();
        let anothers = logins.check(Uid(8), &pull("docker://r.io/x")).unwrap_err();
        assert_eq!((elsewhere.code, anothers.code), (RefusalCode::Invalid, RefusalCode::Denied));
        let named = ContainerSpec::of(ImageRef { typed: "r.io/x".into(), resolved: None });
        logins.check_one(Uid(7), Some(&login), Some(&named)).unwrap();
        logins.check_one(Uid(8), Some(&login), Some(&named)).unwrap_err();
        logins.check_one(Uid(7), Some(&login), None).unwrap_err();
    }
}
