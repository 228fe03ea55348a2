//! Which device files a group may use: rules, and the eBPF program that v2 wants.

use crate::sys::bpf::Insn;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// Character or block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// Character device.
    Char,
    /// Block device.
    Block,
}

/// One rule: reading, writing and making of these devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRule {
    /// Character or block.
    pub kind: DeviceKind,
    /// Major number; absent means all.
    pub major: Option<u32>,
    /// Minor number; absent means all.
    pub minor: Option<u32>,
    /// Making the file alone, without reading or writing the device.
    #[serde(default)]
    pub make_only: bool,
}

/// What a group may use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DevicePolicy {
    /// Nothing but these: for a container.
    AllowOnly(Vec<DeviceRule>),
    /// Everything but these: for a `host:` step, whose devices that nobody allocates stay usable.
    DenyOnly(Vec<DeviceRule>),
    /// The same where a driver has devices of which the group has one at most.
    DenyOthers {
        /// What else is denied.
        denied: Vec<DeviceRule>,
        /// Those devices.
        family: Family,
    },
}

/// Character devices of one driver, of which one group has one at most. Their files are made when somebody needs them: also after the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Family {
    /// Their major number.
    pub major: u32,
    /// How many there are: the minor numbers below it are theirs.
    pub count: u32,
    /// The minor number of the group's own.
    pub own: Option<u32>,
}

impl Family {
    /// All but the own one, as v1's file takes them: it has no ranges, and what it refuses by a `*` it does not allow by a number.
    pub(super) fn others(&self) -> Vec<String> {
        match self.own {
            None => vec![format!("c {}:* rwm", self.major)],
            Some(own) => {
                let others = (0..self.count).filter(|minor| *minor != own);
                others.map(|minor| format!("c {}:{minor} rwm", self.major)).collect()
            }
        }
    }
}

/// A rule among others of which the last that matches decides, as a `config.json` has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceAccess {
    /// Else refused.
    pub allow: bool,
    /// Character or block.
    pub kind: DeviceKind,
    /// Major number; absent means all.
    pub major: Option<u32>,
    /// Minor number; absent means all.
    pub minor: Option<u32>,
    /// Reading.
    pub read: bool,
    /// Writing.
    pub write: bool,
    /// Making the file.
    pub make: bool,
}

impl From<DeviceRule> for DeviceAccess {
    fn from(r: DeviceRule) -> Self {
        let use_it = !r.make_only;
        DeviceAccess {
            allow: true,
            kind: r.kind,
            major: r.major,
            minor: r.minor,
            read: use_it,
            write: use_it,
            make: true,
        }
    }
}

/// As v1's files take it: `c 1:3 rw`.
impl fmt::Display for DeviceAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.kind == DeviceKind::Char { 'c' } else { 'b' };
        let number = |n: Option<u32>| n.map_or_else(|| "*".to_string(), |n| n.to_string());
        write!(f, "{kind} {}:{} ", number(self.major), number(self.minor))?;
        [(self.read, "r"), (self.write, "w"), (self.make, "m")]
            .iter()
            .filter(|(on, _)| *on)
            .try_for_each(|(_, word)| f.write_str(word))
    }
}

/// As v1's files take it: `c 1:3 rwm`.
impl fmt::Display for DeviceRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.kind == DeviceKind::Char { 'c' } else { 'b' };
        let number = |n: Option<u32>| n.map_or_else(|| "*".to_string(), |n| n.to_string());
        let access = if self.make_only { "m" } else { "rwm" };
        write!(f, "{kind} {}:{} {access}", number(self.major), number(self.minor))
    }
}

/// What every container may use: the devices of its `/dev` and terminals, and making files for any device,
/// which gives no access to it.
pub fn standard_devices() -> Vec<DeviceRule> {
    let rule =
        |major, minor| DeviceRule { kind: DeviceKind::Char, major: Some(major), minor, make_only: false };
    let make = |kind| DeviceRule { kind, major: None, minor: None, make_only: true };
    let mut rules = vec![make(DeviceKind::Char), make(DeviceKind::Block)];
    rules.extend([3, 5, 7, 8, 9].map(|minor| rule(1, Some(minor))));
    rules.extend([rule(5, Some(0)), rule(5, Some(2)), rule(136, None)]);
    rules
}

