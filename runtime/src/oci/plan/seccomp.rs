//! From linux.seccomp to classic BPF: per-rule actions, arguments, several architectures, notification.
//!
//! For each architecture that this machine's kernel can run, call numbers become intervals with the same
//! answer, found by bisection. Rules with arguments stand before rules without, each kind in the order of the
//! configuration. Calls of any other architecture end the process.

use crate::oci::error::{Result, invalid, unsupported};
use crate::sys::seccomp::Instruction;
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator,
};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

/// A filter ready to load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeccompPlan {
    /// The program.
    pub program: Vec<Instruction>,
    /// `SECCOMP_FILTER_FLAG_*`.
    pub flags: u32,
    /// Where the descriptor of notified calls goes, with what is said beside it.
    pub listener: Option<(PathBuf, String)>,
}

// linux/bpf_common.h
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JA: u16 = 0x05;
const JEQ: u16 = 0x15;
const JGT: u16 = 0x25;
const JGE: u16 = 0x35;
const RET: u16 = 0x06;
// linux/seccomp.h
const RET_KILL_PROCESS: u32 = 0x8000_0000;
const RET_ERRNO: u32 = 0x0005_0000;
const RET_NOTIFY: u32 = 0x7fc0_0000;
const RET_ALLOW: u32 = 0x7fff_0000;
const RET_LOG: u32 = 0x7ffc_0000;
const FLAG_NEW_LISTENER: u32 = 1 << 3;
/// Calls of x32 have this bit and x86_64's architecture.
const X32: u32 = 0x4000_0000;
/// The kernel takes no longer program.
const MAX_LENGTH: usize = 4096;

/// One table of call numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Table {
    X86_64,
    X86,
    X32,
    Aarch64,
    Arm,
    Riscv64,
}

impl Table {
    /// What the running kernel may meet.
    fn here(arch: Arch) -> Option<Table> {
        let native = match std::env::consts::ARCH {
            "x86_64" => Table::X86_64,
            "aarch64" => Table::Aarch64,
            "riscv64" => Table::Riscv64,
            _ => return None,
        };
        match (native, arch) {
            (native, Arch::ScmpArchNative) => Some(native),
            (Table::X86_64, Arch::ScmpArchX86_64) => Some(Table::X86_64),
            (Table::X86_64, Arch::ScmpArchX86) => Some(Table::X86),
            (Table::X86_64, Arch::ScmpArchX32) => Some(Table::X32),
            (Table::Aarch64, Arch::ScmpArchAarch64) => Some(Table::Aarch64),
            (Table::Aarch64, Arch::ScmpArchArm) => Some(Table::Arm),
            (Table::Riscv64, Arch::ScmpArchRiscv64) => Some(Table::Riscv64),
            _ => None,
        }
    }

    /// linux/audit.h
    fn audit(self) -> u32 {
        match self {
            Table::X86_64 | Table::X32 => 0xC000_003E,
            Table::X86 => 0x4000_0003,
            Table::Aarch64 => 0xC000_00B7,
            Table::Arm => 0x4000_0028,
            Table::Riscv64 => 0xC000_00F3,
        }
    }

    fn number(self, name: &str) -> Option<u32> {
        let number = match self {
            Table::X86_64 => syscalls::x86_64::Sysno::from_str(name).ok()?.id(),
            Table::X86 => syscalls::x86::Sysno::from_str(name).ok()?.id(),
            Table::X32 => return x32(name),
            Table::Aarch64 => syscalls::aarch64::Sysno::from_str(name).ok()?.id(),
            Table::Arm => syscalls::arm::Sysno::from_str(name).ok()?.id(),
            Table::Riscv64 => syscalls::riscv64::Sysno::from_str(name).ok()?.id(),
        };
        u32::try_from(number).ok()
    }
}

