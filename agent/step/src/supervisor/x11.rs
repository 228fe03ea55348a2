//! What a step with `--x11` has: the display in its environment, the X server's socket in its container, and a file of its own
//! with the display's cookie, which only its user can read and which goes with the step. A display of another machine is one that the step's
//! client carries here ([`super::display`]), with a cookie of its own.

use super::environment::is_host;
use super::step::LaunchFailure;
use crate::spool::LaunchFile;
use berth_model::ByteStr;
use berth_model::launch::StepLaunch;
use berth_model::spec::MountSpec;
use berth_model::x11::{CARRIED, COOKIE, Display, X11Spec, cookie};
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

/// What the step's tasks call the display.
fn shown<'a>(x11: &'a X11Spec, file: &'a LaunchFile) -> &'a str {
    file.node.display.as_ref().map_or(x11.display.as_str(), |carried| carried.name.as_str())
}

/// The same for a step that may have none.
pub fn display_name(file: &LaunchFile) -> Option<String> {
    file.launch.x11.as_ref().map(|x11| shown(x11, file).to_string())
}

/// A cookie that came with the step's environment.
fn came(file: &LaunchFile, variable: &str) -> Option<Vec<u8>> {
    let prefix = [variable.as_bytes(), b"="].concat();
    let hex = file.launch.env.iter().find_map(|text| text.0.strip_prefix(prefix.as_slice()))?;
    cookie(std::str::from_utf8(hex).ok()?)
}

/// What tasks prove themselves by at a display that the step's client has to carry here. Nothing where it is reached without, or is shown
/// by the step that is entered. `host`: the node's machine.
pub fn carried(file: &LaunchFile, host: &str) -> Result<Option<Vec<u8>>, LaunchFailure> {
    let launch = &file.launch;
    let x11 = launch.x11.as_ref().filter(|x11| x11.carried && file.node.display.is_none());
    let Some((x11, display)) = x11.and_then(|x11| Some((x11, Display::parse(&x11.display)?))) else {
        return Ok(None);
    };
    let near = elsewhere(display, x11, launch, host).is_none();
    // The display's own cookie does not leave its machine: where it did not come the machine is known by another name than it was said to have.
    if near && came(file, COOKIE).is_some() {
        return Ok(None);
    }
    if !launch.attached {
        return Err(LaunchFailure::new(format!(
            "--x11: the display {} is that of {}, and is carried to {} by an srun that stays with the step: this one has none",
            x11.display, x11.host, launch.node
        )));
    }
    match came(file, CARRIED) {
        Some(cookie) => Ok(Some(cookie)),
        None => {
            Err(LaunchFailure::new("--x11: the display's cookie did not come with the step: submit it again"))
        }
    }
}

/// Whether the step's container has a network of its own.
pub fn has_own_network(file: &LaunchFile) -> bool {
    let net = berth_model::spec::Unshared::Net;
    match file.node.joined() {
        Some(member) => member.started.unshare.contains(&net),
        None => file.launch.container.as_ref().is_some_and(|container| container.unshare.contains(&net)),
    }
}

/// DISPLAY and XAUTHORITY, as the step's tasks have them; nothing without `--x11`.
pub fn variables(file: &LaunchFile) -> Vec<(&'static str, ByteStr)> {
    let (Some(x11), Some(dir)) = (&file.launch.x11, &file.node.client_dir) else { return Vec::new() };
    let dir = if is_host(&file.launch) { dir.as_path().to_path_buf() } else { PathBuf::from(INSIDE) };
    vec![
        ("DISPLAY", ByteStr::from(shown(x11, file))),
        ("XAUTHORITY", ByteStr::from(dir.join(name(file)).as_path())),
    ]
}

/// This machine.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Why a display is not reached from here: it is another machine's own, and what goes by its name here is somebody else's. `host`: this
/// machine's name, beside that of its node.
fn elsewhere(display: Display<'_>, x11: &X11Spec, launch: &StepLaunch, host: &str) -> Option<String> {
    // Earlier clients do not say where they run, which is where the job was submitted, but for its own scripts.
    let there = if x11.host.is_empty() { &launch.job.submit_host } else { &x11.host };
    let here = launch.node.0.as_str();
    if !display.is_of_one_machine() || there.is_empty() || there == here || there == host {
        return None;
    }
    let by =
        if display.host.is_none() { "by a socket there" } else { "at an address that is that machine's own" };
    Some(format!(
        "--x11: the display {} is that of {there}, where srun runs: it listens {by}, and {here} does not reach it. Run the step on \
         {there} (-w {there}); or set DISPLAY to HOST:NUMBER, by which {here} reaches an X server that listens on TCP; or log in to \
         {here} with 'ssh -X' and start the program there",
        x11.display
    ))
}

/// The display, where a step on this node reaches it.
fn reached<'a>(x11: &'a X11Spec, file: &LaunchFile) -> Result<Display<'a>, LaunchFailure> {
    let Some(display) = Display::parse(&x11.display) else {
        return Err(LaunchFailure::new(format!("--x11: '{}' is no display", x11.display)));
    };
    match elsewhere(display, x11, &file.launch, &host_name()) {
        Some(why) => Err(LaunchFailure::new(why)),
        None => Ok(display),
    }
}

