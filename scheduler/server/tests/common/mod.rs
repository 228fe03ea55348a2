//! A controller as a process of its own: this test program once more, for the test that its file declares with [`controller_process!`].

use berth_controller::{ControllerOptions, load_config, run};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Declares what [`Controller::start`] runs: a test of the program's own.
#[macro_export]
macro_rules! controller_process {
    () => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        #[ignore = "the controller's process of the other tests"]
        async fn child_controller() {
            $crate::common::be_the_controller().await
        }
    };
}

/// Runs the controller of the directory in the environment until it is killed. Without one it is nobody's child and does nothing.
pub async fn be_the_controller() {
    let Some(dir) = std::env::var_os("CONTROLLER_DIR") else { return };
    let options = ControllerOptions {
        state_dir: PathBuf::from(dir),
        config_path: None,
        system: true,
        read: |dir, file| load_config(dir, file).map_err(|e| e.to_string()),
        in_force: |_| (),
        ready: || (),
        power_off: |_| Err("there is no program".to_string()),
    };
    if let Err(e) = run(options, Box::pin(std::future::pending())).await {
        eprintln!("controller: error: {e}");
        std::process::exit(3);
    }
}

/// This test program once more, for one of its tests marked as ignored.
pub fn again(test: &str, dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--ignored", "--nocapture"]).env("CONTROLLER_DIR", dir);
    command
}

/// A controller in a process of its own, which ends with this.
pub struct Controller(pub Child);

impl Controller {
    pub fn start(dir: &Path) -> Controller {
        Controller(again("child_controller", dir).stdout(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
