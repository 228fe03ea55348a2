//! Imports one image and prints what it took; also the two helper programs, for tests and measurements.
//!
//! `import [--insecure] [--give] [--store DIR] [--form directory|erofs] [--stacking N] REFERENCE`
//!
//! `--stacking`: as on a kernel that mounts so many layers at once, so that the lowest are made one.
//! `--give`: also what another node costs that takes the image: each layer's archive is made again, as for every one that does
//! (layers that are directories alone).
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use berth_images::{
    Credentials, Error, ErrorKind, LayerForm, ProgressEvent, Reference, Registries, ResolveOptions, Resolved,
    Result, Store, fetcher_main, open_source, resolve, unpacker_main,
};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1).peekable();
    match arguments.peek().and_then(|a| a.to_str()) {
        Some("internal-fetch") => {
            ExitCode::from(fetcher_main(arguments.skip(1), std::io::stdin(), std::io::stdout()))
        }
        Some("internal-unpack") => ExitCode::from(unpacker_main(
            arguments.skip(1),
            std::io::stdin(),
            std::io::stdout(),
            std::io::stderr(),
        )),
        _ => match import(arguments) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("import: {error}");
                ExitCode::FAILURE
            }
        },
    }
}

fn import(arguments: impl Iterator<Item = OsString>) -> Result<()> {
    let usage = || {
        Error::new(
            ErrorKind::Reference,
            "arguments",
            "usage: import [--insecure] [--give] [--store DIR] [--form directory|erofs] [--stacking N] REFERENCE",
        )
    };
    let mut root = std::env::temp_dir().join("berth-import");
    let (mut insecure, mut give) = (false, false);
    let mut form = LayerForm::Directory;
    let mut stacking = None;
    let mut text = None;
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--insecure") => insecure = true,
            Some("--give") => give = true,
            Some("--store") => root = PathBuf::from(arguments.next().ok_or_else(usage)?),
            Some("--form") => {
                form = match arguments.next().ok_or_else(usage)?.to_str() {
                    Some("directory") => LayerForm::Directory,
                    Some("erofs") => LayerForm::Erofs,
                    _ => return Err(usage()),
                }
            }
            Some("--stacking") => {
                let most = arguments.next().and_then(|most| most.to_str()?.parse::<usize>().ok());
                stacking = Some(most.ok_or_else(usage)?);
            }
            Some(name) if text.is_none() => text = Some(name.to_owned()),
            _ => return Err(usage()),
        }
    }
    let reference: Reference = text.ok_or_else(usage)?.parse()?;
    let credentials = Credentials::from_env();
    let start = Instant::now();
    let registries = match insecure {
        true => Registries::default().without_tls_of(&reference),
        false => Registries::default(),
    };
    let options = ResolveOptions { registries, ..ResolveOptions::default() };
    let Resolved::Manifest(image) = resolve(&reference, &credentials, &options)? else {
        return Err(Error::new(
            ErrorKind::Unsupported,
            reference.to_string(),
            "is used in place, there is nothing to import",
        ));
    };
    let source = open_source(&image, &options.registries, &credentials)?;
    let mut store = Store::open(&root)?.with_form(form);
    if let Some(most) = stacking {
        store = store.stacking(most);
    }
    let prepared = store.ensure(&image, source.as_ref(), &|event| match event {
        ProgressEvent::Note { text } => eprintln!("{text}"),
        ProgressEvent::Syncing => eprintln!("syncing after {:.3} s", start.elapsed().as_secs_f64()),
        _ => {}
    })?;
    println!(
        "{} layers of {} in {:.3} s",
        prepared.layers.len(),
        image.digest,
        start.elapsed().as_secs_f64()
    );
    if give {
        let offer = store.offer(&image.digest, &image.source, None)?;
        let start = Instant::now();
        let mut bytes = 0;
        for layer in store.inspect(&image.digest)?.layers {
            let Some(part) = offer.blob(&layer.diff_id)? else { continue };
            part.copy((0, part.length()), &mut std::io::sink())?;
            bytes += part.length();
        }
        let seconds = start.elapsed().as_secs_f64();
        #[allow(clippy::cast_precision_loss)] // A figure for people.
        let rate = bytes as f64 / 1e6 / seconds;
        println!("given: {bytes} bytes of archives in {seconds:.3} s, {rate:.0} MB/s");
    }
    Ok(())
}
