//! A configuration that another version of ours wrote: what this version does not know is left out, and named.
//!
//! An administrator's file is judged strictly. What a controller tells its agents must not be: after an upgrade it may have keys, and
//! words for keys, of which an older agent knows nothing. What is at its default is not said at all, so that only what somebody asked
//! for can be left out, and who leaves something out tells the controller. Where a default has become another one, what is not said
//! means the first one still.

use super::Config;
use serde::de::{DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{Error, Map, Value};
use std::cell::RefCell;

/// Most that is left out of one configuration before it counts as none.
const MOST: usize = 256;

/// What another version's configuration means to this one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Understood {
    /// The configuration, without what is not known.
    pub config: Config,
    /// The keys that were left out, as `images.mirror[0].priority`.
    pub unknown: Vec<String>,
}

/// One step from the outside of a configuration to something in it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Key(String),
    At(usize),
}

type Path = RefCell<Vec<Step>>;

/// What keeps jobs, or what they do, from where they may not be, with all below it: an agent that does not know one of these takes no
/// jobs. A new key of that kind is added here, with the version that brings it.
const RESTRICTING: &[&str] = &[
    "container.hooks_dirs",
    "images.allow",
    "images.deny",
    "images.quota",
    "images.rule",
    "images.signature",
    "images.signatures",
    "images.user_quota",
    "programs",
];

/// Whether an agent that does not know this key, as [`Understood::unknown`] names it, must take no jobs.
pub fn restricts(key: &str) -> bool {
    RESTRICTING.iter().any(|known| {
        key.strip_prefix(known).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    })
}

impl Config {
    /// What of it is an agent's affair; all else is at its default. Agents do not start again when other things change, and nodes
    /// are not told more than they need.
    #[must_use]
    pub fn for_agents(&self) -> Config {
        let Config {
            listen,
            certificate_seconds,
            kill_wait_seconds,
            min_job_age_seconds,
            node_timeout_seconds,
            launch_tree_from,
            launch_tree_width,
            max_array_size,
            max_jobs,
            root_jobs,
            requeue,
            keep_records_days,
            operators,
            accounts,
            partitions,
            ..
        } = Config::default();
        Config {
            listen,
            certificate_seconds,
            kill_wait_seconds,
            min_job_age_seconds,
            node_timeout_seconds,
            launch_tree_from,
            launch_tree_width,
            max_array_size,
            max_jobs,
            root_jobs,
            requeue,
            keep_records_days,
            operators,
            accounts,
            partitions,
            gpus: self.gpus.for_agents(),
            programs: self.programs.for_agents(),
            ..self.clone()
        }
    }

    /// What it means to controllers and agents of all versions that nothing is said: a key's first default.
    fn unsaid() -> Config {
        let mut config = Config::default();
        config.images.keep_days = 0;
        config
    }

    /// What differs from [`Config::unsaid`]: what an agent is told. JSON.
    pub fn told(&self) -> Value {
        let (own, unsaid) = (plain(self), plain(&Config::unsaid()));
        without(own, &unsaid).unwrap_or_else(|| Value::Object(Map::new()))
    }

    /// Reads what [`Config::told`] of another version says.
    ///
    /// # Errors
    /// It is no configuration at all.
    pub fn understand(mut told: Value) -> Result<Understood, Error> {
        let mut unknown = Vec::new();
        let unsaid = without(plain(&Config::unsaid()), &plain(&Config::default())).unwrap_or_default();
        loop {
            fill(&mut told, &unsaid);
            let path = Path::default();
            let whole = Tolerant { value: told.clone(), path: &path };
            match Config::deserialize(whole) {
                Ok(config) => return Ok(Understood { config, unknown }),
                Err(e) if unknown.len() == MOST => return Err(e),
                // Where it was when it failed: that is what this version does not know.
                Err(e) => {
                    let path = path.into_inner();
                    if path.is_empty() || !take_out(&mut told, &path) {
                        return Err(e);
                    }
                    unknown.push(name(&path));
                }
            }
        }
    }
}

fn plain(config: &Config) -> Value {
    // Strings, numbers and lists of them always serialise.
    serde_json::to_value(config).unwrap_or_default()
}

