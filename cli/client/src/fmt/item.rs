//! A JSON value for records that are printed by the hundred thousand: names of members are known beforehand, texts are
//! borrowed, and a number that may be unset is one piece instead of an object of its own.

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use serde_json::Value;
use serde_json::ser::Formatter;
use std::borrow::Cow;
use std::io::{self, Write};

/// A number that may be unset or unlimited.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Number {
    /// Unlimited.
    pub infinite: bool,
    /// The number, 0 where there is none.
    pub number: i64,
    /// Whether there is one.
    pub set: bool,
}

/// A value.
#[derive(Clone, Debug)]
pub enum Item<'a> {
    /// A truth value.
    Bool(bool),
    /// A number that is always there.
    Integer(i64),
    /// A string.
    Text(Cow<'a, str>),
    /// A number that may not be there.
    Number(Number),
    /// An array.
    List(Vec<Item<'a>>),
    /// Members by name, in order.
    Object(Vec<(&'static str, Item<'a>)>),
    /// What is made in another way.
    Value(Cow<'a, Value>),
}

impl<'a> Item<'a> {
    /// An object of these members.
    pub fn object(mut members: Vec<(&'static str, Item<'a>)>) -> Self {
        members.sort_unstable_by_key(|(name, _)| *name);
        Item::Object(members)
    }

    /// The same as a value of serde's.
    pub fn into_value(self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    /// Appends the value over several lines, at a depth of so many levels. No line begins within a text: those have their
    /// line feeds escaped.
    pub fn pretty(&self, depth: usize, out: &mut Vec<u8>) -> serde_json::Result<()> {
        let lines = Lines { depth, filled: false };
        self.serialize(&mut serde_json::Serializer::with_formatter(out, lines))
    }
}

impl Serialize for Item<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Item::Bool(value) => serializer.serialize_bool(*value),
            Item::Integer(value) => serializer.serialize_i64(*value),
            Item::Text(text) => serializer.serialize_str(text),
            Item::Number(number) => number.serialize(serializer),
            Item::List(items) => serializer.collect_seq(items),
            Item::Object(members) => {
                let mut map = serializer.serialize_map(Some(members.len()))?;
                for (name, value) in members {
                    map.serialize_entry(name, value)?;
                }
                map.end()
            }
            Item::Value(value) => value.serialize(serializer),
        }
    }
}

/// serde's pretty form, with one write for a line's beginning instead of one for each level.
struct Lines {
    depth: usize,
    /// Whether the innermost array or object has anything.
    filled: bool,
}

/// The end of a member and the beginning of the next line.
const BEGINNING: &str = ",\n                                ";

impl Lines {
    fn line<W: ?Sized + Write>(&self, out: &mut W, after_another: bool) -> io::Result<()> {
        let spaces = 2 * self.depth;
        let there = BEGINNING.len().min(2 + spaces);
        out.write_all(&BEGINNING.as_bytes()[usize::from(!after_another)..there])?;
        (there..2 + spaces).try_for_each(|_| out.write_all(b" "))
    }

    fn begin<W: ?Sized + Write>(&mut self, out: &mut W, mark: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.filled = false;
        out.write_all(mark)
    }

    fn end<W: ?Sized + Write>(&mut self, out: &mut W, mark: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if self.filled {
            self.line(out, false)?;
        }
        out.write_all(mark)
    }
}

impl Formatter for Lines {
    fn begin_array<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.begin(out, b"[")
    }

    fn end_array<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.end(out, b"]")
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.line(out, !first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.filled = true;
        Ok(())
    }

    fn begin_object<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.begin(out, b"{")
    }

    fn end_object<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.end(out, b"}")
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.line(out, !first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.filled = true;
        Ok(())
    }
}

/// An object whose members are given as for serde's `json!`.
macro_rules! object {
    ($($name:literal: $value:expr),* $(,)?) => {
        $crate::fmt::item::Item::object(vec![$(($name, $crate::fmt::item::Item::from($value))),*])
    };
}
pub(crate) use object;

macro_rules! from {
    ($($type:ty => |$value:ident| $item:expr),* $(,)?) => {
        $(impl<'a> From<$type> for Item<'a> {
            fn from($value: $type) -> Self {
                $item
            }
        })*
    };
}

from! {
    bool => |value| Item::Bool(value),
    i32 => |value| Item::Integer(value.into()),
    u32 => |value| Item::Integer(value.into()),
    &'a str => |text| Item::Text(Cow::Borrowed(text)),
    &'a String => |text| Item::Text(Cow::Borrowed(text)),
    String => |text| Item::Text(Cow::Owned(text)),
    Cow<'a, str> => |text| Item::Text(text),
    Number => |number| Item::Number(number),
    Vec<Item<'a>> => |items| Item::List(items),
    Value => |value| Item::Value(Cow::Owned(value)),
}
