//! The part of YAML (1.2) that CDI files are written in: blocks of maps and lists, and values of one line. What else there is in YAML
//! is refused by line and name: a file of devices that is half understood is worse than none.

use serde_json::{Map, Number, Value};

/// Blocks within one another; a file of devices has six.
const DEEPEST: usize = 32;

/// A line that says something: its number, how far it is indented, and what stands there.
#[derive(Clone, Copy)]
struct Line<'a> {
    number: usize,
    indent: usize,
    text: &'a str,
}

/// Reads a document.
///
/// # Errors
/// The line, and what there is not read.
pub fn parse(text: &str) -> Result<Value, String> {
    let mut lines = Vec::new();
    for (number, raw) in (1..).zip(text.lines()) {
        let text = uncommented(raw).trim_end();
        let body = text.trim_start_matches(' ');
        let first = lines.is_empty() && body == "---";
        if body.is_empty() || first {
            continue;
        }
        let bad = |why: &str| Err(format!("line {number}: {why}"));
        if body.starts_with('\t') {
            return bad("it is indented by a tab, which YAML does not allow: use spaces");
        }
        if body == "---" || body == "..." || body.starts_with('%') {
            return bad("several documents and directives are not read: write one document");
        }
        lines.push(Line { number, indent: text.len() - body.len(), text: body });
    }
    let mut reader = Reader { lines, at: 0 };
    let Some(first) = reader.lines.first().copied() else { return Ok(Value::Null) };
    let value = reader.block(first.indent, 0)?;
    match reader.lines.get(reader.at) {
        None => Ok(value),
        Some(line) => Err(format!(
            "line {}: it belongs to no block above it: check how far it is indented",
            line.number
        )),
    }
}

struct Reader<'a> {
    lines: Vec<Line<'a>>,
    at: usize,
}

impl<'a> Reader<'a> {
    /// The next line, if it is indented so far.
    fn here(&self, indent: usize) -> Option<Line<'a>> {
        self.lines.get(self.at).copied().filter(|line| line.indent == indent)
    }

    fn block(&mut self, indent: usize, depth: usize) -> Result<Value, String> {
        let Some(line) = self.here(indent) else { return Ok(Value::Null) };
        if depth > DEEPEST {
            return Err(format!("line {}: more than {DEEPEST} blocks are within one another", line.number));
        }
        match (item(line.text).is_some(), entry(line.text)) {
            (true, _) => self.list(indent, depth),
            (false, Some(_)) => self.map(indent, depth),
            (false, None) => {
                self.at += 1;
                scalar(line.number, line.text)
            }
        }
    }

    fn list(&mut self, indent: usize, depth: usize) -> Result<Value, String> {
        let mut items = Vec::new();
        while let Some((line, rest)) = self.here(indent).and_then(|line| Some((line, item(line.text)?))) {
            if rest.is_empty() {
                self.at += 1;
                items.push(self.below(indent, depth, false)?);
            } else {
                // What stands behind the dash is a block that begins there.
                let inner = indent + (line.text.len() - rest.len());
                self.lines[self.at] = Line { indent: inner, text: rest, ..line };
                items.push(self.block(inner, depth + 1)?);
            }
        }
        Ok(Value::Array(items))
    }

    fn map(&mut self, indent: usize, depth: usize) -> Result<Value, String> {
        let mut map = Map::new();
        while let Some((line, (key, rest))) = self
            .here(indent)
            .filter(|line| item(line.text).is_none())
            .and_then(|line| Some((line, entry(line.text)?)))
        {
            self.at += 1;
            let key = match scalar(line.number, key)? {
                Value::String(key) => key,
                _ => key.to_string(),
            };
            let value =
                if rest.is_empty() { self.below(indent, depth, true)? } else { scalar(line.number, rest)? };
            if map.insert(key.clone(), value).is_some() {
                return Err(format!("line {}: '{key}' is there twice", line.number));
            }
        }
        Ok(Value::Object(map))
    }

    /// What stands below a key or a dash. A list below a key may be indented as far as the key.
    fn below(&mut self, indent: usize, depth: usize, of_key: bool) -> Result<Value, String> {
        match self.lines.get(self.at).copied() {
            Some(line) if line.indent > indent => self.block(line.indent, depth + 1),
            Some(line) if of_key && line.indent == indent && item(line.text).is_some() => {
                self.list(indent, depth + 1)
            }
            _ => Ok(Value::Null),
        }
    }
}

/// What stands behind a dash.
fn item(text: &str) -> Option<&str> {
    match text.strip_prefix('-')? {
        "" => Some(""),
        rest => rest.strip_prefix(' ').map(str::trim_start),
    }
}

/// Key and value, where the line is both.
fn entry(text: &str) -> Option<(&str, &str)> {
    let end = match text.as_bytes().first()? {
        // Its own quotes end a quoted key.
        quote @ (b'"' | b'\'') => 1 + text[1..].find(char::from(*quote))? + 1,
        _ => text
            .match_indices(':')
            .map(|(at, _)| at)
            .find(|at| matches!(text.as_bytes().get(at + 1), None | Some(b' ')))?,
    };
    let rest = text.get(end..)?.strip_prefix(':')?;
    (rest.is_empty() || rest.starts_with(' ')).then(|| (&text[..end], rest.trim()))
}

