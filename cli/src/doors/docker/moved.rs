//! `docker push`, `save` and `history`: by the same ways as `berth image`.

use super::store::{Row, print_by, print_columns};
use super::{History, Push, Save};
use crate::commands::image::transfer;
use crate::images;
use berth_client::error::Outcome;
use berth_client::out;
use berth_images::SaveForm;

/// Pushes an image to where its name says.
pub fn push(args: Push) -> Outcome {
    let Push { quiet, image } = args;
    let push = transfer::Push { reference: image.clone(), image, insecure: false, quiet, json: false };
    transfer::push(&push, &images::store(None)?, None)
}

/// Writes an image to a tar file.
pub fn save(args: &Save) -> Outcome {
    transfer::write(&args.image, &args.output, SaveForm::Archive, true, &images::store(None)?, None)
        .map(|_| 0)
}

/// Shows how an image was made.
pub fn history(args: &History) -> Outcome {
    let store = images::store(None)?;
    let digest = store.find(&args.image).map_err(|e| images::failed(&e))?;
    let mut rows: Vec<Row> = Vec::new();
    for (at, step) in store.history(&digest).map_err(|e| images::failed(&e))?.iter().enumerate() {
        // As with docker, the steps before the last have no image of their own.
        let id = match at {
            0 if args.no_trunc => digest.to_string(),
            0 => digest.short().to_string(),
            _ => "<missing>".to_string(),
        };
        rows.push(vec![
            ("ID", id),
            ("CreatedAt", transfer::one_line(step.created.clone())),
            ("CreatedBy", transfer::one_line(transfer::command(step, args.no_trunc))),
            ("Size", transfer::layer_size(step)),
            ("Comment", transfer::one_line(step.comment.clone())),
        ]);
    }
    if args.quiet {
        let ids: String = rows.iter().map(|r| format!("{}\n", r[0].1)).collect();
        return out::print(&ids).map(|()| 0);
    }
    match &args.format {
        Some(template) => print_by(template, &rows),
        None => {
            print_columns(&["IMAGE", "CREATED", "CREATED BY", "SIZE", "COMMENT"], &[0, 1, 2, 3, 4], &rows)
        }
    }
}
