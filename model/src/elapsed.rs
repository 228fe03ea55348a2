//! Lengths of time as the commands print them.

/// `squeue`'s form, without leading zeros: `0:05`, `1:02:03`, `2-03:04:05`.
pub fn short(seconds: u64) -> String {
    let (d, h, m, s) = split(seconds);
    match (d, h) {
        (0, 0) => format!("{m}:{s:02}"),
        (0, _) => format!("{h}:{m:02}:{s:02}"),
        _ => format!("{d}-{h:02}:{m:02}:{s:02}"),
    }
}

/// The form of `scontrol` and `sacct`: `00:00:05`, `2-03:04:05`.
pub fn long(seconds: u64) -> String {
    let (d, h, m, s) = split(seconds);
    if d == 0 { format!("{h:02}:{m:02}:{s:02}") } else { format!("{d}-{h:02}:{m:02}:{s:02}") }
}

/// CPU time as `sacct` prints it: `00:01.250` below an hour, then `01:00:00` and `1-00:00:00`.
pub fn cpu(microseconds: u64) -> String {
    let seconds = microseconds / 1_000_000;
    if seconds >= 3600 {
        return long(seconds);
    }
    let (_, _, m, s) = split(seconds);
    format!("{m:02}:{s:02}.{:03}", microseconds % 1_000_000 / 1000)
}

fn split(seconds: u64) -> (u64, u64, u64, u64) {
    (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_print_in_each_commands_form() {
        for (secs, a, b) in [
            (0, "0:00", "00:00:00"),
            (5, "0:05", "00:00:05"),
            (65, "1:05", "00:01:05"),
            (3723, "1:02:03", "01:02:03"),
            (36_000, "10:00:00", "10:00:00"),
            (183_845, "2-03:04:05", "2-03:04:05"),
        ] {
            assert_eq!(short(secs), a);
            assert_eq!(long(secs), b);
        }
        assert_eq!(cpu(0), "00:00.000");
        assert_eq!(cpu(1_250_999), "00:01.250");
        assert_eq!(cpu(3_599_999_999), "59:59.999");
        assert_eq!(cpu(3_600_000_000), "01:00:00");
        assert_eq!(cpu(u64::MAX), "213503982-08:01:49");
    }
}
