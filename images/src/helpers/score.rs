//! Whom the kernel kills when memory runs out: not jobs, in place of what fetches and unpacks their images.

use crate::error::{Error, Result};

const SCORE: &str = "/proc/self/oom_score_adj";

/// Gives up the protection that the agent has, and what it starts has with it. Anybody may do that, but only before the process has become
/// somebody else: from then on the file is root's.
///
/// # Errors
/// The kernel refuses.
pub(super) fn give_up_protection() -> Result<()> {
    // Without the file there is no protection either.
    let protected = std::fs::read_to_string(SCORE).is_ok_and(|score| is_protected(&score));
    match protected {
        true => std::fs::write(SCORE, "0").map_err(|e| {
            Error::io(format!("{SCORE}: the agent's protection from the kernel, to be given up"), e)
        }),
        false => Ok(()),
    }
}

fn is_protected(score: &str) -> bool {
    score.trim().parse::<i32>().is_ok_and(|score| score < 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protection_is_given_up_and_the_opposite_of_it_kept() {
        assert!(is_protected("-900\n") && is_protected("-1"));
        assert!(!is_protected("0\n") && !is_protected("500\n") && !is_protected(""));
    }
}
