//! Reading `berth.toml`: typed, with the line of a mistake.

use crate::ControllerError;
use berth_model::config::Config;
use std::io::ErrorKind;
use std::path::Path;

/// The configuration of the cluster in `state_dir`: from `explicit`, which must exist then, else from
/// `berth.toml` in the directory, else all defaults.
///
/// # Errors
/// Names file, line and key.
pub fn load_config(state_dir: &Path, explicit: Option<&Path>) -> Result<Config, ControllerError> {
    let path = explicit.map_or_else(|| state_dir.join("berth.toml"), Path::to_path_buf);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound && explicit.is_none() => return Ok(Config::default()),
        Err(e) => {
            let text = format!("{}: {e}; name a configuration (berth.toml) that can be read", path.display());
            return Err(ControllerError::Config(text));
        }
    };
    // toml's text has the line, the column and the line's content.
    toml::from_str(&text)
        .map_err(|e| ControllerError::Config(format!("{}: {}", path.display(), e.to_string().trim_end())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_shown_with_their_line() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load_config(dir.path(), None).unwrap(), Config::default());
        let file = dir.path().join("berth.toml");
        std::fs::write(&file, "cluster = \"c\"\nkill_wait_secs = 3\n").unwrap();
        let text = load_config(dir.path(), None).unwrap_err().to_string();
        assert!(
            text.contains("berth.toml") && text.contains("line 2") && text.contains("kill_wait_secs"),
            "{text}"
        );
        std::fs::write(&file, "[[partition]]\nname = \"p\"\n").unwrap();
        assert_eq!(load_config(dir.path(), None).unwrap().partitions[0].name, "p");
        let missing = load_config(dir.path(), Some(&dir.path().join("other.toml"))).unwrap_err().to_string();
        assert!(missing.contains("other.toml"), "{missing}");
    }
}
