//! Devices that a configuration names more than once for a node: each of them would be given to two jobs.

use super::Problems;
use crate::config::NodeConfig;
use crate::hostlist;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Tells of device files and of names in CDI files that stand in two places, for nodes that both are about. Files that two sections name
/// for the same resource are no such case: one for a few nodes says more of a device that one for all names.
pub(super) fn check(nodes: &[NodeConfig], out: &mut Problems) {
    let about: Vec<Option<BTreeSet<String>>> = nodes.iter().map(|node| names(&node.name)).collect();
    let together = |a: usize, b: usize| match (about.get(a), about.get(b)) {
        _ if a == b => true,
        (Some(Some(one)), Some(Some(other))) => !one.is_disjoint(other),
        // One of them is about all.
        _ => true,
    };
    let mut places: BTreeMap<Vec<u8>, Vec<(usize, &str, String)>> = BTreeMap::new();
    for (at, node) in nodes.iter().enumerate() {
        for (number, gres) in node.gres.iter().enumerate() {
            let key = format!("node[{}].gres[{}]", at + 1, number + 1);
            let files = gres.device_files().unwrap_or_default();
            let files = files.iter().map(|file| ("files", plain(file)));
            let cdi = gres.cdi_names().unwrap_or_default().into_iter().map(|n| ("cdi", n.into_bytes()));
            let mut is_said = false;
            for (field, name) in files.chain(cdi) {
                let before = places.entry(name.clone()).or_default();
                let other = before.iter().find(|(section, resource, _)| {
                    let says_more = field == "files" && *resource == gres.name && *section != at;
                    !says_more && together(*section, at)
                });
                // One of an entry says enough.
                if let Some((_, _, other)) = other.filter(|_| !is_said) {
                    is_said = true;
                    let name = String::from_utf8_lossy(&name);
                    let place = match *other == key {
                        true => "there twice".to_string(),
                        false => format!("in {other} as well"),
                    };
                    out.add(
                        format!("{key}.{field}"),
                        format!("'{name}' is {place}, and a device is given once: write all that is said of it in one place"),
                    );
                }
                before.push((at, gres.name.as_str(), key.clone()));
            }
        }
    }
}

/// The nodes of a section; nothing where it is about all.
fn names(text: &str) -> Option<BTreeSet<String>> {
    if text.eq_ignore_ascii_case("all") {
        return None;
    }
    Some(hostlist::expand(text).unwrap_or_default().into_iter().collect())
}

/// A path without what changes nothing about it. Links are the node's: it looks at them itself.
fn plain(file: &crate::ByteStr) -> Vec<u8> {
    let path: PathBuf = file.as_path().components().collect();
    path.as_os_str().as_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, GresConfig, NodeConfig};

    fn files(name: &str, files: &[&str]) -> GresConfig {
        GresConfig {
            name: name.into(),
            files: files.iter().map(|file| (*file).into()).collect(),
            ..GresConfig::default()
        }
    }

    fn cdi(name: &str, names: &[&str]) -> GresConfig {
        let cdi = names.iter().map(|name| (*name).to_string()).collect();
        GresConfig { name: name.into(), cdi, ..GresConfig::default() }
    }

    fn said(nodes: &[(&str, &[GresConfig])]) -> Vec<String> {
        let node = |(name, gres): &(&str, &[GresConfig])| NodeConfig {
            name: (*name).into(),
            gres: gres.to_vec(),
            ..NodeConfig::default()
        };
        let config = Config { nodes: nodes.iter().map(node).collect(), ..Config::default() };
        config.check().into_iter().map(|problem| format!("{} {}", problem.key, problem.why)).collect()
    }

    #[test]
    fn a_device_that_is_named_twice_for_a_node_is_told_with_both_places() {
        let (a, b) = (files("acc", &["/dev/a[0-3]"]), files("other", &["/dev/x", "/dev//a2"]));
        let wrong = said(&[("ALL", &[a.clone(), b.clone()])]);
        assert_eq!(wrong.len(), 1, "{wrong:?}");
        assert!(
            wrong[0].starts_with("node[1].gres[2].files '/dev/a2' is in node[1].gres[1] as well"),
            "{wrong:?}"
        );
        let wrong = said(&[("n[1-4]", std::slice::from_ref(&a)), ("n[4-5]", std::slice::from_ref(&b))]);
        assert!(wrong[0].starts_with("node[2].gres[1].files '/dev/a2' is in node[1].gres[1]"), "{wrong:?}");
        assert_eq!(said(&[("n[4-5]", std::slice::from_ref(&a)), ("all", std::slice::from_ref(&b))]).len(), 1);
        assert_eq!(said(&[("n[1-3]", &[a]), ("n[4-5]", &[b])]), Vec::<String>::new(), "of other nodes");
        let wrong = said(&[("ALL", &[files("acc", &["/dev/a0", "/dev/a[0-1]"])])]);
        assert!(wrong[0].starts_with("node[1].gres[1].files '/dev/a0' is there twice"), "{wrong:?}");
    }

    #[test]
    fn a_section_for_some_nodes_may_say_more_of_devices_that_another_names() {
        let (all, some) = (files("gpu", &["/dev/nvidia[0-3]"]), files("gpu", &["/dev/nvidia[0-1]"]));
        let all = GresConfig { kind: Some("a100".into()), ..all };
        let some = GresConfig { cores: Some("0-3".into()), ..some };
        assert_eq!(
            said(&[("ALL", std::slice::from_ref(&all)), ("n1", std::slice::from_ref(&some))]),
            Vec::<String>::new()
        );
        let other = GresConfig { name: "acc".into(), ..some.clone() };
        assert_eq!(
            said(&[("ALL", std::slice::from_ref(&all)), ("n1", &[other])]).len(),
            1,
            "of another name"
        );
        assert_eq!(said(&[("ALL", &[all, some])]).len(), 1, "one section says all at once");
    }

    #[test]
    fn names_in_cdi_files_are_named_once_too() {
        let wrong = said(&[("ALL", &[cdi("nic", &["v.com/nic=a[0-3]"]), cdi("fast", &["v.com/nic=a3"])])]);
        assert_eq!(wrong.len(), 1, "{wrong:?}");
        assert!(
            wrong[0].starts_with("node[1].gres[2].cdi 'v.com/nic=a3' is in node[1].gres[1]"),
            "{wrong:?}"
        );
        assert_eq!(
            said(&[("n1", &[cdi("nic", &["v.com/nic=a"])]), ("n2", &[cdi("nic", &["v.com/nic=a"])])]).len(),
            0
        );
        let (all, some) = (cdi("nic", &["v.com/nic=a"]), cdi("nic", &["v.com/nic=a"]));
        assert_eq!(said(&[("ALL", &[all]), ("n1", &[some])]).len(), 1, "each is a device of its own");
    }
}
