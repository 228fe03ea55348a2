//! The process with the system's libpmix: one for each step and node whose tasks come to PMIx. It serves the step's tasks on the node,
//! and says to the supervisor, over its standard input, what is for other nodes. It is the step's user, has this one purpose,
//! and ends with its supervisor.

pub mod callers;
mod gate;

use berth_pmi::pmix::{
    Act, Meetings, Pattern, Word, Words, same_but_for_the_port, server_address, server_namespace,
};
use berth_runtime::sys::pmix::{Event, Info, Library, Server, Value};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::BorrowedFd;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::io::Write;
use std::net::TcpListener;

/// What the supervisor tells of the step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// Name of the step, and of its namespace.
    pub name: String,
    /// This node's place in the step.
    pub node: usize,
    /// The nodes' names.
    pub nodes: Vec<String>,
    /// The ranks of each.
    pub tasks: Vec<Vec<u32>>,
    /// As whom tasks come, as they see it themselves.
    pub uid: u32,
    /// And their group.
    pub gid: u32,
    /// Where files of the library may be.
    pub tmp: String,
    /// What the first task of this node was told already, where they were before the process was: it has the address at which
    /// they come as its standard output.
    #[serde(default)]
    pub told: Vec<String>,
}

/// Why the process ends. The supervisor is gone, most likely.
type Ended = String;

/// Serves until the supervisor is gone. `identity`: as whom (`UID:GID:GROUP,…`), where root starts it.
pub fn main(identity: Option<&str>) -> u8 {
    let stdin = rustix::stdio::stdin();
    match become_user(identity).and_then(|()| serve(stdin)) {
        Ok(()) => 0,
        Err(why) => {
            let _ = say(stdin, &Word::Failed(why.into_bytes()));
            1
        }
    }
}

/// Whether what the library tells a task of the made-up step is understood.
///
/// # Errors
/// Why it is not.
pub fn understood(lines: &[String]) -> Result<(), String> {
    Pattern::of(lines).map(drop)
}

/// Says what the library tells a task of a made-up step, a variable on each line.
pub fn pattern(identity: Option<&str>) -> Result<(), String> {
    become_user(identity)?;
    let setup = Setup {
        name: Pattern::STEP.to_string(),
        node: 0,
        nodes: vec![Pattern::HOST.to_string()],
        tasks: vec![vec![0]],
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
        tmp: "/tmp".to_string(),
        told: Vec::new(),
    };
    let server = begin(&setup, &[0])?;
    let text: String = variables(&server, 0)?.into_iter().map(|entry| entry + "\n").collect();
    std::io::stdout().write_all(text.as_bytes()).map_err(|e| format!("cannot write: {e}"))
}

/// Gives up root's rights for good, and lives no longer than the supervisor.
fn become_user(identity: Option<&str>) -> Result<(), String> {
    if let Some(text) = identity {
        let (uid, gid, groups) = parse(text).ok_or_else(|| format!("'{text}' is no identity"))?;
        let ids: Vec<nix::unistd::Gid> = groups.into_iter().map(nix::unistd::Gid::from_raw).collect();
        let (uid, gid) = (nix::unistd::Uid::from_raw(uid), nix::unistd::Gid::from_raw(gid));
        nix::unistd::setgroups(&ids)
            .and_then(|()| nix::unistd::setresgid(gid, gid, gid))
            .and_then(|()| nix::unistd::setresuid(uid, uid, uid))
            .map_err(|e| format!("cannot become user {uid}: {e}"))?;
    }
    let failed = |e: Errno| format!("cannot give up rights: {e}");
    rustix::thread::set_no_new_privs(true).map_err(failed)?;
    // Taken back by a change of ids, and so after it. If the supervisor is gone by now, its socket tells.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(failed)?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    Ok(())
}

fn parse(text: &str) -> Option<(u32, u32, Vec<u32>)> {
    let mut parts = text.split(':');
    let (uid, gid, groups) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?);
    let groups =
        groups.split(',').filter(|g| !g.is_empty()).map(|g| g.parse().ok()).collect::<Option<_>>()?;
    parts.next().is_none().then_some((uid, gid, groups))
}

/// One step's server.
struct Serving<'a> {
    channel: BorrowedFd<'a>,
    server: Server,
    meetings: Meetings,
    /// Ranks of this node, in the order of its tasks.
    here: Vec<u32>,
    words: Words,
}

fn serve(channel: BorrowedFd<'_>) -> Result<(), Ended> {
    let mut words = Words::default();
    let setup = loop {
        match words.next_word().map_err(|e| e.to_string())? {
            Some(Word::Setup(text)) => {
                break serde_json::from_slice::<Setup>(&text).map_err(|e| e.to_string())?;
            }
            Some(other) => return Err(format!("{other:?} before the step is known")),
            None if !listen(channel, &mut words)? => return Ok(()),
            None => {}
        }
    };
    let here = setup.tasks.get(setup.node).cloned().unwrap_or_default();
    let server = begin(&setup, &here)?;
    if let Some(first) = here.first().filter(|_| !setup.told.is_empty()) {
        open_gate(&setup.told, &variables(&server, *first)?, here.len())?;
    }
    for (task, rank) in (0u32..).zip(&here).filter(|_| setup.told.is_empty()) {
        let mut env = Vec::new();
        for entry in server.environment(*rank)? {
            env.extend_from_slice(&entry);
            env.push(0);
        }
        say(channel, &Word::Environment(task, env))?;
    }
    say(channel, &Word::Ready)?;
    let meetings = Meetings::new(setup.node, &setup.tasks);
    Serving { channel, server, meetings, here, words }.run()
}

