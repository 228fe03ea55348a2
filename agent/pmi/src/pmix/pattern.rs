//! What tasks find of PMIx in their environment, known before the library is loaded for their step: it was asked once what it says
//! for a task of a made-up step, and what it says of that step, that task and its own address is put in anew for each.

use std::net::{IpAddr, SocketAddr};

/// What comes before the address where the library listens, in the variables that name its server.
const TRANSPORT: &str = ";tcp4://";

/// One variable's value.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    Step,
    Rank,
    Host,
    Server,
    Fixed(String),
}

/// What a task of any step finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    variables: Vec<(String, Value)>,
    address: IpAddr,
}

/// Of which task that is.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Name of the step.
    pub step: &'a str,
    /// Its node's place among those of the step, and its name.
    pub node: u32,
    /// The name.
    pub host: &'a str,
    /// The task.
    pub rank: u32,
    /// Where the server is heard, at [`Pattern::address`].
    pub port: u16,
}

impl Pattern {
    /// The made-up step, of which task 0 is on node 0.
    pub const STEP: &'static str = "pattern.0";
    /// And the name of that node.
    pub const HOST: &'static str = "pattern-host";

    /// From what the library says for that task.
    ///
    /// # Errors
    /// It says something that is not understood: such a library can only be asked for each step anew.
    pub fn of(environment: &[String]) -> Result<Pattern, String> {
        let server = format!("{}{TRANSPORT}", server_name(Pattern::STEP, 0));
        let mut variables = Vec::new();
        let mut address = None;
        for entry in environment.iter().filter(|entry| is_of_tasks(entry)) {
            let Some((name, text)) = entry.split_once('=') else {
                return Err(format!("'{entry}' is no variable"));
            };
            let value = if text == Pattern::STEP {
                Value::Step
            } else if text == Pattern::HOST {
                Value::Host
            } else if name == "PMIX_RANK" {
                Value::Rank
            } else if let Some(listens) = text.strip_prefix(&server) {
                let listens: SocketAddr =
                    listens.parse().map_err(|_| format!("{name} names the address '{listens}'"))?;
                if address.replace(listens).is_some_and(|before| before != listens) {
                    return Err("it listens at two addresses".into());
                }
                Value::Server
            } else if text.contains("pattern") {
                return Err(format!("{name}={text} is not understood"));
            } else {
                Value::Fixed(text.to_string())
            };
            variables.push((name.to_string(), value));
        }
        let has = |wanted: &Value| variables.iter().any(|(_, value)| value == wanted);
        let Some(address) = address.filter(|_| has(&Value::Step) && has(&Value::Rank)) else {
            return Err("it does not say where and as whom tasks come".into());
        };
        Ok(Pattern { variables, address: address.ip() })
    }

    /// At which of the node's addresses tasks look for a server.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// What a task is to have in its environment.
    pub fn fill(&self, place: &Place<'_>) -> Vec<String> {
        let value = |value: &Value| match value {
            Value::Step => place.step.to_string(),
            Value::Rank => place.rank.to_string(),
            Value::Host => place.host.to_string(),
            Value::Server => {
                let listens = SocketAddr::new(self.address, place.port);
                format!("{}{TRANSPORT}{listens}", server_name(place.step, place.node))
            }
            Value::Fixed(text) => text.clone(),
        };
        self.variables.iter().map(|(name, kind)| format!("{name}={}", value(kind))).collect()
    }
}

/// The server's own namespace and rank, as its address has them.
fn server_name(step: &str, node: u32) -> String {
    format!("{}.{node}", server_namespace(step))
}

/// Namespace of the server of a step.
pub fn server_namespace(step: &str) -> String {
    format!("berth.{step}")
}

/// The library's directories are those of its process, and say nothing to a task.
pub fn is_of_tasks(entry: &str) -> bool {
    !entry.starts_with("PMIX_SERVER_TMPDIR=") && !entry.starts_with("PMIX_SYSTEM_TMPDIR=")
}

/// Where the library listens, by what it says for a task.
pub fn server_address(environment: &[String]) -> Option<SocketAddr> {
    environment.iter().find_map(|entry| entry.rsplit_once(TRANSPORT)?.1.parse().ok())
}

/// Whether both say the same, but for the port.
pub fn same_but_for_the_port(one: &[String], other: &[String]) -> bool {
    let parts = |all: &[String]| -> Vec<String> {
        let part = |entry: &String| match entry.rsplit_once(TRANSPORT) {
            Some((server, listens)) => {
                let ip = listens.rsplit_once(':').map_or(listens, |(ip, _)| ip);
                format!("{server}{TRANSPORT}{ip}")
            }
            None => entry.clone(),
        };
        all.iter().filter(|entry| is_of_tasks(entry)).map(part).collect()
    };
    parts(one) == parts(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What libpmix 4.2.2 says.
    fn said(step: &str, node: u32, host: &str, rank: u32, port: u16) -> Vec<String> {
        let server = format!("berth.{step}.{node};tcp4://127.0.0.1:{port}");
        [
            format!("PMIX_NAMESPACE={step}"),
            format!("PMIX_RANK={rank}"),
            format!("PMIX_SERVER_URI41={server}"),
            format!("PMIX_SERVER_URI21={server}"),
            "PMIX_SECURITY_MODE=native".to_string(),
            "PMIX_GDS_MODULE=hash".to_string(),
            format!("PMIX_HOSTNAME={host}"),
            "PMIX_VERSION=4.2.2rc2".to_string(),
        ]
        .to_vec()
    }

    #[test]
    fn what_is_filled_in_is_what_the_library_says_for_that_task() {
        let mut made_up = said(Pattern::STEP, 0, Pattern::HOST, 0, 37751);
        made_up.push("PMIX_SERVER_TMPDIR=/tmp/pattern".to_string());
        let pattern = Pattern::of(&made_up).unwrap();
        let place = Place { step: "12.3", node: 4, host: "n9", rank: 7, port: 1234 };
        assert_eq!(pattern.fill(&place), said("12.3", 4, "n9", 7, 1234));
        assert_eq!(server_address(&said("12.3", 4, "n9", 7, 99)), "127.0.0.1:99".parse().ok());
        assert!(same_but_for_the_port(&pattern.fill(&place), &said("12.3", 4, "n9", 7, 99)));
        assert!(!same_but_for_the_port(&pattern.fill(&place), &said("12.3", 4, "n9", 8, 1234)));
    }

    #[test]
    fn what_is_not_understood_is_no_pattern() {
        let good = said(Pattern::STEP, 0, Pattern::HOST, 0, 37751);
        for (at, bad) in [
            (0, "PMIX_NAMESPACE=other"),
            (1, "PMIX_OTHER=0"),
            (2, "PMIX_SERVER_URI41=berth.pattern.0.0;usock:/tmp/pattern"),
            (2, "PMIX_SERVER_URI41=berth.pattern.0.0;tcp4://127.0.0.1:1"),
            (4, "nothing"),
            (4, "PMIX_DIR=/tmp/pattern.0/x"),
        ] {
            let mut said = good.clone();
            said[at] = bad.to_string();
            assert!(Pattern::of(&said).is_err(), "{bad}");
        }
        assert!(Pattern::of(&[]).is_err());
    }
}
