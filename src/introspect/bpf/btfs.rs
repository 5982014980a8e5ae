//! The BTF of loaded BPF objects, parsed once per object.

use std::collections::HashMap;
use std::sync::Arc;

use super::layout::BtfLayout;
use crate::btf::{Basics, Btf};
use crate::introspect::kernel::Kernel;
use crate::mem::Kva;

/// What the kernel accepts at most (`BTF_MAX_SIZE`, include/uapi/linux/btf.h).
const MAX_BTF: u64 = 16 << 20;

/// Bytes of BTF that are kept at most; more is an error of its own, not a slow machine.
const MAX_KEPT: usize = 64 << 20;

/// Bytes of a module's name (`MODULE_NAME_LEN`).
const MAX_MODULE_NAME: usize = 64;

/// What one `struct btf` said about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    data: Kva,
    len: u64,
    /// Ids are not used again before all others were.
    id: u64,
    base: Kva,
}

struct Kept {
    identity: Identity,
    btf: Result<Arc<Btf>, String>,
}

/// Parsed BTF by the address of its `struct btf`.
#[derive(Default)]
pub(super) struct BtfCache {
    kept: HashMap<u64, Kept>,
    bytes: usize,
    /// A few types of our own behind those of an object.
    extended: HashMap<u64, (Option<Arc<Btf>>, Basics)>,
}

impl BtfCache {
    /// The BTF whose `struct btf` lies at `at`; `None` for a null pointer.
    pub(super) fn get(
        &mut self,
        kernel: &Kernel,
        layout: &BtfLayout,
        at: Kva,
    ) -> Result<Option<Arc<Btf>>, String> {
        if at.is_null() {
            return Ok(None);
        }
        let identity = identity(kernel, layout, at)?;
        if let Some(kept) = self.kept.get(&at.0).filter(|k| k.identity == identity) {
            return kept.btf.clone().map(Some);
        }
        let len = identity.len as usize;
        if self.bytes + len > MAX_KEPT {
            return Err(format!("the BTF of all maps takes more than {} MiB", MAX_KEPT >> 20));
        }
        let btf = self.read(kernel, layout, &identity);
        if let Some(old) = self.kept.insert(at.0, Kept { identity, btf: btf.clone() }) {
            self.bytes -= old.identity.len as usize;
        }
        self.bytes += len;
        btf.map(Some)
    }

    fn read(
        &self,
        kernel: &Kernel,
        layout: &BtfLayout,
        identity: &Identity,
    ) -> Result<Arc<Btf>, String> {
        if kernel.symbols().lookup("__start_BTF") == [identity.data.0] {
            return Ok(kernel.btf().clone());
        }
        let mut raw = vec![0; identity.len as usize];
        kernel.read(identity.data, &mut raw).map_err(|e| e.to_string())?;
        if identity.base.is_null() {
            return Btf::parse(&raw).map_err(|e| e.to_string());
        }
        // Modules are split from the kernel itself; nothing else is a base.
        let base = self::identity(kernel, layout, identity.base)?;
        if kernel.symbols().lookup("__start_BTF") != [base.data.0] {
            return Err("it is split from a BTF that is not the kernel's".into());
        }
        Btf::parse_split(&raw, kernel.btf()).map_err(|e| e.to_string())
    }

    /// The types of an object with a few of our own behind them, made once for each.
    pub(super) fn with_basics(&mut self, at: Kva, btf: Option<&Arc<Btf>>) -> Basics {
        let same = |known: &Option<Arc<Btf>>| match (known, btf) {
            (Some(known), Some(btf)) => Arc::ptr_eq(known, btf),
            (known, btf) => known.is_none() && btf.is_none(),
        };
        match self.extended.get(&at.0) {
            Some((known, basics)) if same(known) => basics.clone(),
            _ => {
                let basics = Basics::new(btf);
                self.extended.insert(at.0, (btf.cloned(), basics.clone()));
                basics
            }
        }
    }

    /// Drops what `wanted` does not want.
    pub(super) fn forget_all_but(&mut self, wanted: impl Fn(Kva) -> bool) {
        self.kept.retain(|at, _| wanted(Kva(*at)));
        self.extended.retain(|at, _| wanted(Kva(*at)));
        self.bytes = self.kept.values().map(|k| k.identity.len as usize).sum();
    }
}

/// Loaded objects with types that are looked at.
const MAX_OBJECTS: usize = 16 << 10;

impl Kernel {
    /// The types of loaded modules by the modules' names: those of the entries of `btf_idr` that
    /// are the kernel's own (`struct btf`, kernel/bpf/btf.c) and split from its types. What was
    /// read before is not read again.
    pub(in crate::introspect) fn module_types(&self) -> HashMap<String, Result<Arc<Btf>, String>> {
        let mut out = HashMap::new();
        let Ok(state) = self.bpf() else { return out };
        let Some(idr) = self.symbols().get("btf_idr") else { return out };
        let Ok(ty) = self.type_id("struct btf") else { return out };
        let members = [self.field(ty, "kernel_btf"), self.field(ty, "name")];
        let [Ok(own), Ok(name)] = members else { return out };
        let Ok(walk) = self.idr(idr, MAX_OBJECTS) else { return out };
        let mut caches = state.caches();
        let mut seen = Vec::new();
        for (_, at) in walk.items {
            let mut flag = [0];
            if self.read(at.offset(own), &mut flag).is_err() || flag == [0] {
                continue;
            }
            let Ok(name) = self.read_cstr(at.offset(name), MAX_MODULE_NAME) else { continue };
            if name == "vmlinux" {
                continue;
            }
            seen.push(at);
            let btf = caches.modules.get(self, &state.layouts.btf, at);
            out.insert(name, btf.and_then(|btf| btf.ok_or_else(|| "there are none".to_owned())));
        }
        caches.modules.forget_all_but(|at| seen.contains(&at));
        out
    }
}

fn identity(kernel: &Kernel, layout: &BtfLayout, at: Kva) -> Result<Identity, String> {
    let mut raw = vec![0; layout.size];
    kernel.read(at, &mut raw).map_err(|e| e.to_string())?;
    let number = |at: super::layout::At| at.read(&raw).unwrap_or(0);
    let len = number(layout.data_size);
    if len == 0 || len > MAX_BTF {
        return Err(format!("the BTF at {at} claims to be {len} bytes long"));
    }
    Ok(Identity {
        data: Kva(number(layout.data)),
        len,
        id: number(layout.id),
        base: Kva(layout.base.map_or(0, number)),
    })
}
