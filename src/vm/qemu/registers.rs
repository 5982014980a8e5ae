//! What QEMU's monitor prints about a CPU, as values. Pure.

use crate::vm::Registers;

/// Reads the answer to `info registers` for an x86-64 CPU.
///
/// The text is a list of `NAME=value` (a blank may stand before the `=`); segment registers have
/// a selector, a base, a limit and flags, descriptor tables a base and a limit. Vector registers,
/// which are no single number, are left out.
pub(super) fn parse(cpu: u32, text: &str) -> Registers {
    let mut registers = Registers { cpu, ..Registers::default() };
    let joined = text.replace(" =", "=");
    for line in joined.lines() {
        if let Some((name, rest)) = line.split_once('=')
            && segment(&mut registers, name, rest)
        {
            continue;
        }
        for word in line.split_whitespace() {
            let Some((name, value)) = word.split_once('=') else { continue };
            if let (Some(name), Ok(value)) = (plain(name), u64::from_str_radix(value, 16)) {
                match name.as_str() {
                    "hlt" => registers.halted = value == 1,
                    _ => drop(registers.values.insert(name, value)),
                }
            }
        }
    }
    registers
}

/// Takes a line of a segment register or descriptor table.
fn segment(registers: &mut Registers, name: &str, rest: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let mut words = rest.split_whitespace().map(|word| u64::from_str_radix(word, 16));
    let selector = match name.as_str() {
        "es" | "cs" | "ss" | "ds" | "fs" | "gs" | "ldt" | "tr" => words.next(),
        "gdt" | "idt" => None,
        _ => return false,
    };
    if let Some(Ok(selector)) = selector {
        registers.values.insert(name.clone(), selector);
    }
    if let Some(Ok(base)) = words.next() {
        registers.values.insert(format!("{name}_base"), base);
    }
    true
}

/// The usual name of a register that is one number, or `None` for what is none. A CPU in a mode
/// of 32 bits or less (it starts in one) has the same registers under shorter names.
fn plain(name: &str) -> Option<String> {
    let mut name = name.to_ascii_lowercase();
    if name.len() == 3 && name.starts_with('e') {
        name.replace_range(..1, "r");
    }
    let general = name.len() <= 3 && name.starts_with('r') || name.starts_with("cr");
    match name.as_str() {
        "rfl" => Some("rflags".to_owned()),
        "efer" | "cpl" | "hlt" => Some(name),
        _ if general || name.starts_with("dr") => Some(name),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
CPU#1
RAX=ffffffff81e0f0d0 RBX=0000000000000001 RCX=0000000000000000 RDX=4000000000000000
R8 =0000000000000001 R9 =0000000000000000 R10=0000000000000002 R11=0000000000000000
RIP=ffffffff81e0f0df RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1
CS =0010 0000000000000000 ffffffff 00a09b00 DPL=0 CS64 [-RA]
GS =0000 ffff88803ec00000 00000000 00000000
TR =0040 fffffe0000003000 00004087 00008900 DPL=0 TSS64-avl
GDT=     fffffe0000001000 0000007f
CR0=80050033 CR2=00007f0000000000 CR3=0000000002c10000 CR4=000006f0
DR0=0000000000000000 DR1=0000000000000000 DR2=0000000000000000 DR3=0000000000000000
DR6=00000000ffff0ff0 DR7=0000000000000400
CCS=0000000000000000 CCD=ffff88803ec2d440 CCO=EFLAGS
EFER=0000000000000d01
FCW=037f FSW=0000 [ST=0] FTW=00 MXCSR=00001f80
FPR0=0000000000000000 0000 FPR1=0000000000000000 0000
XMM00=0000000000000000 0000000000000000 XMM01=0000000000000000 0000000000000000
";

    #[test]
    fn registers_have_their_usual_names() {
        let registers = parse(1, TEXT);
        assert_eq!((registers.cpu, registers.halted), (1, true));
        let expected = [
            ("rax", 0xffff_ffff_81e0_f0d0),
            ("r8", 1),
            ("r10", 2),
            ("rip", 0xffff_ffff_81e0_f0df),
            ("rflags", 0x246),
            ("cpl", 0),
            ("cs", 0x10),
            ("gs_base", 0xffff_8880_3ec0_0000),
            ("tr_base", 0xffff_fe00_0000_3000),
            ("gdt_base", 0xffff_fe00_0000_1000),
            ("cr3", 0x2c1_0000),
            ("cr4", 0x6f0),
            ("dr7", 0x400),
            ("efer", 0xd01),
        ];
        for (name, value) in expected {
            assert_eq!(registers.values.get(name), Some(&value), "{name}");
        }
        for absent in ["fpr0", "xmm00", "mxcsr", "ccs", "a20", "hlt", "ii"] {
            assert!(!registers.values.contains_key(absent), "{absent}");
        }
    }

    #[test]
    fn a_cpu_in_protected_mode_has_the_same_names() {
        let text = "EAX=0000002a EBX=00000000\nEIP=00101013 EFL=00000002 [-------] HLT=0\n\
                    ES =0018 00000000 ffffffff 00cf9300\nEFER=0000000000000000\n";
        let registers = parse(0, text);
        let expected =
            [("rax", 0x2a), ("rip", 0x10_1013), ("rflags", 2), ("es", 0x18), ("efer", 0)];
        for (name, value) in expected {
            assert_eq!(registers.values.get(name), Some(&value), "{name}");
        }
    }

    #[test]
    fn other_text_gives_no_registers() {
        for text in ["", "=\n==\n=====", "RAX=zz", "Error: no CPU", "GS =\nTR =x y"] {
            assert_eq!(parse(0, text), Registers::default(), "{text:?}");
        }
    }
}