/// Has the library serve the step's tasks on this node.
fn begin(setup: &Setup, here: &[u32]) -> Result<Server, String> {
    let server = Server::start(Library::open()?, &setup.name, &of_server(setup))?;
    server.register(here.len(), &of_step(setup, &server, here)?)?;
    here.iter().try_for_each(|rank| server.client(*rank, setup.uid, setup.gid))?;
    Ok(server)
}

/// What a task is to have in its environment.
fn variables(server: &Server, rank: u32) -> Result<Vec<String>, String> {
    let text =
        |entry: Vec<u8>| String::from_utf8(entry).map_err(|_| "libpmix says what is no text".to_string());
    server.environment(rank)?.into_iter().map(text).collect()
}

/// Lets in those of the step's tasks who came before the library was there, and who come. `told`: what they were told, `now`: what the
/// library would tell them.
fn open_gate(told: &[String], now: &[String], tasks: usize) -> Result<(), String> {
    if !same_but_for_the_port(told, now) {
        return Err(
            "libpmix is another than when this node's agent started: start the agent again".to_string()
        );
    }
    let to = server_address(now).ok_or("libpmix does not say where it listens")?;
    let failed = |e: &dyn std::fmt::Display| format!("cannot pass connections on: {e}");
    let gate = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3).map_err(|e| failed(&e))?;
    // The tasks are whose this process is. Each may have processes of its own that come as tools do.
    let (uid, most) = (rustix::process::getuid().as_raw(), tasks.saturating_mul(8) + 32);
    gate::open(TcpListener::from(gate), to, uid, most).map_err(|e| failed(&e))
}

impl Serving<'_> {
    fn run(mut self) -> Result<(), Ended> {
        loop {
            while let Some(word) = self.words.next_word().map_err(|e| e.to_string())? {
                let acts = self.hear(word)?;
                self.act(acts)?;
            }
            let woken = self.server.fd();
            let mut set = [PollFd::new(&self.channel, PollFlags::IN), PollFd::new(&woken, PollFlags::IN)];
            match poll(&mut set, None) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(e) => return Err(format!("cannot wait: {e}")),
            }
            let [told, woken] = set.map(|fd| !fd.revents().is_empty());
            if woken {
                for event in self.server.events() {
                    let acts = self.note(event)?;
                    self.act(acts)?;
                }
            }
            if told && !listen(self.channel, &mut self.words)? {
                return Ok(());
            }
        }
    }

    fn hear(&mut self, word: Word) -> Result<Vec<Act>, Ended> {
        Ok(match word {
            Word::Fence(number, data) => self.meetings.fenced(number, data),
            Word::Peer(node, data) => self.meetings.hear(node as usize, &data)?,
            Word::Again(node) => self.meetings.again((node != Word::ALL).then_some(node as usize)),
            other => return Err(format!("a supervisor does not say {other:?}")),
        })
    }

    fn note(&mut self, event: Event) -> Result<Vec<Act>, Ended> {
        match event {
            Event::Fence { ticket, members, data } => return Ok(self.meetings.enter(ticket, members, data)),
            Event::Fetch { ticket, rank } => return Ok(self.meetings.want(ticket, rank)),
            Event::Fetched { number, result } => return Ok(self.meetings.fetched(number, result)),
            Event::Connected(rank) => self.of_task(rank, Word::Came)?,
            Event::Finalized { ticket, rank } => {
                self.of_task(rank, Word::Done)?;
                self.server.answer(ticket, Ok(Vec::new()));
            }
            Event::Abort { ticket, rank, status, message } => {
                self.of_task(rank, |task| Word::Abort(task, status, message.into_bytes()))?;
                // Its exit is heard after what it said.
                self.server.answer(ticket, Ok(Vec::new()));
            }
        }
        Ok(Vec::new())
    }

    fn of_task(&self, rank: u32, word: impl FnOnce(u32) -> Word) -> Result<(), Ended> {
        let at = self.here.iter().position(|here| *here == rank).and_then(|at| u32::try_from(at).ok());
        at.map_or(Ok(()), |task| say(self.channel, &word(task)))
    }

    fn act(&mut self, acts: Vec<Act>) -> Result<(), Ended> {
        let mut acts = std::collections::VecDeque::from(acts);
        while let Some(act) = acts.pop_front() {
            match act {
                Act::Answer(ticket, what) => self.server.answer(ticket, what),
                Act::Fence(number, data) => say(self.channel, &Word::Fence(number, data))?,
                Act::Tell(node, data) => say(self.channel, &Word::Peer(node, data))?,
                Act::Fetch(number, rank) => {
                    if self.server.fetch(rank, number).is_err() {
                        acts.extend(self.meetings.fetched(number, Err(berth_runtime::sys::pmix::NOT_FOUND)));
                    }
                }
            }
        }
        Ok(())
    }
}

