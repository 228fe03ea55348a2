//! Formats of `squeue` and `sinfo`: `%[.][width]letter` and `name[:[.]width[suffix]]`, one header line, cells cut
//! at their width.

/// A column's place in a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell<F> {
    /// Which field; absent for literal text alone.
    pub field: Option<F>,
    /// Width; absent means as long as needed.
    pub width: Option<usize>,
    /// Right-aligned.
    pub right: bool,
    /// Text printed after it.
    pub suffix: String,
}

/// A format that was read, and what in it was not understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Format<F> {
    /// Cells in order.
    pub cells: Vec<Cell<F>>,
    /// Letters or names that name no field; they are printed as they stand (letters) or left out (names).
    pub unknown: Vec<String>,
}

/// Reads a `-o` format: everything outside `%` fields is literal.
pub fn letters<F>(format: &str, find: impl Fn(char) -> Option<F>) -> Format<F> {
    let mut out = Format { cells: Vec::new(), unknown: Vec::new() };
    let mut literal = String::new();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            literal.push(c);
            continue;
        }
        if chars.peek() == Some(&'%') {
            chars.next();
            literal.push('%');
            continue;
        }
        let mut raw = String::from('%');
        let right = chars.next_if_eq(&'.').is_some();
        if right {
            raw.push('.');
        }
        let mut digits = String::new();
        while let Some(d) = chars.next_if(char::is_ascii_digit) {
            digits.push(d);
        }
        raw.push_str(&digits);
        let Some(letter) = chars.next() else {
            if raw.len() > 1 {
                out.unknown.push(raw.clone());
                literal.push_str(&raw);
            }
            break;
        };
        match find(letter) {
            Some(field) => {
                push_literal(&mut out.cells, &mut literal);
                out.cells.push(Cell {
                    field: Some(field),
                    width: digits.parse().ok(),
                    right,
                    suffix: String::new(),
                });
            }
            None => {
                out.unknown.push(letter.to_string());
                literal.push_str(&raw);
                literal.push(letter);
            }
        }
    }
    push_literal(&mut out.cells, &mut literal);
    out
}

fn push_literal<F>(cells: &mut Vec<Cell<F>>, literal: &mut String) {
    let text = std::mem::take(literal);
    if text.is_empty() {
        return;
    }
    match cells.last_mut() {
        Some(cell) => cell.suffix.push_str(&text),
        None => cells.push(Cell { field: None, width: None, right: false, suffix: text }),
    }
}

/// Reads a `-O` format: names separated by commas; width 20 unless one, or a suffix, is given.
pub fn names<F>(format: &str, find: impl Fn(&str) -> Option<F>) -> Format<F> {
    let mut out = Format { cells: Vec::new(), unknown: Vec::new() };
    for item in format.split(',') {
        let (name, shape) = item.split_once(':').map_or((item, None), |(n, s)| (n, Some(s)));
        let Some(field) = find(&name.to_ascii_lowercase()) else {
            out.unknown.push(name.to_string());
            continue;
        };
        let mut cell = Cell { field: Some(field), width: Some(20), right: false, suffix: String::new() };
        if let Some(shape) = shape {
            let (right, shape) = match shape.strip_prefix(['.', '-']) {
                Some(rest) if shape.starts_with('.') => (true, rest),
                Some(rest) => (false, rest),
                None => (false, shape),
            };
            let digits = shape.bytes().take_while(u8::is_ascii_digit).count();
            cell.right = right;
            cell.suffix = shape[digits..].to_string();
            cell.width = shape[..digits].parse().ok();
        }
        out.cells.push(cell);
    }
    out
}

/// Every field, separated by `|`: what `%all` and `ALL` stand for.
pub fn all<F>(fields: impl Iterator<Item = F>) -> Format<F> {
    let cell = |field| Cell { field: Some(field), width: None, right: false, suffix: "|".to_string() };
    let mut cells: Vec<Cell<F>> = fields.map(cell).collect();
    if let Some(last) = cells.last_mut() {
        last.suffix.clear();
    }
    Format { cells, unknown: Vec::new() }
}

/// No letter: the field has a name alone.
pub const NONE: char = '\0';

/// Reads a `-o` format with the fields of a table, by their letters; `%all` asks for every one that has a letter.
pub fn by_letters<F: 'static>(
    format: &str,
    fields: &'static [F],
    letter: fn(&F) -> char,
) -> Format<&'static F> {
    if format.trim().eq_ignore_ascii_case("%all") {
        return all(fields.iter().filter(|field| letter(field) != NONE));
    }
    letters(format, |c| fields.iter().find(|field| letter(field) == c))
}

