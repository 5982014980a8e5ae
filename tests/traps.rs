//! Traps: machines that stand still by themselves, at a write or at an instruction.

mod support;

use cryoscope::vm::Boot;
use support::Guest;
use support::traps::{self, Bench};

fn traps_of_an_engine(boot: Boot) {
    let mut guest = Guest::boot(boot, "1n1l2c1t", |_| {});
    let mut engine = guest.take_engine();
    let mut bench = Bench::new(&mut *engine, &guest.channel);
    traps::writes_are_trapped_one_by_one(&mut bench);
    traps::instructions_are_trapped_once(&mut bench);
    traps::the_kernels_own_breakpoints_stay_its_own(&mut bench);
}

#[test]
fn a_kernel_with_kaslr_is_trapped() {
    traps_of_an_engine(support::bzimage(&support::kernel("debian:7.2")));
}

#[test]
fn an_elf_kernel_is_trapped() {
    traps_of_an_engine(support::elf(&support::kernel("debian:7.3")));
}
