//! Where the output of tasks is written here: to our own streams, or to files that tasks share, on several nodes or with labels.

use crate::error::Failure;
use berth_model::ByteStr;
use berth_model::launch::Layout;
use berth_model::pattern::{Place, expand};
use berth_model::spec::{IoSpec, OpenMode};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{Mode, OFlags};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What could not be written, and why.
#[derive(Debug)]
pub struct Lost {
    /// Where to, as messages say it.
    pub what: String,
    /// Why not.
    pub error: io::Error,
    /// Its reader left: that is no fault.
    pub left: bool,
}

/// Where standard output and standard error of tasks go.
#[derive(Debug)]
pub struct Sinks {
    /// Our own output, our own error output, and files.
    all: Vec<Sink>,
    /// Which of these each has.
    of: [usize; 2],
}

#[derive(Debug, Default)]
struct Sink {
    file: Option<(PathBuf, File)>,
    /// Nothing more can be written.
    gone: bool,
}

impl Default for Sinks {
    fn default() -> Sinks {
        Sinks { all: vec![Sink::default(), Sink::default()], of: [0, 1] }
    }
}

/// The patterns of the files that we write, of output and error output: without one of its own, that goes where output does.
fn patterns<'a>(io: &'a IoSpec, layout: &Layout) -> [Option<&'a ByteStr>; 2] {
    let error = io.stderr.as_ref().or(io.stdout.as_ref());
    [io.stdout.as_ref(), error].map(|pattern| pattern.filter(|pattern| io.is_the_clients(pattern, layout)))
}

impl Sinks {
    /// Whether files of a step are ours to write.
    pub fn are_wanted(io: &IoSpec, layout: &Layout) -> bool {
        patterns(io, layout).iter().any(Option::is_some)
    }

    /// Opens them. Relative names are below the working directory. `place` is that of any task: they all have one file.
    ///
    /// # Errors
    /// One cannot be opened.
    pub fn open(io: &IoSpec, layout: &Layout, work_dir: &Path, place: &Place<'_>) -> Result<Sinks, Failure> {
        let again = if place.restarts > 0 { OpenMode::Append } else { OpenMode::Truncate };
        let mut flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::NOCTTY | OFlags::CLOEXEC;
        if io.open_mode.unwrap_or(again) == OpenMode::Truncate {
            flags |= OFlags::TRUNC;
        }
        let mut sinks = Sinks::default();
        for (stream, pattern) in patterns(io, layout).into_iter().enumerate() {
            let Some(pattern) = pattern else { continue };
            let path = work_dir.join(OsString::from_vec(expand(&pattern.0, place)));
            let open = |sink: &Sink| sink.file.as_ref().is_some_and(|(opened, _)| *opened == path);
            let at = match sinks.all.iter().position(open) {
                Some(at) => at,
                None => {
                    let file = rustix::fs::open(&path, flags, Mode::from_raw_mode(0o666));
                    let (what, option) = [("output", "--output"), ("error", "--error")][stream];
                    let file = file.map_err(|e| {
                        Failure::user(format!(
                            "could not open {what} file {}: {}: make its directory first, or name a file that you may write \
                             ({option})",
                            path.display(),
                            io::Error::from(e)
                        ))
                    })?;
                    sinks.all.push(Sink { file: Some((path, File::from(file))), gone: false });
                    sinks.all.len() - 1
                }
            };
            if let Some(of) = sinks.of.get_mut(stream) {
                *of = at;
            }
        }
        Ok(sinks)
    }

    /// Whether output and error output come to one place: a file, or a terminal.
    pub fn are_one(&self) -> bool {
        let [output, error] = self.of;
        let ours = |fd: BorrowedFd<'_>| rustix::fs::fstat(fd).ok().map(|stat| (stat.st_dev, stat.st_ino));
        let same = || {
            let output = ours(rustix::stdio::stdout());
            output.is_some() && output == ours(rustix::stdio::stderr())
        };
        output == error || ([output, error] == [0, 1] && same())
    }

    /// Writes what came of one of both. What is lost is told once; of our own error output it is not.
    pub fn write(&mut self, stderr: bool, bytes: &[u8]) -> Option<Lost> {
        let at = self.of[usize::from(stderr)];
        let sink = self.all.get_mut(at).filter(|sink| !sink.gone && !bytes.is_empty())?;
        // Unbuffered: what a task wrote is seen when it wrote it.
        let written = match (&sink.file, at) {
            (Some((_, file)), _) => raw_write(file.as_fd(), bytes),
            (None, 0) => raw_write(rustix::stdio::stdout(), bytes),
            (None, _) => raw_write(rustix::stdio::stderr(), bytes),
        };
        let error = written.err()?;
        sink.gone = true;
        let left = sink.file.is_none() && error.kind() == io::ErrorKind::BrokenPipe;
        (at != 1).then(|| Lost { what: sink.what(), error, left })
    }

