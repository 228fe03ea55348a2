//! Splits Rust source into code and comment, line by line, and marks the lines that belong to tests.

/// One line of a source file.
pub struct Line {
    /// The code, with the contents of strings and characters blanked out.
    pub code: String,
    /// The comment on it, without its slashes.
    pub comment: String,
    /// Whether it lies in a `#[cfg(test)]` or `#[test]` item.
    pub test: bool,
}

#[derive(Clone, Copy)]
enum State {
    Code,
    LineComment,
    BlockComment(u32),
    Text,
    RawText(usize),
}

/// Reads a whole file.
pub fn lines(source: &str) -> Vec<Line> {
    let mut result = Vec::new();
    let mut state = State::Code;
    for text in source.lines() {
        let mut line = Line { code: String::new(), comment: String::new(), test: false };
        state = one_line(text, state, &mut line);
        result.push(line);
    }
    mark_tests(&mut result);
    result
}

fn one_line(text: &str, mut state: State, line: &mut Line) -> State {
    let chars: Vec<char> = text.chars().collect();
    let mut at = 0;
    while at < chars.len() {
        let rest = &chars[at..];
        let step = match state {
            State::Code => code(rest, chars[..at].last().copied(), &mut state, line),
            State::LineComment => {
                line.comment.push(rest[0]);
                1
            }
            State::BlockComment(depth) if starts(rest, "*/") => {
                state = if depth == 1 { State::Code } else { State::BlockComment(depth - 1) };
                2
            }
            State::BlockComment(depth) if starts(rest, "/*") => {
                state = State::BlockComment(depth + 1);
                2
            }
            State::BlockComment(_) => {
                line.comment.push(rest[0]);
                1
            }
            State::Text if rest[0] == '\\' => 2,
            State::Text if rest[0] == '"' => {
                state = State::Code;
                line.code.push('"');
                1
            }
            State::RawText(hashes) if raw_end(rest, hashes) => {
                state = State::Code;
                line.code.push('"');
                1 + hashes
            }
            State::Text | State::RawText(_) => 1,
        };
        at += step;
    }
    if matches!(state, State::LineComment) { State::Code } else { state }
}

/// Reads one element of code; returns how many characters it took.
fn code(rest: &[char], before: Option<char>, state: &mut State, line: &mut Line) -> usize {
    if starts(rest, "//") {
        *state = State::LineComment;
        return 2;
    }
    if starts(rest, "/*") {
        *state = State::BlockComment(1);
        return 2;
    }
    if rest[0] == '"' {
        *state = State::Text;
        line.code.push('"');
        return 1;
    }
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    if !in_word && let Some((skip, hashes)) = raw_start(rest) {
        *state = State::RawText(hashes);
        line.code.push('"');
        return skip;
    }
    if rest[0] == '\'' {
        // A character, not a lifetime, when a quote closes it.
        let length = match rest {
            ['\'', '\\', ..] => rest.iter().skip(2).skip(1).position(|c| *c == '\'').map(|p| p + 4),
            ['\'', _, '\'', ..] => Some(3),
            _ => None,
        };
        if let Some(length) = length {
            line.code.push_str("' '");
            return length;
        }
    }
    line.code.push(rest[0]);
    1
}

fn starts(rest: &[char], text: &str) -> bool {
    text.chars().enumerate().all(|(i, c)| rest.get(i) == Some(&c))
}

fn raw_start(rest: &[char]) -> Option<(usize, usize)> {
    let prefix = if starts(rest, "br") { 2 } else { usize::from(rest[0] == 'r') };
    if prefix == 0 {
        return None;
    }
    let hashes = rest[prefix..].iter().take_while(|c| **c == '#').count();
    (rest.get(prefix + hashes) == Some(&'"')).then_some((prefix + hashes + 1, hashes))
}

fn raw_end(rest: &[char], hashes: usize) -> bool {
    rest[0] == '"' && rest.len() > hashes && rest[1..=hashes].iter().all(|c| *c == '#')
}

/// Marks the item after each test attribute: up to the brace that closes it, or a semicolon before any brace.
fn mark_tests(lines: &mut [Line]) {
    let mut at = 0;
    while at < lines.len() {
        let code = lines[at].code.trim();
        if !(code.starts_with("#[cfg(test)]")
            || code.starts_with("#[test]")
            || code.starts_with("#[cfg(all(test"))
        {
            at += 1;
            continue;
        }
        let mut depth = 0_i64;
        let mut opened = false;
        while at < lines.len() {
            lines[at].test = true;
            for c in lines[at].code.chars() {
                depth += i64::from(c == '{') - i64::from(c == '}');
                opened |= c == '{';
            }
            let done = if opened { depth <= 0 } else { lines[at].code.trim_end().ends_with(';') };
            at += 1;
            if done {
                break;
            }
        }
    }
}

#[test]
fn strings_comments_and_tests_are_told_apart() {
    let text = "let a = \"// no\"; // yes\nlet b = r#\"unsafe \"x\"#;\nlet c: &'a str = '\\'';\n/* x\ny */ z\n\
                #[cfg(test)]\nmod tests {\n  fn f() {}\n}\nfn g() {}";
    let lines = lines(text);
    assert_eq!((lines[0].code.as_str(), lines[0].comment.as_str()), ("let a = \"\"; ", " yes"));
    assert_eq!(lines[1].code, "let b = \"\";");
    assert_eq!(lines[2].code, "let c: &'a str = ' ';");
    assert_eq!((lines[3].code.as_str(), lines[4].code.as_str()), ("", " z"));
    let test: Vec<bool> = lines.iter().map(|l| l.test).collect();
    assert_eq!(test, [false, false, false, false, false, true, true, true, true, false]);
}