/// Reads once; whether the supervisor is still there.
fn listen(channel: BorrowedFd<'_>, words: &mut Words) -> Result<bool, Ended> {
    let mut buffer = [0u8; 65536];
    loop {
        match recv(channel, &mut buffer, RecvFlags::empty()) {
            Ok((_, 0)) => return Ok(false),
            Ok((_, n)) => {
                words.push(&buffer[..n.min(buffer.len())]);
                return Ok(true);
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(format!("cannot read from the supervisor: {e}")),
        }
    }
}

fn say(channel: BorrowedFd<'_>, word: &Word) -> Result<(), Ended> {
    let mut bytes = Vec::new();
    word.encode(&mut bytes);
    let mut rest = bytes.as_slice();
    while !rest.is_empty() {
        match send(channel, rest, SendFlags::NOSIGNAL) {
            Ok(n) => rest = rest.get(n..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(e) => return Err(format!("cannot write to the supervisor: {e}")),
        }
    }
    Ok(())
}

/// What the library is told of the server itself. The keys are those of the Standard (`pmix_common.h`).
fn of_server(setup: &Setup) -> Vec<Info> {
    let text = |key, value: &str| Info { key, value: Value::Text(value.to_string()) };
    let node = u32::try_from(setup.node).unwrap_or(0);
    vec![
        text("pmix.srv.nspace", &server_namespace(&setup.name)),
        Info { key: "pmix.srv.rank", value: Value::Rank(node) },
        text("pmix.hname", setup.nodes.get(setup.node).map_or("", String::as_str)),
        text("pmix.srvr.tmpdir", &setup.tmp),
        text("pmix.sys.tmpdir", &setup.tmp),
        // Nobody but the step's own tasks is served.
        Info { key: "pmix.srvr.tool", value: Value::Flag(false) },
        Info { key: "pmix.srvr.sys", value: Value::Flag(false) },
    ]
}

/// What tasks may ask of their step.
fn of_step(setup: &Setup, server: &Server, here: &[u32]) -> Result<Vec<Info>, String> {
    let size = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let number = |key, n: usize| Info { key, value: Value::Number(size(n)) };
    let text = |key, text: String| Info { key, value: Value::Text(text) };
    let joined = |ranks: &[u32]| ranks.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let all: usize = setup.tasks.iter().map(Vec::len).sum();
    let busy: Vec<(usize, &Vec<u32>)> =
        setup.tasks.iter().enumerate().filter(|(_, t)| !t.is_empty()).collect();
    let name = |at: usize| setup.nodes.get(at).map_or("", String::as_str);
    let names: BTreeSet<&str> = busy.iter().map(|(at, _)| name(*at)).collect();
    if names.len() != busy.len() {
        return Err("two nodes of the step have the same name".into());
    }
    let nodes: Vec<&str> = busy.iter().map(|(at, _)| name(*at)).collect();
    let ranks: Vec<String> = busy.iter().map(|(_, ranks)| joined(ranks)).collect();
    let mut infos = vec![
        text("pmix.jobid", setup.name.clone()),
        number("pmix.univ.size", all),
        number("pmix.job.size", all),
        number("pmix.max.size", all),
        number("pmix.job.napps", 1),
        number("pmix.num.nodes", busy.len()),
        text("pmix.nmap", server.node_map(&nodes.join(","))?),
        text("pmix.pmap", server.rank_map(&ranks.join(";"))?),
        number("pmix.local.size", here.len()),
        number("pmix.node.size", here.len()),
        text("pmix.lpeers", joined(here)),
        Info { key: "pmix.lldr", value: Value::Rank(here.iter().min().copied().unwrap_or(0)) },
    ];
    // Of other nodes' tasks the maps say all that there is to say.
    let place = size(busy.iter().position(|(at, _)| *at == setup.node).unwrap_or(0));
    for (local, rank) in (0u16..).zip(here) {
        let rank_of = |key| Info { key, value: Value::Rank(*rank) };
        infos.push(Info {
            key: "pmix.pdata",
            value: Value::All(vec![
                rank_of("pmix.rank"),
                Info { key: "pmix.appnum", value: Value::Number(0) },
                Info { key: "pmix.aldr", value: Value::Rank(0) },
                rank_of("pmix.grank"),
                rank_of("pmix.apprank"),
                Info { key: "pmix.lrank", value: Value::Small(local) },
                Info { key: "pmix.nrank", value: Value::Small(local) },
                Info { key: "pmix.nodeid", value: Value::Number(place) },
                text("pmix.hname", name(setup.node).to_string()),
            ]),
        });
    }
    Ok(infos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_read_whole_or_not_at_all() {
        assert_eq!(parse("1:2:3,4"), Some((1, 2, vec![3, 4])));
        assert_eq!(parse("1:2:"), Some((1, 2, vec![])));
        for bad in ["", "1", "1:2", "1:2:x", "-1:2:", "1:2:3:4", "1:2:4294967296"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
