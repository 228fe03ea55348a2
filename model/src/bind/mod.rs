//! `--cpu-bind` and `--mem-bind`: on which of a step's CPUs and NUMA nodes each of its tasks runs. The texts, and in
//! [`plan`] what they come to on a node; in [`gpu`] which GPUs tasks are told of.

pub mod gpu;
pub mod plan;

use crate::grammar::BadText;
use serde::{Deserialize, Serialize};
use std::fmt::{self, Write as _};

/// Elements of a list, each with how many tasks in a row it is for (`0*4,3*4`). Tasks beyond its end begin anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runs<T>(Vec<(T, u32)>);

impl<T> Runs<T> {
    /// The element for the task of this number; `None` of an empty list.
    pub fn at(&self, task: u32) -> Option<&T> {
        let total: u64 = self.0.iter().map(|(_, n)| u64::from(*n)).sum();
        let mut left = u64::from(task).checked_rem(total)?;
        for (element, n) in &self.0 {
            match left.checked_sub(u64::from(*n)) {
                None => return Some(element),
                Some(rest) => left = rest,
            }
        }
        None
    }
}

/// How tasks are bound to CPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CpuHow {
    /// Each may use all of the step's.
    None,
    /// By their order on the node: the first has the step's first CPUs.
    Rank,
    /// To one CPU each, by the kernel's numbers.
    Map(Runs<u32>),
    /// To a set of CPUs each, by the kernel's numbers.
    Mask(Runs<Vec<u32>>),
    /// To hardware threads.
    Threads,
    /// To cores.
    Cores,
    /// To sockets.
    Sockets,
    /// To NUMA nodes.
    Ldoms,
    /// To the NUMA nodes in turn.
    RankLdom,
    /// To one NUMA node each.
    MapLdom(Runs<u32>),
    /// To a set of NUMA nodes each.
    MaskLdom(Runs<Vec<u32>>),
    /// To boards, of which a node counts as one.
    Boards,
}

/// `--cpu-bind`. It is kept and sent as its text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CpuBind {
    /// Each task says on its standard error what it was bound to.
    pub verbose: bool,
    /// How.
    pub how: CpuHow,
}

/// From which NUMA nodes tasks have their memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemHow {
    /// As the kernel sees fit.
    None,
    /// Those of the CPUs that the task is bound to.
    Local,
    /// By their order on the node.
    Rank,
    /// One each.
    Map(Runs<u32>),
    /// A set each.
    Mask(Runs<Vec<u32>>),
}

/// `--mem-bind`. It is kept and sent as its text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MemBind {
    /// Each task says on its standard error what it was bound to.
    pub verbose: bool,
    /// Others are used when the first of these is full.
    pub prefer: bool,
    /// How.
    pub how: MemHow,
}

/// Longest list, in bytes of its text. A map for each of a node's CPUs is far shorter.
const LONGEST: usize = 32 << 10;
/// The largest number of a CPU or NUMA node that can be written.
const LARGEST: u32 = 16_383;

const CPU: &str = "a way to bind tasks to CPUs";
const MEM: &str = "a way to bind the memory of tasks";

