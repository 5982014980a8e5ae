//! A machine of any engine, with what talks to its agent: what a test needs that goes beyond asking.

use std::time::{Duration, Instant};

use cryoscope::freeze::Freezer;
use cryoscope::vm::channel::Channel;
use cryoscope::vm::{Engine, EngineChoice, ExitKind, VmSpec, start};
use cryoscope::wire::{Answer, Hello, Op};

/// How long one of these may take: on a machine of our own within an emulated one, exits are slow.
pub const HELLO: Duration = Duration::from_secs(300);
pub const CALL: Duration = Duration::from_secs(120);

/// A machine whose agent has said hello. When a test that holds one fails, it prints the frames,
/// the console and the state of all CPUs.
pub struct Machine {
    pub freezer: Freezer,
    pub channel: Channel,
    pub hello: Hello,
    /// From its start to the hello.
    pub took: Duration,
}

impl Machine {
    pub fn boot(spec: &VmSpec, choice: EngineChoice) -> Machine {
        let begin = Instant::now();
        let mut engine = start(spec, choice).unwrap_or_else(|e| panic!("{e}"));
        let transport = engine.take_transport().expect("a transport");
        let channel = Channel::new(transport, Some(engine.exit_watch())).expect("a channel");
        let hello = Hello { version: 0, release: String::new(), cpus: 0, uptime_us: 0 };
        let freezer = Freezer::new(engine);
        let mut machine = Machine { freezer, channel, hello, took: Duration::ZERO };
        let hello = machine.channel.hello(HELLO);
        machine.hello = hello.unwrap_or_else(|e| panic!("waiting for the agent's hello: {e}"));
        machine.took = begin.elapsed();
        assert_eq!(machine.hello.cpus, spec.topology.cpus(), "{}", spec.topology);
        machine
    }

    /// One request that must succeed.
    pub fn call(&self, op: Op) -> Answer {
        self.channel.call(op.clone(), CALL).unwrap_or_else(|e| panic!("{op:?}: {e}"))
    }

    /// A file of the guest, without blanks around it.
    pub fn file(&self, path: &str) -> String {
        match self.call(Op::ReadFile { path: path.to_owned(), offset: 0 }) {
            Answer::File { bytes, .. } => String::from_utf8_lossy(&bytes).trim().to_owned(),
            other => panic!("{path}: {other:?}"),
        }
    }

    /// Seconds since the guest's boot, by its own clock.
    pub fn uptime(&self) -> f64 {
        let text = self.file("/proc/uptime");
        text.split(' ').next().and_then(|first| first.parse().ok()).expect("a number")
    }

    pub fn engine(&mut self) -> &mut dyn Engine {
        self.freezer.engine_mut()
    }

    /// Has it switch itself off.
    pub fn power_off(self) {
        let watch = self.freezer.engine().exit_watch();
        let _ = self.channel.call(Op::PowerOff, CALL);
        let end = watch.wait(CALL).expect("it goes off");
        assert_eq!(end.kind, ExitKind::PoweredOff, "{end}");
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- frames\n{}", self.channel.trace().join("\n"));
            eprintln!("--- console\n{}", self.freezer.engine().console().tail(60));
            let _ = self.engine().pause();
            for cpu in 0.. {
                match self.engine().registers(cpu) {
                    Ok(r) => eprintln!("--- CPU {cpu}: {:x?}", (r.halted, r.values)),
                    Err(e) => {
                        eprintln!("--- {e}");
                        break;
                    }
                }
            }
            eprintln!("--- machine: {:?}", self.freezer.engine().exited());
        }
    }
}
