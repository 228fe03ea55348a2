//! The `berth` program: called by another name (`srun`, `squeue`, …) it is that command, otherwise the first word
//! says what to do.
#![forbid(unsafe_code)]

mod absent;
mod commands;
mod daemon;
mod doors;
mod explain;
mod images;
mod joined;
mod local;
mod log;
mod logins;
mod notify;
mod scope;
mod units;

use berth_client::error::Failure;
use clap::{CommandFactory, FromArgMatches, Parser};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// A container-native batch system: jobs and steps run as containers inside resource allocations.
#[derive(Debug, Parser)]
#[command(name = "berth", version, max_term_width = 100, disable_help_subcommand = true)]
struct Cli {
    /// Where everything is.
    #[arg(long, global = true, value_name = "DIR", help = STATE)]
    state: Option<PathBuf>,
    #[command(subcommand)]
    command: commands::Command,
}

fn main() -> ExitCode {
    let argv: Vec<OsString> = std::env::args_os().collect();
    let name = argv.first().map(PathBuf::from);
    let name = name.as_deref().and_then(Path::file_name).unwrap_or_default();
    if berth_client::command(name).is_some() || name == berth_model::mpirun::PROGRAM {
        return berth_client::main_by_name(argv, Some(&images::Resolver));
    }
    if let Some(door) = name.to_str().and_then(doors::find) {
        return door.main(argv);
    }
    if name == berth_oci::NAME {
        return berth_oci::main_by_name(argv);
    }
    if let Some((state, words)) = cluster_command(&argv) {
        return berth_client::run(words, state, Some(&images::Resolver));
    }
    if let Some((state, at)) = first_word(&argv).filter(|(_, at)| argv[*at] == "run" || argv[*at] == "shell")
    {
        if argv[at] == "run"
            && state.as_ref().is_none_or(|dir| !dir.as_os_str().is_empty())
            && let Some(args) = commands::run::Args::plain(&argv[at + 1..])
        {
            return berth_client::finish("berth", false, commands::run::run(args, state.as_deref()));
        }
        return match Starting::try_parse_from(&argv) {
            Ok(cli) => berth_client::finish("berth", false, commands::start(cli.command, cli.state)),
            Err(e) => usage(&e),
        };
    }
    if let Some(why) = first_word(&argv).and_then(|(_, at)| absent::told(argv[at].to_str()?)) {
        return berth_client::finish("berth", false, Err(Failure::user(why)));
    }
    match definition().try_get_matches_from(&argv).and_then(|words| Cli::from_arg_matches(&words)) {
        Ok(cli) => berth_client::finish("berth", false, commands::run(cli.command, cli.state)),
        Err(e) => usage(&e),
    }
}

/// The part of the definition that starts containers: to build the whole takes longer than to make one.
#[derive(Debug, Parser)]
#[command(name = "berth", version, max_term_width = 100, disable_help_subcommand = true)]
struct Starting {
    /// As of [`Cli`].
    #[arg(long, global = true, value_name = "DIR", help = STATE)]
    state: Option<PathBuf>,
    #[command(subcommand)]
    command: commands::Start,
}

const STATE: &str = "Directory that holds everything of a cluster, or of a user's images [default: /var/lib/berth for root, the XDG \
                     state directory for others; BERTH_STATE sets it, too]";

/// `berth [--state DIR] srun …`: the state directory and the command's words.
fn cluster_command(argv: &[OsString]) -> Option<(Option<PathBuf>, Vec<OsString>)> {
    let (state, at) = first_word(argv)?;
    berth_client::command(&argv[at]).map(|_| (state, argv[at..].to_vec()))
}

/// The state directory that is named before the first word, and where that word is.
fn first_word(argv: &[OsString]) -> Option<(Option<PathBuf>, usize)> {
    let mut state = None;
    let mut at = 1;
    loop {
        let text = argv.get(at)?.to_string_lossy();
        if let Some(dir) = text.strip_prefix("--state=") {
            state = Some(PathBuf::from(dir));
            at += 1;
        } else if text == "--state" {
            state = Some(PathBuf::from(argv.get(at + 1)?));
            at += 2;
        } else {
            return Some((state, at));
        }
    }
}