/// Calls that x32 has under numbers of its own (arch/x86/entry/syscalls/syscall_64.tbl).
const X32_OWN: [(&str, u32); 36] = [
    ("rt_sigaction", 512),
    ("rt_sigreturn", 513),
    ("ioctl", 514),
    ("readv", 515),
    ("writev", 516),
    ("recvfrom", 517),
    ("sendmsg", 518),
    ("recvmsg", 519),
    ("execve", 520),
    ("ptrace", 521),
    ("rt_sigpending", 522),
    ("rt_sigtimedwait", 523),
    ("rt_sigqueueinfo", 524),
    ("sigaltstack", 525),
    ("timer_create", 526),
    ("mq_notify", 527),
    ("kexec_load", 528),
    ("waitid", 529),
    ("set_robust_list", 530),
    ("get_robust_list", 531),
    ("vmsplice", 532),
    ("move_pages", 533),
    ("preadv", 534),
    ("pwritev", 535),
    ("rt_tgsigqueueinfo", 536),
    ("recvmmsg", 537),
    ("sendmmsg", 538),
    ("process_vm_readv", 539),
    ("process_vm_writev", 540),
    ("setsockopt", 541),
    ("getsockopt", 542),
    ("io_setup", 543),
    ("io_submit", 544),
    ("execveat", 545),
    ("preadv2", 546),
    ("pwritev2", 547),
];

fn x32(name: &str) -> Option<u32> {
    let own = X32_OWN.iter().find(|(own, _)| *own == name).map(|(_, number)| *number);
    own.or_else(|| Table::X86_64.number(name)).map(|number| number | X32)
}

/// A rule of the configuration with its answer worked out.
struct Rule<'a> {
    names: &'a [String],
    answer: u32,
    /// Alternatives; in each, all must hold. None at all: always.
    conditions: Vec<Vec<LinuxSeccompArg>>,
}

/// Compiles the filter.
///
/// # Errors
/// What the filter asks for and cannot have.
pub fn plan(s: &LinuxSeccomp) -> Result<SeccompPlan> {
    let default = answer(s.default_action(), s.default_errno_ret())?;
    if s.default_action() == LinuxSeccompAction::ScmpActNotify {
        return Err(unsupported("linux.seccomp.defaultAction SCMP_ACT_NOTIFY", "name the calls to notify"));
    }
    let native = [Arch::ScmpArchNative];
    let named = s.architectures().as_deref().filter(|a| !a.is_empty()).unwrap_or(&native);
    let mut tables: Vec<Table> = Vec::new();
    for table in named.iter().filter_map(|a| Table::here(*a)) {
        if !tables.contains(&table) {
            tables.push(table);
        }
    }
    if tables.is_empty() {
        return Err(invalid(
            "linux.seccomp.architectures has none that this machine runs",
            "add its own, or leave the list out",
        ));
    }
    let rules = rules(s, &tables)?;
    let notify = rules.iter().any(|r| r.answer == RET_NOTIFY);
    let program = assemble(&tables, &rules, default);
    if program.len() > MAX_LENGTH {
        return Err(invalid(
            format!("linux.seccomp needs {} instructions, and the kernel takes {MAX_LENGTH}", program.len()),
            "use fewer rules with arguments",
        ));
    }
    let mut flags = s.flags().iter().flatten().fold(0, |flags, f| flags | flag(f));
    let listener = match (notify, s.listener_path()) {
        (false, _) => None,
        (true, None) => {
            return Err(invalid("linux.seccomp has SCMP_ACT_NOTIFY and no listenerPath", "name the socket"));
        }
        (true, Some(path)) => {
            flags |= FLAG_NEW_LISTENER;
            Some((path.clone(), s.listener_metadata().clone().unwrap_or_default()))
        }
    };
    Ok(SeccompPlan { program, flags, listener })
}

fn flag(f: &LinuxSeccompFilterFlag) -> u32 {
    match f {
        // One thread only: all threads have the filter already.
        LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
        LinuxSeccompFilterFlag::SeccompFilterFlagLog => 1 << 1,
        LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => 1 << 2,
        LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 1 << 5,
    }
}

fn answer(action: LinuxSeccompAction, errno: Option<u32>) -> Result<u32> {
    let takes = matches!(action, LinuxSeccompAction::ScmpActErrno | LinuxSeccompAction::ScmpActTrace);
    match errno {
        Some(n) if takes && n > 0xffff => {
            Err(invalid(format!("a seccomp errnoRet of {n}"), "it has 16 bits: give at most 65535"))
        }
        Some(n) if !takes => Err(invalid(
            format!("a seccomp errnoRet of {n} beside {action}"),
            "it goes with SCMP_ACT_ERRNO and SCMP_ACT_TRACE alone",
        )),
        errno => Ok(action.as_u32(errno)),
    }
}