impl std::str::FromStr for CpuBind {
    type Err = BadText;
    fn from_str(text: &str) -> Result<CpuBind, BadText> {
        let mut bind = CpuBind { verbose: false, how: CpuHow::None };
        let mut given = false;
        for part in parts(text, CPU)? {
            let how = match (part.word.as_str(), part.list) {
                ("quiet" | "q", None) => {
                    bind.verbose = false;
                    continue;
                }
                ("verbose" | "v", None) => {
                    bind.verbose = true;
                    continue;
                }
                ("none" | "no", None) => CpuHow::None,
                ("rank", None) => CpuHow::Rank,
                ("threads" | "thread", None) => CpuHow::Threads,
                ("cores" | "core", None) => CpuHow::Cores,
                ("sockets" | "socket", None) => CpuHow::Sockets,
                ("ldoms" | "ldom", None) => CpuHow::Ldoms,
                ("rank_ldom", None) => CpuHow::RankLdom,
                ("boards" | "board", None) => CpuHow::Boards,
                ("map_cpu" | "mapcpu", Some(list)) => CpuHow::Map(runs(list, CPU, number)?),
                ("mask_cpu" | "maskcpu", Some(list)) => CpuHow::Mask(runs(list, CPU, mask)?),
                ("map_ldom", Some(list)) => CpuHow::MapLdom(runs(list, CPU, number)?),
                ("mask_ldom", Some(list)) => CpuHow::MaskLdom(runs(list, CPU, mask)?),
                (word, list) => {
                    return Err(unknown(
                        word,
                        list,
                        CPU,
                        "none, rank, threads, cores, sockets, ldoms, rank_ldom, boards, map_cpu:LIST, mask_cpu:LIST, \
                         map_ldom:LIST or mask_ldom:LIST, before it quiet or verbose",
                    ));
                }
            };
            if std::mem::replace(&mut given, true) {
                return Err(BadText::new(text, CPU, "it names two ways: name one"));
            }
            bind.how = how;
        }
        Ok(bind)
    }
}

impl std::str::FromStr for MemBind {
    type Err = BadText;
    fn from_str(text: &str) -> Result<MemBind, BadText> {
        let mut bind = MemBind { verbose: false, prefer: false, how: MemHow::None };
        let mut given = false;
        for part in parts(text, MEM)? {
            let how = match (part.word.as_str(), part.list) {
                ("quiet" | "q", None) => {
                    bind.verbose = false;
                    continue;
                }
                ("verbose" | "v", None) => {
                    bind.verbose = true;
                    continue;
                }
                ("prefer" | "p", None) => {
                    bind.prefer = true;
                    continue;
                }
                ("nosort", None) => continue,
                ("sort", None) => {
                    let why = "sorting free pages needs a module that kernels do not have: leave it out";
                    return Err(BadText::new(text, MEM, why));
                }
                ("none" | "no", None) => MemHow::None,
                ("local", None) => MemHow::Local,
                ("rank", None) => MemHow::Rank,
                ("map_mem" | "mapmem", Some(list)) => MemHow::Map(runs(list, MEM, number)?),
                ("mask_mem" | "maskmem", Some(list)) => MemHow::Mask(runs(list, MEM, mask)?),
                (word, list) => {
                    return Err(unknown(
                        word,
                        list,
                        MEM,
                        "none, local, rank, map_mem:LIST or mask_mem:LIST, before it quiet, verbose or prefer",
                    ));
                }
            };
            if std::mem::replace(&mut given, true) {
                return Err(BadText::new(text, MEM, "it names two ways: name one"));
            }
            bind.how = how;
        }
        Ok(bind)
    }
}

/// A word between commas, and the list behind its colon.
struct Part<'a> {
    word: String,
    list: Option<Vec<&'a str>>,
}

/// Splits at commas; the elements of a list stay with its word. No word that may follow a list begins as a number does.
fn parts<'a>(text: &'a str, what: &'static str) -> Result<Vec<Part<'a>>, BadText> {
    if text.is_empty() || text.len() > LONGEST {
        let why = if text.is_empty() {
            "it is empty".to_string()
        } else {
            format!("it is longer than {LONGEST} bytes")
        };
        return Err(BadText::new(text.chars().take(40).collect::<String>(), what, why));
    }
    let mut parts: Vec<Part<'a>> = Vec::new();
    for piece in text.split(',') {
        let element = piece.starts_with(|c: char| c.is_ascii_hexdigit()) && !piece.contains(':');
        match parts.last_mut() {
            Some(Part { list: Some(list), .. }) if element => list.push(piece),
            _ => {
                let (word, list) = match piece.split_once(':') {
                    Some((word, first)) => (word, Some(vec![first])),
                    None => (piece, None),
                };
                parts.push(Part { word: word.to_ascii_lowercase(), list });
            }
        }
    }
    Ok(parts)
}