/// Prints what clap has to say, where and with what code it belongs.
fn usage(e: &clap::Error) -> ExitCode {
    let text = e.render().to_string();
    if !e.use_stderr() {
        return berth_client::finish("berth", false, berth_client::out::print(&text).map(|()| 0));
    }
    match text.trim_end().strip_prefix("error: ") {
        Some(what) => berth_client::out::complain(&format!("berth: error: {what}")),
        // Without any word: the help.
        None => berth_client::out::complain(text.trim_end()),
    }
    ExitCode::from(2)
}

/// The definition of the program's own commands, and where those of the cluster are.
fn definition() -> clap::Command {
    let names: Vec<&str> = berth_client::COMMANDS.iter().map(|c| c.name).collect();
    Cli::command()
        .after_help(format!("Commands of the cluster, also by their own names: {}", names.join(", ")))
}

/// Whether a word is the name of one of the commands that have links of their own.
fn link_names() -> impl Iterator<Item = &'static OsStr> {
    berth_client::COMMANDS
        .iter()
        .map(|c| OsStr::new(c.name))
        .chain([OsStr::new(berth_model::mpirun::PROGRAM)])
}

/// The path of this program.
fn own_path() -> Result<PathBuf, Failure> {
    std::env::current_exe().map_err(|e| {
        Failure::new(
            berth_client::error::Kind::Internal,
            format!("cannot find the program's own path: {e}; is /proc mounted?"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(list: &[&str]) -> Vec<OsString> {
        list.iter().map(OsString::from).collect()
    }

    #[test]
    fn cluster_commands_behind_the_state_directory() {
        let found = cluster_command(&words(&["berth", "--state", "/x", "srun", "-n2", "true"])).unwrap();
        assert_eq!(found, (Some("/x".into()), words(&["srun", "-n2", "true"])));
        assert_eq!(cluster_command(&words(&["berth", "--state=/y", "squeue"])).unwrap().0, Some("/y".into()));
        assert_eq!(cluster_command(&words(&["berth", "up"])), None);
        assert_eq!(cluster_command(&words(&["berth", "--state"])), None);
    }

    #[test]
    fn help_says_where_the_commands_of_the_cluster_are() {
        let help = definition().render_help().to_string();
        assert!(help.contains("Commands of the cluster") && help.contains("sbatch"), "{help}");
    }

    #[test]
    fn the_definition_is_sound() {
        definition().debug_assert();
        Starting::command().debug_assert();
    }

    #[test]
    fn the_part_that_starts_containers_says_what_the_whole_says() {
        let help = |mut whole: clap::Command, name: &str| {
            whole.build();
            whole.find_subcommand_mut(name).unwrap().render_long_help().to_string()
        };
        for name in ["run", "shell"] {
            assert_eq!(help(Starting::command(), name), help(Cli::command(), name));
            assert_eq!(
                first_word(&words(&["berth", "--state", "/x", name, "debian"])),
                Some((Some("/x".into()), 3))
            );
        }
    }

    #[test]
    fn words_without_options_mean_what_the_definition_makes_of_them() {
        for line in [&["debian", "ls", "-l", "--state", "/y"][..], &["debian"], &["./root", "--", "x"]] {
            let plain = commands::run::Args::plain(&words(line)).unwrap();
            let argv: Vec<OsString> = ["berth", "run"].iter().chain(line).map(OsString::from).collect();
            let commands::Start::Run(defined) = Starting::try_parse_from(argv).unwrap().command else {
                panic!()
            };
            assert_eq!(format!("{plain:?}"), format!("{defined:?}"));
        }
        for line in [&["--rm", "debian"][..], &["-v", "/a:/b", "debian"], &["--", "debian"], &[""], &[]] {
            assert!(commands::run::Args::plain(&words(line)).is_none(), "{line:?}");
        }
    }
}
