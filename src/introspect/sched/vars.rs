//! Variables of the kernel that were asked for by name.

use super::{Copy, ModuleAt, ModuleSymbol};
use crate::btf::{TypeId, Want};
use crate::mem::Kva;

/// Bytes of one variable.
const MAX_VARIABLE: u64 = 64 << 10;

/// Where a variable was copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Where {
    /// There is one of it.
    Once(u64),
    /// Each CPU has its own: CPU and address.
    PerCpu(Vec<(u32, u64)>),
    /// It could not be copied, and why.
    Nowhere(String),
}

/// A variable of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Where it lies.
    pub place: Where,
    /// Bytes that were copied.
    pub len: u64,
    /// Its type, where the kernel's BTF tells it: of per-CPU variables only.
    pub ty: Option<TypeId>,
}

impl Copy<'_> {
    pub(super) fn variables(&mut self, names: &[String]) {
        for name in names {
            let ty = self.kernel.btf().find(name, Want::Var);
            let ty = ty.and_then(|var| self.kernel.btf().target(var));
            let mut var = Variable { name: name.clone(), place: Where::Once(0), len: 0, ty };
            var.place = self.variable(&mut var).unwrap_or_else(Where::Nowhere);
            self.raw.variables.push(var);
        }
    }

    /// One that a module brings: it ends where the module's next symbol begins.
    fn module_variable(&mut self, var: &mut Variable) -> Result<Where, String> {
        let of = |module: &ModuleAt| {
            let named = |symbol: &&ModuleSymbol| symbol.name == var.name;
            let found = module.symbols.iter().filter(named).map(|symbol| symbol.at);
            found.map(|at| (at, module.room_at(at), module.is_per_cpu(at))).collect::<Vec<_>>()
        };
        let found: Vec<(u64, u64, bool)> = self.raw.modules.iter().flat_map(of).collect();
        let (at, room, per_cpu) = match found[..] {
            [] => return Err("the kernel has no such symbol".into()),
            [one] => one,
            [..] => {
                let n = found.len();
                return Err(format!(
                    "{n} variables of modules are called so, and which is meant cannot be told"
                ));
            }
        };
        var.len = room.clamp(1, MAX_VARIABLE);
        self.places(at, var.len, per_cpu)
    }

    fn variable(&mut self, var: &mut Variable) -> Result<Where, String> {
        let symbols = self.kernel.symbols();
        let at = match symbols.lookup(&var.name) {
            [] => return self.module_variable(var),
            [at] => *at,
            several => {
                let places: Vec<String> = several.iter().map(|at| format!("{at:#x}")).collect();
                return Err(format!(
                    "{} variables are called so (at {}), and which is meant cannot be told",
                    several.len(),
                    places.join(", ")
                ));
            }
        };
        // Where the type does not say how long it is, it ends where the next symbol begins.
        let size = var.ty.and_then(|ty| self.kernel.btf().size_of(ty)).filter(|size| *size > 0);
        let room = || symbols.room_at(Kva(at)).unwrap_or(8);
        var.len = size.unwrap_or_else(room).clamp(1, MAX_VARIABLE);
        let end = |name| symbols.get(name).map(|at| at.0);
        let per_cpu = end("__per_cpu_start").zip(end("__per_cpu_end"));
        let per_cpu = per_cpu.is_some_and(|(start, end)| (start..end).contains(&at));
        self.places(at, var.len, per_cpu)
    }

    fn places(&mut self, at: u64, len: u64, per_cpu: bool) -> Result<Where, String> {
        if !per_cpu {
            self.piece(at, len)?;
            return Ok(Where::Once(at));
        }
        let mut places = Vec::new();
        for cpu in 0..self.kernel.nr_cpu_ids() {
            let Some(offset) = self.kernel.per_cpu_offset(cpu) else { continue };
            let at = at.wrapping_add(offset);
            self.piece(at, len)?;
            places.push((cpu, at));
        }
        Ok(Where::PerCpu(places))
    }
}