/// Has the container show the socket of a server on this machine, or of what is in the place of one, and refuses what cannot work.
pub fn ask(file: &LaunchFile, request: &mut ContainerRequest) -> Result<(), LaunchFailure> {
    let Some(x11) = &file.launch.x11 else { return Ok(()) };
    // Over what the image says, as what the user sets for the one step.
    request.container_env.extend(["DISPLAY", "XAUTHORITY"].map(String::from));
    let name = shown(x11, file);
    let source = match &file.node.display {
        Some(carried) => carried.socket.clone(),
        None => reached(x11, file)?.socket().map(ByteStr::from),
    };
    let own_network = request.unshare.contains(&berth_model::spec::Unshared::Net);
    let (Some(source), Some(target)) = (source, Display::parse(name).and_then(|display| display.socket()))
    else {
        if own_network {
            return Err(LaunchFailure::new(format!(
                "--x11: the display {name} is reached by the network, which --container-unshare=net takes away: leave one of \
                 them out"
            )));
        }
        return Ok(());
    };
    match file.node.joined() {
        None => {
            request.mounts.push(MountSpec { source, target: ByteStr::from(target), flags: Vec::new() });
            Ok(())
        }
        // One that is carried has its name in many containers: it is the entered step's own where that is what is entered.
        Some(member)
            if member.started.display.as_deref() == Some(name)
                && (file.node.display.is_none() || file.launch.enter.is_some()) =>
        {
            Ok(())
        }
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
        let Some(x11) = &file.launch.x11 else { return Ok(None) };
        let (display, variable) = match &file.node.display {
            None => (reached(x11, file)?, COOKIE),
            Some(carried) => match Display::parse(&carried.name) {
                Some(display) => (display, CARRIED),
                None => return Err(LaunchFailure::new(format!("--x11: '{}' is no display", carried.name))),
            },
        };
        let Some(dir) = &file.node.client_dir else { return Ok(None) };
        let Some(bytes) = came(file, variable) else {
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

#[cfg(test)]
mod tests {
    use super::*;
    use berth_model::ids::{Attempt, JobId, StepId, StepKey};
    use berth_model::launch::JobFacts;
    use berth_model::x11::X11Nodes;

    /// What a step on n2 is told of a display that was named on a machine; the job was submitted on n1.
    fn told(text: &str, host: &str) -> Option<String> {
        let key = StepKey { job: JobId(1), attempt: Attempt(0), step: StepId::Number(0) };
        let launch = berth_samples::launch(key);
        let job = JobFacts { submit_host: "n1".into(), ..launch.job };
        let launch = StepLaunch { node: "n2".into(), job, ..launch };
        let x11 = X11Spec { display: text.into(), nodes: X11Nodes::All, host: host.into(), carried: false };
        elsewhere(Display::parse(text).unwrap(), &x11, &launch, "n2.example")
    }

    #[test]
    fn a_display_that_is_another_machines_own_is_refused_with_both_names_and_what_to_do() {
        for text in [":0", "unix:0", "localhost:10.0", "127.0.0.1:10"] {
            let why = told(text, "n1").unwrap();
            for part in [text, "that of n1", "n2 does not reach it", "-w n1", "HOST:NUMBER", "ssh -X"] {
                assert!(why.contains(part), "{part} is not in: {why}");
            }
            // An earlier client does not say where it runs.
            assert_eq!(told(text, ""), Some(why));
            // It is named there itself, by either name: in a batch script, or where the node is called otherwise.
            assert_eq!((told(text, "n2"), told(text, "n2.example")), (None, None));
        }
        for text in ["n1:0", "10.0.0.1:0.0"] {
            assert_eq!(told(text, "n1"), None, "{text} is reached by the network");
        }
    }

    #[test]
    fn a_display_is_carried_where_it_is_another_machines_or_its_own_cookie_stayed_there() {
        let key = StepKey { job: JobId(1), attempt: Attempt(0), step: StepId::Number(0) };
        let file = |node: &str, host: &str, env: &[&str]| {
            let display = ":0".to_string();
            let x11 = X11Spec { display, nodes: X11Nodes::All, host: host.into(), carried: true };
            let env = env.iter().map(|text| ByteStr::from(*text)).collect();
            let launch = StepLaunch {
                node: node.into(),
                x11: Some(x11),
                env,
                attached: true,
                ..berth_samples::launch(key)
            };
            LaunchFile { format: 1, launch, node: crate::spool::NodePart::default() }
        };
        let (own, made) = ("BERTH_X11_COOKIE=aa", "BERTH_X11_CARRIED=bb");
        assert_eq!(carried(&file("n2", "n1", &[made]), "host").unwrap(), Some(vec![0xbb]));
        assert_eq!(carried(&file("n2", "n1", &[own, made]), "host").unwrap(), Some(vec![0xbb]));
        assert_eq!(
            carried(&file("n1", "n1", &[own, made]), "host").unwrap(),
            None,
            "it is reached by itself"
        );
        assert_eq!(carried(&file("n1", "n1", &[made]), "host").unwrap(), Some(vec![0xbb]));
        assert!(carried(&file("n2", "n1", &[]), "host").is_err());
        let mut alone = file("n2", "n1", &[made]);
        alone.launch.attached = false;
        assert!(carried(&alone, "host").unwrap_err().text.contains("stays with the step"));
        let mut entering = file("n2", "n1", &[made]);
        let display = crate::spool::CarriedDisplay { name: "localhost:12.0".into(), socket: None };
        entering.node.display = Some(display);
        assert_eq!(carried(&entering, "host").unwrap(), None, "it is the entered step's");
        let (name, value) = &variables(&LaunchFile {
            node: crate::spool::NodePart { client_dir: Some("/run/x".into()), ..entering.node.clone() },
            ..entering.clone()
        })[0];
        assert_eq!((*name, value), ("DISPLAY", &ByteStr::from("localhost:12.0")));
    }
}
