//! Ranges of ids between a user namespace and the one above it.

use crate::oci::error::{Result, invalid};
pub use crate::plan::IdMap as IdRange;
pub(crate) use crate::setup::map_text as text;
use oci_spec::runtime::LinuxIdMapping;

/// Checks that no range is empty or runs over the end, and that there are no more than the kernel takes.
pub fn ranges(list: &[LinuxIdMapping]) -> Result<Vec<IdRange>> {
    if list.len() > 340 {
        return Err(invalid("more than 340 ranges in one id mapping", "join neighbouring ranges"));
    }
    list.iter()
        .map(|m| {
            let range = IdRange { inside: m.container_id(), outside: m.host_id(), count: m.size() };
            let last = |first: u32| first.checked_add(range.count);
            if range.count == 0 || last(range.inside).is_none() || last(range.outside).is_none() {
                let what = format!("an id mapping of {} ids from {}", range.count, range.outside);
                return Err(invalid(what, "ids are from 0 to 4294967294"));
            }
            Ok(range)
        })
        .collect()
}

/// What an id of the container is outside.
pub fn outside(ranges: &[IdRange], inside: u32) -> Option<u32> {
    ranges
        .iter()
        .find(|r| inside >= r.inside && inside - r.inside < r.count)
        .map(|r| r.outside + (inside - r.inside))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps() {
        let list: Vec<LinuxIdMapping> = serde_json::from_str(
            r#"[{"containerID":0,"hostID":1000,"size":1},{"containerID":1,"hostID":100000,"size":65535}]"#,
        )
        .unwrap();
        let ranges = ranges(&list).unwrap();
        assert_eq!(text(&ranges), "0 1000 1\n1 100000 65535\n");
        assert_eq!(
            (outside(&ranges, 0), outside(&ranges, 2), outside(&ranges, 70000)),
            (Some(1000), Some(100001), None)
        );
        let wrong = r#"[{"containerID":0,"hostID":4294967295,"size":2}]"#;
        assert!(super::ranges(&serde_json::from_str::<Vec<_>>(wrong).unwrap()).is_err());
    }
}