    /// Nothing more comes. Some filesystems tell only now that something is lost.
    pub fn close(self) -> Option<Lost> {
        let mut lost = None;
        for mut sink in self.all.into_iter().filter(|sink| !sink.gone) {
            let what = sink.what();
            let closed = sink.file.take().map_or(Ok(()), |(_, file)| nix::unistd::close(file));
            if let Err(e) = closed {
                lost.get_or_insert(Lost { what, error: e.into(), left: false });
            }
        }
        lost
    }
}

impl Sink {
    fn what(&self) -> String {
        self.file.as_ref().map_or("standard output".into(), |(path, _)| path.display().to_string())
    }
}

/// Writes past the buffers of the standard library, which would hold back what has no line feed.
fn raw_write(target: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(target, bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(rustix::io::Errno::INTR) => {}
            // A descriptor that a parent made non-blocking: wait until it takes more.
            Err(rustix::io::Errno::AGAIN) => std::thread::sleep(Duration::from_millis(1)),
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_model::{JobId, StepId};

    fn place(restarts: u32) -> Place<'static> {
        Place {
            job: JobId(12),
            array: None,
            step: StepId::Number(3),
            restarts,
            sluid: None,
            task: 0,
            node_index: 0,
            node: "",
            user: "ann",
            job_name: "x",
        }
    }

    fn io(stdout: Option<&str>, stderr: Option<&str>) -> IoSpec {
        let text = |text: Option<&str>| text.map(ByteStr::from);
        IoSpec { stdout: text(stdout), stderr: text(stderr), client_writes: true, ..IoSpec::default() }
    }

    /// Two tasks on each of so many nodes.
    fn layout(nodes: u32) -> Layout {
        let name = |at: u32| format!("n{at}").as_str().into();
        Layout {
            nodes: (0..nodes).map(name).collect(),
            tasks: (0..nodes).map(|at| vec![2 * at, 2 * at + 1]).collect(),
            cpus: (0..nodes).map(|_| 2).collect(),
        }
    }

    #[test]
    fn files_of_all_tasks_on_several_nodes_are_ours_and_no_others() {
        for (stdout, stderr, nodes, ours) in [
            (Some("out"), None, 2, true),
            (Some("out.%J"), Some("%t"), 2, true),
            (Some("out.%t"), Some("err"), 3, true),
            (Some("out"), None, 1, false),
            (Some("out.%t"), None, 2, false),
            (Some("%N/out"), Some("err.%2n"), 2, false),
            (Some("/dev/null"), None, 2, false),
            // The number of a task, and one that no task has.
            (Some("3"), None, 2, false),
            (Some("4"), None, 2, true),
            (None, None, 2, false),
        ] {
            let wanted = Sinks::are_wanted(&io(stdout, stderr), &layout(nodes));
            assert_eq!(wanted, ours, "{stdout:?} {stderr:?} {nodes}");
        }
        let labelled = IoSpec { labelled: true, ..io(Some("out"), None) };
        assert!(Sinks::are_wanted(&labelled, &layout(1)));
        let earlier = IoSpec { client_writes: false, ..io(Some("out"), None) };
        assert!(!Sinks::are_wanted(&earlier, &layout(2)));
    }

    #[test]
    fn both_streams_share_a_file_and_each_may_have_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        let open = |io: &IoSpec, restarts| Sinks::open(io, &layout(2), dir.path(), &place(restarts)).unwrap();
        let write = |mut sinks: Sinks| {
            assert!(sinks.write(false, b"out\n").is_none() && sinks.write(true, b"err\n").is_none());
            assert!(sinks.close().is_none());
        };
        write(open(&io(Some("all.%J"), None), 0));
        assert_eq!(read("all.12.3"), "out\nerr\n");
        // Anew, and behind it where the job runs again or that is asked for.
        write(open(&io(Some("all.%J"), Some("all.12.%s")), 0));
        assert_eq!(read("all.12.3"), "out\nerr\n");
        write(open(&io(Some("all.%J"), Some("err.%u")), 1));
        assert_eq!((read("all.12.3").as_str(), read("err.ann").as_str()), ("out\nerr\nout\n", "err\n"));
        write(open(&IoSpec { open_mode: Some(OpenMode::Append), ..io(Some("err.ann"), None) }, 0));
        assert_eq!(read("err.ann"), "err\nout\nerr\n");
        let failed = Sinks::open(&io(Some("no/%j"), None), &layout(2), dir.path(), &place(0)).unwrap_err();
        assert!(
            failed.text.contains("could not open output file") && failed.text.contains("no/12"),
            "{failed:?}"
        );
    }

    #[test]
    fn what_cannot_be_written_is_told_once() {
        let mut sinks =
            Sinks::open(&io(Some("/dev/full"), None), &layout(2), Path::new("/"), &place(0)).unwrap();
        let lost = sinks.write(true, b"x").unwrap();
        assert_eq!((lost.what.as_str(), lost.left), ("/dev/full", false));
        assert!(sinks.write(false, b"x").is_none() && sinks.close().is_none());
    }
}
