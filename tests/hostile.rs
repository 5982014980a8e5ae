//! Guests that mean harm: they write garbage to every register, flood every line, fault at once, or
//! keep silent. What becomes of them is told clearly, they cannot make this process hold much, and
//! they can always be ended.

#[path = "support/tiny.rs"]
mod tiny;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cryoscope::introspect::Kernel as Introspected;
use cryoscope::vm::channel::{Channel, ChannelError};
use cryoscope::vm::{self, Engine, EngineChoice, ExitKind, VmError};
use cryoscope::wire::{Encoder, Event, FromGuest, Hello, Op, VERSION};
use tiny::{COM1, COM2, Code, Kernel};

/// Longest wait for a guest of a few thousand instructions, each of which may be emulated.
const SOON: Duration = Duration::from_secs(120);

/// What a test holds is measured, and an emulated machine takes a whole CPU: one at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The engines that there are here; KVM is there when it can run a guest at all, however slowly.
fn engines() -> Vec<EngineChoice> {
    match vm::kvm_speed() {
        Ok(_) => vec![EngineChoice::Kvm, EngineChoice::Qemu],
        Err(why) => {
            assert!(!std::path::Path::new("/dev/kvm").exists(), "{why}");
            vec![EngineChoice::Qemu]
        }
    }
}

/// So many rounds that a guest lives longer than an engine takes to start: where instructions are
/// translated they are twenty times as fast as where each is emulated.
fn rounds(engine: EngineChoice, count: u32) -> u32 {
    if engine == EngineChoice::Kvm { count } else { 20 * count }
}

/// A guest under attack by itself; a failing test prints what is known of it.
struct Guest {
    engine: Box<dyn Engine>,
    what: String,
}

impl Guest {
    fn start(what: &str, choice: EngineChoice, kernel: &Kernel, shape: &str) -> Guest {
        let mut spec = kernel.spec(shape);
        spec.console_limit = 64 << 10;
        let what = format!("{what} under {}", choice.name());
        let engine = vm::start(&spec, choice).unwrap_or_else(|e| panic!("{what}: {e}"));
        Guest { engine, what }
    }

    fn ends(&mut self) -> ExitKind {
        let begin = Instant::now();
        let info = self.engine.exit_watch().wait(SOON);
        let info = info.unwrap_or_else(|| panic!("{}: it still runs", self.what));
        println!("{}: {} after {:?}", self.what, info.kind, begin.elapsed());
        assert_eq!(self.engine.stop(), info, "{}: stopping changes nothing", self.what);
        assert!(matches!(self.engine.pause(), Err(VmError::Exited(_))), "{}", self.what);
        info.kind
    }

    /// How it ends; one that runs on obeys.
    fn ends_or_obeys(&mut self, within: Duration) -> Option<ExitKind> {
        if self.engine.exit_watch().wait(within).is_some() {
            return Some(self.ends());
        }
        println!("{}: it runs on", self.what);
        self.obeys();
        None
    }

    fn channel(&mut self) -> Channel {
        let transport = self.engine.take_transport().expect("a transport");
        Channel::new(transport, Some(self.engine.exit_watch())).expect("a channel")
    }

    /// It stands still when it is told to, goes on, and is gone when it is ended.
    fn obeys(&mut self) {
        let what = self.what.clone();
        for _ in 0..3 {
            self.engine.pause().unwrap_or_else(|e| panic!("{what}: {e}"));
            let registers = self.engine.registers(0).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert!(registers.values.contains_key("rip"), "{what}: {registers:?}");
            self.engine.resume().unwrap_or_else(|e| panic!("{what}: {e}"));
        }
        assert_eq!(self.engine.stop().kind, ExitKind::Stopped, "{what}");
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {}: console\n{}", self.what, self.engine.console().tail(30));
            let _ = self.engine.pause();
            eprintln!("--- CPU 0: {:x?}", self.engine.registers(0));
            eprintln!("--- machine: {:?}", self.engine.exited());
        }
    }
}

/// KiB that this process has in RAM, but for what it shares with guests.
fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("our own status");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("RssAnon");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[test]
fn garbage_in_a_serial_ports_registers_harms_nobody() {
    let _alone = alone();
    for engine in engines() {
        for (name, port) in [("the console", COM1), ("the frames' line", COM2)] {
            let code = Code::new()
                .garbage_to_eight(port, rounds(engine, 10_000))
                .say("\nstill here\n")
                .power_off();
            let what = format!("garbage in the registers of {name}");
            let mut guest = Guest::start(&what, engine, &code.kernel(), "1n1l1c1t");
            assert_eq!(guest.ends(), ExitKind::PoweredOff, "{what}");
            let text = guest.engine.console().text();
            assert!(text.ends_with("\nstill here\n"), "{what}: {text}");
        }
    }
}

