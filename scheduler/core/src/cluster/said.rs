//! What agents say of themselves and of their nodes, made fit to be kept and shown: it goes with every list of nodes, and ends on administrators' terminals.

use berth_model::hardware::Hardware;
use berth_model::launch::{ImagePull, StepExit};
use berth_model::listing::size;

/// Most characters of a word: a version, the id of a boot, the name of a device.
pub(super) const WORD: usize = 200;
/// Most characters of a reason why a node takes no new work.
pub(super) const REASON: usize = 1000;
/// Most characters of what is wrong with a device.
pub(super) const FAULT: usize = 400;
/// Most characters of the reason why a step could not be started, which may be of several lines.
const ERROR: usize = 8000;
/// Most characters of what a node says of its users or of the configuration, and most lines of it.
const DRIFT: (usize, usize) = (400, 32);
/// Most features of an agent that are kept.
const FEATURES: usize = 256;
/// Most bytes of a node's hardware as it is stored: ten times what one of two thousand cores takes.
const HARDWARE: usize = 2 << 20;

/// No more of a text than that, and nothing that a terminal obeys.
pub(super) fn plain(text: &str, most: usize) -> String {
    text.chars().filter(|c| !c.is_control()).take(most).collect()
}

/// The same of a text of several lines.
pub(super) fn lines(text: &str, most: usize) -> String {
    text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).take(most).collect()
}

/// What a step's image took, with a digest that can be shown.
pub(super) fn pull(said: ImagePull) -> ImagePull {
    ImagePull { digest: said.digest.map(|digest| plain(&digest, WORD)), ..said }
}

/// How a step ended, in words that can be shown; what each task's exit was is told to the client by the supervisor, and too much for a row.
pub(super) fn exit(said: StepExit) -> StepExit {
    StepExit {
        tasks: Vec::new(),
        launch_error: said.launch_error.map(|why| lines(&why, ERROR)),
        image: said.image.map(pull),
        ..said
    }
}

/// The names of what an agent knows.
pub(super) fn features(said: &[String]) -> Vec<String> {
    said.iter().take(FEATURES).map(|name| plain(name, WORD)).collect()
}

/// Lines about its users, or names of settings that it does not know.
pub(super) fn drift(said: &[String]) -> Vec<String> {
    said.iter().take(DRIFT.1).map(|line| plain(line, DRIFT.0)).collect()
}

/// Hardware with names that can be shown.
pub(super) fn hardware(mut said: Hardware) -> Hardware {
    let word = |text: &mut String| *text = plain(text, WORD);
    word(&mut said.arch);
    word(&mut said.os);
    for device in &mut said.gres {
        word(&mut device.name);
        let names = [&mut device.kind, &mut device.uuid, &mut device.bus, &mut device.cdi];
        names.into_iter().flatten().for_each(word);
        if let Some(fault) = &mut device.fault {
            *fault = plain(fault, FAULT);
        }
    }
    said.fabrics.iter_mut().for_each(|fabric| word(&mut fabric.name));
    said
}

/// Refuses hardware that takes more room than any machine's.
pub(super) fn fits(hardware: &Hardware) -> Result<(), String> {
    match size(hardware) {
        bytes if bytes > HARDWARE => Err(format!("it is told in {bytes} bytes, and {HARDWARE} are the most")),
        _ => Ok(()),
    }
}
