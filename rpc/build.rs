//! Compiles the service definitions without protoc, and lists their methods for the authorisation table.

use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(["berth/v1/cluster.proto", "berth/v1/node.proto"], ["proto"])?;

    let mut methods = Vec::new();
    for file in &descriptors.file {
        for service in &file.service {
            for method in &service.method {
                let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                methods.push((format!("{}{}", service.name(), method.name()), path));
            }
        }
    }
    let mut code = String::from(
        "/// Every method of every service, in the order of the definitions.\n\
         #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]\n\
         pub enum Method {\n",
    );
    for (name, path) in &methods {
        writeln!(code, "    /// `{path}`.\n    {name},")?;
    }
    code.push_str("}\n\nimpl Method {\n    /// All of them.\n    pub const ALL: &[Method] = &[");
    for (name, _) in &methods {
        write!(code, "Method::{name}, ")?;
    }
    code.push_str("];\n\n    /// The method's path on the wire.\n    pub fn path(self) -> &'static str {\n        match self {\n");
    for (name, path) in &methods {
        writeln!(code, "            Method::{name} => {path:?},")?;
    }
    code.push_str("        }\n    }\n}\n");
    fs::write(Path::new(&env::var("OUT_DIR")?).join("methods.rs"), code)?;

    tonic_prost_build::configure().build_transport(false).compile_fds(descriptors)?;
    Ok(())
}
