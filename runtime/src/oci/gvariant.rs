//! GVariant's text form, as far as properties of systemd's units need it: simple values, and lists of them.

/// Types that GVariant's text names, and their signatures.
const TYPES: [(&str, &str); 10] = [
    ("byte", "y"),
    ("boolean", "b"),
    ("int16", "n"),
    ("uint16", "q"),
    ("int32", "i"),
    ("uint32", "u"),
    ("int64", "x"),
    ("uint64", "t"),
    ("double", "d"),
    ("string", "s"),
];

/// A value as its D-Bus signature, and in busctl's words: a list begins with its length.
pub fn variant(text: &str) -> Option<(String, Vec<String>)> {
    if let Some(rest) = text.strip_prefix('@') {
        let (signature, value) = rest.split_once(' ')?;
        let (found, words) = typed(value.trim(), Some(signature))?;
        return (found == signature).then_some((found, words));
    }
    typed(text, None)
}

fn typed(text: &str, wanted: Option<&str>) -> Option<(String, Vec<String>)> {
    let Some(list) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) else {
        let (signature, word) = scalar(text, wanted)?;
        return Some((signature, vec![word]));
    };
    let mut element = wanted.map(|w| w.strip_prefix('a').map(String::from)).unwrap_or_default();
    if wanted.is_some() && element.is_none() {
        return None;
    }
    let mut words = Vec::new();
    for part in split(list)? {
        let (signature, word) = scalar(part, element.as_deref())?;
        if element.get_or_insert_with(|| signature.clone()) != &signature {
            return None;
        }
        words.push(word);
    }
    words.insert(0, words.len().to_string());
    Some((format!("a{}", element?), words))
}

fn scalar(text: &str, wanted: Option<&str>) -> Option<(String, String)> {
    let named = text
        .split_once(' ')
        .and_then(|(word, rest)| Some((TYPES.iter().find(|(name, _)| *name == word)?.1, rest.trim())));
    let (wanted, text) = match named {
        Some((signature, _)) if wanted.is_some_and(|w| w != signature) => return None,
        Some((signature, rest)) => (Some(signature), rest),
        None => (wanted, text),
    };
    let quote = text.chars().next().filter(|c| "'\"".contains(*c));
    let (natural, word) = match (text, quote) {
        (_, Some(quote)) => {
            let inner = text.strip_prefix(quote)?.strip_suffix(quote)?;
            // What is escaped has another meaning: there is none in a unit's properties.
            if inner.contains(quote) || inner.contains('\\') {
                return None;
            }
            ("s", inner)
        }
        ("true" | "false", _) => ("b", text),
        (number, _) if number.parse::<i128>().is_ok() => ("i", number),
        (number, _) if number.starts_with(|c: char| c.is_ascii_digit() || c == '-') => {
            number.parse::<f64>().ok()?;
            ("d", number)
        }
        _ => return None,
    };
    let signature = wanted.unwrap_or(natural);
    let fits = match signature {
        "y" => word.parse::<u8>().is_ok(),
        "n" => word.parse::<i16>().is_ok(),
        "q" => word.parse::<u16>().is_ok(),
        "i" => word.parse::<i32>().is_ok(),
        "u" => word.parse::<u32>().is_ok(),
        "x" => word.parse::<i64>().is_ok(),
        "t" => word.parse::<u64>().is_ok(),
        "d" => natural != "s" && word.parse::<f64>().is_ok(),
        other => other == natural,
    };
    (fits && (natural != "s" || signature == "s")).then(|| (signature.to_string(), word.to_string()))
}

/// The elements of a list: commas in quotes divide nothing.
fn split(list: &str) -> Option<Vec<&str>> {
    if list.trim().is_empty() {
        return Some(Vec::new());
    }
    let (mut parts, mut begin, mut quote) = (Vec::new(), 0, None);
    for (at, c) in list.char_indices() {
        match (c, quote) {
            ('\'' | '"', None) => quote = Some(c),
            (c, Some(open)) if c == open => quote = None,
            (',', None) => {
                parts.push(list[begin..at].trim());
                begin = at + 1;
            }
            _ => {}
        }
    }
    parts.push(list[begin..].trim());
    quote.is_none().then_some(parts)
}

#[cfg(test)]
mod tests {
    use super::variant;

    #[test]
    fn values() {
        for (text, expected) in [
            ("uint64 123456789", "t 123456789"),
            ("'inactive-or-failed'", "s inactive-or-failed"),
            ("true", "b true"),
            ("-5", "i -5"),
            ("1.5", "d 1.5"),
            ("['a.service', \"b, c\"]", "as 2 a.service b, c"),
            ("@as []", "as 0"),
            ("[uint32 1, 2]", "au 2 1 2"),
        ] {
            let (signature, words) = variant(text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(format!("{signature} {}", words.join(" ")), expected);
        }
        for text in [
            "",
            "bare",
            "'",
            "'open",
            "'a' b'",
            "'a\\n'",
            "byte 300",
            "uint32 'text'",
            "string 5",
            "[1, 'a']",
            "[",
            "[]",
            "[1,]",
            "@s [1]",
            "@as ['a",
            "99999999999",
            "{}",
            "@",
            "uint64",
            "inf",
        ] {
            assert_eq!(variant(text), None, "{text}");
        }
    }
}