#[test]
fn garbage_in_all_ports_and_in_addresses_without_ram_harms_nobody() {
    let _alone = alone();
    // Registers that end the machine, of the one engine and of the other.
    const ENDS: [u16; 9] = [0x600, 0x604, 0x64, 0x92, 0xcf8, 0xcf9, 0xcfb, 0xb2, 0xb3];
    // Behind RAM, in front of the interrupt controllers; nothing is there on either machine.
    let nowhere = |count: u32| Code::new().garbage_to_memory(0xd000_0000, 0x00ff_fffc, count);
    let ports = || Code::new().garbage_to_ports(10_000, &ENDS);
    for engine in engines() {
        let guest = |what: &str, code: Code| {
            let kernel = code.say("\nstill here\n").power_off().kernel();
            Guest::start(what, engine, &kernel, "1n1l1c1t")
        };
        let mut none = guest("garbage in addresses without RAM", nowhere(rounds(engine, 5_000)));
        assert_eq!(none.ends(), ExitKind::PoweredOff);
        assert!(none.engine.console().text().ends_with("still here\n"));
        let mut all = guest("garbage in all ports", ports());
        if engine == EngineChoice::Kvm {
            assert_eq!(all.ends(), ExitKind::PoweredOff);
            assert!(all.engine.console().text().ends_with("still here\n"));
        } else {
            // What a q35's devices and firmware make of it is QEMU's affair; it stays in hand.
            let _ = all.ends_or_obeys(Duration::from_secs(5));
        }
        // Two CPUs, so that interrupts go astray too. A fault of its own is a guest's right.
        let code = Code::new()
            .garbage_to_memory(0xfec0_0000, 0x0030_0ff0, rounds(engine, 5_000))
            .power_off();
        let what = "garbage in the interrupt controllers";
        let mut apic = Guest::start(what, engine, &code.kernel(), "1n1l2c1t");
        let end = apic.ends();
        assert!(matches!(end, ExitKind::PoweredOff | ExitKind::TripleFault), "{what}: {end}");
    }
}

#[test]
fn every_way_out_is_told_apart() {
    let _alone = alone();
    for engine in engines() {
        let own = engine == EngineChoice::Kvm;
        let (off, reset) = match own {
            true => (tiny::KVM_POWER_OFF, tiny::KVM_RESET),
            false => (tiny::POWER_OFF, tiny::RESET),
        };
        let cases = [
            ("switching off", off, ExitKind::PoweredOff),
            ("resetting", reset, ExitKind::Restarted),
            ("a triple fault", tiny::TRIPLE_FAULT, ExitKind::TripleFault),
        ];
        for (what, code, kind) in cases {
            let mut guest = Guest::start(what, engine, &Kernel::new("hm\n", code), "1n1l1c1t");
            assert_eq!(guest.ends(), kind, "{what}");
            let error = guest.channel().hello(SOON).unwrap_err();
            assert!(matches!(&error, ChannelError::MachineEnded(info) if info.kind == kind));
        }
        let spins = Kernel::new("hm\n", tiny::SPIN);
        Guest::start("spinning", engine, &spins, "1n1l2c1t").obeys();
        let hangs = Kernel::new("hm\n", tiny::HANG);
        Guest::start("hanging", engine, &hangs, "1n1l2c1t").obeys();
        // What KVM's own emulator may not know: then it says which instruction that was.
        let odd = Kernel::new("hm\n", tiny::BREAKPOINT);
        let mut guest = Guest::start("an interrupt without a table", engine, &odd, "1n1l1c1t");
        match guest.ends() {
            ExitKind::TripleFault => {}
            ExitKind::EngineDied { status } => {
                assert!(own && status.starts_with("failed: KVM gave CPU 0 up: "), "{status}");
                assert!(status.contains(", at rip 0x1010"), "{status}");
            }
            other => panic!("{other}"),
        }
        // Running where there is no RAM: KVM cannot, and a q35 reads ones for ever.
        let nowhere = Kernel::new("hm\n", &[0xb8, 0, 0, 0, 0xd0, 0xff, 0xe0]);
        let mut guest = Guest::start("running where nothing is", engine, &nowhere, "1n1l1c1t");
        match guest.ends_or_obeys(Duration::from_secs(20)) {
            None | Some(ExitKind::TripleFault) => {}
            Some(ExitKind::EngineDied { status }) => println!("{status}"),
            Some(other) => panic!("{other}"),
        }
    }
}