/// Reads a `-O` format with the fields of a table, by their names; `ALL` asks for every one.
pub fn by_names<F: 'static>(
    format: &str,
    fields: &'static [F],
    is: impl Fn(&F, &str) -> bool,
) -> Format<&'static F> {
    if format.trim().eq_ignore_ascii_case("all") {
        return all(fields.iter());
    }
    names(format, |name| fields.iter().find(|field| is(field, name)))
}

/// Reads `--sort`: letters of `-o`, each with an optional `+` or `-`, separated by commas. Each key is a field, and whether the largest comes
/// first. `bare`: what a word is without what may stand before its letter.
///
/// # Errors
/// The word that is none.
pub fn sort_keys<F: 'static>(
    spec: &str,
    fields: &'static [F],
    letter: fn(&F) -> char,
    bare: fn(&str) -> &str,
) -> Result<Vec<(&'static F, bool)>, String> {
    spec.split(',')
        .filter(|item| !item.is_empty())
        .map(|item| {
            let (descending, rest) = match item.strip_prefix('-') {
                Some(rest) => (true, rest),
                None => (false, item.strip_prefix('+').unwrap_or(item)),
            };
            let mut chars = bare(rest).chars();
            match (chars.next(), chars.next()) {
                (Some(c), None) => fields.iter().find(|f| letter(f) == c).map(|f| (f, descending)),
                _ => None,
            }
            .ok_or_else(|| item.to_string())
        })
        .collect()
}

impl<F> Cell<F> {
    /// Appends the value, aligned and cut, and the suffix.
    pub fn put(&self, line: &mut String, value: &str) {
        match self.width {
            Some(width) => {
                let end = value.char_indices().nth(width).map_or(value.len(), |(at, _)| at);
                let cut = &value[..end];
                let blanks = width - if value.is_ascii() { end } else { cut.chars().count() };
                if self.right {
                    line.extend(std::iter::repeat_n(' ', blanks));
                    line.push_str(cut);
                } else {
                    line.push_str(cut);
                    line.extend(std::iter::repeat_n(' ', blanks));
                }
            }
            None => line.push_str(value),
        }
        line.push_str(&self.suffix);
    }
}

/// One line of a table: what `value` gives for each field.
pub fn line<F>(cells: &[Cell<F>], mut value: impl FnMut(&F) -> String) -> String {
    let mut out = String::with_capacity(128);
    for cell in cells {
        let text = cell.field.as_ref().map(&mut value).unwrap_or_default();
        cell.put(&mut out, &text);
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(format: &str, values: &[(char, &str)]) -> String {
        let parsed = letters(format, |c| values.iter().find(|(l, _)| *l == c).map(|(l, _)| *l));
        line(&parsed.cells, |f| values.iter().find(|(l, _)| l == f).unwrap().1.to_string())
    }

    #[test]
    fn letters_are_aligned_and_cut() {
        let v = [('i', "17"), ('j', "wantall"), ('t', "R")];
        assert_eq!(show("%.18i|%9j|", &v), "                17|wantall  |\n");
        assert_eq!(show("%.3i|%.3j|%5j|%.5j", &v), " 17|wan|wanta|wanta\n");
        assert_eq!(show("x%ix %% %t literal", &v), "x17x % R literal\n");
        assert_eq!(show("no fields", &v), "no fields\n");
        assert_eq!(show("%i|%_", &v), "17|%_\n");
        assert_eq!(letters::<()>("%i|%_", |_| None).unknown, ["i", "_"]);
    }

    #[test]
    fn names_have_width_twenty_unless_told() {
        let find = |n: &str| ["jobid", "name", "state"].iter().find(|k| **k == n).copied();
        let show = |f: &str| {
            let parsed = names(f, find);
            (line(&parsed.cells, |n| n.to_uppercase()), parsed.unknown)
        };
        assert_eq!(show("JobID,State").0, format!("{:<20}{:<20}\n", "JOBID", "STATE"));
        assert_eq!(show("JobID:8,Name:.12").0, "JOBID           NAME\n");
        assert_eq!(show("jobid:4,state:4").0, "JOBISTAT\n");
        assert_eq!(show("jobid:|,name:|,state:|").0, "JOBID|NAME|STATE|\n");
        assert_eq!(show("jobid:+,state").0, format!("JOBID+{:<20}\n", "STATE"));
        assert_eq!(show("jobid,bogus"), (format!("{:<20}\n", "JOBID"), vec!["bogus".to_string()]));
    }
}
