//! Roles: what the configuration makes of somebody, beyond the owner of jobs that everybody is.

use crate::config::Config;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// What somebody is over the whole cluster. Each may do what those before it may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rank {
    /// Acts on what is their own.
    #[default]
    User,
    /// Acts on all jobs and nodes, too.
    Operator,
    /// Decides who and what belongs to the cluster, too.
    Administrator,
}

/// As what somebody acted on what is not their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Of the account that the job was submitted under.
    Coordinator,
    /// Of the cluster.
    Operator,
    /// Of the cluster.
    Administrator,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Role::Coordinator => "coordinator",
            Role::Operator => "operator",
            Role::Administrator => "administrator",
        })
    }
}

/// Who has which role, by name. The configuration says it; nothing else asks where it comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roles {
    administrators: BTreeSet<String>,
    operators: BTreeSet<String>,
    /// The accounts that each coordinates.
    coordinators: BTreeMap<String, Vec<String>>,
}

impl Roles {
    /// Those that a configuration gives.
    pub fn of(config: &Config) -> Roles {
        let mut coordinators: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for account in &config.accounts {
            for user in &account.coordinators {
                coordinators.entry(user.clone()).or_default().push(account.name.clone());
            }
        }
        Roles {
            administrators: config.administrators.iter().cloned().collect(),
            operators: config.operators.iter().cloned().collect(),
            coordinators,
        }
    }

    /// What a user is over the whole cluster.
    pub fn rank(&self, user: &str) -> Rank {
        if self.administrators.contains(user) {
            Rank::Administrator
        } else if self.operators.contains(user) {
            Rank::Operator
        } else {
            Rank::User
        }
    }

    /// The accounts whose jobs a user coordinates.
    pub fn accounts(&self, user: &str) -> Vec<String> {
        self.coordinators.get(user).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::AccountConfig;

    #[test]
    fn the_configuration_gives_roles() {
        let account = |name: &str, coordinators: &[&str]| AccountConfig {
            name: name.into(),
            coordinators: coordinators.iter().map(|user| (*user).into()).collect(),
            ..AccountConfig::default()
        };
        let config = Config {
            administrators: vec!["root2".into(), "both".into()],
            operators: vec!["op".into(), "both".into()],
            accounts: vec![account("physics", &["ann", "op"]), account("bio", &["ann"])],
            ..Config::default()
        };
        let roles = Roles::of(&config);
        let ranks = ["root2", "both", "op", "ann", "nobody", ""].map(|user| roles.rank(user));
        use Rank::{Administrator, Operator, User};
        assert_eq!(ranks, [Administrator, Administrator, Operator, User, User, User]);
        assert_eq!(roles.accounts("ann"), ["physics", "bio"]);
        assert_eq!(roles.accounts("op"), ["physics"]);
        assert!(roles.accounts("both").is_empty() && roles.accounts("").is_empty());
        assert_eq!(Roles::of(&Config::default()), Roles::default());
    }

    #[test]
    fn each_rank_is_above_the_one_before() {
        assert!(Rank::User < Rank::Operator && Rank::Operator < Rank::Administrator);
        for role in [Role::Coordinator, Role::Operator, Role::Administrator] {
            assert_eq!(serde_json::to_string(&role).unwrap(), format!("\"{role}\""));
        }
    }
}
