//! How much of a node's image store one user's images may take: `images.user_quota` and `[[images.quota]]` of `berth.toml`.

use crate::check::is_user;
use crate::config::ImagesConfig;
use crate::memory;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// A size that is no bound.
const UNLIMITED: &str = "UNLIMITED";

/// `[[images.quota]]`: for some users, in place of [`ImagesConfig::user_quota`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QuotaConfig {
    /// Users, by name or number.
    pub users: Vec<String>,
    /// Most that their images may take on a node, such as `500G`, or `UNLIMITED`.
    pub size: String,
}

impl ImagesConfig {
    /// Whether anybody has a quota.
    pub fn has_quotas(&self) -> bool {
        !self.user_quota.is_empty() || !self.quotas.is_empty()
    }

    /// Bytes that the images of a user may take on each node; `None` without a bound, which root never has.
    pub fn quota_of(&self, user: &str, uid: u32) -> Option<u64> {
        if uid == 0 {
            return None;
        }
        let number = uid.to_string();
        let own = self.quotas.iter().find(|quota| quota.users.iter().any(|u| *u == user || *u == number));
        let size = own.map_or(&self.user_quota, |quota| &quota.size);
        memory::parse(size).ok().map(|mib| mib << 20)
    }

    /// What is wrong with quotas, by key.
    pub(crate) fn check_quotas(&self, add: &mut dyn FnMut(String, String)) {
        if let Err(why) = check_size(&self.user_quota)
            && !self.user_quota.is_empty()
        {
            add("images.user_quota".into(), why);
        }
        let mut seen = BTreeSet::new();
        for (at, quota) in self.quotas.iter().enumerate() {
            let key = |name: &str| format!("images.quota[{}].{name}", at + 1);
            if quota.users.is_empty() {
                add(key("users"), "it is empty; write whose quota it is, by names".into());
            }
            for user in &quota.users {
                if !is_user(user) {
                    add(
                        key("users"),
                        format!(
                            "'{user}' is not a user's name: name users one by one, groups are not looked up"
                        ),
                    );
                } else if !seen.insert(user) {
                    add(key("users"), format!("'{user}' has two quotas; keep one"));
                }
            }
            if quota.size != UNLIMITED
                && let Err(why) = check_size(&quota.size)
            {
                add(key("size"), why);
            }
        }
    }
}

fn check_size(text: &str) -> Result<(), String> {
    match memory::parse(text) {
        Ok(0) => Err(format!("with 0 no image could be had; write how much, such as 200G, or {UNLIMITED}")),
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ImagesConfig {
        let quota = |users: &[&str], size: &str| QuotaConfig {
            users: users.iter().map(|user| (*user).to_string()).collect(),
            size: size.into(),
        };
        ImagesConfig {
            user_quota: "2G".into(),
            quotas: vec![quota(&["ann", "1005"], "5G"), quota(&["eve"], UNLIMITED)],
            ..Default::default()
        }
    }

    #[test]
    fn a_users_own_quota_comes_before_everybodys_and_root_has_none() {
        let config = config();
        assert_eq!(config.quota_of("bob", 1001), Some(2 << 30));
        assert_eq!(config.quota_of("ann", 1002), Some(5 << 30));
        assert_eq!(config.quota_of("whoever", 1005), Some(5 << 30));
        assert_eq!(config.quota_of("eve", 1003), None);
        assert_eq!(config.quota_of("root", 0), None);
        assert_eq!(ImagesConfig::default().quota_of("ann", 1002), None);
        assert!(config.has_quotas() && !ImagesConfig::default().has_quotas());
    }

    #[test]
    fn what_is_wrong_is_named_by_its_key() {
        let check = |config: &ImagesConfig| {
            let mut found = Vec::new();
            config.check_quotas(&mut |key, _| found.push(key));
            found
        };
        assert_eq!(check(&config()), Vec::<String>::new());
        let mut wrong = config();
        wrong.user_quota = "0".into();
        wrong.quotas[0].users.push("eve".into());
        wrong.quotas[0].size = "unlimited".into();
        wrong.quotas.push(QuotaConfig::default());
        wrong.quotas.push(QuotaConfig { users: vec!["a b".into()], size: "1G".into() });
        assert_eq!(
            check(&wrong),
            [
                "images.user_quota",
                "images.quota[1].size",
                "images.quota[2].users",
                "images.quota[3].users",
                "images.quota[3].size",
                "images.quota[4].users",
            ]
        );
    }
}
