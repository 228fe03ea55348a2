//! What the supervisor and the process with libpmix say to one another. That process is the user's: the supervisor believes
//! it nothing but what it may say of its own step.

/// Longest that a word may be, without its head. What all nodes tell at a fence is bounded likewise.
pub const WORD_MAX: usize = 64 << 20;
/// Kind, number and length.
const HEAD: usize = 9;

/// One word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// To the process: the step.
    Setup(Vec<u8>),
    /// To the supervisor: what a task of this node, by its place, is to have in its environment, each with a NUL behind it.
    Environment(u32, Vec<u8>),
    /// To the supervisor: tasks may come.
    Ready,
    /// To the supervisor: why none can.
    Failed(Vec<u8>),
    /// To the supervisor: what this node tells at a fence of all. To the process: what all nodes told.
    Fence(u32, Vec<u8>),
    /// To the supervisor: bytes for the process of another node. To the process: bytes of another's.
    Peer(u32, Vec<u8>),
    /// To the process: what was told to this node, or came from it, may be lost. [`Word::ALL`] stands for all nodes.
    Again(u32),
    /// To the supervisor: a task came, by its place.
    Came(u32),
    /// To the supervisor: a task is done.
    Done(u32),
    /// To the supervisor: a task ends the step, with this exit code and message.
    Abort(u32, i32, Vec<u8>),
}

/// What was said is no word.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadWord {
    /// No such kind, or not what it asks for.
    #[error("a word of kind {0} and {1} bytes is none")]
    Unknown(u8, usize),
    /// Longer than any.
    #[error("a word of {0} bytes is longer than any")]
    TooLong(usize),
}

impl Word {
    /// In the place of a node: all of them.
    pub const ALL: u32 = u32::MAX;

    /// Appends the word.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let (kind, number, code, bytes): (u8, u32, Option<i32>, &[u8]) = match self {
            Word::Setup(bytes) => (1, 0, None, bytes),
            Word::Environment(task, bytes) => (2, *task, None, bytes),
            Word::Ready => (3, 0, None, &[]),
            Word::Failed(why) => (4, 0, None, why),
            Word::Fence(number, bytes) => (5, *number, None, bytes),
            Word::Peer(node, bytes) => (6, *node, None, bytes),
            Word::Again(node) => (7, *node, None, &[]),
            Word::Came(task) => (8, *task, None, &[]),
            Word::Done(task) => (9, *task, None, &[]),
            Word::Abort(task, code, message) => (10, *task, Some(*code), message),
        };
        let code = code.map(i32::to_le_bytes);
        let code = code.as_ref().map_or(&[][..], |c| c);
        // Whoever says more is not heard: the other side refuses the length.
        let length = u32::try_from(code.len() + bytes.len()).unwrap_or(u32::MAX);
        out.push(kind);
        out.extend_from_slice(&number.to_le_bytes());
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(code);
        out.extend_from_slice(bytes);
    }

    fn of(kind: u8, number: u32, mut bytes: Vec<u8>) -> Result<Word, BadWord> {
        let length = bytes.len();
        Ok(match kind {
            1 => Word::Setup(bytes),
            2 => Word::Environment(number, bytes),
            3 if length == 0 => Word::Ready,
            4 => Word::Failed(bytes),
            5 => Word::Fence(number, bytes),
            6 => Word::Peer(number, bytes),
            7 if length == 0 => Word::Again(number),
            8 if length == 0 => Word::Came(number),
            9 if length == 0 => Word::Done(number),
            10 => match bytes.first_chunk::<4>() {
                Some(code) => {
                    let code = i32::from_le_bytes(*code);
                    bytes.drain(..4);
                    Word::Abort(number, code, bytes)
                }
                None => return Err(BadWord::Unknown(kind, length)),
            },
            _ => return Err(BadWord::Unknown(kind, length)),
        })
    }
}

/// Bytes as they come, to words.
#[derive(Debug, Default)]
pub struct Words {
    held: Vec<u8>,
    read: usize,
}

impl Words {
    /// Takes what came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
    }

    /// The next whole word, if there is one.
    ///
    /// # Errors
    /// It is none. Nothing after it is of use.
    pub fn next_word(&mut self) -> Result<Option<Word>, BadWord> {
        let rest = self.held.get(self.read..).unwrap_or_default();
        let Some([kind, n0, n1, n2, n3, l0, l1, l2, l3]) = rest.first_chunk::<HEAD>().copied() else {
            self.held.drain(..self.read);
            self.read = 0;
            return Ok(None);
        };
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if length > WORD_MAX {
            return Err(BadWord::TooLong(length));
        }
        let Some(bytes) = rest.get(HEAD..HEAD + length).map(<[u8]>::to_vec) else {
            self.held.drain(..self.read);
            self.read = 0;
            return Ok(None);
        };
        self.read += HEAD + length;
        Word::of(kind, u32::from_le_bytes([n0, n1, n2, n3]), bytes).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_back_however_they_are_cut() {
        let said = [
            Word::Setup(b"{}".to_vec()),
            Word::Environment(3, b"A=1\0B=2\0".to_vec()),
            Word::Ready,
            Word::Failed(b"why".to_vec()),
            Word::Fence(7, vec![0; 300]),
            Word::Peer(2, Vec::new()),
            Word::Again(Word::ALL),
            Word::Came(1),
            Word::Done(1),
            Word::Abort(4, -3, b"no more".to_vec()),
        ];
        let mut bytes = Vec::new();
        said.iter().for_each(|word| word.encode(&mut bytes));
        for cut in [1, 7, bytes.len()] {
            let (mut words, mut heard) = (Words::default(), Vec::new());
            for piece in bytes.chunks(cut) {
                words.push(piece);
                while let Some(word) = words.next_word().unwrap() {
                    heard.push(word);
                }
            }
            assert_eq!(heard, said);
        }
    }

    #[test]
    fn what_is_no_word_is_refused_before_it_is_held() {
        let heard = |bytes: &[u8]| {
            let mut words = Words::default();
            words.push(bytes);
            words.next_word()
        };
        assert_eq!(heard(&[99, 0, 0, 0, 0, 0, 0, 0, 0]), Err(BadWord::Unknown(99, 0)));
        assert_eq!(heard(&[10, 0, 0, 0, 0, 1, 0, 0, 0, 9]), Err(BadWord::Unknown(10, 1)));
        assert_eq!(heard(&[3, 0, 0, 0, 0, 1, 0, 0, 0, 9]), Err(BadWord::Unknown(3, 1)));
        let long = [5, 0, 0, 0, 0, 255, 255, 255, 255];
        assert_eq!(heard(&long), Err(BadWord::TooLong(u32::MAX as usize)));
        assert_eq!(heard(&[5, 0, 0]), Ok(None));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let mut words = Words::default();
            words.push(&bytes);
            while let Ok(Some(_)) = words.next_word() {}
        }
    }
}