fn unknown(word: &str, list: Option<Vec<&str>>, what: &'static str, right: &str) -> BadText {
    let text = if list.is_some() { format!("{word}:") } else { word.to_string() };
    BadText::new(text, what, format!("write {right}"))
}

fn runs<T>(
    list: Vec<&str>,
    what: &'static str,
    element: fn(&str) -> Result<T, String>,
) -> Result<Runs<T>, BadText> {
    let run = |text: &str| {
        let (value, times) = match text.split_once('*') {
            None => (text, Some(1)),
            Some((value, times)) => (value, times.parse::<u32>().ok().filter(|n| *n > 0)),
        };
        let times = times.ok_or_else(|| "behind '*' stands for how many tasks it is, from 1".to_string())?;
        Ok((element(value)?, times))
    };
    let all = list.iter().map(|text| run(text).map_err(|why: String| BadText::new(*text, what, why)));
    Ok(Runs(all.collect::<Result<_, _>>()?))
}

/// Decimal, or hexadecimal behind `0x`.
fn number(text: &str) -> Result<u32, String> {
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None => (text, 10),
    };
    let plain = digits.bytes().all(|b| b.is_ascii_hexdigit());
    let number = plain.then(|| u32::from_str_radix(digits, radix).ok()).flatten();
    number.filter(|n| *n <= LARGEST).ok_or_else(|| {
        format!("a list has numbers from 0 to {LARGEST}, decimal or hexadecimal behind 0x, such as 0,2,4")
    })
}

/// Hexadecimal, with or without `0x`: the numbers of its bits, ascending.
fn mask(text: &str) -> Result<Vec<u32>, String> {
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text);
    let longest = (LARGEST as usize + 1) / 4;
    if digits.is_empty() || digits.len() > longest || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err("a list has masks in hexadecimal, such as 0x3,0xc".to_string());
    }
    let mut bits = Vec::new();
    for (place, digit) in (0_u32..).step_by(4).zip(digits.chars().rev()) {
        let digit = digit.to_digit(16).unwrap_or(0);
        bits.extend((0..4).filter(|bit| digit >> bit & 1 == 1).map(|bit| place + bit));
    }
    if bits.is_empty() {
        return Err("the mask is empty, and a task must run somewhere".to_string());
    }
    Ok(bits)
}

/// The mask of these bits, in hexadecimal behind `0x`.
pub fn hex(bits: &[u32]) -> String {
    let digits = bits.iter().max().map_or(1, |largest| largest / 4 + 1);
    let mut text = String::from("0x");
    for place in (0..digits).rev() {
        let digit = (0..4).filter(|bit| bits.contains(&(place * 4 + bit))).fold(0, |sum, bit| sum | 1 << bit);
        let _ = write!(text, "{digit:x}"); // writing to a string cannot fail
    }
    text
}

fn listed<T>(runs: &Runs<T>, element: fn(&T) -> String) -> String {
    let run = |(value, times): &(T, u32)| match times {
        1 => element(value),
        n => format!("{}*{n}", element(value)),
    };
    runs.0.iter().map(run).collect::<Vec<_>>().join(",")
}

impl CpuHow {
    /// Its word, with a colon where a list follows, and the list.
    pub fn words(&self) -> (&'static str, String) {
        let numbers = |runs| listed(runs, u32::to_string);
        let masks = |runs| listed(runs, |bits: &Vec<u32>| hex(bits));
        match self {
            CpuHow::None => ("none", String::new()),
            CpuHow::Rank => ("rank", String::new()),
            CpuHow::Map(runs) => ("map_cpu:", numbers(runs)),
            CpuHow::Mask(runs) => ("mask_cpu:", masks(runs)),
            CpuHow::Threads => ("threads", String::new()),
            CpuHow::Cores => ("cores", String::new()),
            CpuHow::Sockets => ("sockets", String::new()),
            CpuHow::Ldoms => ("ldoms", String::new()),
            CpuHow::RankLdom => ("rank_ldom", String::new()),
            CpuHow::MapLdom(runs) => ("map_ldom:", numbers(runs)),
            CpuHow::MaskLdom(runs) => ("mask_ldom:", masks(runs)),
            CpuHow::Boards => ("boards", String::new()),
        }
    }
}

