//! `berth token`: makes, lists and revokes the tokens with which machines join.

use berth_client::error::{Failure, Outcome};
use berth_client::fmt::time;
use berth_client::out;
use berth_client::site::Site;
use berth_model::Span;
use berth_model::config::PORT;
use berth_model::member::{MemberRole, NewToken, is_token_id};
use berth_model::request::Response;
use berth_model::spec::TimeLimit;
use serde_json::json;
use std::path::Path;

/// Make, list and revoke the tokens with which other machines join the cluster
#[derive(Debug, clap::Subcommand)]
pub enum Args {
    /// Make a token and print it: who has it can join a machine, so give it to nobody else
    Create {
        /// What the machines are for: 'compute' runs jobs, 'login' has users who submit them
        #[arg(long, value_name = "ROLE", default_value = "compute")]
        role: MemberRole,
        /// For how long it is good, such as 30m, 12h or 7d: one minute to 30 days
        #[arg(long, value_name = "TIME", default_value = "1h", value_parser = ttl)]
        ttl: Span,
        /// How many machines may join with it
        #[arg(long, value_name = "N", default_value_t = 1)]
        uses: u32,
        /// Let who joins wait for 'berth node approve'
        #[arg(long)]
        approval: bool,
        /// Let its login nodes vouch for operators and administrators, too
        #[arg(long)]
        administrators: bool,
    },
    /// List those that are good for something
    Ls {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Make one good for nothing; machines that joined with it stay
    Revoke {
        /// Its id, as 'berth token ls' shows it, or all of it
        id: String,
    },
}

/// A length of time: a number with `s`, `m`, `h` or `d`, or as for time limits (`90`, `2:00:00`, `1-12`).
fn ttl(text: &str) -> Result<Span, String> {
    let bad = || format!("'{text}' is no length of time: expected 30m, 12h, 7d, or a form of --time");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_lowercase());
    let unit = match &text[digits.len()..] {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        "" => {
            return match text.parse().map_err(|_| bad())? {
                TimeLimit::Minutes(minutes) => Ok(Span::from_mins(minutes.into())),
                TimeLimit::Unlimited => {
                    Err("a token is good for 1 minute at least and 30 days at most".to_string())
                }
            };
        }
        _ => return Err(bad()),
    };
    let number: u32 = digits.parse().map_err(|_| bad())?;
    Ok(Span::from_secs(i64::from(number).saturating_mul(unit)))
}

/// The id in what may be all of a token. The rest of it is a secret, which goes nowhere.
fn id_of(text: &str) -> &str {
    text.split('.').find(|part| is_token_id(part)).unwrap_or(text.split('.').next().unwrap_or(text))
}

pub fn run(args: Args, state: Option<&Path>) -> Outcome {
    let site = Site::find(state)?;
    match args {
        Args::Create { role, ttl, uses, approval, administrators } => {
            let token = NewToken { role, ttl, uses, approval, administrators };
            let (made, config) = berth_client::block_on(async {
                let client = site.connect().await?;
                Ok((client.create_token(&token).await?, client.config().await?))
            })?;
            let Response::TokenCreated { id, expires, text, .. } = made else {
                return Err(Failure::user(format!(
                    "the controller answered otherwise than it should: {made:?}"
                )));
            };
            let machines = if uses == 1 { "1 machine".to_string() } else { format!("{uses} machines") };
            out::complain(&format!(
                "berth: token {id}: {machines} can join as {role} node until {}; it is not shown again",
                time::iso(expires)
            ));
            let port = config.listen.rsplit_once(':').map_or("", |(_, port)| port);
            let port = if port == PORT.to_string() { String::new() } else { format!(":{port}") };
            out::complain(&format!(
                "berth: on the other machine: berth join {}{port} TOKEN --detach",
                berth_agent::host_name()
            ));
            out::print(&(text + "\n")).map(|()| 0)
        }
        Args::Ls { json } => {
            let found = berth_client::block_on(async { Ok(site.connect().await?.tokens().await?) })?;
            if json {
                let all: Vec<_> = found
                    .iter()
                    .map(|t| {
                        json!({
                            "id": t.id, "role": t.role, "uses_left": t.uses_left, "created": t.created.secs(),
                            "expires": t.expires.secs(), "by": t.by, "approval": t.approval,
                            "administrators": t.administrators,
                        })
                    })
                    .collect();
                return out::print(&crate::explain::json(&all)?).map(|()| 0);
            }
            let mut rows =
                vec![["ID", "ROLE", "USES LEFT", "EXPIRES", "MADE BY", "ALLOWS"].map(str::to_string)];
            for token in found {
                let allows = match (token.approval, token.administrators) {
                    (false, false) => "",
                    (true, false) => "approval",
                    (false, true) => "administrators",
                    (true, true) => "approval,administrators",
                };
                rows.push([
                    token.id,
                    token.role.to_string(),
                    token.uses_left.to_string(),
                    time::iso(token.expires),
                    token.by,
                    allows.to_string(),
                ]);
            }
            out::print(&super::image::table(&rows)).map(|()| 0)
        }
        Args::Revoke { id } => {
            let id = id_of(&id);
            berth_client::block_on(async { Ok(site.connect().await?.revoke_token(id).await?) })?;
            out::print(&format!("revoked {id}\n")).map(|()| 0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_a_token_names_it() {
        for text in ["abcdefg2", "abcdefg2.secret", "berth1.abcdefg2.secret.fingerprint"] {
            assert_eq!(id_of(text), "abcdefg2");
        }
        assert_eq!(id_of("odd"), "odd");
    }

    #[test]
    fn lengths_of_time() {
        let cases =
            [("90s", 90), ("30m", 1_800), ("12h", 43_200), ("7d", 604_800), ("90", 5_400), ("1-12", 129_600)];
        for (text, seconds) in cases {
            assert_eq!(ttl(text), Ok(Span::from_secs(seconds)), "{text}");
        }
        for bad in ["", "h", "1w", "-1h", "1.5h", "1 h", "1hh", "unlimited", "5000000000h", "é", "1é"] {
            assert!(ttl(bad).is_err(), "{bad}");
        }
    }
}