fn rules<'a>(s: &'a LinuxSeccomp, tables: &[Table]) -> Result<Vec<Rule<'a>>> {
    let mut out = Vec::new();
    for syscall in s.syscalls().iter().flatten() {
        let answer = answer(syscall.action(), syscall.errno_ret())?;
        if syscall.names().is_empty() {
            return Err(invalid("linux.seccomp has a rule without names", "name the calls"));
        }
        for name in syscall.names() {
            // The runtime sends the descriptor of notified calls after the filter is in force.
            if answer == RET_NOTIFY && name == "sendmsg" {
                return Err(unsupported("SCMP_ACT_NOTIFY for sendmsg", "notify other calls"));
            }
            // A name that no kernel here knows is no hole where what is not named is refused anyway.
            let known = tables.iter().any(|t| t.number(name).is_some());
            let open = [RET_ALLOW, RET_LOG].contains(&answer_of_default(s));
            if !known && open && ![RET_ALLOW, RET_LOG].contains(&answer) && !elsewhere(name) {
                return Err(invalid(
                    format!("linux.seccomp refuses the call {name}, which this machine does not have"),
                    "correct the name, or leave it out",
                ));
            }
        }
        let args = syscall.args().as_deref().unwrap_or_default();
        if let Some(wrong) = args.iter().find(|a| a.index() > 5) {
            return Err(invalid(format!("a seccomp argument index of {}", wrong.index()), "0 to 5 exist"));
        }
        // As in runc, conditions on one argument are alternatives, on different arguments they add up.
        let repeated = args.iter().enumerate().any(|(n, a)| args[..n].iter().any(|b| b.index() == a.index()));
        let conditions = match args {
            [] => Vec::new(),
            args if repeated => args.iter().map(|a| vec![*a]).collect(),
            args => vec![args.to_vec()],
        };
        out.push(Rule { names: syscall.names(), answer, conditions });
    }
    Ok(out)
}

fn answer_of_default(s: &LinuxSeccomp) -> u32 {
    s.default_action().as_u32(None)
}

/// Whether the call exists on another architecture.
fn elsewhere(name: &str) -> bool {
    [Table::X86_64, Table::X86, Table::Aarch64, Table::Arm, Table::Riscv64]
        .iter()
        .any(|t| t.number(name).is_some())
}

fn op(code: u16, k: u32) -> Instruction {
    Instruction { code, jt: 0, jf: 0, k }
}