/// The rule for a device file of the node.
///
/// # Errors
/// The file cannot be looked at, or is no device.
pub fn device_of(path: &Path) -> io::Result<DeviceRule> {
    let meta = std::fs::metadata(path)?;
    let kind = if meta.file_type().is_char_device() {
        DeviceKind::Char
    } else if meta.file_type().is_block_device() {
        DeviceKind::Block
    } else {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    };
    let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
    Ok(DeviceRule { kind, major: Some(major), minor: Some(minor), make_only: false })
}

// linux/bpf_common.h and linux/bpf.h
const LOAD_WORD: u8 = 0x61; // BPF_LDX | BPF_W | BPF_MEM
const MOVE_REG: u8 = 0xbf; // BPF_ALU64 | BPF_MOV | BPF_X
const MOVE: u8 = 0xb7; // BPF_ALU64 | BPF_MOV | BPF_K
const AND: u8 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const SHIFT_RIGHT: u8 = 0x74; // BPF_ALU | BPF_RSH | BPF_K
const JUMP_NOT: u8 = 0x55; // BPF_JMP | BPF_JNE | BPF_K
const JUMP_FROM: u8 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const JUMP_EQUAL: u8 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const CALL: u8 = 0x85; // BPF_JMP | BPF_CALL
const MOVE_HALF: u8 = 0xbc; // BPF_ALU | BPF_MOV | BPF_X: the upper half is zero
const EXIT: u8 = 0x95;
const UID_GID: i32 = 15; // BPF_FUNC_get_current_uid_gid: the uid of the first user namespace is the lower half
const MAKE: i32 = 1; // BPF_DEVCG_ACC_MKNOD; reading is 2, writing 4

