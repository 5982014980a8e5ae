//! A module of the made-up machine: `made`, with two functions and a variable.

use crate::btf::testing::Builder;
use crate::mem::Kva;

use super::Machine;

/// Offsets in the made-up structs.
pub(crate) mod at {
    pub(crate) const LIST: u64 = 8;
    pub(crate) const NAME: u64 = 24;
    pub(crate) const KALLSYMS: u64 = 80;
    pub(crate) const TAINTS: u64 = 88;
    pub(crate) const REFCNT: u64 = 96;
    pub(crate) const MEM: u64 = 104;
    pub(crate) const MODULE: u64 = 136;
    /// In `struct mod_kallsyms`.
    pub(crate) const NUM: u64 = 8;
}

/// What the module has.
pub(crate) struct MadeModule {
    pub(crate) at: Kva,
    pub(crate) text: Kva,
    pub(crate) data: Kva,
    pub(crate) table: Kva,
}

pub(super) fn types(t: &mut Builder, ids: [u32; 6]) {
    let [u32_, s32, u64_, char_, void, list] = ids;
    let bit = |byte: u64| byte as u32 * 8;
    let name = t.array(char_, 56);
    let memory = t.structure("module_memory", 16, &[("base", void, 0), ("size", u32_, 64)]);
    let memory = t.array(memory, 2);
    let refs = t.structure("", 4, &[("counter", s32, 0)]);
    let states = [
        ("MODULE_STATE_LIVE", 0),
        ("MODULE_STATE_COMING", 1),
        ("MODULE_STATE_GOING", 2),
        ("MODULE_STATE_UNFORMED", 3),
    ];
    let state = t.enumeration("module_state", 4, false, &states);
    let module = [
        ("state", state, 0),
        ("list", list, bit(at::LIST)),
        ("name", name, bit(at::NAME)),
        ("kallsyms", void, bit(at::KALLSYMS)),
        ("taints", u64_, bit(at::TAINTS)),
        ("refcnt", refs, bit(at::REFCNT)),
        ("mem", memory, bit(at::MEM)),
    ];
    t.structure("module", at::MODULE as u32, &module);
    let table = [("symtab", void, 0), ("num_symtab", u32_, bit(at::NUM))];
    let table = [&table[..], &[("strtab", void, 128), ("typetab", void, 192)]].concat();
    t.structure("mod_kallsyms", 32, &table);
}

impl Machine {
    /// Loads the module.
    pub(super) fn module(&mut self) -> MadeModule {
        let guest = &mut self.guest;
        let [module, text, data, table] = [at::MODULE, 64, 32, 32].map(|len| guest.alloc(len));
        let names = b"\0made_run\0.LC0\0made_next\0made_var\0printk\0";
        // Place of the name, section, value.
        let symbols = [
            (0, 0, 0),
            (1, 1, text.0),
            (10, 1, text.0 + 8),
            (15, 1, text.0 + 16),
            (25, 2, data.0 + 8),
            (34, 0, 0),
        ];
        let symtab = guest.alloc(24 * symbols.len() as u64);
        for (i, (name, section, value)) in (0u64..).zip(symbols) {
            let at = symtab.offset(24 * i);
            guest.write_u32(at, name);
            guest.write(at.offset(6), &[section, 0]);
            guest.write_u64(at.offset(8), value);
        }
        let (strtab, kinds) = (guest.alloc(64), guest.alloc(8));
        guest.write(strtab, names);
        guest.write(kinds, b"?ttTdU");
        guest.write(module.offset(at::NAME), b"made");
        guest.write_u64(data.offset(8), 4711);
        let words = [
            (module.offset(at::KALLSYMS), table.0),
            (module.offset(at::TAINTS), 1 << 12),
            (module.offset(at::MEM), text.0),
            (module.offset(at::MEM + 16), data.0),
            (table, symtab.0),
            (table.offset(16), strtab.0),
            (table.offset(24), kinds.0),
        ];
        words.into_iter().for_each(|(at, word)| guest.write_u64(at, word));
        let halves = [
            (module.offset(at::REFCNT), 3),
            (module.offset(at::MEM + 8), 64),
            (module.offset(at::MEM + 24), 32),
            (table.offset(at::NUM), symbols.len() as u32),
        ];
        halves.into_iter().for_each(|(at, n)| guest.write_u32(at, n));
        let head = guest.variable("modules", &[0; 16]);
        self.link(head, &[module.offset(at::LIST)]);
        MadeModule { at: module, text, data, table }
    }
}
