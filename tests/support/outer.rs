//! A guest that has KVM, or something like it, where this machine has none that is worth it: QEMU's
//! emulator has AMD's SVM, and Debian's kernels have the module. Programs that are staged there,
//! this very test among them, use our own machine as anywhere else.

use std::path::Path;
use std::time::Duration;

use cryoscope::kernel::KernelImage;
use cryoscope::vm::initramfs::{Initramfs, InitramfsError};
use cryoscope::wire::{Answer, Exec, Op};

use super::{CALL, Guest, elf, modules, spec};

/// Where the outer guest has what inner ones boot.
pub const INNER: &str = "/inner";
/// Where the outer guest has the test that runs in both.
pub const SELF: &str = "/this-test";
const MODULES: [&str; 3] = ["virt/lib/irqbypass", "arch/x86/kvm/kvm", "arch/x86/kvm/kvm-amd"];

/// Whether KVM is worth it right here.
pub fn kvm_is_real() -> bool {
    cryoscope::vm::kvm_speed().is_ok_and(|speed| speed.is_real())
}

/// The outer guest.
pub struct Outer(Guest);

impl Outer {
    /// Boots one with that kernel and that many MiB; it holds this program at [`SELF`] and whatever
    /// `stage` adds.
    pub fn start(
        image: &KernelImage,
        mib: u64,
        stage: impl FnOnce(&mut Initramfs) -> Result<(), InitramfsError>,
    ) -> Outer {
        let modules = modules::files(image, &MODULES);
        let name = |path: &Path| {
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            format!("/{name}")
        };
        let mut machine = spec(elf(image), "1n1l1c1t", |fs| {
            let all = || {
                for module in &modules {
                    fs.file(module, &name(module), 0o644)?;
                }
                fs.elf(&std::env::current_exe().expect("this program"), SELF)?;
                stage(fs)
            };
            all().unwrap_or_else(|e| panic!("{e}"));
        });
        machine.memory = mib << 20;
        machine.nested = true;
        let outer = Outer(Guest::start(&machine));
        for module in &modules {
            outer.run(&["insmod", &name(module)], CALL);
        }
        outer
    }

    /// Runs a program there, which has to succeed; what it prints is printed here.
    pub fn run(&self, argv: &[&str], patience: Duration) -> Exec {
        let done = self.exec(argv, patience);
        assert_eq!(done.code, Some(0), "{argv:?} in the outer guest");
        done
    }

    /// Runs a program there, however it ends.
    pub fn exec(&self, argv: &[&str], patience: Duration) -> Exec {
        let argv = argv.iter().map(|word| (*word).to_owned()).collect();
        let op = Op::Exec { argv, timeout_ms: patience.as_millis() as u64 };
        match self.0.channel.call(op, patience + CALL) {
            Ok(Answer::Exec(done)) => {
                print!("{}{}", done.stdout, done.stderr);
                done
            }
            other => panic!("{other:?}"),
        }
    }

    /// A file there.
    pub fn file(&self, path: &str) -> String {
        self.0.file(path)
    }
}
