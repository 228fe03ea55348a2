//! The program's own commands, one file each; a command's doc comment is its help.

mod agent;
mod audit;
mod backup;
mod completions;
pub mod config;
mod container;
mod controller;
mod doctor;
mod down;
mod exec;
pub mod image;
mod install_links;
mod install_units;
mod internal;
mod join;
mod man;
mod node;
mod oci;
mod pam;
mod restore;
pub mod run;
mod sim;
mod status;
mod token;
mod up;

use berth_client::error::Outcome;
use clap::Subcommand;
use std::path::PathBuf;

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    Up(up::Args),
    Down(down::Args),
    Status(status::Args),
    #[command(subcommand)]
    Token(token::Args),
    #[command(subcommand)]
    Node(node::Args),
    Audit(audit::Args),
    Backup(backup::Args),
    Restore(restore::Args),
    Join(join::Args),
    Leave(join::Leave),
    #[command(flatten)]
    Start(Start),
    Exec(exec::Args),
    #[command(subcommand)]
    Image(image::Args),
    #[command(subcommand)]
    Container(container::Args),
    Doctor(doctor::Args),
    #[command(subcommand)]
    Config(config::Args),
    InstallLinks(install_links::Args),
    InstallUnits(install_units::Args),
    Sim(sim::Args),
    Pam(pam::Args),
    Completions(completions::Args),
    Man(man::Args),
    Controller(controller::Args),
    Agent(agent::Args),
    Oci(Box<berth_oci::Args>),
    #[command(hide = true)]
    InternalFetch(internal::Fetch),
    #[command(hide = true)]
    InternalUnpack(internal::Unpack),
    #[command(hide = true)]
    InternalSave(internal::Save),
    #[command(hide = true)]
    InternalPmix(internal::Pmix),
    #[command(hide = true)]
    InternalRemove(internal::Remove),
    #[command(hide = true)]
    InternalGpus(internal::Gpus),
}

/// What starts a container.
#[derive(Debug, Subcommand)]
pub enum Start {
    Run(Box<run::Args>),
    Shell(Box<run::Shell>),
}

/// Starts it.
pub fn start(command: Start, state: Option<PathBuf>) -> Outcome {
    match command {
        Start::Run(args) => run::run(*args, state.as_deref()),
        Start::Shell(args) => run::shell(*args, state.as_deref()),
    }
}

/// Runs it.
pub fn run(command: Command, state: Option<PathBuf>) -> Outcome {
    match command {
        Command::Up(args) => up::run(&args, state.as_deref()),
        Command::Down(args) => down::run(&args, state.as_deref()),
        Command::Status(args) => status::run(&args, state.as_deref()),
        Command::Token(args) => token::run(args, state.as_deref()),
        Command::Node(args) => node::run(args, state.as_deref()),
        Command::Audit(args) => audit::run(&args, state.as_deref()),
        Command::Backup(args) => backup::run(&args, state.as_deref()),
        Command::Restore(args) => restore::run(&args, state.as_deref()),
        Command::Join(args) => join::run(&args, state.as_deref()),
        Command::Leave(args) => join::leave(&args, state.as_deref()),
        Command::Start(command) => start(command, state),
        Command::Exec(args) => exec::run(args, state.as_deref()),
        Command::Image(args) => image::run(args, state.as_deref()),
        Command::Container(args) => container::run(args, state.as_deref()),
        Command::Doctor(args) => doctor::run(&args, state.as_deref()),
        Command::Config(args) => config::run(&args, state.as_deref()),
        Command::InstallLinks(args) => install_links::run(&args),
        Command::InstallUnits(args) => install_units::run(&args, state.as_deref()),
        Command::Sim(args) => sim::run(&args),
        Command::Pam(args) => pam::run(&args, state.as_deref()),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args),
        Command::Controller(args) => controller::run(&args, state.as_deref()),
        Command::Oci(args) => oci::run(*args, std::env::args_os().collect()),
        Command::Agent(args) => agent::run(&args, state.as_deref()),
        Command::InternalFetch(args) => internal::fetch(args),
        Command::InternalUnpack(args) => internal::unpack(args),
        Command::InternalSave(args) => internal::save(args),
        Command::InternalPmix(args) => internal::pmix(&args),
        Command::InternalRemove(args) => internal::remove(&args),
        Command::InternalGpus(args) => internal::gpus(&args),
    }
}
