//! `berth config`: judges a configuration, or shows the one in force.

use berth_client::error::{Failure, Kind, Outcome};
use berth_client::site::{Site, StateDir};
use berth_client::{out, users};
use berth_model::config::Config;
use std::path::{Path, PathBuf};

/// Judge a configuration, or show the one in force
#[derive(Debug, clap::Subcommand)]
pub enum Args {
    /// Judge a file before it is used
    Check {
        /// The file [default: berth.toml of the state directory]
        file: Option<PathBuf>,
    },
    /// Print every value in force: of the running cluster, else of the file that would be read
    Show {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// The configuration that a controller of this state directory would read, judged.
pub fn of(dir: &StateDir, file: Option<&Path>) -> Result<Config, Failure> {
    let wrong = |e: &dyn std::fmt::Display| Failure::new(Kind::Configuration, e.to_string());
    let config = berth_controller::load_config(&dir.0, file).map_err(|e| wrong(&e))?;
    let problems = config.check();
    if !problems.is_empty() {
        let name = file.map_or(dir.0.join("berth.toml"), Path::to_path_buf);
        let lines: Vec<String> = problems.iter().map(|p| format!("{}: {p}", name.display())).collect();
        return Err(Failure::new(Kind::Configuration, lines.join("\n")));
    }
    use std::os::unix::fs::MetadataExt;
    let owner = std::fs::metadata(&dir.0).map_or(0, |m| m.uid());
    berth_agent::hooks::Hooks::load(&config.container.hooks_dirs, owner)
        .map_err(|why| wrong(&format!("container.hooks_dirs: {why}")))?;
    berth_agent::around::Around::load(&config, owner).map_err(|why| wrong(&why))?;
    let images = berth_agent::store_place(&config.images, &dir.0).map_err(|why| wrong(&why))?;
    if let Ok(Some(why)) = berth_images::unfit_filesystem(&images) {
        let place = images.display();
        let todo = "name a directory on a local disk: images.path in berth.toml";
        return Err(wrong(&format!("image store {place} is on {why}: {todo}")));
    }
    berth_agent::registries(&config.images).check().map_err(|e| wrong(&e))?;
    berth_agent::admission::check(&config.images).map_err(|e| wrong(&e))?;
    berth_agent::signatures::check(&config.images).map_err(|e| wrong(&format!("images.signature: {e}")))?;
    Ok(config)
}

pub fn run(args: &Args, state: Option<&Path>) -> Outcome {
    match args {
        Args::Check { file } => {
            let dir = StateDir::named_or_own(state)?;
            let Some(file) = file.clone().or_else(|| Some(dir.0.join("berth.toml")).filter(|f| f.exists()))
            else {
                of(&dir, None)?; // where its images would be is looked at, too
                let text =
                    format!("{}: there is no berth.toml, so the defaults are in force\n", dir.0.display());
                return out::print(&text).map(|()| 0);
            };
            let config = of(&dir, Some(&file))?;
            know_users(&config, &file)?;
            out::print(&format!(
                "{}: good: cluster '{}', {} partitions\n",
                file.display(),
                config.cluster,
                config.partitions.len().max(1)
            ))?;
        }
        Args::Show { json } => {
            let config = in_force(state)?;
            let text = if *json {
                serde_json::to_string_pretty(&config).map_err(|e| e.to_string())
            } else {
                toml::to_string(&config).map_err(|e| e.to_string()).map(|text| unsaid(&config) + &text)
            };
            let text = text
                .map_err(|e| Failure::new(Kind::Internal, format!("cannot print the configuration: {e}")))?;
            out::print(&(text.trim_end().to_string() + "\n"))?;
        }
    }
    Ok(0)
}

/// Refuses roles and quotas of users whom the name service does not know: here, where a typing error is seen. A controller starts
/// also while the name service does not answer.
fn know_users(config: &Config, file: &Path) -> Result<(), Failure> {
    fn all(key: String, users: &[String]) -> Vec<(String, &String)> {
        users.iter().map(|user| (key.clone(), user)).collect()
    }
    let quotas = config.images.quotas.iter().enumerate();
    let quotas = quotas.map(|(at, quota)| all(format!("images.quota[{}].users", at + 1), &quota.users));
    let accounts = config.accounts.iter().enumerate();
    let accounts = accounts.flat_map(|(at, a)| {
        let key = |list: &str| format!("account[{}].{list}", at + 1);
        [all(key("coordinators"), &a.coordinators), all(key("users"), &a.users)]
    });
    let cluster =
        [all("administrators".into(), &config.administrators), all("operators".into(), &config.operators)];
    let named = cluster.into_iter().chain(quotas).chain(accounts).flatten();
    let unknown: Vec<String> = named
        .filter(|(_, user)| users::uid(user).is_none())
        .map(|(key, user)| format!("{}: {key}: there is no user '{user}': write a name that 'getent passwd' knows here, or leave it out", file.display()))
        .collect();
    if unknown.is_empty() { Ok(()) } else { Err(Failure::new(Kind::Configuration, unknown.join("\n"))) }
}

/// What is in force without having a value, as comments.
fn unsaid(config: &Config) -> String {
    match config.root_jobs {
        Some(_) => String::new(),
        None => {
            "# root_jobs is not set: root may run jobs until another machine joins the cluster\n".to_string()
        }
    }
}

fn in_force(state: Option<&Path>) -> Result<Config, Failure> {
    if let Ok(site) = Site::find(state) {
        let asked = berth_client::block_on(async { Ok(site.connect().await?.config().await?) });
        if let Ok(config) = asked {
            return Ok(config);
        }
    }
    of(&StateDir::named_or_own(state)?, None)
}
