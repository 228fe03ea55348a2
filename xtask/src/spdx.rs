//! Decides whether an SPDX licence expression is satisfied by a list of allowed licences.

/// True when the expression can be met with allowed licences alone: either side of OR, both sides of AND.
/// `/` is read as OR, as old manifests write it. `A WITH B` counts as one licence of that name.
pub fn allowed(expression: &str, list: &[String]) -> Result<bool, String> {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut parser = Parser { words: &words, at: 0, list };
    let result = parser.any()?;
    match parser.peek() {
        None => Ok(result),
        Some(word) => Err(format!("unexpected `{word}` in licence expression `{expression}`")),
    }
}

struct Parser<'a> {
    words: &'a [&'a str],
    at: usize,
    list: &'a [String],
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<&'a str> {
        self.words.get(self.at).copied()
    }

    fn take(&mut self, word: &str) -> bool {
        let found = self.peek() == Some(word);
        self.at += usize::from(found);
        found
    }

    fn any(&mut self) -> Result<bool, String> {
        let mut result = self.all()?;
        while self.take("OR") {
            result |= self.all()?;
        }
        Ok(result)
    }

    fn all(&mut self) -> Result<bool, String> {
        let mut result = self.one()?;
        while self.take("AND") {
            result &= self.one()?;
        }
        Ok(result)
    }

    fn one(&mut self) -> Result<bool, String> {
        if self.take("(") {
            let inner = self.any()?;
            return if self.take(")") {
                Ok(inner)
            } else {
                Err("a `)` is missing in a licence expression".into())
            };
        }
        let Some(word) = self.peek() else { return Err("a licence expression ends too early".into()) };
        self.at += 1;
        // `X+` is X or any later version, so X itself will do.
        let mut name = word.trim_end_matches('+').to_string();
        if self.take("WITH") {
            let Some(exception) = self.peek() else { return Err("WITH names no exception".into()) };
            self.at += 1;
            name = format!("{name} WITH {exception}");
        }
        Ok(self.list.contains(&name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(expression: &str) -> bool {
        allowed(expression, &["MIT".into(), "Apache-2.0".into(), "Apache-2.0 WITH LLVM-exception".into()])
            .unwrap()
    }

    #[test]
    fn either_side_of_or_and_both_of_and() {
        assert!(check("MIT"));
        assert!(check("GPL-3.0 OR MIT"));
        assert!(check("MIT/GPL-3.0"));
        assert!(check("MIT+"));
        assert!(!check("GPL-3.0 AND MIT"));
        assert!(check("(MIT OR GPL-3.0) AND Apache-2.0"));
        assert!(!check("(MIT OR Apache-2.0) AND Unicode-3.0"));
        assert!(check("Apache-2.0 WITH LLVM-exception"));
        assert!(!check("MIT WITH LLVM-exception"));
    }

    #[test]
    fn nonsense_is_an_error() {
        for text in ["", "MIT OR", "(MIT", "MIT MIT", "MIT WITH"] {
            assert!(allowed(text, &[]).is_err(), "{text}");
        }
    }
}