impl MemHow {
    /// Its word, with a colon where a list follows, and the list.
    pub fn words(&self) -> (&'static str, String) {
        match self {
            MemHow::None => ("none", String::new()),
            MemHow::Local => ("local", String::new()),
            MemHow::Rank => ("rank", String::new()),
            MemHow::Map(runs) => ("map_mem:", listed(runs, u32::to_string)),
            MemHow::Mask(runs) => ("mask_mem:", listed(runs, |bits: &Vec<u32>| hex(bits))),
        }
    }
}

/// `quiet` or `verbose`.
pub fn loudness(verbose: bool) -> &'static str {
    if verbose { "verbose" } else { "quiet" }
}

impl fmt::Display for CpuBind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, list) = self.how.words();
        write!(f, "{},{word}{list}", loudness(self.verbose))
    }
}

impl fmt::Display for MemBind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, list) = self.how.words();
        let prefer = if self.prefer { "prefer," } else { "" };
        write!(f, "{},{prefer}{word}{list}", loudness(self.verbose))
    }
}

macro_rules! as_text {
    ($($t:ty),+) => { $(
        impl TryFrom<String> for $t {
            type Error = BadText;
            fn try_from(text: String) -> Result<$t, BadText> {
                text.parse()
            }
        }
        impl From<$t> for String {
            fn from(bind: $t) -> String {
                bind.to_string()
            }
        }
    )+ };
}
as_text!(CpuBind, MemBind);

/// What `--cpu-bind=help` prints.
pub const CPU_HELP: &str = "\
CPU bind options:
    --cpu-bind=         Bind tasks to CPUs of the step
        q[uiet]         say nothing of it (the default)
        v[erbose]       have each task say on its standard error what it is bound to
        none            do not bind: each task may use all CPUs of the step (the default)
        rank            the first task of a node has the step's first CPUs there, and so on
        map_cpu:<list>  bind each task to one CPU: <cpu of task 0>,<cpu of task 1>,...
        mask_cpu:<list> bind each task to the CPUs of a mask: <mask of task 0>,<mask of task 1>,...
        threads         bind to hardware threads
        cores           bind to cores
        sockets         bind to sockets
        ldoms           bind to NUMA nodes
        rank_ldom       bind to the NUMA nodes in turn
        map_ldom:<list> bind each task to one NUMA node: <node of task 0>,<node of task 1>,...
        mask_ldom:<list> bind each task to the NUMA nodes of a mask
        boards          bind to boards: a node counts as one
        help            show this
    A list may say for how many tasks an element is (0*4,3*4), and begins anew for tasks beyond its end.
    Numbers are the kernel's. No task is bound to what the step does not have.
";

