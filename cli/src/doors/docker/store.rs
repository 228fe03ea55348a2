//! `docker pull`, `images`, `rmi`, `ps`, `prune`, `login` and `logout`: the caller's store and logins, and what runs.

use super::start::platform;
use super::{Images, Login, Prune, Ps, PullArgs, Rmi};
use crate::local::removals::recorded;
use crate::{images, local, logins};
use berth_client::error::{Failure, Kind, Outcome};
use berth_client::out;
use berth_client::site::Site;
use berth_images::{ImageInfo, PruneOptions, Reference, Resolved};
use berth_model::query::JobQuery;
use berth_model::state::JobState;
use std::io::BufRead;

/// Fetches an image.
pub fn pull(args: &PullArgs) -> Outcome {
    platform(args.platform.as_deref())?;
    let store = images::store(None)?;
    let Resolved::Manifest(pinned) = local::pinned(&args.image, false, None)? else {
        return Err(Failure::user(format!("{} is used where it is; there is nothing to fetch", args.image)));
    };
    let present = store.prepared(&pinned.digest).map_err(|e| images::failed(&e))?.is_some();
    local::fetch(&store, &args.image, &pinned, args.quiet, None)?;
    let reference: Reference = args.image.parse().map_err(|e| images::failed(&e))?;
    let name = reference.to_string();
    let name = name.strip_prefix("docker://").unwrap_or(&name);
    if args.quiet {
        return out::print(&format!("{name}\n")).map(|()| 0);
    }
    let what = if present { "Image is up to date for" } else { "Downloaded newer image for" };
    out::print(&format!("Digest: {}\nStatus: {what} {name}\n{name}\n", pinned.digest)).map(|()| 0)
}

/// Repository and tag of an image's name, docker's own registry left out as docker does it.
fn split(name: &str) -> (String, String) {
    let text = name.strip_prefix("docker://").unwrap_or(name);
    let text = text.strip_prefix("docker.io/").unwrap_or(text);
    let text = text.strip_prefix("library/").unwrap_or(text);
    let text = text.split('@').next().unwrap_or(text);
    match text.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') && !repository.is_empty() => {
            (repository.into(), tag.into())
        }
        _ => (text.to_string(), "<none>".to_string()),
    }
}

/// Lists images.
pub fn list(args: &Images) -> Outcome {
    let images = images::store(None)?.list().map_err(|e| images::failed(&e))?;
    let now = u64::try_from(berth_client::now().secs()).unwrap_or(0);
    let mut rows = Vec::new();
    for image in &images {
        let names: Vec<String> =
            if image.names.is_empty() { vec!["<none>".into()] } else { image.names.clone() };
        for name in names {
            let (repository, tag) = split(&name);
            let asked = args.repository.as_ref().is_none_or(|r| {
                *r == repository
                    || *r == format!("{repository}:{tag}")
                    || split(r) == (repository.clone(), tag.clone())
            });
            if asked {
                rows.push(row(image, repository, tag, now, args.no_trunc));
            }
        }
    }
    if args.quiet {
        let ids: String = rows.iter().map(|r| format!("{}\n", r[2].1)).collect();
        return out::print(&ids).map(|()| 0);
    }
    if let Some(template) = &args.format {
        return print_by(template, &rows);
    }
    let mut columns = vec![0, 1];
    if args.digests {
        columns.push(3);
    }
    columns.extend([2, 4, 5]);
    print_columns(&["REPOSITORY", "TAG", "IMAGE ID", "DIGEST", "CREATED", "SIZE"], &columns, &rows)
}

