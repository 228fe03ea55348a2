//! Whom the kernel kills when memory runs out: what fetches and unpacks an image before jobs, whose tasks have 0 at least.

use crate::error::{Error, Result};

const SCORE: &str = "/proc/self/oom_score_adj";
/// As if it had all of the machine's memory beside its own: with less, a job that has most of it would go before an import that has little.
const FIRST: i32 = 1000;

/// Gives up the protection that the agent has, and what it starts has with it, and goes before jobs. Anybody may raise it, but only before
/// the process has become somebody else: from then on the file is root's.
///
/// # Errors
/// The kernel refuses, and the protection is there still.
pub(super) fn go_first() -> Result<()> {
    // Without the file there is no protection either.
    let Some(score) = std::fs::read_to_string(SCORE).ok().and_then(|score| parse(&score)) else {
        return Ok(());
    };
    let Some(raised) = raised(score) else { return Ok(()) };
    match std::fs::write(SCORE, raised.to_string()) {
        Err(e) if score < 0 => {
            Err(Error::io(format!("{SCORE}: the agent's protection from the kernel, to be given up"), e))
        }
        // Who has none, as where nothing of this is written, does no harm.
        _ => Ok(()),
    }
}

fn parse(score: &str) -> Option<i32> {
    score.trim().parse().ok()
}

/// What it is to be instead, where it is lower.
fn raised(score: i32) -> Option<i32> {
    (score < FIRST).then_some(FIRST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imports_go_before_jobs_and_what_goes_before_them_still_does() {
        let becomes = |text| parse(text).and_then(raised);
        // As the agent has it, and as jobs do.
        assert_eq!([becomes("-900\n"), becomes("0\n"), becomes("999")], [Some(FIRST); 3]);
        assert_eq!([becomes("1000\n"), becomes("")], [None; 2]);
    }
}
