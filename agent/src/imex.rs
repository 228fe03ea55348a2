//! Device files of IMEX channels: made for the job that has the channel, and its user's alone.

use berth_gpus::imex::{DIRECTORY, Imex};
use berth_model::ByteStr;
use nix::errno::Errno;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{Gid, Uid, chown};
use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

/// The files that are there, of whomever.
pub(crate) fn files() -> Vec<ByteStr> {
    let entries = fs::read_dir(DIRECTORY).into_iter().flatten().flatten();
    let devices = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_char_device()));
    let mut files: Vec<ByteStr> = devices.map(|entry| ByteStr::from(entry.path().as_path())).collect();
    files.sort();
    files
}

/// Makes a channel's file and gives it to a user: nobody else opens it, from wherever on the node. `None`: only root can make it, it is
/// not there, and the step does without.
///
/// # Errors
/// The system refuses, or something else is in its place.
pub(crate) fn give(imex: &Imex, channel: u32, (uid, gid): (u32, u32)) -> Result<Option<ByteStr>, String> {
    let file = Imex::file(channel);
    let path = Path::new(&file);
    if !nix::unistd::geteuid().is_root() {
        return Ok(path.exists().then(|| ByteStr::from(file.as_str())));
    }
    let failed = |what: &str, why: &dyn std::fmt::Display| {
        format!("the job's IMEX channel {channel}: cannot {what} {file}: {why}; look at /dev on the node")
    };
    let number = makedev(u64::from(imex.major), u64::from(channel));
    let made = DirBuilder::new().recursive(true).mode(0o755).create(DIRECTORY);
    made.map_err(|e| failed("make the directory of", &e))?;
    let look = || fs::symlink_metadata(path).map_err(|e| failed("look at", &e));
    let make = || mknod(path, SFlag::S_IFCHR, Mode::S_IRUSR | Mode::S_IWUSR, number);
    match make() {
        Ok(()) => {}
        Err(Errno::EEXIST) => {
            let there = look()?;
            // A driver that was loaded again may have another number: what was made by the old one, by root alone, leads nowhere.
            if there.file_type().is_char_device() && there.rdev() != number {
                fs::remove_file(path).map_err(|e| failed("remove what the driver had before as", &e))?;
                make().map_err(|e| failed("make", &e))?;
            }
        }
        Err(e) => return Err(failed("make", &e)),
    }
    if !look()?.file_type().is_char_device() {
        return Err(failed("use", &"something else is there; remove it"));
    }
    fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(|e| failed("change", &e))?;
    chown(path, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
        .map_err(|e| failed("change the owner of", &e))?;
    Ok(Some(ByteStr::from(file.as_str())))
}

/// Takes the channel back from a job that had these device files.
pub(crate) fn take_back(files: &[String]) {
    let own = files.iter().filter(|file| file.starts_with(DIRECTORY));
    for file in own.filter(|_| nix::unistd::geteuid().is_root()) {
        // The next one who has the channel has the file made anew.
        if let Err(e) = fs::remove_file(file)
            && e.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!("{file} cannot be taken from its user, whose job is over: {e}");
        }
    }
}
