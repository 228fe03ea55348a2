//! Where inputs come from: a seed of the target's name, and words that its readers know.

/// What readers of texts look for, with few digits and letters so that these meet.
const SIGNS: &[u8] = b"0123456789aAbkKmMGntx ,:;-+_=.@%/\\*#&|~!?^$()[]{}<>'\"`\t\n\r\0";

/// Numbers that look like chance (splitmix64; Steele, Lea and Flood, 2014).
pub(crate) struct Source(u64);

impl Source {
    /// The source of this name.
    pub(crate) fn of(name: &str) -> Source {
        let add = |seed: u64, byte: u8| (seed ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        Source(name.bytes().fold(0xcbf2_9ce4_8422_2325, add))
    }

    fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`, which is not 0.
    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.number() % (end as u64)).unwrap_or_default()
    }

    fn byte(&mut self) -> u8 {
        self.number().to_le_bytes()[0]
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    /// The next input: up to 4 KiB, or more where they are words.
    pub(crate) fn input(&mut self, words: &[&str]) -> Vec<u8> {
        let most = self.one_of(&[8, 64, 512, 4096]);
        let length = self.below(most + 1);
        let mut bytes = match self.below(6) {
            0 => self.bytes(length),
            1 => self.few_bytes(length),
            2 => (0..length).map(|_| self.one_of(SIGNS)).collect(),
            _ => self.text(words, length),
        };
        for _ in 0..self.below(4) {
            self.edit(&mut bytes);
        }
        self.listed(bytes)
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.byte()).collect()
    }

    /// One to four distinct ones.
    fn few_bytes(&mut self, length: usize) -> Vec<u8> {
        let distinct = 1 + self.below(4);
        let some = self.bytes(distinct);
        (0..length).map(|_| self.one_of(&some)).collect()
    }

    /// A word, in half of the cases with others and signs behind it.
    fn text(&mut self, words: &[&str], length: usize) -> Vec<u8> {
        let mut text = self.one_of(words).as_bytes().to_vec();
        if self.below(2) == 0 {
            while text.len() < length {
                match self.below(4) {
                    0 => text.push(self.one_of(SIGNS)),
                    _ => text.extend_from_slice(self.one_of(words).as_bytes()),
                }
            }
        }
        text
    }

    /// Something else at one place.
    fn edit(&mut self, bytes: &mut Vec<u8>) {
        let at = self.below(bytes.len() + 1);
        match self.below(6) {
            0 => bytes.insert(at, self.byte()),
            1 => bytes.insert(at, self.one_of(SIGNS)),
            2 => bytes.truncate(at),
            3 if at < bytes.len() => bytes[at] = self.byte(),
            4 if at < bytes.len() => {
                bytes.remove(at);
            }
            // The rest twice.
            _ => bytes.extend_from_within(at..),
        }
    }

    /// `Arbitrary` takes a byte before each member of a list, whose lowest bit says that the member is there: with any bytes half of
    /// all lists are empty. Some inputs have such bytes at every second place, others at most places.
    fn listed(&mut self, bytes: Vec<u8>) -> Vec<u8> {
        match self.below(4) {
            0 => {
                // What comes first may be something else than the list.
                let before = if self.below(2) == 0 { vec![1] } else { Vec::new() };
                before.into_iter().chain(bytes.into_iter().flat_map(|byte| [1, byte])).collect()
            }
            1 => {
                let odd = 4 + self.below(5);
                bytes.into_iter().map(|byte| if self.below(8) < odd { byte | 1 } else { byte }).collect()
            }
            _ => bytes,
        }
    }
}