/// A line without its comment: `#` at its beginning or behind a space, outside of quotes.
fn uncommented(line: &str) -> &str {
    let (mut quote, mut before) = (None, ' ');
    for (at, c) in line.char_indices() {
        match (quote, c) {
            (None, '#') if before == ' ' || before == '\t' => return &line[..at],
            // Quotes begin a value, and mean nothing within one.
            (None, '"' | '\'') if matches!(before, ' ' | '-' | ':') => quote = Some(c),
            (Some(q), c) if q == c && before != '\\' => quote = None,
            _ => {}
        }
        before = c;
    }
    line
}

/// A value of one line.
fn scalar(number: usize, text: &str) -> Result<Value, String> {
    let bad = |why: &str| Err(format!("line {number}: '{text}': {why}"));
    match text.as_bytes().first() {
        Some(b'"') => serde_json::from_str::<String>(text)
            .map(Value::String)
            .or_else(|_| bad("in double quotes JSON's escapes are read, and the quotes end the line")),
        Some(b'\'') => match text.len() > 1 && text.ends_with('\'') {
            true if !text[1..text.len() - 1].replace("''", "").contains('\'') => {
                Ok(Value::String(text[1..text.len() - 1].replace("''", "'")))
            }
            _ => bad("the quote does not end with the line"),
        },
        Some(b'|' | b'>') => bad("values of several lines are not read: write it in one, in double quotes"),
        Some(b'&' | b'*' | b'!') => bad("anchors, aliases and tags are not read: write out what is meant"),
        Some(b'[' | b'{') => serde_json::from_str(text)
            .or_else(|_| bad("lists and maps of one line are read as JSON has them: write them as blocks")),
        Some(b'@' | b'`' | b'%' | b'?' | b',' | b']' | b'}') => bad("nothing may begin so: put it in quotes"),
        _ => Ok(plain(text)),
    }
}

fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" => Value::Null,
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        _ => match text.parse::<i64>() {
            // `007` and `+1` are texts to people who write paths and modes.
            Ok(n) if n.to_string() == text => Value::Number(Number::from(n)),
            _ => Value::String(text.to_string()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn blocks_are_read_as_they_are_indented() {
        let text = "---\n# by hand\ncdiVersion: 0.5.0\nkind: \"a.b/c\" # the kind\ndevices:\n- name: '0'\n  containerEdits:\n    deviceNodes:\n    - path: /dev/x\n      fileMode: 438\n    - path: /dev/y#z\n    env:\n      - A=1: 2\n      -   \"B=#\"\n-\n  name: it's\nannotations: {}\nlist: [1, \"2\"]\nlast:\n";
        let value = parse(text).unwrap();
        let wanted = json!({"cdiVersion": "0.5.0", "kind": "a.b/c", "annotations": {}, "list": [1, "2"], "last": null,
            "devices": [{"name": "0", "containerEdits": {
                "deviceNodes": [{"path": "/dev/x", "fileMode": 438}, {"path": "/dev/y#z"}],
                "env": [{"A=1": 2}, "B=#"]}}, {"name": "it's"}]});
        assert_eq!(value, wanted);
        assert_eq!(parse("").unwrap(), Value::Null);
        assert_eq!(parse("- a: b\n  c: d\n- - 1\n  - 2\n").unwrap(), json!([{"a": "b", "c": "d"}, [1, 2]]));
        assert_eq!(
            parse("a: 007\nb: -1\nc: 1.5\nd: true").unwrap(),
            json!({"a": "007", "b": -1, "c": "1.5", "d": true})
        );
    }

    #[test]
    fn what_is_not_read_is_named_by_its_line() {
        for (text, said) in [
            ("a: |\n  b", "line 1: '|': values of several lines"),
            ("a: &x 1", "anchors"),
            ("a: 1\n\tb: 2", "line 2: it is indented by a tab"),
            ("a: 1\n  b: 2", "line 2: it belongs to no block"),
            ("a: 1\na: 2", "line 2: 'a' is there twice"),
            ("a: 'x", "the quote does not end"),
            ("a: \"x\" y", "double quotes"),
            ("a: [x, y]", "as JSON has them"),
            ("a: 1\n---\nb: 2", "several documents"),
            ("a:\n    - b\n  - c", "line 3: it belongs to no block"),
        ] {
            let wrong = parse(text).unwrap_err();
            assert!(wrong.contains(said), "{text}: {wrong}");
        }
        let deep: String = (0..50).map(|n| format!("{}a:\n", " ".repeat(n))).collect();
        assert!(parse(&deep).unwrap_err().contains("within one another"));
    }

    #[test]
    fn no_text_makes_it_panic() {
        let pieces = ["-", " ", ":", "\n", "'", "\"", "#", "a", "[", "é", "\t", "- ", ": "];
        let mut seed = 7u64;
        for _ in 0..20_000 {
            let mut text = String::new();
            for _ in 0..12 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                text.push_str(pieces[usize::try_from(seed >> 33).unwrap() % pieces.len()]);
            }
            let _ = parse(&text);
        }
    }
}