/// What of a value differs from the default; lists and plain values are taken whole.
fn without(own: Value, default: &Value) -> Option<Value> {
    match (own, default) {
        (Value::Object(own), Value::Object(defaults)) => {
            let differs = own.into_iter().filter_map(|(key, value)| {
                let value = match defaults.get(&key) {
                    Some(default) => without(value, default)?,
                    None => value,
                };
                Some((key, value))
            });
            let differs: Map<String, Value> = differs.collect();
            (!differs.is_empty()).then_some(Value::Object(differs))
        }
        (own, default) => (own != *default).then_some(own),
    }
}

/// Adds what is not said, here or as something that was taken out.
fn fill(told: &mut Value, unsaid: &Value) {
    let (Value::Object(told), Value::Object(unsaid)) = (told, unsaid) else { return };
    for (key, value) in unsaid {
        match told.get_mut(key) {
            Some(said) => fill(said, value),
            None => {
                told.insert(key.clone(), value.clone());
            }
        }
    }
}

fn take_out(value: &mut Value, path: &[Step]) -> bool {
    match (path, value) {
        ([Step::Key(key)], Value::Object(map)) => map.remove(key).is_some(),
        ([Step::At(at)], Value::Array(list)) if *at < list.len() => {
            list.remove(*at);
            true
        }
        ([Step::Key(key), rest @ ..], Value::Object(map)) => {
            map.get_mut(key).is_some_and(|inner| take_out(inner, rest))
        }
        ([Step::At(at), rest @ ..], Value::Array(list)) => {
            list.get_mut(*at).is_some_and(|inner| take_out(inner, rest))
        }
        _ => false,
    }
}

fn name(path: &[Step]) -> String {
    let mut name = String::new();
    for step in path {
        match step {
            Step::Key(key) if name.is_empty() => name.push_str(key),
            Step::Key(key) => name.push_str(&format!(".{key}")),
            Step::At(at) => name.push_str(&format!("[{at}]")),
        }
    }
    name
}

/// A value that knows where it is: an error leaves the path where it came up.
struct Tolerant<'a> {
    value: Value,
    path: &'a Path,
}

impl<'de> Deserializer<'de> for Tolerant<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value {
            Value::Array(list) => visitor.visit_seq(List { rest: list.into_iter(), at: 0, path: self.path }),
            Value::Object(map) => {
                visitor.visit_map(Object { rest: map.into_iter(), value: None, path: self.path })
            }
            plain => plain.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.value.deserialize_enum(name, variants, visitor)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map struct identifier ignored_any
    }
}

struct List<'a> {
    rest: std::vec::IntoIter<Value>,
    at: usize,
    path: &'a Path,
}

impl<'de> SeqAccess<'de> for List<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        let Some(value) = self.rest.next() else { return Ok(None) };
        self.path.borrow_mut().push(Step::At(self.at));
        self.at += 1;
        let element = seed.deserialize(Tolerant { value, path: self.path })?;
        self.path.borrow_mut().pop();
        Ok(Some(element))
    }
}

struct Object<'a> {
    rest: serde_json::map::IntoIter,
    value: Option<Value>,
    path: &'a Path,
}

