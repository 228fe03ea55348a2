//! `berth image login` and `logout`: a registry's login, kept or forgotten, and what programs are told of it.

use super::document;
use crate::{images, logins};
use berth_client::error::Outcome;
use berth_client::out;
use serde::Serialize;
use std::path::Path;

/// Log in to a registry, for docker, podman and skopeo, too
///
/// The registry is asked whether it takes the login; then it is kept in $DOCKER_CONFIG/config.json, else in
/// $REGISTRY_AUTH_FILE, else in ~/.docker/config.json, or by the credential helper that this file names. Name and password are
/// asked for on the terminal; scripts say --username NAME --password-stdin.
#[derive(Debug, clap::Args)]
pub struct Login {
    /// HOST or HOST:PORT; USER@HOST is a further login there, for images named USER@HOST#NAME [default: docker.io]
    registry: Option<String>,
    /// Who logs in
    #[arg(long, short, value_name = "NAME")]
    username: Option<String>,
    /// Read the password, or a token, from standard input; needs the name
    #[arg(long)]
    password_stdin: bool,
    /// Speak to the registry without TLS
    #[arg(long)]
    insecure: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Forget the login of a registry
#[derive(Debug, clap::Args)]
pub struct Logout {
    /// HOST, HOST:PORT, or USER@HOST for that login alone [default: docker.io]
    registry: Option<String>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// A login, as JSON: all but the secret.
#[derive(Serialize)]
struct LoggedIn<'a> {
    registry: &'a str,
    user: &'a str,
    /// Whether it is one beside the registry's usual one, for images named `USER@REGISTRY#NAME` alone.
    further: bool,
    /// Whether the registry was seen to take it: one that asks nobody for a login says nothing of it.
    checked: bool,
    /// The file that has it, or names the helper that has it.
    file: String,
    /// The credential helper that keeps it in place of the file.
    helper: Option<&'a str>,
    /// A file with another login for the registry that is asked before this one.
    hidden_by: Option<String>,
}

/// What is forgotten, as JSON.
#[derive(Serialize)]
struct LoggedOut<'a> {
    registry: &'a str,
    /// Whose login, where it was one beside the registry's usual one.
    user: Option<&'a str>,
    /// Files of other tools that still have one.
    left_in: Vec<String>,
}

/// Logs in.
pub fn log_in(args: &Login, state: Option<&Path>) -> Outcome {
    let asked = logins::Asked {
        registry: args.registry.as_deref(),
        username: args.username.as_deref(),
        password_stdin: args.password_stdin,
        insecure: args.insecure,
    };
    let logins::Kept { target, user, login } = logins::log_in(&asked, state)?;
    if !args.json {
        return out::print(&format!("logged in to {} as {user}\n", target.registry)).map(|()| 0);
    }
    let told = LoggedIn {
        registry: &target.registry,
        user: &user,
        further: target.user.is_some(),
        checked: login.checked,
        file: login.file.display().to_string(),
        helper: login.helper.as_deref(),
        hidden_by: login.hidden_by.as_ref().map(|file| file.display().to_string()),
    };
    out::print(&document(&told)?).map(|()| 0)
}

/// Logs out.
pub fn log_out(args: &Logout) -> Outcome {
    let target = logins::target(args.registry.as_deref())?;
    let others = logins::log_out(&target).map_err(|e| images::failed(&e))?;
    if !args.json {
        return out::print(&format!("logged out of {}\n", target.registry)).map(|()| 0);
    }
    let left_in = others.iter().map(|file| file.display().to_string()).collect();
    let told = LoggedOut { registry: &target.registry, user: target.user.as_deref(), left_in };
    out::print(&document(&told)?).map(|()| 0)
}