fn assemble(tables: &[Table], rules: &[Rule<'_>], default: u32) -> Vec<Instruction> {
    let mut out = vec![op(LOAD, 4)];
    let mut audits: Vec<u32> = tables.iter().map(|t| t.audit()).collect();
    audits.dedup();
    for audit in audits {
        let mut leaves: Vec<(u32, Vec<Instruction>)> = vec![(0, vec![op(RET, default)])];
        for table in tables.iter().filter(|t| t.audit() == audit) {
            collect(*table, rules, default, &mut leaves);
        }
        if audit == Table::X86_64.audit() && !tables.contains(&Table::X32) {
            // "No such call" is the answer of a kernel built without x32.
            leaves.push((X32, vec![op(RET, RET_ERRNO | libc::ENOSYS.cast_unsigned())]));
        }
        if audit == Table::X86_64.audit() && !tables.contains(&Table::X86_64) {
            leaves.insert(0, (0, vec![op(RET, RET_KILL_PROCESS)]));
        }
        let leaves = tidy(leaves);
        let mut section = vec![op(LOAD, 0)];
        section.extend(tree(&leaves));
        // Sections are long: the jump over one is an instruction of its own.
        out.push(Instruction { code: JEQ, jt: 1, jf: 0, k: audit });
        out.push(op(JA, u32::try_from(section.len()).unwrap_or(u32::MAX)));
        out.extend(section);
    }
    out.push(op(RET, RET_KILL_PROCESS));
    out
}

/// What a table's calls are answered, as beginnings of intervals.
fn collect(table: Table, rules: &[Rule<'_>], default: u32, leaves: &mut Vec<(u32, Vec<Instruction>)>) {
    let mut calls: BTreeMap<u32, (Vec<Instruction>, Option<u32>)> = BTreeMap::new();
    for rule in rules {
        for number in rule.names.iter().filter_map(|n| table.number(n)) {
            let (conditional, always) = calls.entry(number).or_default();
            if rule.conditions.is_empty() {
                always.get_or_insert(rule.answer);
            }
            for all in &rule.conditions {
                conditional.extend(when(all, rule.answer));
            }
        }
    }
    if table == Table::X32 {
        leaves.push((X32, vec![op(RET, default)]));
    }
    for (number, (mut code, always)) in calls {
        code.push(op(RET, always.unwrap_or(default)));
        leaves.push((number, code));
        leaves.push((number + 1, vec![op(RET, default)]));
    }
}

/// Sorts the beginnings, lets a later one replace an earlier one at the same number, and joins equals.
fn tidy(leaves: Vec<(u32, Vec<Instruction>)>) -> Vec<(u32, Vec<Instruction>)> {
    let mut sorted: BTreeMap<u32, Vec<Instruction>> = BTreeMap::new();
    for (number, code) in leaves {
        sorted.insert(number, code);
    }
    let mut out: Vec<(u32, Vec<Instruction>)> = Vec::new();
    for (number, code) in sorted {
        if out.last().is_none_or(|(_, last)| *last != code) {
            out.push((number, code));
        }
    }
    out
}

/// Bisects by call number.
fn tree(leaves: &[(u32, Vec<Instruction>)]) -> Vec<Instruction> {
    let [(_, code)] = leaves else {
        let (left, right) = leaves.split_at(leaves.len() / 2);
        let (Some((pivot, _)), below) = (right.first(), tree(left)) else { return Vec::new() };
        let mut out = Vec::new();
        match u8::try_from(below.len()) {
            Ok(short) => out.push(Instruction { code: JGE, jt: short, jf: 0, k: *pivot }),
            Err(_) => {
                out.push(Instruction { code: JGE, jt: 0, jf: 1, k: *pivot });
                out.push(op(JA, u32::try_from(below.len()).unwrap_or(u32::MAX)));
            }
        }
        out.extend(below);
        out.extend(tree(right));
        return out;
    };
    code.clone()
}

/// Where a comparison leads.
#[derive(Clone, Copy)]
enum To {
    Next,
    /// This condition holds.
    Holds,
    /// It does not, and with it the rule.
    Fails,
}

/// Code that returns the answer when all conditions hold, and else goes on behind.
fn when(all: &[LinuxSeccompArg], answer: u32) -> Vec<Instruction> {
    let blocks: Vec<Vec<(Instruction, To, To)>> = all.iter().map(condition).collect();
    let total: usize = blocks.iter().map(Vec::len).sum();
    let mut out = Vec::new();
    for block in blocks {
        let end = out.len() + block.len();
        for (instruction, yes, no) in block {
            let here = out.len() + 1;
            // At most six conditions of eight instructions: every distance fits.
            let distance = |to: To| match to {
                To::Next => 0,
                To::Holds => end - here,
                To::Fails => total + 1 - here,
            };
            let short = |to| u8::try_from(distance(to)).unwrap_or(u8::MAX);
            out.push(Instruction { jt: short(yes), jf: short(no), ..instruction });
        }
    }
    out.push(op(RET, answer));
    out
}

fn condition(arg: &LinuxSeccompArg) -> Vec<(Instruction, To, To)> {
    let index = u32::try_from(arg.index()).unwrap_or(0);
    let half = |n: u64| ((n >> 32) as u32, (n & 0xffff_ffff) as u32);
    let (high, low) = half(arg.value());
    let plain = |i| (i, To::Next, To::Next);
    let load_low = plain(op(LOAD, 16 + 8 * index));
    let load_high = plain(op(LOAD, 20 + 8 * index));
    let jump = |code, k, yes, no| (op(code, k), yes, no);
    use To::{Fails, Holds, Next};
    match arg.op() {
        LinuxSeccompOperator::ScmpCmpEq => {
            vec![load_high, jump(JEQ, high, Next, Fails), load_low, jump(JEQ, low, Next, Fails)]
        }
        LinuxSeccompOperator::ScmpCmpNe => {
            vec![load_high, jump(JEQ, high, Next, Holds), load_low, jump(JEQ, low, Fails, Next)]
        }
        LinuxSeccompOperator::ScmpCmpGt | LinuxSeccompOperator::ScmpCmpGe => {
            let last = if arg.op() == LinuxSeccompOperator::ScmpCmpGt { JGT } else { JGE };
            vec![
                load_high,
                jump(JGT, high, Holds, Next),
                jump(JEQ, high, Next, Fails),
                load_low,
                jump(last, low, Next, Fails),
            ]
        }
        LinuxSeccompOperator::ScmpCmpLt | LinuxSeccompOperator::ScmpCmpLe => {
            let last = if arg.op() == LinuxSeccompOperator::ScmpCmpLt { JGE } else { JGT };
            vec![
                load_high,
                jump(JGT, high, Fails, Next),
                jump(JEQ, high, Next, Holds),
                load_low,
                jump(last, low, Fails, Next),
            ]
        }
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            let (want_high, want_low) = half(arg.value_two().unwrap_or(0) & arg.value());
            vec![
                load_high,
                plain(op(AND, high)),
                jump(JEQ, want_high, Next, Fails),
                load_low,
                plain(op(AND, low)),
                jump(JEQ, want_low, Next, Fails),
            ]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program as the kernel would, on one call.
    fn run(program: &[Instruction], arch: u32, number: u32, args: [u64; 6]) -> u32 {
        let (mut acc, mut pc) = (0u32, 0usize);
        loop {
            let i = program[pc];
            pc += 1;
            let jump = |holds: bool| usize::from(if holds { i.jt } else { i.jf });
            match i.code {
                LOAD => {
                    acc = match i.k {
                        0 => number,
                        4 => arch,
                        k => {
                            let (n, high) = ((k - 16) / 8, (k - 16) % 8 == 4);
                            let arg = args[n as usize];
                            if high { (arg >> 32) as u32 } else { (arg & 0xffff_ffff) as u32 }
                        }
                    }
                }
                AND => acc &= i.k,
                JA => pc += i.k as usize,
                JEQ => pc += jump(acc == i.k),
                JGT => pc += jump(acc > i.k),
                JGE => pc += jump(acc >= i.k),
                RET => return i.k,
                other => panic!("unknown operation {other:#x}"),
            }
        }
    }

    fn filter(json: &str) -> Result<SeccompPlan> {
        plan(&serde_json::from_str(json).unwrap())
    }

    const EPERM: u32 = RET_ERRNO | 1;

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn actions_and_architectures() {
        let p = filter(
            r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,
                "architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86","SCMP_ARCH_X32","SCMP_ARCH_AARCH64"],
                "syscalls":[{"names":["read","write","exit","ioctl","no_such_call"],"action":"SCMP_ACT_ALLOW"},
                            {"names":["ptrace"],"action":"SCMP_ACT_ERRNO","errnoRet":5},
                            {"names":["reboot"],"action":"SCMP_ACT_KILL_PROCESS"},
                            {"names":["getcwd"],"action":"SCMP_ACT_LOG"}]}"#,
        )
        .unwrap()
        .program;
        let (x64, x86) = (Table::X86_64.audit(), Table::X86.audit());
        let a = [0; 6];
        assert_eq!(run(&p, x64, 0, a), RET_ALLOW, "read");
        assert_eq!(run(&p, x64, 2, a), RET_ERRNO | 38, "open");
        assert_eq!(run(&p, x64, 101, a), RET_ERRNO | 5, "ptrace");
        assert_eq!(run(&p, x64, 169, a), RET_KILL_PROCESS, "reboot");
        assert_eq!(run(&p, x64, 79, a), RET_LOG, "getcwd");
        assert_eq!(run(&p, x86, 3, a), RET_ALLOW, "read of x86");
        assert_eq!(run(&p, x86, 0, a), RET_ERRNO | 38, "restart_syscall of x86, read of x86_64");
        assert_eq!(run(&p, x64, X32 | 514, a), RET_ALLOW, "ioctl of x32");
        assert_eq!(run(&p, x64, X32 | 16, a), RET_ERRNO | 38, "not ioctl in x32");
        assert_eq!(run(&p, Table::Aarch64.audit(), 63, a), RET_KILL_PROCESS, "cannot be here");
        let p = filter(r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64"]}"#)
            .unwrap()
            .program;
        assert_eq!(run(&p, x64, 5000, a), RET_ALLOW);
        assert_eq!(run(&p, x64, X32, a), RET_ERRNO | 38, "x32 does not slip through");
        assert_eq!(run(&p, x86, 3, a), RET_KILL_PROCESS);
    }

    #[test]
    fn arguments_in_64_bits() {
        let cases: [(&str, &str, &[u64], &[u64]); 7] = [
            ("SCMP_CMP_EQ", "", &[0x1_0000_0005], &[5, 0x1_0000_0004, 0x2_0000_0005]),
            ("SCMP_CMP_NE", "", &[5, 0x1_0000_0004, 0x2_0000_0005], &[0x1_0000_0005]),
            ("SCMP_CMP_GT", "", &[0x1_0000_0006, 0x2_0000_0000], &[0x1_0000_0005, 0xffff_ffff, 0]),
            ("SCMP_CMP_GE", "", &[0x1_0000_0005, 0x2_0000_0000], &[0x1_0000_0004, 0xffff_ffff]),
            ("SCMP_CMP_LT", "", &[0x1_0000_0004, 0xffff_ffff], &[0x1_0000_0005, 0x2_0000_0000]),
            ("SCMP_CMP_LE", "", &[0x1_0000_0005, 0xffff_ffff], &[0x1_0000_0006, 0x2_0000_0000]),
            ("SCMP_CMP_MASKED_EQ", r#","valueTwo":4"#, &[4, 0xffff_fffe_0000_0004], &[5, 1, 0x1_0000_0004]),
        ];
        let number = Table::here(Arch::ScmpArchNative).unwrap().number("ioctl").unwrap();
        let arch = Table::here(Arch::ScmpArchNative).unwrap().audit();
        for (op, two, hold, fail) in cases {
            let p = filter(&format!(
                r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{{"names":["ioctl"],"action":"SCMP_ACT_ERRNO",
                    "args":[{{"index":2,"value":4294967301{two},"op":"{op}"}}]}}]}}"#
            ))
            .unwrap()
            .program;
            for v in hold {
                assert_eq!(run(&p, arch, number, [9, 9, *v, 9, 9, 9]), EPERM, "{op} {v:#x}");
            }
            for v in fail {
                assert_eq!(run(&p, arch, number, [9, 9, *v, 9, 9, 9]), RET_ALLOW, "{op} {v:#x}");
            }
        }
    }

    #[test]
    fn several_conditions_and_rules() {
        let p = filter(
            r#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[
                {"names":["personality"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":0,"op":"SCMP_CMP_EQ"}]},
                {"names":["personality"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":8,"op":"SCMP_CMP_EQ"}]},
                {"names":["socket"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"},{"index":1,"value":2,"op":"SCMP_CMP_EQ"}]},
                {"names":["bind"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"},{"index":0,"value":2,"op":"SCMP_CMP_EQ"}]}]}"#,
        )
        .unwrap()
        .program;
        let native = Table::here(Arch::ScmpArchNative).unwrap();
        let call = |name: &str, a: u64, b: u64| {
            run(&p, native.audit(), native.number(name).unwrap(), [a, b, 0, 0, 0, 0]) == RET_ALLOW
        };
        assert!(call("personality", 0, 0) && call("personality", 8, 0) && !call("personality", 9, 0));
        assert!(call("socket", 1, 2) && !call("socket", 1, 3) && !call("socket", 2, 2));
        assert!(call("bind", 1, 0) && call("bind", 2, 0) && !call("bind", 3, 0));
    }

    #[test]
    fn every_number_ends_in_an_answer() {
        let names: Vec<String> =
            (0..600).filter_map(syscalls::x86_64::Sysno::new).map(|s| format!("{:?}", s.name())).collect();
        let json = format!(
            r#"{{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_NATIVE","SCMP_ARCH_X86","SCMP_ARCH_X32"],
                "syscalls":[{{"names":[{}],"action":"SCMP_ACT_ALLOW"}}]}}"#,
            names.join(",")
        );
        let p = filter(&json).unwrap().program;
        for arch in [Table::X86_64, Table::X86, Table::Aarch64] {
            for number in (0..600).chain(X32..X32 + 600) {
                run(&p, arch.audit(), number, [u64::MAX; 6]);
            }
        }
        assert!(p.len() < 1500, "{} instructions", p.len());
    }

    #[test]
    fn wrong_filters_are_refused_by_name() {
        for (json, word) in [
            (r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#, "SCMP_ACT_NOTIFY"),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["open"],"action":"SCMP_ACT_NOTIFY"}]}"#,
                "listenerPath",
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["opne"],"action":"SCMP_ACT_ERRNO"}]}"#,
                "opne",
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_KILL","errnoRet":2}]}"#,
                "errnoRet",
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["read"],"action":"SCMP_ACT_ERRNO","args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}]}"#,
                "index",
            ),
            (r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_MIPS"]}"#, "architectures"),
        ] {
            let error = filter(json).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