impl<'de> MapAccess<'de> for Object<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some((key, value)) = self.rest.next() else { return Ok(None) };
        self.value = Some(value);
        self.path.borrow_mut().push(Step::Key(key.clone()));
        seed.deserialize(key.into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let value = self.value.take().unwrap_or_default();
        let read = seed.deserialize(Tolerant { value, path: self.path })?;
        self.path.borrow_mut().pop();
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AccountConfig, LayerForm, MirrorConfig, PartitionConfig};
    use crate::signature::SignatureRule;
    use serde_json::json;

    /// What agents of version 0.1 take for what is not said: they were told with every key, and are told what differs since.
    const DEFAULTS: &str = include_str!("../../tests/settings/defaults-0.1.json");

    #[test]
    fn what_is_not_said_means_to_earlier_agents_what_it_means_to_this_one() {
        let then: Value = serde_json::from_str(DEFAULTS).unwrap();
        let now = plain(&Config::unsaid());
        // Keys may come, and what they mean unsaid must be what agents without them do. What an earlier version has stays as it was:
        // another default is said, and for that `unsaid` has the earlier one.
        fn same(then: &Value, now: &Value, at: &str) {
            match (then, now) {
                (Value::Object(then), Value::Object(now)) => {
                    then.iter().for_each(|(key, value)| same(value, &now[key], &format!("{at}.{key}")));
                }
                _ => assert_eq!(then, now, "{at}"),
            }
        }
        same(&then, &now, "");
    }

    fn some() -> Config {
        let mut config = Config::default();
        config.images.layer_form = LayerForm::Directory;
        config.images.deny = vec!["docker.io/library/evil".into()];
        config.images.prefetch = 0;
        config.images.mirrors = vec![MirrorConfig {
            registry: "docker.io".into(),
            urls: vec!["http://m:5000".into()],
            grants: true,
        }];
        config.images.signature_rules =
            vec![SignatureRule { images: "a".into(), ..SignatureRule::default() }];
        config.programs.prolog = "/etc/prolog".into();
        config.administrators = vec!["ann".into()];
        config
    }

    #[test]
    fn what_was_told_is_understood_and_what_is_at_its_default_is_not_told() {
        assert_eq!(Config::unsaid().told(), json!({}));
        assert_eq!(Config::understand(json!({})).unwrap().config, Config::unsaid());
        // What an earlier agent took for another value.
        assert_eq!(Config::default().told(), json!({ "images": { "keep_days": 90 } }));
        for config in [Config::default(), some()] {
            let understood = Config::understand(config.told()).unwrap();
            assert_eq!(understood, Understood { config: config.clone(), unknown: vec![] });
            // Earlier controllers tell all of it, and an earlier agent reads what this one tells as it reads a file.
            let all = Config::understand(plain(&config)).unwrap();
            assert_eq!(all, Understood { config: config.clone(), unknown: vec![] });
            assert_eq!(serde_json::from_value::<Config>(config.told()).unwrap(), config);
        }
        assert!(!Config::understand(json!({ "requeue": false })).unwrap().config.requeue);
    }

    #[test]
    fn what_a_later_version_says_is_left_out_and_named_and_all_else_holds() {
        let mut told = some().told();
        told["peers"] = json!({ "enabled": true });
        told["images"]["layer_form"] = json!("squashfs");
        told["images"]["keep_days"] = json!("for ever");
        told["images"]["mirror"][0]["priority"] = json!(3);
        told["images"]["signature"][0]["expires"] = json!([1, { "x": null }]);
        told["programs"]["of_tomorrow"] = json!("/etc/check");
        let Understood { config, mut unknown } = Config::understand(told).unwrap();
        let mut expected = some();
        expected.images.layer_form = LayerForm::Auto;
        expected.images.keep_days = 0;
        assert_eq!(config, expected);
        unknown.sort();
        let named = [
            "images.keep_days",
            "images.layer_form",
            "images.mirror[0].priority",
            "images.signature[0].expires",
            "peers",
            "programs.of_tomorrow",
        ];
        assert_eq!(unknown, named);
        assert_eq!(
            unknown.iter().filter(|key| restricts(key)).collect::<Vec<_>>(),
            ["images.signature[0].expires", "programs.of_tomorrow"]
        );
        assert!(!restricts("images.denying") && restricts("images.deny[3]") && !restricts("images"));
    }

    #[test]
    fn what_is_no_configuration_is_an_error_and_ends() {
        for nonsense in [json!(null), json!("x"), json!(7)] {
            Config::understand(nonsense).unwrap_err();
        }
        let many: Map<String, Value> = (0..=MOST).map(|n| (format!("k{n}"), json!(1))).collect();
        Config::understand(Value::Object(many)).unwrap_err();
    }

    #[test]
    fn agents_are_told_what_is_theirs() {
        let mut config = some();
        config.partitions = vec![PartitionConfig { name: "secret".into(), ..PartitionConfig::default() }];
        config.max_jobs = 3;
        config.operators = vec!["bob".into()];
        config.accounts = vec![AccountConfig {
            name: "physics".into(),
            coordinators: vec!["cy".into()],
            users: vec!["dan".into()],
        }];
        assert_eq!(config.for_agents(), some());
    }
}
