//! Messages of both versions: bytes to words and back.

/// Bytes of a PMI-1 line, at most; its libraries write none of more than 1,024.
const LINE_MAX: usize = 4096;
/// Bytes of a PMI-2 message, at most.
const MESSAGE_MAX: usize = 16 * 1024;
/// Bytes before a PMI-2 message: its length in decimal, filled up with spaces.
const LENGTH: usize = 6;
/// Bytes of a `mcmd=spawn`, at most.
const SPAWN_MAX: usize = 64 * 1024;

/// How messages are written on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// Words with spaces between them, a line each.
    One,
    /// Words with semicolons behind them, preceded by their length.
    Two,
}

/// What a task says that is no PMI.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Longer than any message.
    #[error("a message of more than {0} bytes")]
    TooLong(usize),
    /// PMI-2 without a length.
    #[error("a message whose length is no number")]
    Length,
    /// It does not begin with a command.
    #[error("a message that does not begin with cmd=")]
    NoCommand,
    /// A word without a value.
    #[error("a word that is no name=value")]
    Word,
}

/// One message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// What is asked.
    pub command: Vec<u8>,
    fields: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Message {
    /// The value of a word.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.fields.iter().find(|(n, _)| n == name.as_bytes()).map(|(_, value)| value.as_slice())
    }

    /// The value of a word that is a number.
    pub fn number<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        std::str::from_utf8(self.get(name)?).ok()?.trim().parse().ok()
    }
}

/// Takes bytes as they come and gives messages. Holds at most one message and what was fed after it.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    start: usize,
    /// A `mcmd=spawn` under way: bytes of it so far, and the segments that are to come after this one.
    spawn: Option<(usize, u32)>,
}

impl Decoder {
    /// Adds bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole message, if there is one. After an error the connection is of no further use.
    pub fn next(&mut self, wire: Wire) -> Result<Option<Message>, WireError> {
        match wire {
            Wire::One => self.line(),
            Wire::Two => self.message(),
        }
    }

    fn line(&mut self) -> Result<Option<Message>, WireError> {
        loop {
            let rest = &self.bytes[self.start..];
            let Some(end) = rest.iter().take(LINE_MAX).position(|b| *b == b'\n') else {
                return if rest.len() >= LINE_MAX { Err(WireError::TooLong(LINE_MAX)) } else { Ok(None) };
            };
            let line = rest[..end].to_vec();
            self.start += end + 1;
            match self.spawn {
                Some(so_far) => {
                    if let Some(spawn) = self.spawned(so_far, &line)? {
                        return Ok(Some(spawn));
                    }
                }
                None if line.starts_with(b"mcmd=") => self.spawn = Some((line.len(), 0)),
                None => return words(&line, b' ').map(Some),
            }
        }
    }

    /// One more line of a `mcmd=spawn`, of which nothing is kept: it is refused whatever it says.
    fn spawned(
        &mut self,
        (bytes, mut left): (usize, u32),
        line: &[u8],
    ) -> Result<Option<Message>, WireError> {
        let bytes = bytes + line.len() + 1;
        if bytes > SPAWN_MAX {
            return Err(WireError::TooLong(SPAWN_MAX));
        }
        let number = |name: &[u8]| -> Option<u32> {
            std::str::from_utf8(line.strip_prefix(name)?).ok()?.trim().parse().ok()
        };
        if let Some(total) = number(b"totspawns=") {
            left = total;
        } else if let Some(now) = number(b"spawnssofar=") {
            left = left.saturating_sub(now);
        } else if line == b"endcmd" && left == 0 {
            self.spawn = None;
            return Ok(Some(Message { command: b"spawn".to_vec(), fields: Vec::new() }));
        }
        self.spawn = Some((bytes, left));
        Ok(None)
    }

    fn message(&mut self) -> Result<Option<Message>, WireError> {
        let rest = &self.bytes[self.start..];
        let Some((length, body)) = rest.split_at_checked(LENGTH) else { return Ok(None) };
        let length: usize = std::str::from_utf8(length)
            .ok()
            .map(str::trim)
            .filter(|text| text.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|text| text.parse().ok())
            .ok_or(WireError::Length)?;
        if length > MESSAGE_MAX {
            return Err(WireError::TooLong(MESSAGE_MAX));
        }
        let Some(body) = body.get(..length) else { return Ok(None) };
        let message = words(body, b';');
        self.start += LENGTH + length;
        message.map(Some)
    }
}

/// The words of a message. What parts them belongs to a value when it is doubled (`;;`, PMI-2), or when a backslash is
/// before it (PMI-1).
fn words(text: &[u8], parts: u8) -> Result<Message, WireError> {
    let mut fields = Vec::new();
    let mut rest = text;
    while let Some(begin) = rest.iter().position(|b| *b != b' ' && *b != parts && *b != b'\n' && *b != 0) {
        rest = &rest[begin..];
        let end_of_name = rest.iter().position(|b| *b == b'=' || *b == parts).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end_of_name);
        let Some((b'=', mut after)) = after.split_first() else {
            // Slurm's library ends a list of words with a word alone; it says nothing.
            rest = after;
            if fields.is_empty() {
                return Err(WireError::Word);
            }
            continue;
        };
        let mut value = Vec::new();
        while let Some((byte, next)) = after.split_first() {
            let doubled = parts == b';' && *byte == parts && next.first() == Some(&parts);
            let guarded = parts == b' ' && *byte == b'\\' && next.first() == Some(&parts);
            if guarded || doubled {
                // PMI-1 gives a value back as it came, with what guards it.
                value.extend_from_slice(if guarded { b"\\ " } else { b";" });
                after = &next[1..];
            } else if *byte == parts {
                after = next;
                break;
            } else {
                value.push(*byte);
                after = next;
            }
        }
        rest = after;
        fields.push((name.to_vec(), value));
    }
    match fields.first() {
        Some((name, _)) if name == b"cmd" => {
            let command = fields.remove(0).1;
            Ok(Message { command, fields })
        }
        _ => Err(WireError::NoCommand),
    }
}

