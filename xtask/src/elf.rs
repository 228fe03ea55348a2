//! Reads just enough of an ELF header to tell a static, position-dependent program from any other.

use std::path::Path;

const TYPE_OFFSET: usize = 16;
const TYPE_EXECUTABLE: u16 = 2;
const PROGRAM_HEADERS_OFFSET: usize = 32;
const PROGRAM_HEADER_SIZE_OFFSET: usize = 54;
const PROGRAM_HEADER_COUNT_OFFSET: usize = 56;
const SEGMENT_INTERPRETER: u32 = 3;

/// Fails unless the file is a static ELF64 program with fixed addresses.
pub fn require_static(path: &Path) -> Result<(), String> {
    let bytes = std::fs::read(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    let wrong = |what: &str| format!("{} is {what}; its build flags were not used", path.display());
    if bytes.get(..4) != Some(b"\x7fELF") || bytes.get(4) != Some(&2) {
        return Err(wrong("no 64-bit ELF program"));
    }
    if read_u16(&bytes, TYPE_OFFSET) != Some(TYPE_EXECUTABLE) {
        return Err(wrong("position independent"));
    }
    match has_interpreter(&bytes) {
        Some(false) => Ok(()),
        Some(true) => Err(wrong("dynamically linked")),
        None => Err(wrong("cut off within its program headers")),
    }
}

fn has_interpreter(bytes: &[u8]) -> Option<bool> {
    let table = usize::try_from(u64::from_le_bytes(array(bytes, PROGRAM_HEADERS_OFFSET)?)).ok()?;
    let size = usize::from(read_u16(bytes, PROGRAM_HEADER_SIZE_OFFSET)?);
    let count = usize::from(read_u16(bytes, PROGRAM_HEADER_COUNT_OFFSET)?);
    for index in 0..count {
        let at = table.checked_add(index.checked_mul(size)?)?;
        if u32::from_le_bytes(array(bytes, at)?) == SEGMENT_INTERPRETER {
            return Some(true);
        }
    }
    Some(false)
}

fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_le_bytes)
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_file_and_a_dynamic_program_are_refused() {
        assert!(require_static(Path::new("/etc/passwd")).unwrap_err().contains("no 64-bit ELF"));
        let own = std::env::current_exe().unwrap();
        assert!(require_static(&own).is_err());
    }

    #[test]
    fn a_cut_header_is_no_answer() {
        assert_eq!(has_interpreter(&[0; 40]), None);
    }
}
