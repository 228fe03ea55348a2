//! Command lines as GNU `getopt_long` reads them: glued short options, unambiguous long prefixes, optional
//! values only behind `=`; and options that are known but not offered are refused by name.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;

/// Whether an option takes a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arg {
    /// It never does.
    None,
    /// It always does; the text names the value in the help.
    Required(&'static str),
    /// Only behind `=`.
    Optional(&'static str),
    /// Behind `=`, or in the next word unless that is an option.
    Ids(&'static str),
}

/// One option of a command.
#[derive(Clone, Copy, Debug)]
pub struct Opt {
    /// Long name, without dashes; the name under which the value is found.
    pub long: &'static str,
    /// Short letter.
    pub short: Option<char>,
    /// Its value.
    pub arg: Arg,
    /// One line of help.
    pub help: &'static str,
}

/// One option, in the order in which tables have its parts.
pub const fn opt(long: &'static str, short: Option<char>, arg: Arg, help: &'static str) -> Opt {
    Opt { long, short, arg, help }
}

/// An option that other systems have and this one has not: what to do instead.
#[derive(Clone, Copy, Debug)]
pub struct Refused {
    /// Long name.
    pub long: &'static str,
    /// Short letter.
    pub short: Option<char>,
    /// What to use instead, or why it is absent.
    pub instead: &'static str,
}

/// Everything about one command's options.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// Command name.
    pub name: &'static str,
    /// What follows the name in the usage line.
    pub usage: &'static str,
    /// The command's description: the doc comment of its module.
    pub about: &'static [u8],
    /// Options.
    pub options: &'static [Opt],
    /// Options refused by name.
    pub refused: &'static [Refused],
}

/// Options that every command has.
const COMMON: &[Opt] = &[
    Opt { long: "help", short: None, arg: Arg::None, help: "Show this help and exit" },
    Opt { long: "usage", short: None, arg: Arg::None, help: "Show one line of usage and exit" },
    Opt { long: "version", short: Some('V'), arg: Arg::None, help: "Show the version and exit" },
];

/// A command line, read.
#[derive(Debug, Default)]
pub struct Parsed {
    options: Vec<(&'static str, Option<OsString>)>,
    /// Options that were not typed, with the variables that said them.
    variables: Vec<(&'static str, &'static str)>,
    /// Words that are no options.
    pub words: Vec<OsString>,
}

/// Why a command line cannot be obeyed, or what to print instead of running.
#[derive(Debug, PartialEq, Eq)]
pub enum Stop {
    /// Text for stdout; the command is done.
    Print(String),
    /// Lines for stderr, complete with the program's name.
    Bad(String),
}

impl Parsed {
    /// Whether the option was given.
    pub fn has(&self, long: &str) -> bool {
        self.options.iter().any(|(name, _)| *name == long)
    }

    /// The variable that said the option, where it was not typed.
    pub fn variable(&self, long: &str) -> Option<&'static str> {
        self.variables.iter().find(|(name, _)| *name == long).map(|(_, variable)| *variable)
    }

    /// How often the option was given.
    pub fn count(&self, long: &str) -> usize {
        self.options.iter().filter(|(name, _)| *name == long).count()
    }

    /// The last value given, as text (bytes that are not UTF-8 become U+FFFD).
    pub fn text(&self, long: &str) -> Option<String> {
        self.options
            .iter()
            .rev()
            .find(|(name, _)| *name == long)
            .and_then(|(_, value)| value.as_ref())
            .map(|v| v.to_string_lossy().into_owned())
    }
}

impl Spec {
    /// Reads the arguments after the command's name.
    pub fn parse(&self, args: &[OsString]) -> Result<Parsed, Stop> {
        let mut parsed = Parsed::default();
        let mut rest = args.iter();
        while let Some(arg) = rest.next() {
            let bytes = arg.as_bytes();
            if bytes == b"--" {
                parsed.words.extend(rest.cloned());
                break;
            }
            if let Some(long) = bytes.strip_prefix(b"--") {
                self.long(long, &mut rest, &mut parsed)?;
            } else if bytes.len() > 1 && bytes[0] == b'-' {
                self.short(&bytes[1..], &mut rest, &mut parsed)?;
            } else {
                parsed.words.push(arg.clone());
            }
        }
        if parsed.has("help") {
            return Err(Stop::Print(self.help()));
        }
        if parsed.has("usage") {
            return Err(Stop::Print(format!("Usage: {} {}\n", self.name, self.usage)));
        }
        if parsed.has("version") {
            return Err(Stop::Print(crate::version_line()));
        }
        Ok(parsed)
    }

    /// Takes an option that an environment variable says.
    ///
    /// # Errors
    /// It is one that is refused.
    pub(crate) fn take_variable(
        &self,
        parsed: &mut Parsed,
        option: &str,
        variable: &'static str,
        value: Option<OsString>,
    ) -> Result<(), Stop> {
        if let Some(refused) = self.refused.iter().find(|refused| refused.long == option) {
            let what = format!("--{} (environment variable {variable})", refused.long);
            return Err(self.refuse(&what, refused.instead));
        }
        if let Some(opt) = self.options.iter().find(|opt| opt.long == option) {
            parsed.options.push((opt.long, value));
            parsed.variables.push((opt.long, variable));
        }
        Ok(())
    }

    fn long<'a>(
        &self,
        arg: &[u8],
        rest: &mut std::slice::Iter<'a, OsString>,
        parsed: &mut Parsed,
    ) -> Result<(), Stop> {
        let (name, value) = match arg.iter().position(|b| *b == b'=') {
            Some(at) => (&arg[..at], Some(OsStr::from_bytes(&arg[at + 1..]).to_os_string())),
            None => (arg, None),
        };
        let name = String::from_utf8_lossy(name).into_owned();
        let opt = self.find_long(&name, &String::from_utf8_lossy(arg))?;
        let value = match (opt.arg, value) {
            (Arg::None, Some(_)) => {
                return Err(self.bad(format!("option '--{}' doesn't allow an argument", opt.long)));
            }
            (Arg::Required(_), None) => match rest.next() {
                Some(next) => Some(next.clone()),
                None => return Err(self.bad(format!("option '--{}' requires an argument", opt.long))),
            },
            (Arg::Ids(_), None) => next_id(rest),
            (_, value) => value,
        };
        parsed.options.push((opt.long, value));
        Ok(())
    }

    fn find_long(&self, name: &str, whole: &str) -> Result<&'static Opt, Stop> {
        let all = || self.options.iter().chain(COMMON);
        if let Some(opt) = all().find(|o| o.long == name) {
            return Ok(opt);
        }
        if let Some(refused) = self.refused.iter().find(|r| r.long == name) {
            return Err(self.refuse(&format!("--{}", refused.long), refused.instead));
        }
        let matching: Vec<&'static Opt> = all().filter(|o| o.long.starts_with(name)).collect();
        let refused: Vec<&Refused> = self.refused.iter().filter(|r| r.long.starts_with(name)).collect();
        match (matching.as_slice(), refused.as_slice()) {
            _ if name.is_empty() => Err(self.bad(format!("unrecognized option '--{whole}'"))),
            ([], []) => Err(self.bad(format!("unrecognized option '--{whole}'"))),
            ([one], []) => Ok(one),
            ([], [one]) => Err(self.refuse(&format!("--{}", one.long), one.instead)),
            (several, also) => {
                let mut names: Vec<&str> = several.iter().map(|o| o.long).collect();
                names.extend(also.iter().map(|r| r.long));
                names.sort_unstable();
                let list: String = names.iter().fold(String::new(), |mut out, n| {
                    let _ = write!(out, " '--{n}'");
                    out
                });
                Err(self.bad(format!("option '--{whole}' is ambiguous; possibilities:{list}")))
            }
        }
    }

    fn short<'a>(
        &self,
        mut letters: &[u8],
        rest: &mut std::slice::Iter<'a, OsString>,
        parsed: &mut Parsed,
    ) -> Result<(), Stop> {
        while let Some((first, tail)) = letters.split_first() {
            let letter = char::from(*first);
            if let Some(refused) = self.refused.iter().find(|r| r.short == Some(letter)) {
                return Err(self.refuse(&format!("-{letter} (--{})", refused.long), refused.instead));
            }
            let opt = self
                .options
                .iter()
                .chain(COMMON)
                .find(|o| o.short == Some(letter))
                .ok_or_else(|| self.bad(format!("invalid option -- '{letter}'")))?;
            match opt.arg {
                Arg::None => {
                    parsed.options.push((opt.long, None));
                    letters = tail;
                }
                Arg::Optional(_) | Arg::Ids(_) => {
                    let value = match (tail.is_empty(), opt.arg) {
                        (false, _) => Some(OsStr::from_bytes(tail).to_os_string()),
                        (true, Arg::Ids(_)) => next_id(rest),
                        (true, _) => None,
                    };
                    parsed.options.push((opt.long, value));
                    return Ok(());
                }
                Arg::Required(_) => {
                    let value = if tail.is_empty() {
                        rest.next()
                            .cloned()
                            .ok_or_else(|| self.bad(format!("option requires an argument -- '{letter}'")))?
                    } else {
                        OsStr::from_bytes(tail).to_os_string()
                    };
                    parsed.options.push((opt.long, Some(value)));
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn bad(&self, what: String) -> Stop {
        Stop::Bad(format!("{0}: {what}\nTry \"{0} --help\" for more information", self.name))
    }

    fn refuse(&self, option: &str, instead: &str) -> Stop {
        Stop::Bad(format!("{}: error: {option} is not supported: {instead}", self.name))
    }

    /// The help text: the command's doc comment and its options.
    pub fn help(&self) -> String {
        let about = String::from_utf8_lossy(self.about);
        let mut out = format!("{}\n\nUsage: {} {}\n\nOptions:\n", about.trim(), self.name, self.usage);
        for opt in self.options.iter().chain(COMMON) {
            let left = opt.label();
            let gap = if left.len() > 30 { format!("\n{:32}", "") } else { " ".repeat(32 - left.len()) };
            let _ = writeln!(out, "  {left}{gap}{}", opt.help);
        }
        out
    }

    /// All options with those that every command has: for man pages and completion.
    pub fn all_options(&self) -> impl Iterator<Item = &'static Opt> + use<> {
        self.options.iter().chain(COMMON)
    }
}

/// Takes the next word unless it is an option.
fn next_id(rest: &mut std::slice::Iter<'_, OsString>) -> Option<OsString> {
    let next = rest.as_slice().first()?;
    if next.as_bytes().starts_with(b"-") { None } else { rest.next().cloned() }
}

impl Opt {
    /// `-o, --format=FORMAT`.
    pub fn label(&self) -> String {
        let short = self.short.map_or("    ".to_string(), |c| format!("-{c}, "));
        match self.arg {
            Arg::None => format!("{short}--{}", self.long),
            Arg::Required(value) => format!("{short}--{}={value}", self.long),
            Arg::Optional(value) | Arg::Ids(value) => format!("{short}--{}[={value}]", self.long),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: Spec = Spec {
        name: "squeue",
        usage: "[OPTION]...",
        about: b"Shows jobs.",
        options: &[
            Opt { long: "user", short: Some('u'), arg: Arg::Required("NAME"), help: "of these" },
            Opt { long: "jobs", short: Some('j'), arg: Arg::Ids("ID"), help: "these" },
            Opt { long: "long", short: Some('l'), arg: Arg::Optional("HOW"), help: "more" },
            Opt { long: "noheader", short: Some('h'), arg: Arg::None, help: "no header" },
            Opt { long: "node", short: None, arg: Arg::None, help: "x" },
        ],
        refused: &[Refused { long: "yaml", short: Some('Y'), instead: "use --json" }],
    };

    fn parse(words: &[&str]) -> Result<Parsed, Stop> {
        SPEC.parse(&words.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn reads_what_getopt_reads() {
        let p = parse(&["-hualice", "--user=bob", "-l", "7", "-j", "--", "-x"]).unwrap();
        assert!(p.has("noheader"));
        assert_eq!(p.text("user").as_deref(), Some("bob"));
        assert_eq!(p.count("user"), 2);
        // An optional value never takes the next word.
        assert!(p.has("long") && p.text("long").is_none());
        assert!(p.has("jobs") && p.text("jobs").is_none());
        // An id does.
        assert_eq!(parse(&["-j", "7,8"]).unwrap().text("jobs").as_deref(), Some("7,8"));
        assert_eq!(parse(&["--jobs", "7"]).unwrap().text("jobs").as_deref(), Some("7"));
        assert_eq!(parse(&["-j", "abc"]).unwrap().text("jobs").as_deref(), Some("abc"));
        assert_eq!(p.words, ["7", "-x"]);
        assert!(parse(&["--nohead"]).unwrap().has("noheader"));
        assert_eq!(parse(&["-j7"]).unwrap().text("jobs").as_deref(), Some("7"));
    }

    #[test]
    fn errors_name_the_option() {
        let text = |words: &[&str]| match parse(words) {
            Err(Stop::Bad(text)) => text.lines().next().unwrap_or_default().to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(text(&["--bogus"]), "squeue: unrecognized option '--bogus'");
        assert_eq!(text(&["-Z"]), "squeue: invalid option -- 'Z'");
        assert_eq!(text(&["-u"]), "squeue: option requires an argument -- 'u'");
        assert_eq!(text(&["--node=3"]), "squeue: option '--node' doesn't allow an argument");
        assert_eq!(
            text(&["--no"]),
            "squeue: option '--no' is ambiguous; possibilities: '--node' '--noheader'"
        );
        assert_eq!(text(&["--yam"]), "squeue: error: --yaml is not supported: use --json");
        assert_eq!(text(&["-Y"]), "squeue: error: -Y (--yaml) is not supported: use --json");
    }

    #[test]
    fn help_holds_every_option() {
        let Err(Stop::Print(help)) = parse(&["--help"]) else { panic!("no help") };
        assert!(help.contains("-u, --user=NAME") && help.contains("--version"));
    }
}