/// What `--mem-bind=help` prints.
pub const MEM_HELP: &str = "\
Memory bind options:
    --mem-bind=         Bind the memory of tasks to NUMA nodes
        nosort          do not sort free pages (the default; 'sort' is not supported)
        p[refer]        prefer the node, and use others when it is full
        q[uiet]         say nothing of it (the default)
        v[erbose]       have each task say on its standard error what it is bound to
        none            do not bind (the default)
        local           use the memory of the CPUs that the task is bound to
        rank            the first task of a node has the first NUMA node, and so on
        map_mem:<list>  <NUMA node of task 0>,<NUMA node of task 1>,...
        mask_mem:<list> <mask of task 0>,<mask of task 1>,...
        help            show this
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grammar::soup;
    use proptest::prelude::*;

    fn cpu(text: &str) -> Result<CpuBind, BadText> {
        text.parse()
    }

    #[test]
    fn what_is_written_is_read_as_meant() {
        for (text, canonical) in [
            ("cores", "quiet,cores"),
            ("verbose,Cores", "verbose,cores"),
            ("v,rank", "verbose,rank"),
            ("verbose", "verbose,none"),
            ("quiet,none", "quiet,none"),
            ("map_cpu:0,0x10,3*2", "quiet,map_cpu:0,16,3*2"),
            ("map_cpu:0,2,verbose", "verbose,map_cpu:0,2"),
            ("verbose,mask_cpu:f,0xF0*3", "verbose,mask_cpu:0xf,0xf0*3"),
            ("map_ldom:1,0", "quiet,map_ldom:1,0"),
            ("mask_ldom:0x3", "quiet,mask_ldom:0x3"),
            ("rank_ldom", "quiet,rank_ldom"),
        ] {
            let bind = cpu(text).unwrap();
            assert_eq!(bind.to_string(), canonical, "{text}");
            assert_eq!(cpu(canonical).unwrap(), bind);
        }
        let mem: MemBind = "verbose,prefer,map_mem:1,0".parse().unwrap();
        assert_eq!(mem.to_string(), "verbose,prefer,map_mem:1,0");
        assert_eq!("nosort,local".parse::<MemBind>().unwrap().to_string(), "quiet,local");
    }

    #[test]
    fn what_means_nothing_is_refused_with_what_would() {
        for (text, part) in [
            ("", "empty"),
            ("socks", "write none, rank, threads"),
            ("cores,sockets", "two ways"),
            ("map_cpu", "map_cpu:LIST"),
            ("cores:1", "write none"),
            ("map_cpu:", "numbers from 0"),
            ("map_cpu:-1", "numbers from 0"),
            ("map_cpu:+1", "numbers from 0"),
            ("map_cpu:99999", "numbers from 0"),
            ("map_cpu:1*0", "for how many tasks"),
            ("mask_cpu:0x0", "the mask is empty"),
            ("mask_cpu:xyz", "hexadecimal"),
            ("mask_cpu:0x1,,0x2", "write none"),
        ] {
            let error = cpu(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        assert!("sort,local".parse::<MemBind>().unwrap_err().to_string().contains("leave it out"));
        assert!(cpu(&format!("mask_cpu:{}", "f".repeat(5000))).is_err());
        assert!(cpu(&"0,".repeat(40_000)).is_err());
    }

    #[test]
    fn a_list_begins_anew_at_its_end() {
        let CpuHow::Map(runs) = cpu("map_cpu:0*2,3,7*3").unwrap().how else { panic!() };
        let got: Vec<u32> = (0..9).map(|task| *runs.at(task).unwrap()).collect();
        assert_eq!(got, [0, 0, 3, 7, 7, 7, 0, 0, 3]);
        // A count is not carried out.
        let CpuHow::Map(runs) = cpu("map_cpu:1*4294967295,2*4294967295").unwrap().how else { panic!() };
        assert_eq!(runs.at(u32::MAX - 1), Some(&1));
        assert_eq!(runs.at(u32::MAX), Some(&2));
    }

    #[test]
    fn masks_are_printed_as_they_are_read() {
        for bits in [vec![0], vec![3], vec![0, 1, 2, 3], vec![4], vec![0, 63, 64, 200]] {
            assert_eq!(mask(&hex(&bits)).unwrap(), bits);
        }
        assert_eq!(hex(&[0, 4]), "0x11");
    }

    proptest! {
        #[test]
        fn nothing_breaks_the_parsers(text in soup(), word in "(map|mask)_(cpu|ldom|mem):") {
            for text in [text.clone(), format!("{word}{text}")] {
                if let Ok(bind) = text.parse::<CpuBind>() {
                    prop_assert_eq!(bind.to_string().parse::<CpuBind>().unwrap(), bind);
                }
                if let Ok(bind) = text.parse::<MemBind>() {
                    prop_assert_eq!(bind.to_string().parse::<MemBind>().unwrap(), bind);
                }
            }
        }
    }
}
