//! The cluster's configuration on a machine that goes on under another one without being started again, as a login node does.

use super::{private, whole};
use berth_client::site::StateDir;
use berth_model::config::{Config, Understood};
use serde_json::Value;
use std::path::PathBuf;

/// What the controller said last.
pub struct Following {
    file: PathBuf,
    last: Option<Value>,
}

impl Following {
    /// From what this machine was started with.
    pub fn of(dir: &StateDir) -> Following {
        let file = private(dir).join("settings.json");
        let last = std::fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Following { file, last }
    }

    /// Takes what the controller says now, and keeps it for those who read it here and for the next start. Nothing where it is as it was,
    /// or cannot be read.
    pub fn hear(&mut self, told: Value) -> Option<Understood> {
        if self.last.as_ref() == Some(&told) {
            return None;
        }
        let understood = Config::understand(told.clone());
        let kept = match &understood {
            Ok(_) => whole(&self.file, told.to_string().as_bytes(), 0o600),
            Err(_) => Ok(()),
        };
        if let Err(e) = kept {
            tracing::error!("the configuration has changed and is not kept for the next start: {}", e.text);
        }
        // Said once, whatever came of it.
        self.last = Some(told);
        match understood {
            Ok(understood) => {
                tracing::info!("the configuration has changed, and is in force");
                Some(understood)
            }
            Err(e) => {
                tracing::error!(
                    "the configuration has changed, and cannot be read by this version: {e}; upgrade it"
                );
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_changes_is_kept_and_told_once_and_what_cannot_be_read_leaves_it() {
        let place = tempfile::tempdir().unwrap();
        let dir = StateDir(place.path().to_path_buf());
        std::fs::create_dir(private(&dir)).unwrap();
        let file = private(&dir).join("settings.json");
        std::fs::write(&file, "{}").unwrap();
        let mut following = Following::of(&dir);
        assert_eq!(following.hear(json!({})), None);
        let told = json!({"images": {"deny": ["x"]}, "later": 1});
        let heard = following.hear(told.clone()).unwrap();
        assert_eq!((heard.config.images.deny.len(), heard.unknown), (1, vec!["later".to_string()]));
        assert_eq!(following.hear(told.clone()), None);
        assert_eq!(following.hear(json!(7)), None);
        let read = || serde_json::from_slice::<Value>(&std::fs::read(&file).unwrap()).unwrap();
        assert_eq!(read(), told);
        // The next start goes on from there.
        assert_eq!(Following::of(&dir).hear(told), None);
        // What cannot be kept is in force all the same.
        std::fs::remove_dir_all(private(&dir)).unwrap();
        assert_eq!(following.hear(json!({})).unwrap().config, Config::understand(json!({})).unwrap().config);
    }
}