#[test]
fn a_flood_on_the_console_is_bounded_and_its_guest_still_obeys() {
    let _alone = alone();
    for engine in engines() {
        let kernel = Code::new().flood(COM1).kernel();
        let before = resident_kib();
        let mut guest = Guest::start("a flood on the console", engine, &kernel, "1n1l1c1t");
        let until = Instant::now() + SOON;
        while !guest.engine.console().text().contains("earlier bytes dropped") {
            assert!(Instant::now() < until, "{}: it prints little", guest.what);
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(guest.engine.console().text().len() <= 3 * (64 << 10) * 3);
        let held = resident_kib().saturating_sub(before);
        assert!(held < 8 << 10, "{}: {held} KiB more than before", guest.what);
        guest.obeys();
    }
}

fn frames(messages: &[FromGuest]) -> Vec<u8> {
    let mut encoder = Encoder::default();
    messages.iter().flat_map(|m| encoder.encode(m).expect("it can be encoded")).collect()
}

fn hello() -> FromGuest {
    let release = "0.0.0-hostile".to_owned();
    FromGuest::Hello(Hello { version: VERSION, release, cpus: 1, uptime_us: 1 })
}

/// A guest of our own machine, whose frames go over a serial line. Under QEMU the same bytes would
/// need a driver; what the host makes of them is the same code.
fn talks(what: &str, said: Code) -> Option<Guest> {
    let kernel = said.kernel();
    let own = engines()[0] == EngineChoice::Kvm;
    own.then(|| Guest::start(what, EngineChoice::Kvm, &kernel, "1n1l1c1t"))
}

#[test]
fn a_guest_that_babbles_floods_or_keeps_silent_is_given_up_with_the_reason() {
    let _alone = alone();
    let before = resident_kib();
    if let Some(mut guest) = talks("babbling", Code::new().flood(COM2)) {
        let error = guest.channel().hello(SOON).unwrap_err().to_string();
        assert!(error.starts_with("the guest's frames are damaged: frame 0: bad magic"), "{error}");
        guest.obeys();
    }
    let mut all = vec![hello()];
    all.extend(std::iter::repeat_n(FromGuest::Event(Event::PoweringOff), 4097));
    if let Some(mut guest) = talks("a flood of events", Code::new().send(COM2, &frames(&all))) {
        let channel = guest.channel();
        assert_eq!(channel.hello(SOON).expect("it says hello").release, "0.0.0-hostile");
        let until = Instant::now() + SOON;
        let error = loop {
            match channel.ended() {
                Some(error) => break error.to_string(),
                None => assert!(Instant::now() < until, "{}: it is heard out", guest.what),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let says = "the guest broke the protocol: it sent more than 4096 events at once";
        assert_eq!(error, says);
        guest.obeys();
    }
    if let Some(mut guest) = talks("no answers", Code::new().send(COM2, &frames(&[hello()]))) {
        let channel = guest.channel();
        channel.hello(SOON).expect("it says hello");
        let short = Duration::from_millis(200);
        let error = channel.call(Op::Dmesg, short).unwrap_err();
        assert_eq!(error.to_string(), "waited 200ms for an answer to Dmesg in vain");
        // It does not read either.
        let path = "x".repeat(3 << 20);
        let error = channel.call(Op::ReadFile { path, offset: 0 }, short).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the transport to the guest has ended: the guest does not read"
        );
        guest.obeys();
    }
    for engine in engines() {
        let kernel = Kernel::new("hm\n", tiny::SPIN);
        let mut guest = Guest::start("no hello", engine, &kernel, "1n1l1c1t");
        let error = guest.channel().hello(Duration::from_millis(300)).unwrap_err();
        assert_eq!(error.to_string(), "waited 300ms for the guest's agent to say hello in vain");
        // Nor is there a kernel to look into.
        let begin = Instant::now();
        let Err(opened) = Introspected::open(guest.engine.memory()) else {
            panic!("{}: there is no kernel", guest.what);
        };
        println!("{}: {opened} after {:?}", guest.what, begin.elapsed());
        assert!(begin.elapsed() < SOON);
        guest.obeys();
    }
    let held = resident_kib().saturating_sub(before);
    assert!(held < 48 << 10, "{held} KiB more than before");
}