fn insn(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> Insn {
    Insn { code, regs: src << 4 | dst, off, imm }
}

/// The beginning of a program, which takes the access apart (`struct bpf_cgroup_dev_ctx`): r2 its kind, r3 what is asked for, r4 the major and
/// r5 the minor number.
fn access() -> Vec<Insn> {
    vec![
        insn(LOAD_WORD, 2, 1, 0, 0),
        insn(MOVE_REG, 3, 2, 0, 0),
        insn(AND, 2, 0, 0, 0xffff),
        insn(SHIFT_RIGHT, 3, 0, 0, 16),
        insn(LOAD_WORD, 4, 1, 4, 0),
        insn(LOAD_WORD, 5, 1, 8, 0),
    ]
}

/// The program: for an access, 1 lets it pass and 0 refuses it.
pub(super) fn program(policy: &DevicePolicy) -> Vec<Insn> {
    let (rules, family, matched, otherwise) = match policy {
        DevicePolicy::AllowOnly(rules) => (rules, None, 1, 0),
        DevicePolicy::DenyOnly(rules) => (rules, None, 0, 1),
        DevicePolicy::DenyOthers { denied, family } => (denied, Some(family), 0, 1),
    };
    let mut out = access();
    for rule in rules {
        let mut tests = vec![(2, if rule.kind == DeviceKind::Block { 1 } else { 2 })];
        let mut block = Vec::new();
        if rule.make_only {
            // Access beyond making must be none.
            block.extend([insn(MOVE_REG, 6, 3, 0, 0), insn(AND, 6, 0, 0, !MAKE)]);
            tests.push((6, 0));
        }
        // Device numbers have 20 bits at most, so they fit the immediate.
        tests.extend(rule.major.map(|n| (4, n.cast_signed())));
        tests.extend(rule.minor.map(|n| (5, n.cast_signed())));
        let hit = [insn(MOVE, 0, 0, 0, matched), insn(EXIT, 0, 0, 0, 0)];
        for (n, (register, value)) in tests.iter().enumerate() {
            let skip = i16::try_from(tests.len() - n - 1 + hit.len()).unwrap_or(i16::MAX);
            block.push(insn(JUMP_NOT, *register, 0, skip, *value));
        }
        block.extend(hit);
        out.extend(block);
    }
    out.extend(family.into_iter().flat_map(all_but_own));
    out.extend([insn(MOVE, 0, 0, 0, otherwise), insn(EXIT, 0, 0, 0, 0)]);
    out
}

/// Refuses a family's devices but the own one; the registers are those of [`program`].
fn all_but_own(family: &Family) -> Vec<Insn> {
    let hit = [insn(MOVE, 0, 0, 0, 0), insn(EXIT, 0, 0, 0, 0)];
    // Each leads behind the block.
    let mut tests = vec![
        (JUMP_NOT, 2, 2),
        (JUMP_NOT, 4, family.major.cast_signed()),
        (JUMP_FROM, 5, family.count.cast_signed()),
    ];
    tests.extend(family.own.map(|own| (JUMP_EQUAL, 5, own.cast_signed())));
    let last = tests.len() - 1 + hit.len();
    let jumps = tests.into_iter().enumerate().map(|(n, (jump, register, value))| {
        insn(jump, register, 0, i16::try_from(last - n).unwrap_or(i16::MAX), value)
    });
    jumps.chain(hit).collect()
}

/// As [`program`], and root's processes pass.
pub(super) fn program_but_for_root(policy: &DevicePolicy) -> Vec<Insn> {
    let mut out = vec![
        // A call leaves nothing in r1.
        insn(MOVE_REG, 6, 1, 0, 0),
        insn(CALL, 0, 0, 0, UID_GID),
        insn(MOVE_HALF, 0, 0, 0, 0),
        insn(JUMP_NOT, 0, 0, 2, 0),
        insn(MOVE, 0, 0, 0, 1),
        insn(EXIT, 0, 0, 0, 0),
        insn(MOVE_REG, 1, 6, 0, 0),
    ];
    out.extend(program(policy));
    out
}

/// The program for rules of which the last that matches decides; what none matches is refused.
///
/// An access asks for several things at once: it passes where one rule allows them all, and is refused where
/// a rule refuses any of them.
#[cfg(feature = "oci")]
pub(crate) fn access_program(rules: &[DeviceAccess]) -> Vec<Insn> {
    let mut out = access();
    for rule in rules.iter().rev() {
        let bits = [(rule.make, 1), (rule.read, 2), (rule.write, 4)];
        let mask = bits.iter().filter(|(on, _)| *on).fold(0, |mask, (_, bit)| mask | bit);
        let mut tests = vec![(2, if rule.kind == DeviceKind::Block { 1 } else { 2 })];
        tests.extend(rule.major.map(|n| (4, n.cast_signed())));
        tests.extend(rule.minor.map(|n| (5, n.cast_signed())));
        let answer = i32::from(rule.allow);
        // Allowed: nothing beyond the rule is asked for. Refused: something of the rule is.
        let (kept, jump) = if rule.allow { (!mask, JUMP_NOT) } else { (mask, JUMP_EQUAL) };
        let tail = [
            insn(MOVE_REG, 6, 3, 0, 0),
            insn(AND, 6, 0, 0, kept),
            insn(jump, 6, 0, 2, 0),
            insn(MOVE, 0, 0, 0, answer),
            insn(EXIT, 0, 0, 0, 0),
        ];
        for (n, (register, value)) in tests.iter().enumerate() {
            let skip = i16::try_from(tests.len() - n - 1 + tail.len()).unwrap_or(i16::MAX);
            out.push(insn(JUMP_NOT, *register, 0, skip, *value));
        }
        out.extend(tail);
    }
    out.extend([insn(MOVE, 0, 0, 0, 0), insn(EXIT, 0, 0, 0, 0)]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program as the kernel would, for a process of a user.
    fn run(program: &[Insn], kind: u32, access: u32, major: u32, minor: u32) -> i64 {
        run_as(1000, program, kind, access, major, minor)
    }

    fn run_as(uid: i64, program: &[Insn], kind: u32, access: u32, major: u32, minor: u32) -> i64 {
        // The context's address is in the first register.
        const CONTEXT: i64 = 4096;
        let mut r = [0i64; 10];
        r[1] = CONTEXT;
        let context = [access << 16 | kind, major, minor];
        let mut pc = 0usize;
        loop {
            let i = program[pc];
            pc += 1;
            let (dst, src) = (usize::from(i.regs & 15), usize::from(i.regs >> 4));
            match i.code {
                LOAD_WORD => {
                    assert_eq!(r[src], CONTEXT);
                    r[dst] = i64::from(context[usize::try_from(i.off).unwrap() / 4]);
                }
                MOVE_REG => r[dst] = r[src],
                CALL => {
                    assert_eq!(i.imm, UID_GID);
                    r[..6].fill(-1);
                    r[0] = 100 << 32 | uid;
                }
                MOVE_HALF => r[dst] = r[src] & 0xffff_ffff,
                MOVE => r[dst] = i64::from(i.imm),
                AND => r[dst] &= i64::from(i.imm.cast_unsigned()),
                SHIFT_RIGHT => r[dst] >>= i.imm,
                JUMP_NOT => {
                    if r[dst] != i64::from(i.imm) {
                        pc += usize::try_from(i.off).unwrap();
                    }
                }
                JUMP_FROM => {
                    if r[dst] >= i64::from(i.imm) {
                        pc += usize::try_from(i.off).unwrap();
                    }
                }
                JUMP_EQUAL => {
                    if r[dst] == i64::from(i.imm) {
                        pc += usize::try_from(i.off).unwrap();
                    }
                }
                EXIT => return r[0],
                other => panic!("unknown operation {other:#x}"),
            }
        }
    }

    const CHAR: u32 = 2;
    const BLOCK: u32 = 1;
    const READ: u32 = 2;

    #[test]
    fn a_container_has_its_own_devices_alone() {
        let p = program(&DevicePolicy::AllowOnly(standard_devices()));
        assert_eq!(run(&p, CHAR, READ, 1, 3), 1);
        assert_eq!(run(&p, CHAR, READ | 4, 136, 17), 1);
        assert_eq!(run(&p, CHAR, READ, 1, 1), 0, "/dev/mem");
        assert_eq!(run(&p, BLOCK, READ, 8, 0), 0, "a disk");
        assert_eq!(run(&p, BLOCK, 1, 8, 0), 1, "making its file");
        assert_eq!(run(&p, BLOCK, 1 | READ, 8, 0), 0);
    }

    #[test]
    fn a_host_step_lacks_what_others_have() {
        let gpu = DeviceRule { kind: DeviceKind::Char, major: Some(195), minor: Some(1), make_only: false };
        let p = program(&DevicePolicy::DenyOnly(vec![gpu]));
        assert_eq!(run(&p, CHAR, READ, 195, 1), 0);
        assert_eq!(run(&p, CHAR, READ, 195, 0), 1);
        assert_eq!(gpu.to_string(), "c 195:1 rwm");
    }

    #[test]
    fn of_a_drivers_devices_the_own_one_alone_opens_whenever_the_others_are_made() {
        let gpu = DeviceRule { kind: DeviceKind::Char, major: Some(195), minor: Some(1), make_only: false };
        let of = |own| Family { major: 234, count: 2048, own };
        let opens = |own, kind, major: u32, minor: u32| {
            let policy = DevicePolicy::DenyOthers { denied: vec![gpu], family: of(own) };
            run(&program(&policy), kind, READ, major, minor) == 1
        };
        for (minor, open) in [(0, false), (6, false), (7, true), (8, false), (2047, false), (2048, true)] {
            assert_eq!(opens(Some(7), CHAR, 234, minor), open, "{minor}");
            assert_eq!(opens(None, CHAR, 234, minor), minor == 2048, "{minor}");
        }
        assert!(opens(None, BLOCK, 234, 3) && opens(None, CHAR, 233, 3) && opens(Some(7), CHAR, 195, 0));
        assert!(!opens(Some(7), CHAR, 195, 1), "what else is denied");
        assert_eq!(of(None).others(), ["c 234:* rwm"]);
        let others = Family { count: 4, ..of(Some(1)) }.others();
        assert_eq!(others, ["c 234:0 rwm", "c 234:2 rwm", "c 234:3 rwm"]);
    }

    #[test]
    fn what_is_kept_from_users_opens_for_root() {
        let gpu = DeviceRule { kind: DeviceKind::Char, major: Some(195), minor: Some(1), make_only: false };
        let p = program_but_for_root(&DevicePolicy::DenyOnly(vec![gpu]));
        assert_eq!((run(&p, CHAR, READ, 195, 1), run_as(0, &p, CHAR, READ, 195, 1)), (0, 1));
        assert_eq!((run(&p, CHAR, READ, 195, 0), run(&p, BLOCK, READ, 195, 1)), (1, 1));
    }

    #[cfg(feature = "oci")]
    #[test]
    fn the_last_rule_that_matches_decides() {
        let rule = |allow, major, access: &str| DeviceAccess {
            allow,
            kind: DeviceKind::Char,
            major,
            minor: None,
            read: access.contains('r'),
            write: access.contains('w'),
            make: access.contains('m'),
        };
        let p = access_program(&[
            rule(true, None, "rwm"),
            rule(false, Some(10), "rwm"),
            rule(true, Some(10), "r"),
            rule(false, Some(11), "w"),
        ]);
        assert_eq!((run(&p, CHAR, READ, 10, 1), run(&p, CHAR, READ | 4, 10, 1)), (1, 0));
        assert_eq!((run(&p, CHAR, READ, 11, 1), run(&p, CHAR, 4, 11, 1)), (1, 0));
        assert_eq!((run(&p, CHAR, 7, 12, 1), run(&p, BLOCK, READ, 12, 1)), (1, 0));
        assert_eq!(rule(true, Some(1), "rw").to_string(), "c 1:* rw");
    }
}
