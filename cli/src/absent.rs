//! Commands of Slurm's that are not here: each is refused by its name, with what there is instead.

/// Their names and that.
const ABSENT: [(&str, &str); 3] = [
    (
        "sacctmgr",
        "accounts are in no database: anybody submits under any (--account), but under those for which [[account]] of berth.toml names \
         users these alone; coordinators are named there, too, 'scontrol reconfigure' puts it in force, and 'sacct -A NAME' has the \
         records",
    ),
    (
        "sreport",
        "there are no reports: 'sacct -a -S TIME -E TIME' has the records of which they would be made",
    ),
    ("sdiag", "'berth status' says how the controller and its nodes are"),
];

/// Why a command is not here.
pub fn told(name: &str) -> Option<String> {
    let (name, why) = ABSENT.iter().find(|(absent, _)| *absent == name)?;
    Some(format!("there is no {name}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_command_is_absent_and_there() {
        for (name, _) in ABSENT {
            assert!(berth_client::command(name.as_ref()).is_none(), "{name}");
            assert!(told(name).is_some_and(|text| text.contains(name)));
        }
        assert_eq!(told("srun"), None);
    }
}
