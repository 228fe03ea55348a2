//! What a step with `--x11` has: the display in its environment, the X server's socket in its container, and a file of its own
//! with the display's cookie, which only its user can read and which goes with the step.

use super::environment::is_host;
use super::step::LaunchFailure;
use crate::spool::LaunchFile;
use berth_model::ByteStr;
use berth_model::spec::MountSpec;
use berth_model::x11::{COOKIE, Display, cookie};
use berth_runtime::ContainerRequest;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

/// Where containers see the directory of the file.
const INSIDE: &str = super::processes::CLIENT_DIR;

fn name(file: &LaunchFile) -> String {
    format!("xauthority-{}", file.launch.key.step)
}

/// DISPLAY and XAUTHORITY, as the step's tasks have them; nothing without `--x11`.
pub fn variables(file: &LaunchFile) -> Vec<(&'static str, ByteStr)> {
    let (Some(x11), Some(dir)) = (&file.launch.x11, &file.node.client_dir) else { return Vec::new() };
    let dir = if is_host(&file.launch) { dir.as_path().to_path_buf() } else { PathBuf::from(INSIDE) };
    vec![
        ("DISPLAY", ByteStr::from(x11.display.as_str())),
        ("XAUTHORITY", ByteStr::from(dir.join(name(file)).as_path())),
    ]
}

/// Has the container show the socket of a server on this machine, and refuses what cannot work.
pub fn ask(file: &LaunchFile, request: &mut ContainerRequest) -> Result<(), LaunchFailure> {
    let Some(x11) = &file.launch.x11 else { return Ok(()) };
    // Over what the image says, as what the user sets for the one step.
    request.container_env.extend(["DISPLAY", "XAUTHORITY"].map(String::from));
    let Some(display) = Display::parse(&x11.display) else {
        return Err(LaunchFailure::new(format!("--x11: '{}' is no display", x11.display)));
    };
    let own_network = request.unshare.contains(&berth_model::spec::Unshared::Net);
    let Some(socket) = display.socket() else {
        if own_network {
            return Err(LaunchFailure::new(format!(
                "--x11: the display {} is reached by the network, which --container-unshare=net takes away: leave one of \
                 them out",
                x11.display
            )));
        }
        return Ok(());
    };
    match file.node.joined() {
        None => {
            let path = ByteStr::from(socket);
            request.mounts.push(MountSpec { source: path.clone(), target: path, flags: Vec::new() });
            Ok(())
        }
        Some(member) if member.started.display.as_deref() == Some(&x11.display) => Ok(()),
        Some(_) => Err(LaunchFailure::new(format!(
            "--x11 cannot be fulfilled by the container that the step joins, which runs and was started without the display \
             {}: leave it out, or start the container with it",
            x11.display
        ))),
    }
}

/// The file with the cookie; it goes when this is dropped.
#[derive(Debug)]
pub struct Authority(PathBuf);

impl Authority {
    /// Writes it, for the step's user alone. Nothing without `--x11`.
    pub fn of(file: &LaunchFile) -> Result<Option<Authority>, LaunchFailure> {
        let (Some(x11), Some(dir)) = (&file.launch.x11, &file.node.client_dir) else { return Ok(None) };
        let prefix = [COOKIE.as_bytes(), b"="].concat();
        let hex = file.launch.env.iter().find_map(|text| text.0.strip_prefix(prefix.as_slice()));
        let bytes = hex.and_then(|hex| std::str::from_utf8(hex).ok()).and_then(cookie);
        let (Some(display), Some(bytes)) = (Display::parse(&x11.display), bytes) else {
            return Err(LaunchFailure::new(
                "--x11: the display's cookie did not come with the step: submit it again",
            ));
        };
        let authority = Authority(dir.as_path().join(name(file)));
        let id = &file.launch.identity;
        let write = || -> io::Result<()> {
            // The directory is the cluster's: nobody else makes anything in it.
            let mut options = OpenOptions::new();
            let mut out: File = options.write(true).create_new(true).mode(0o600).open(&authority.0)?;
            if file.node.system {
                std::os::unix::fs::fchown(&out, Some(id.uid.0), Some(id.gid.0))?;
            }
            out.write_all(&display.authority(&bytes))
        };
        write()
            .map_err(|e| LaunchFailure::new(format!("--x11: cannot write {}: {e}", authority.0.display())))?;
        Ok(Some(authority))
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        // The job's directory goes with the job, whatever is left.
        let _ = std::fs::remove_file(&self.0);
    }
}
