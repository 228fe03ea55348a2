//! What a step used, and whether memory ran out, as its cgroup counted it.

use crate::spool::StepCgroup;
use berth_model::launch::Usage;
use std::fs;
use std::path::Path;

/// Usage of the group, and how many processes the kernel killed in it for want of memory. `tasks`: what the
/// processes' own accounts say, for what the group does not count.
pub fn of(group: &StepCgroup, tasks: Usage) -> (Usage, u64) {
    let mut usage = tasks;
    let mut kills = 0;
    if let Some(dir) = group.unified.as_ref().map(|d| d.as_path()) {
        if let Some(peak) = number(&dir.join("memory.peak")) {
            usage.max_rss = peak;
        }
        if let (Some(user), Some(system)) =
            (field(&dir.join("cpu.stat"), "user_usec"), field(&dir.join("cpu.stat"), "system_usec"))
        {
            (usage.user_us, usage.system_us) = (user, system);
        }
        kills += field(&dir.join("memory.events"), "oom_kill").unwrap_or(0);
    }
    if let Some(dir) = group.v1.get("memory").map(|d| d.as_path()) {
        if let Some(peak) = number(&dir.join("memory.max_usage_in_bytes")) {
            usage.max_rss = peak;
        }
        kills += field(&dir.join("memory.oom_control"), "oom_kill").unwrap_or(0);
    }
    if let Some(dir) = group.v1.get("cpuacct").map(|d| d.as_path()) {
        let (user, system) =
            (number(&dir.join("cpuacct.usage_user")), number(&dir.join("cpuacct.usage_sys")));
        if let (Some(user), Some(system)) = (user, system) {
            (usage.user_us, usage.system_us) = (user / 1000, system / 1000);
        }
    }
    (usage, kills)
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn field(path: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_model::ByteStr;

    #[test]
    fn the_groups_figures_stand_over_the_processes_own() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        put("memory.max_usage_in_bytes", "1048576\n");
        put("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n");
        put("cpuacct.usage_user", "5000000\n");
        put("cpuacct.usage_sys", "7000\n");
        let path = ByteStr::from(dir.path());
        let v1 = ["memory", "cpuacct"].map(|c| (c.to_string(), path.clone())).into();
        let own = Usage { user_us: 1, system_us: 1, max_rss: 1 };
        let (usage, kills) = of(&StepCgroup { unified: None, v1 }, own);
        assert_eq!(usage, Usage { user_us: 5000, system_us: 7, max_rss: 1 << 20 });
        assert_eq!(kills, 2);
        assert_eq!(of(&StepCgroup::default(), own), (own, 0));
    }
}
