//! A guest that has KVM, or something like it, where this machine has none that is worth it: QEMU's
//! emulator has AMD's SVM, and Debian's kernels have the module. Programs that are staged there,
//! this very test among them, use our own machine as anywhere else.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use cryoscope::kernel::KernelImage;
use cryoscope::vm::initramfs::{Initramfs, InitramfsError};
use cryoscope::wire::{Answer, Exec, Op};

use super::{CALL, Guest, elf, modules, spec};

/// Where the outer guest has what inner ones boot.
pub const INNER: &str = "/inner";
/// Where the outer guest has the test that runs in both.
pub const SELF: &str = "/this-test";
/// Where a program in the outer guest says what it does.
const LOG: &str = "/log";
/// How often that is looked at.
const LOOK: Duration = Duration::from_secs(5);
const MODULES: [&str; 3] = ["virt/lib/irqbypass", "arch/x86/kvm/kvm", "arch/x86/kvm/kvm-amd"];

/// Whether KVM is worth it right here.
pub fn kvm_is_real() -> bool {
    cryoscope::vm::kvm_speed().is_ok_and(|speed| speed.is_real())
}

/// Waits a while for a call to end.
fn call_or_nap<T>(call: &std::thread::ScopedJoinHandle<'_, T>) {
    let until = Instant::now() + LOOK;
    while !call.is_finished() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// In the outer guest: what this program says goes to [`LOG`] from now on, and when it is still
/// there after `late`, so does where each of its threads is.
pub fn speak_up(late: Duration) {
    let log = fs::File::create(LOG).unwrap_or_else(|e| panic!("{LOG}: {e}"));
    rustix::stdio::dup2_stdout(&log).expect("standard output is the log");
    rustix::stdio::dup2_stderr(&log).expect("standard error is the log");
    let watch = move || {
        std::thread::sleep(late);
        println!("--- late: where the threads of all processes of ours are");
        for task in fs::read_dir("/proc").expect("processes").flatten() {
            let threads = fs::read_dir(task.path().join("task")).into_iter().flatten().flatten();
            for thread in threads {
                let read = |file: &str| fs::read_to_string(thread.path().join(file));
                let (name, stack) = (read("comm"), read("stack").unwrap_or_default());
                // The kernel's own threads have no address in user space.
                if read("maps").is_ok_and(|maps| !maps.is_empty()) {
                    let name = name.unwrap_or_default();
                    println!("{} {}: {stack}", thread.path().display(), name.trim());
                }
            }
        }
    };
    std::thread::spawn(watch);
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

    /// Runs a program there, however it ends. What it says in [`LOG`] is printed as it comes.
    pub fn exec(&self, argv: &[&str], patience: Duration) -> Exec {
        let argv = argv.iter().map(|word| (*word).to_owned()).collect();
        let op = Op::Exec { argv, timeout_ms: patience.as_millis() as u64 };
        let answer = std::thread::scope(|scope| {
            let channel = &self.0.channel;
            let call = scope.spawn(move || channel.call(op, patience + CALL));
            let mut from = 0;
            while !call.is_finished() {
                call_or_nap(&call);
                self.print_log(&mut from);
            }
            self.print_log(&mut from);
            call.join().expect("the call ends")
        });
        match answer {
            Ok(Answer::Exec(done)) => {
                print!("{}{}", done.stdout, done.stderr);
                done
            }
            other => panic!("{other:?}"),
        }
    }

    fn print_log(&self, from: &mut u64) {
        let op = Op::ReadFile { path: LOG.to_owned(), offset: *from };
        if let Ok(Answer::File { bytes, .. }) = self.0.channel.call(op, CALL) {
            *from += bytes.len() as u64;
            print!("{}", String::from_utf8_lossy(&bytes));
        }
    }

    /// A file there.
    pub fn file(&self, path: &str) -> String {
        self.0.file(path)
    }
}