/// A message of PMI-1.
pub fn one(command: &str, fields: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = format!("cmd={command}").into_bytes();
    for (name, value) in fields {
        out.push(b' ');
        out.extend_from_slice(name.as_bytes());
        out.push(b'=');
        out.extend_from_slice(value);
    }
    out.push(b'\n');
    out
}

/// A message of PMI-2.
pub fn two(command: &str, fields: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = format!("cmd={command};").into_bytes();
    for (name, value) in fields {
        body.extend_from_slice(name.as_bytes());
        body.push(b'=');
        for byte in *value {
            if *byte == b';' {
                body.push(b';');
            }
            body.push(*byte);
        }
        body.push(b';');
    }
    let mut out = format!("{:>LENGTH$}", body.len()).into_bytes();
    out.extend_from_slice(&body);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(wire: Wire, pieces: &[&[u8]]) -> Result<Vec<Message>, WireError> {
        let (mut decoder, mut found) = (Decoder::default(), Vec::new());
        for piece in pieces {
            decoder.feed(piece);
            while let Some(message) = decoder.next(wire)? {
                found.push(message);
            }
        }
        Ok(found)
    }

    #[test]
    fn messages_of_real_libraries_are_read() {
        let lines =
            b"cmd=init pmi_version=1 pmi_subversion=1\ncmd=put kvsname=1.0 key=P0-bc value=a=b\\ c#\n";
        let found = all(Wire::One, &[lines]).unwrap();
        assert_eq!((found.len(), found[0].number("pmi_version")), (2, Some(1)));
        assert_eq!(found[1].get("value").unwrap(), b"a=b\\ c#");
        let message = b"    50cmd=fullinit;pmijobid=1.0;pmirank=3;threaded=FALSE;";
        let found = all(Wire::Two, &[message]).unwrap();
        assert_eq!(
            (found[0].command.as_slice(), found[0].number("pmirank")),
            (b"fullinit".as_slice(), Some(3))
        );
    }

    #[test]
    fn a_spawn_is_one_message_however_many_programs_it_names() {
        let text = b"mcmd=spawn\nnprocs=2\nexecname=./a b\ntotspawns=2\nspawnssofar=1\nendcmd\n\
                     mcmd=spawn\nnprocs=1\nexecname=./c\ntotspawns=2\nspawnssofar=2\nendcmd\ncmd=finalize\n";
        let names: Vec<Vec<u8>> = all(Wire::One, &[text]).unwrap().into_iter().map(|m| m.command).collect();
        assert_eq!(names, [b"spawn".to_vec(), b"finalize".to_vec()]);
    }

    #[test]
    fn what_is_no_message_is_refused_before_it_is_held() {
        assert_eq!(all(Wire::One, &[&[b'x'; LINE_MAX]]), Err(WireError::TooLong(LINE_MAX)));
        assert_eq!(all(Wire::One, &[b"hello\n"]), Err(WireError::Word));
        assert_eq!(all(Wire::One, &[b"\n"]), Err(WireError::NoCommand));
        assert_eq!(all(Wire::One, &[b"key=x cmd=put\n"]), Err(WireError::NoCommand));
        assert_eq!(all(Wire::Two, &[b"999999"]), Err(WireError::TooLong(MESSAGE_MAX)));
        assert_eq!(all(Wire::Two, &[b"    -1cmd=x;"]), Err(WireError::Length));
        assert_eq!(all(Wire::Two, &[b"cmd=in"]), Err(WireError::Length));
        let endless = [b"mcmd=spawn\n".as_slice(), &b"arg1=x\n".repeat(SPAWN_MAX / 7 + 1)].concat();
        assert_eq!(all(Wire::One, &[&endless]), Err(WireError::TooLong(SPAWN_MAX)));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back_in_any_pieces(
            words in proptest::collection::vec(("[a-z]{1,8}", proptest::collection::vec(any::<u8>(), 0..40)), 0..6),
            cut in any::<proptest::sample::Index>(),
        ) {
            let fields: Vec<(&str, &[u8])> = words.iter().map(|(n, v)| (n.as_str(), v.as_slice())).collect();
            let bytes = two("kvs-put", &fields);
            let at = cut.index(bytes.len());
            let found = all(Wire::Two, &[&bytes[..at], &bytes[at..]]).unwrap();
            prop_assert_eq!(found.len(), 1);
            let told: Vec<(&str, &[u8])> =
                found[0].fields.iter().map(|(n, v)| (std::str::from_utf8(n).unwrap(), v.as_slice())).collect();
            prop_assert_eq!(told, fields);
        }

        #[test]
        fn garbage_gives_the_same_in_any_pieces(bytes in proptest::collection::vec(any::<u8>(), 0..600), two: bool, cut in any::<proptest::sample::Index>()) {
            let wire = if two { Wire::Two } else { Wire::One };
            let at = cut.index(bytes.len() + 1);
            prop_assert_eq!(all(wire, &[&bytes]).is_ok(), all(wire, &[&bytes[..at], &bytes[at..]]).is_ok());
        }
    }
}
