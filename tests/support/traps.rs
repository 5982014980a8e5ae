//! What every engine's traps must do: the same bodies run under QEMU and in our own machine.

use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cryoscope::introspect::Kernel;
use cryoscope::mem::Kva;
use cryoscope::vm::channel::Channel;
use cryoscope::vm::{Capability, Engine, Trap, Trapped};
use cryoscope::wire::{Answer, Op};

/// How long one request may take, stops and all: traps under an emulator in an emulator.
const CALL: Duration = Duration::from_secs(120);

/// A machine with an agent, and what its traps say.
pub struct Bench<'a> {
    pub engine: &'a mut dyn Engine,
    channel: &'a Channel,
    pub kernel: Kernel,
    woken: Receiver<()>,
}

impl<'a> Bench<'a> {
    pub fn new(engine: &'a mut dyn Engine, channel: &'a Channel) -> Bench<'a> {
        let kernel = Kernel::open(engine.memory()).unwrap_or_else(|e| panic!("{e}"));
        let (wake, woken) = channel_of_wakes();
        engine.on_trap(Arc::new(wake));
        Bench { engine, channel, kernel, woken }
    }

    pub fn address(&self, symbol: &str) -> Kva {
        self.kernel.symbols().address(symbol).unwrap_or_else(|e| panic!("{e}"))
    }

    pub fn word(&self, symbol: &str) -> Trap {
        Trap::Write { address: self.address(symbol).0, len: 4 }
    }

    pub fn function(&self, symbol: &str) -> Trap {
        // Where the CPU checks targets of indirect calls, `endbr64` has to stay.
        const ENDBR: u32 = 0xfa1e_0ff3;
        let at = self.address(symbol);
        let skip = if self.value(symbol) == ENDBR { 4 } else { 0 };
        let at = at.offset(skip);
        let physical = self.kernel.translate(at).expect("it is mapped").0;
        Trap::Execute { address: at.0, physical }
    }

    pub fn set(&mut self, traps: &[Trap]) {
        self.engine.set_traps(traps).unwrap_or_else(|e| panic!("{traps:?}: {e}"));
    }

    pub fn value(&self, symbol: &str) -> u32 {
        self.kernel.read_u32(self.address(symbol)).unwrap_or_else(|e| panic!("{e}"))
    }

    /// The function that a CPU is in.
    pub fn place(&mut self, cpu: u32) -> String {
        let registers = self.engine.registers(cpu).unwrap_or_else(|e| panic!("{e}"));
        let rip = Kva(registers.values["rip"]);
        self.kernel.symbols().find_addr(rip).map_or(rip.to_string(), |(name, _)| name.to_owned())
    }

    /// Runs a program in the guest; `seen` looks at each hit meanwhile, while the machine stands.
    /// What the program printed.
    pub fn run(&mut self, argv: &[&str], mut seen: impl FnMut(&mut Bench<'_>, Trapped)) -> String {
        let argv = argv.iter().map(|word| (*word).to_owned()).collect();
        let op = Op::Exec { argv, timeout_ms: CALL.as_millis() as u64 };
        let channel = self.channel;
        let begin = Instant::now();
        std::thread::scope(|scope| {
            let call = scope.spawn(|| channel.call(op, CALL));
            loop {
                assert!(begin.elapsed() < CALL, "the program does not end");
                match self.woken.recv_timeout(Duration::from_millis(20)) {
                    Ok(()) => self.look(&mut seen),
                    Err(RecvTimeoutError::Timeout) if call.is_finished() => break,
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(e) => panic!("{e}"),
                }
            }
            match call.join().expect("the call") {
                Ok(Answer::Exec(done)) => {
                    assert_eq!(done.code, Some(0), "{done:?}");
                    done.stdout
                }
                other => panic!("{other:?}"),
            }
        })
    }

    /// Looks at what was hit, and lets the machine go on.
    fn look(&mut self, seen: &mut impl FnMut(&mut Bench<'_>, Trapped)) {
        self.engine.pause().unwrap_or_else(|e| panic!("{e}"));
        for hit in self.engine.trapped() {
            seen(self, hit);
        }
        self.engine.resume().unwrap_or_else(|e| panic!("{e}"));
    }
}

fn channel_of_wakes() -> (impl Fn() + Send + Sync, Receiver<()>) {
    let (wake, woken) = channel();
    let wake = Mutex::new(wake);
    let call = move || {
        let _ = wake.lock().expect("nothing panics with it").send(());
    };
    (call, woken)
}

/// Each write to a watched word stops the machine once, right behind the writing instruction.
pub fn writes_are_trapped_one_by_one(bench: &mut Bench<'_>) {
    assert!(bench.engine.capabilities().has(Capability::Watchpoints));
    // What `kernel.panic` sets: seconds from a panic to a restart.
    let trap = bench.word("panic_timeout");
    bench.set(&[trap]);
    for value in [11, 12, 13, 13] {
        let mut found = Vec::new();
        let set = format!("kernel.panic={value}");
        bench.run(&["sysctl", &set], |bench, hit| {
            assert_eq!(hit.trap, trap);
            let cpu = hit.cpu.expect("the CPU is known");
            found.push((bench.value("panic_timeout"), bench.place(cpu)));
        });
        let [(new, place)] = &found[..] else { panic!("{value}: one write is one hit: {found:?}") };
        assert_eq!(*new, value);
        assert!(place.contains("proc_") || place.contains("int_conv"), "{place}");
    }
    let printed =
        bench.run(&["sysctl", "kernel.panic"], |_, hit| panic!("a read is no hit: {hit:?}"));
    assert_eq!(printed, "kernel.panic = 13\n");
    bench.set(&[]);
    bench.run(&["sysctl", "kernel.panic=-1"], |_, hit| panic!("it is not watched: {hit:?}"));
}

/// A breakpoint stops the machine before the instruction, once; the machine goes on unharmed.
pub fn instructions_are_trapped_once(bench: &mut Bench<'_>) {
    let trap = bench.function("proc_dointvec_minmax");
    let Trap::Execute { address, physical } = trap else { unreachable!() };
    let code = |bench: &Bench<'_>| bench.kernel.read_u64(Kva(address)).expect("it can be read");
    let before = code(bench);
    for round in 0..3 {
        bench.set(&[trap]);
        let mut hits = 0;
        // Written through that very function, and read through it.
        let printed = bench.run(&["sysctl", "vm.swappiness=61"], |bench, hit| {
            hits += 1;
            assert_eq!(hit.trap, Trap::Execute { address, physical });
            let registers = bench.engine.registers(hit.cpu.expect("the CPU is known"));
            let registers = registers.unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(registers.values["rip"], address);
        });
        assert_eq!((hits, printed.as_str()), (1, "vm.swappiness = 61\n"), "round {round}");
        assert_eq!(code(bench), before, "the code is as it was");
    }
    bench.set(&[trap]);
    bench.set(&[]);
    assert_eq!(code(bench), before, "one that was never hit is taken away");
    bench.run(&["sysctl", "vm.swappiness"], |_, hit| panic!("nothing is set: {hit:?}"));
}

/// A breakpoint is set while the kernel patches its own code, which it does by way of `int3`.
pub fn the_kernels_own_breakpoints_stay_its_own(bench: &mut Bench<'_>) {
    let trap = bench.function("proc_dointvec_minmax");
    bench.set(&[trap]);
    for on in ["1", "0", "1", "0"] {
        // Turns a static key on and off: sites all over the scheduler are patched.
        let set = format!("kernel.sched_schedstats={on}");
        let mut hits = 0;
        let printed = bench.run(&["sysctl", &set], |_, hit| {
            hits += 1;
            assert_eq!(hit.trap, trap);
        });
        assert_eq!(printed, format!("kernel.sched_schedstats = {on}\n"));
        assert!(hits <= 1, "it counts once");
        bench.set(&[]);
        bench.set(&[trap]);
    }
    bench.set(&[]);
}

/// What our own machine must do with traps. Breakpoints fire wherever KVM runs guests on the CPU;
/// watchpoints need not, and are only offered where they do.
pub fn fire_on_kvm(engine: &mut dyn Engine, channel: &Channel) {
    let mut bench = Bench::new(engine, channel);
    instructions_are_trapped_once(&mut bench);
    the_kernels_own_breakpoints_stay_its_own(&mut bench);
    if bench.engine.capabilities().has(Capability::Watchpoints) {
        return writes_are_trapped_one_by_one(&mut bench);
    }
    let trap = bench.word("panic_timeout");
    let refused = bench.engine.set_traps(&[trap]).expect_err("watchpoints do not fire here");
    let says = "this host's KVM does not stop there: see `cryoscope doctor`";
    assert_eq!(refused.to_string(), format!("cannot trap {trap}: {says}"));
    bench.run(&["sysctl", "kernel.panic=-1"], |_, hit| panic!("nothing is set: {hit:?}"));
}