pub(super) type Row = Vec<(&'static str, String)>;

fn row(image: &ImageInfo, repository: String, tag: String, now: u64, whole: bool) -> Row {
    let id = if whole { image.digest.to_string() } else { image.digest.short().to_string() };
    vec![
        ("Repository", repository),
        ("Tag", tag),
        ("ID", id),
        ("Digest", image.digest.to_string()),
        ("CreatedSince", format!("{} ago", images::age(now.saturating_sub(image.created)))),
        ("Size", images::size(image.bytes)),
    ]
}

pub(super) fn print_columns(heads: &[&str], columns: &[usize], rows: &[Row]) -> Outcome {
    let mut table: Vec<Vec<&str>> = vec![columns.iter().map(|c| heads[*c]).collect()];
    table.extend(rows.iter().map(|r| columns.iter().map(|c| r[*c].1.as_str()).collect::<Vec<_>>()));
    let width = |at: usize| table.iter().map(|r| r[at].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let mut text = String::new();
    for cells in &table {
        let line: Vec<String> = cells.iter().zip(&widths).map(|(c, w)| format!("{c:<w$}")).collect();
        text.push_str(line.join("   ").trim_end());
        text.push('\n');
    }
    out::print(&text).map(|()| 0)
}

/// Docker's templates as far as names of fields go.
pub(super) fn print_by(template: &str, rows: &[Row]) -> Outcome {
    let mut text = String::new();
    for row in rows {
        if template == "json" || template == "{{json .}}" {
            let fields: serde_json::Map<String, serde_json::Value> =
                row.iter().map(|(name, value)| ((*name).to_string(), value.clone().into())).collect();
            text.push_str(&serde_json::Value::Object(fields).to_string());
        } else {
            text.push_str(&filled(template, row)?);
        }
        text.push('\n');
    }
    out::print(&text).map(|()| 0)
}

fn filled(template: &str, row: &Row) -> Result<String, Failure> {
    let template = template.strip_prefix("table ").unwrap_or(template).replace("\\t", "\t");
    let mut parts = template.split("{{");
    let mut text = parts.next().unwrap_or_default().to_string();
    for part in parts {
        let (field, rest) = part
            .split_once("}}")
            .ok_or_else(|| Failure::usage(format!("--format: '{template}' has '{{{{' without '}}}}'")))?;
        let name = field.trim().trim_start_matches('.');
        let known = row.iter().find(|(n, _)| *n == name).ok_or_else(|| {
            let names: Vec<&str> = row.iter().map(|(n, _)| *n).collect();
            Failure::usage(format!("--format: there is no field {field}; there are {}", names.join(", ")))
        })?;
        text.push_str(&known.1);
        text.push_str(rest);
    }
    Ok(text)
}

/// Removes images.
pub fn remove(args: &Rmi) -> Outcome {
    let store = images::store(None)?;
    let mut code = 0;
    for name in &args.images {
        let gone =
            |digest: berth_images::Digest| recorded(&store, None, || store.remove(&digest)).map(|_| digest);
        let removed = store.find(name).and_then(gone);
        match removed {
            Ok(digest) => out::print(&format!("Untagged: {name}\nDeleted: {digest}\n"))?,
            Err(e) if args.force && e.kind() == berth_images::ErrorKind::NotFound => {}
            Err(e) => {
                out::complain(&format!("docker: error: {e}"));
                code = 1;
            }
        }
    }
    Ok(code)
}

/// Lists what runs.
pub fn ps(args: &Ps) -> Outcome {
    let now = berth_client::now();
    let mut rows: Vec<Row> = Vec::new();
    let shorten = |text: String| match args.no_trunc {
        false if text.chars().count() > 20 => format!("{}…", text.chars().take(19).collect::<String>()),
        _ => text,
    };
    let since = |secs: i64| format!("Up {}", images::age(u64::try_from(now.secs() - secs).unwrap_or(0)));
    for r in local::records::list(&images::local_dir(None)?)? {
        rows.push(vec![
            ("ID", r.init.to_string()),
            ("Image", r.image),
            ("Command", format!("\"{}\"", shorten(r.command))),
            ("Status", since(r.created)),
            ("Names", r.name),
        ]);
    }
    for (id, image, name, started) in steps()? {
        rows.push(vec![
            ("ID", id.clone()),
            ("Image", image),
            ("Command", format!("\"{}\"", shorten(name))),
            ("Status", since(started)),
            ("Names", format!("step-{id}")),
        ]);
    }
    if args.quiet {
        let ids: String = rows.iter().map(|r| format!("{}\n", r[0].1)).collect();
        return out::print(&ids).map(|()| 0);
    }
    if let Some(template) = &args.format {
        return print_by(template, &rows);
    }
    print_columns(&["CONTAINER ID", "IMAGE", "COMMAND", "STATUS", "NAMES"], &[0, 1, 2, 3, 4], &rows)
}

/// The running steps with an image of one's own jobs; without a cluster there are none.
fn steps() -> Result<Vec<(String, String, String, i64)>, Failure> {
    let Ok(site) = Site::find(None) else { return Ok(Vec::new()) };
    let query =
        JobQuery { users: vec![berth_model::Uid(nix::unistd::geteuid().as_raw())], ..JobQuery::default() };
    let jobs = match berth_client::block_on(async { Ok(site.connect().await?.jobs(&query).await?) }) {
        Ok(jobs) => jobs,
        Err(e) if e.kind == Kind::Unreachable => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut found = Vec::new();
    for job in jobs {
        for step in job.steps.iter().filter(|s| s.state == JobState::Running) {
            if let Some(image) = &step.image {
                let id = format!("{}.{}", job.id, step.id);
                found.push((id, image.clone(), step.name.clone(), step.started.secs()));
            }
        }
    }
    Ok(found)
}

/// Removes what is not needed, after a question.
pub fn prune(args: &Prune, what: &str) -> Outcome {
    let what = if args.all { "all images that no container uses" } else { what };
    if !args.force {
        out::complain(&format!("WARNING! This will remove {what}."));
        out::print("Are you sure you want to continue? [y/N] ")?;
        let mut answer = String::new();
        let read = std::io::stdin().lock().read_line(&mut answer);
        if read.is_err() || !matches!(answer.trim(), "y" | "Y" | "yes") {
            out::complain("docker: nothing was removed; -f answers the question");
            return Ok(1);
        }
    }
    let store = images::store(None)?;
    let keep = images::needed(None)?;
    let options = PruneOptions { all: args.all, keep, ..PruneOptions::default() };
    let removed = recorded(&store, None, || store.prune(&options)).map_err(|e| images::failed(&e))?;
    for image in &removed.images {
        out::print(&format!("Deleted: {image}\n"))?;
    }
    out::print(&format!("Total reclaimed space: {}\n", images::size(removed.bytes))).map(|()| 0)
}

/// Logs in to a registry.
pub fn log_in(args: &Login) -> Outcome {
    let asked = logins::Asked {
        registry: args.server.as_deref(),
        username: args.username.as_deref(),
        password_stdin: args.password_stdin,
        insecure: false,
    };
    logins::log_in(&asked, None)?;
    out::print("Login Succeeded\n").map(|()| 0)
}

/// Logs out; as with docker, a registry where nobody is logged in is no error.
pub fn log_out(server: Option<&str>) -> Outcome {
    let target = logins::target(server)?;
    match logins::log_out(&target) {
        Ok(_) => out::print(&format!("Removing login credentials for {}\n", target.registry)).map(|()| 0),
        Err(e) if e.kind() == berth_images::ErrorKind::NotFound => {
            out::print(&format!("Not logged in to {}\n", target.registry)).map(|()| 0)
        }
        Err(e) => Err(images::failed(&e)),
    }
}

/// Says what the store takes.
pub fn df() -> Outcome {
    let usage = images::store(None)?.df().map_err(|e| images::failed(&e))?;
    let rows = vec![vec![
        ("Type", "Images".to_string()),
        ("Total", usage.images.to_string()),
        ("Active", usage.images_in_use.to_string()),
        ("Size", images::size(usage.bytes)),
        ("Reclaimable", images::size(usage.reclaimable_bytes)),
    ]];
    print_columns(&["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"], &[0, 1, 2, 3, 4], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_as_docker_shows_them() {
        let of = |name| split(name);
        assert_eq!(of("docker://docker.io/library/debian:12"), ("debian".into(), "12".into()));
        assert_eq!(of("docker://ghcr.io/team/app:1"), ("ghcr.io/team/app".into(), "1".into()));
        assert_eq!(of("docker://localhost:5000/app"), ("localhost:5000/app".into(), "<none>".into()));
    }

    #[test]
    fn templates() {
        let row: Row = vec![("Repository", "debian".into()), ("Tag", "12".into())];
        assert_eq!(filled("{{.Repository}}:{{ .Tag }}", &row).unwrap(), "debian:12");
        assert!(filled("{{.Nothing}}", &row).unwrap_err().text.contains("Repository, Tag"));
        assert!(filled("{{.Tag", &row).is_err());
    }
}
