//! VMCOREINFO: the page of text in which a kernel tells crash tools where things are.
//!
//! The kernel keeps it in one page of its own (`vmcoreinfo_data`, kernel/vmcore_info.c, filled by
//! a `subsys_initcall`), so it starts with `OSRELEASE=` on a page boundary. The same text also
//! occurs elsewhere (a file in the page cache, an initramfs, an earlier kernel's page after a
//! reboot), so a page that looks like it is only a candidate until it proved right by use.

use crate::mem::{Gpa, GuestMem, Kva};

const PAGE: usize = 4096;
const MARK: &[u8] = b"OSRELEASE=";

/// How many candidates a scan gives out before it ends: more of them is no kernel, but memory
/// made to look like one.
const MAX_CANDIDATES: usize = 4096;

/// One page of VMCOREINFO text, not yet believed.
#[derive(Clone, Debug)]
pub(crate) struct Vmcoreinfo {
    /// Where the page lies.
    pub(crate) at: Gpa,
    text: String,
}

impl Vmcoreinfo {
    /// Takes the text from the start of a page; `None` when it does not read like VMCOREINFO.
    pub(crate) fn parse(at: Gpa, page: &[u8]) -> Option<Self> {
        if !page.starts_with(MARK) {
            return None;
        }
        let end = page.iter().position(|b| *b == 0).unwrap_or(page.len());
        let text = std::str::from_utf8(&page[..end]).ok()?;
        let info = Vmcoreinfo { at, text: text.to_owned() };
        info.symbol("swapper_pg_dir")?;
        (!info.release().is_empty()).then_some(info)
    }

    /// The value of the line `KEY=VALUE`.
    fn line(&self, kind: &str, name: &str) -> Option<&str> {
        self.text.lines().find_map(|line| {
            let (key, value) = line.split_once('=')?;
            let inner = match kind {
                "" => key,
                _ => key.strip_prefix(kind)?.strip_prefix('(')?.strip_suffix(')')?,
            };
            (inner == name).then_some(value)
        })
    }

    /// The kernel's release, as `uname -r` prints it.
    pub(crate) fn release(&self) -> &str {
        self.line("", "OSRELEASE").unwrap_or_default().trim()
    }

    /// The address of a kernel symbol, KASLR included.
    pub(crate) fn symbol(&self, name: &str) -> Option<Kva> {
        u64::from_str_radix(self.line("SYMBOL", name)?, 16).ok().map(Kva)
    }

    /// A number, which the kernel writes in decimal, or in hexadecimal with a prefix.
    pub(crate) fn number(&self, name: &str) -> Option<i64> {
        let text = self.line("NUMBER", name)?;
        match text.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).ok().map(|n| n as i64),
            None => text.parse().ok(),
        }
    }

    /// A member's offset in bytes, such as `uts_namespace.name`.
    pub(crate) fn offset(&self, name: &str) -> Option<u64> {
        self.line("OFFSET", name)?.parse().ok()
    }
}

/// What a scan found.
pub(crate) struct Candidates {
    /// Pages that read like VMCOREINFO, in the order of their addresses.
    pub(crate) found: Vec<Vmcoreinfo>,
    /// Whether the scan ended early because there were too many.
    pub(crate) cut: bool,
}

/// Looks at the start of every page that can hold data.
pub(crate) fn scan(mem: &dyn GuestMem) -> Candidates {
    let mut out = Candidates { found: Vec::new(), cut: false };
    for extent in mem.populated() {
        let end = extent.start.0.saturating_add(extent.len);
        let mut at = extent.start.0.next_multiple_of(PAGE as u64);
        while at.saturating_add(PAGE as u64) <= end {
            if let Some(info) = look(mem, Gpa(at)) {
                if out.found.len() == MAX_CANDIDATES {
                    out.cut = true;
                    return out;
                }
                out.found.push(info);
            }
            at += PAGE as u64;
        }
    }
    out
}

/// The page at `at`, if it reads like VMCOREINFO.
fn look(mem: &dyn GuestMem, at: Gpa) -> Option<Vmcoreinfo> {
    let mut mark = [0; MARK.len()];
    mem.read(at, &mut mark).ok()?;
    if mark != MARK {
        return None;
    }
    let mut page = vec![0; PAGE];
    mem.read(at, &mut page).ok()?;
    Vmcoreinfo::parse(at, &page)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::FakeMem;

    const TEXT: &str = "OSRELEASE=7.2.13+deb14-cloud-amd64\nBUILD-ID=8a55\nPAGESIZE=4096\n\
        SYMBOL(init_uts_ns)=ffffffff83503f80\nOFFSET(uts_namespace.name)=4\n\
        SYMBOL(swapper_pg_dir)=ffffffff8322a000\nNUMBER(phys_base)=-799014912\n\
        NUMBER(VMALLOC_START)=0xffffc90000000000\nKERNELOFFSET=3a600000\n";

    #[test]
    fn lines_are_read_by_kind_and_name() {
        let info = Vmcoreinfo::parse(Gpa(0), TEXT.as_bytes()).unwrap();
        assert_eq!(info.release(), "7.2.13+deb14-cloud-amd64");
        assert_eq!(info.symbol("swapper_pg_dir"), Some(Kva(0xffff_ffff_8322_a000)));
        assert_eq!(info.offset("uts_namespace.name"), Some(4));
        assert_eq!(info.number("phys_base"), Some(-799_014_912));
        assert_eq!(info.number("VMALLOC_START"), Some(0xffff_c900_0000_0000_u64 as i64));
        assert_eq!(info.symbol("phys_base"), None, "a number is not a symbol");
        assert_eq!(info.symbol("swapper"), None, "no prefix matches");
    }

    #[test]
    fn only_text_at_the_start_of_a_page_is_a_candidate() {
        let mut mem = FakeMem::new();
        mem.write(Gpa(0x3000), &[0; PAGE]);
        mem.write(Gpa(0x1018), TEXT.as_bytes());
        mem.write(Gpa(0x8000), TEXT.as_bytes());
        mem.write(Gpa(0x9000), b"OSRELEASE=1.2.3\nwithout what a kernel writes");
        mem.write(Gpa(0xa000), b"OSRELEASE=\xff\xfe");
        let found: Vec<_> = scan(&mem).found.iter().map(|c| c.at).collect();
        assert_eq!(found, [Gpa(0x8000)]);
    }

    #[test]
    fn a_page_without_an_end_is_taken_whole() {
        let mut page = TEXT.as_bytes().to_vec();
        page.resize(PAGE, b'x');
        assert!(Vmcoreinfo::parse(Gpa(0), &page).is_some());
    }

    #[test]
    fn too_many_candidates_end_the_scan() {
        let mut mem = FakeMem::new();
        for i in 0..=MAX_CANDIDATES as u64 {
            mem.write(Gpa(i * PAGE as u64), TEXT.as_bytes());
        }
        let all = scan(&mem);
        assert!(all.cut);
        assert_eq!(all.found.len(), MAX_CANDIDATES);
    }
}
