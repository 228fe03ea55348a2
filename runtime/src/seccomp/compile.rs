//! From rules to classic BPF.

use super::Instruction;

/// What the kernel does with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Fails with this error.
    Errno(i32),
    /// Does nothing and answers 0.
    Pretend,
}

/// One call, perhaps only with a certain argument.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    pub number: libc::c_long,
    pub action: Action,
    /// `(index, mask, value)`: the low 32 bits of this argument, masked, must equal the value.
    pub argument: Option<(u32, u32, u32)>,
}

impl Rule {
    pub fn always(number: libc::c_long, action: Action) -> Self {
        Rule { number, action, argument: None }
    }
}

// linux/bpf_common.h, linux/seccomp.h, linux/audit.h
const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const JEQ: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
#[cfg(target_arch = "x86_64")]
const JGE: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const RET: u16 = 0x06; // BPF_RET | BPF_K
const RET_ALLOW: u32 = 0x7fff_0000;
const RET_ERRNO: u32 = 0x0005_0000;
const RET_KILL_PROCESS: u32 = 0x8000_0000;
const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCH: u32 = 4;
const OFFSET_ARGS: u32 = 16;

#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xC000_00B7;

fn op(code: u16, k: u32) -> Instruction {
    Instruction { code, jt: 0, jf: 0, k }
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> Instruction {
    Instruction { code, jt, jf, k }
}

fn answer(action: Action) -> u32 {
    match action {
        Action::Pretend => RET_ERRNO,
        Action::Errno(e) => RET_ERRNO | (e.cast_unsigned() & 0xffff),
    }
}

/// Straight-line code: each rule tests and falls through to the next.
pub(super) fn assemble(rules: &[Rule]) -> Vec<Instruction> {
    let mut out = vec![
        op(LOAD, OFFSET_ARCH),
        jump(JEQ, ARCH, 1, 0),
        op(RET, RET_KILL_PROCESS),
        op(LOAD, OFFSET_NUMBER),
    ];
    // x32 shares the architecture's name; its numbers have this bit, and "no such call" is the answer of a
    // kernel built without it.
    #[cfg(target_arch = "x86_64")]
    out.extend([jump(JGE, 0x4000_0000, 0, 1), op(RET, RET_ERRNO | libc::ENOSYS.cast_unsigned())]);
    for rule in rules {
        let number = u32::try_from(rule.number).unwrap_or(u32::MAX);
        match rule.argument {
            None => out.extend([jump(JEQ, number, 0, 1), op(RET, answer(rule.action))]),
            Some((index, mask, value)) => out.extend([
                jump(JEQ, number, 0, 5),
                op(LOAD, OFFSET_ARGS + 8 * index),
                op(AND, mask),
                jump(JEQ, value, 0, 1),
                op(RET, answer(rule.action)),
                // The accumulator is the argument now.
                op(LOAD, OFFSET_NUMBER),
            ]),
        }
    }
    out.push(op(RET, RET_ALLOW));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seccomp::compile;

    /// Runs the program as the kernel would, on one call.
    fn run(program: &[Instruction], number: u32, arch: u32, args: [u64; 6]) -> u32 {
        let mut acc = 0u32;
        let mut pc = 0;
        loop {
            let i = program[pc];
            pc += 1;
            match i.code {
                LOAD => {
                    acc = match i.k {
                        OFFSET_NUMBER => number,
                        OFFSET_ARCH => arch,
                        k => u32::try_from(args[((k - OFFSET_ARGS) / 8) as usize] & 0xffff_ffff).unwrap(),
                    }
                }
                AND => acc &= i.k,
                JEQ => pc += usize::from(if acc == i.k { i.jt } else { i.jf }),
                JGE => pc += usize::from(if acc >= i.k { i.jt } else { i.jf }),
                RET => return i.k,
                other => panic!("unknown operation {other:#x}"),
            }
        }
    }

    fn call(program: &[Instruction], number: libc::c_long, args: [u64; 6]) -> u32 {
        run(program, u32::try_from(number).unwrap(), ARCH, args)
    }

    #[test]
    fn denied_and_allowed() {
        let p = compile(true, false);
        let eperm = RET_ERRNO | 1;
        assert_eq!(call(&p, libc::SYS_bpf, [0; 6]), eperm);
        assert_eq!(call(&p, libc::SYS_keyctl, [0; 6]), eperm);
        assert_eq!(call(&p, libc::SYS_open_by_handle_at, [0; 6]), eperm);
        assert_eq!(call(&p, libc::SYS_ioctl, [0, 0x5412, 0, 0, 0, 0]), eperm);
        // The high half of the argument does not hide the request from the filter.
        assert_eq!(call(&p, libc::SYS_ioctl, [0, 0x1_0000_5412, 0, 0, 0, 0]), eperm);
        assert_eq!(call(&p, libc::SYS_ioctl, [0, 0x5413, 0, 0, 0, 0]), RET_ALLOW);
        for nr in
            [libc::SYS_ptrace, libc::SYS_mount, libc::SYS_perf_event_open, libc::SYS_mbind, libc::SYS_chmod]
        {
            assert_eq!(call(&p, nr, [0; 6]), RET_ALLOW);
        }
        assert_eq!(call(&p, libc::SYS_setuid, [0; 6]), RET_ALLOW);
    }

    #[test]
    fn pretended() {
        let p = compile(true, true);
        assert_eq!(call(&p, libc::SYS_fchownat, [0; 6]), RET_ERRNO);
        assert_eq!(call(&p, libc::SYS_setresuid, [7; 6]), RET_ERRNO);
        let mode = |m: u32| [0, 0, u64::from(m | 0o644), 0, 0, 0];
        assert_eq!(call(&p, libc::SYS_mknodat, mode(libc::S_IFCHR)), RET_ERRNO);
        assert_eq!(call(&p, libc::SYS_mknodat, mode(libc::S_IFIFO)), RET_ALLOW);
    }

    #[test]
    fn another_architecture_ends() {
        let p = compile(true, false);
        assert_eq!(run(&p, 1, 0x4000_0003, [0; 6]), RET_KILL_PROCESS);
        #[cfg(target_arch = "x86_64")]
        assert_eq!(call(&p, 0x4000_0000 + libc::SYS_bpf, [0; 6]), RET_ERRNO | 38);
    }

    #[test]
    fn no_call_passes_by_the_end() {
        let p = compile(true, true);
        for number in 0..600 {
            run(&p, number, ARCH, [u64::MAX; 6]);
        }
    }
}
